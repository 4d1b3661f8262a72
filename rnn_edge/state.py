"""The state of a stream: all that a recurrent network remembers of a text. Save, load, fork, compare."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import InvalidValueError, StateError
from rnn_edge.files import write_bytes
from rnn_edge.schema import SchemaError, decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rnn_edge.manifest import Manifest

_MAXIMUM_FILE = 2**30


@dataclass(frozen=True)
class Continuation:
    """What a text needs beside its tensors so that it goes on as if it had never stopped.

    ``pending`` is the id that is shown but not yet fed; ``step`` the number of tokens chosen so far, which keys the
    noise together with ``seed`` and ``stream``; ``recent`` the ids that the repeat penalty sees; ``held_bytes`` the
    start of an incomplete character, in hexadecimal.
    """

    pending: int | None = None
    seed: int | None = None
    step: int = 0
    recent: tuple[int, ...] = ()
    held_bytes: str = ""
    stream: int = 0


@dataclass(frozen=True)
class State:
    """Tensors by the names of the graph's state inputs, each float32 [batch, width], and where the text stands."""

    tensors: dict[str, NDArray[np.float32]]
    continuation: Continuation = Continuation()

    @property
    def batch(self) -> int:
        """Number of streams."""
        return int(next(iter(self.tensors.values())).shape[0])

    def fork(self, copies: int) -> State:
        """The same state for ``copies`` streams each: rows are repeated in place."""
        return replace(self, tensors={name: np.repeat(tensor, copies, axis=0) for name, tensor in self.tensors.items()})

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> State:
        """That of these streams."""
        return replace(self, tensors={name: tensor[rows] for name, tensor in self.tensors.items()})

    def largest_difference(self, other: State) -> float:
        """The largest absolute difference between two states of one model."""
        return max(float(np.abs(tensor - other.tensors[name]).max()) for name, tensor in self.tensors.items())


def zero_state(manifest: Manifest, batch: int = 1) -> State:
    """The state before any text."""
    return State({pair.input: np.zeros((batch, pair.width), np.float32) for pair in manifest.state})


def save_state(path: Path, state: State, manifest: Manifest) -> None:
    """Write a safetensors file that names the bundle it belongs to."""
    from safetensors.numpy import save

    metadata = {
        "bundle": manifest.digest,
        "name": manifest.name,
        "continuation": json.dumps(encode(state.continuation)),
    }
    write_bytes(path, save(dict(state.tensors), metadata=metadata))


def load_state(path: Path, manifest: Manifest) -> State:
    """Read what ``save_state`` wrote for the same bundle.

    Raises:
        StateError: missing, damaged, or of another bundle.
    """
    from safetensors import SafetensorError, safe_open

    mend = "give a file that generate --save-state wrote"
    if not path.is_file():
        raise StateError(f"there is no state file {path}", mend)
    if path.stat().st_size > _MAXIMUM_FILE:
        raise StateError(f"{path} is larger than any state", mend)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        owner, name = metadata["bundle"], metadata.get("name", "another bundle")
        continuation = decode(Continuation, json.loads(metadata["continuation"]), strict=False)
        bytes.fromhex(continuation.held_bytes)
    except (
        SafetensorError,
        SchemaError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        OSError,
    ) as error:
        raise StateError(f"{path} is not a state file", mend) from error
    if owner != manifest.digest:
        raise StateError(
            f"{path} belongs to {name} (graph {owner[:12]}), not to {manifest.name} (graph {manifest.digest[:12]})",
            "use the bundle that wrote it, or leave --load-state out",
        )
    size = manifest.tokenizer.vocabulary_size
    pending = () if continuation.pending is None else (continuation.pending,)
    state = State(tensors, continuation)
    check_state(state, manifest, str(path))
    if (
        not 0 <= continuation.step < 2**63
        or not 0 <= (continuation.seed or 0) < 2**64
        or not 0 <= continuation.stream < 2**32 - 1
    ):
        raise StateError(f"{path} has a seed, a stream or a step out of range", mend)
    if any(not 0 <= token < size for token in (*pending, *continuation.recent)):
        raise StateError(f"{path} has token ids outside the vocabulary", mend)
    return state


def check_state(state: State, manifest: Manifest, where: str) -> None:
    """Check names, shapes and types against a manifest.

    Raises:
        StateError: they differ, or a value is not finite.
    """
    mend = "use a state of this model"
    expected = {pair.input: pair.width for pair in manifest.state}
    if set(state.tensors) != set(expected):
        raise StateError(f"{where} has tensors {sorted(state.tensors)}, not {sorted(expected)}", mend)
    batch = next(iter(state.tensors.values())).shape[:1]
    for name, tensor in state.tensors.items():
        if tensor.dtype != np.float32 or tensor.shape != (*batch, expected[name]) or not tensor.size:
            raise StateError(
                f"{where}: {name} is {tensor.dtype} {list(tensor.shape)}, not float32 [batch, {expected[name]}]", mend
            )
        if not np.isfinite(tensor).all():
            raise StateError(f"{where}: {name} holds values that are not finite", mend)


def check_streams(state: State, batch: int) -> None:
    """Raises InvalidValueError where a state has another number of streams."""
    if state.batch != batch:
        raise InvalidValueError(f"the state has {state.batch} streams, not {batch}", "fork it to the batch")
