"""States: save, load, fork, compare, and every file that is no state of this model."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rnn_edge.bundle import open_bundle
from rnn_edge.errors import RnnEdgeError, StateError
from rnn_edge.state import Continuation, State, check_state, load_state, save_state, zero_state
from tests.device.tiny import GRU, LSTM

MANIFEST, OTHER = open_bundle(LSTM).manifest, open_bundle(GRU).manifest


def sample(batch: int = 2) -> State:
    random = np.random.default_rng(0)
    tensors = {pair.input: random.normal(size=(batch, pair.width)).astype(np.float32) for pair in MANIFEST.state}
    return State(tensors, Continuation(5, 2**64 - 1, 17, (1, 2, 3), "e282"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "my.state"


def test_round_trip(path: Path) -> None:
    state = sample()
    save_state(path, state, MANIFEST)
    loaded = load_state(path, MANIFEST)
    assert loaded.continuation == state.continuation
    assert loaded.batch == 2
    assert loaded.largest_difference(state) == 0
    assert [tensor.tobytes() for _, tensor in sorted(loaded.tensors.items())] == [
        tensor.tobytes() for _, tensor in sorted(state.tensors.items())
    ]


def test_the_file_is_plain_safetensors(path: Path) -> None:
    state = sample()
    save_state(path, state, MANIFEST)
    tensors = load_file(path)
    assert sorted(tensors) == ["c0", "c1", "h0", "h1"]
    assert np.array_equal(tensors["c1"], state.tensors["c1"])


def test_another_bundle_is_refused_by_name(path: Path) -> None:
    save_state(path, sample(), MANIFEST)
    with pytest.raises(StateError) as caught:
        load_state(path, OTHER)
    assert "belongs to tiny-lstm (graph " in caught.value.message
    assert "not to tiny-gru (graph " in caught.value.message
    assert "leave --load-state out" in caught.value.hint


def test_missing(path: Path) -> None:
    with pytest.raises(StateError, match="there is no state file"):
        load_state(path, MANIFEST)
    with pytest.raises(StateError, match="there is no state file"):
        load_state(path.parent, MANIFEST)


def test_damaged(path: Path) -> None:
    save_state(path, sample(), MANIFEST)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[:4], content[:100], content[:-1], b"\xff" * 50, bytes(1000)):
        path.write_bytes(damaged)
        with pytest.raises(StateError, match="is not a state file"):
            load_state(path, MANIFEST)


def rewrite(path: Path, tensors: dict[str, Any] | None = None, **metadata: str | None) -> None:
    """A state file with some of its parts replaced; None leaves a part out."""
    save_state(path, sample(), MANIFEST)
    parts = {"bundle": MANIFEST.digest, "name": MANIFEST.name, "continuation": "{}"} | metadata
    save_file(load_file(path) | (tensors or {}), path, {name: text for name, text in parts.items() if text is not None})


def test_metadata(path: Path) -> None:
    rewrite(path)
    assert load_state(path, MANIFEST).continuation == Continuation()
    for wrong in (
        {"bundle": None},
        {"continuation": None},
        {"continuation": "{"},
        {"continuation": "[]"},
        {"continuation": '{"step": "one"}'},
        {"continuation": '{"held_bytes": "xyz"}'},
    ):
        rewrite(path, **wrong)
        with pytest.raises(StateError, match="is not a state file"):
            load_state(path, MANIFEST)


@pytest.mark.parametrize("wrong", [{"pending": 70}, {"pending": -1}, {"step": -1}, {"recent": [0, 70]}])
def test_numbers_out_of_range(path: Path, wrong: dict[str, Any]) -> None:
    rewrite(path, continuation=json.dumps(wrong))
    with pytest.raises(StateError):
        load_state(path, MANIFEST)


def test_a_step_beyond_64_bits(path: Path) -> None:
    rewrite(path, continuation=json.dumps({"step": 2**64}))
    with pytest.raises(StateError):
        load_state(path, MANIFEST)


@pytest.mark.parametrize(
    "tensors",
    [
        {"extra": np.zeros((2, 32), np.float32)},
        {"h0": np.zeros((2, 31), np.float32)},
        {"h0": np.zeros((3, 32), np.float32)},
        {"h0": np.zeros(32, np.float32)},
        {"h0": np.zeros((2, 32), np.float64)},
        {"h0": np.full((2, 32), np.nan, np.float32)},
        {"h0": np.full((2, 32), np.inf, np.float32)},
        {name: np.zeros((0, 32), np.float32) for name in ("h0", "c0", "h1", "c1")},
    ],
)
def test_tensors_that_do_not_fit(path: Path, tensors: dict[str, Any]) -> None:
    rewrite(path, tensors)
    with pytest.raises(StateError):
        load_state(path, MANIFEST)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {},
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "c1"},
        lambda tensors: {name: np.float32(0) for name in tensors},
    ],
)
def test_check_refuses_other_shapes(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with pytest.raises(StateError):
        check_state(replace(sample(), tensors=change(sample().tensors)), MANIFEST, "the state")


def test_a_full_disk_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    save_state(path, sample(), MANIFEST)
    with monkeypatch.context() as patch, pytest.raises(RnnEdgeError, match="cannot write"):
        patch.setattr(os, "fsync", full)
        save_state(path, zero_state(MANIFEST), MANIFEST)
    assert load_state(path, MANIFEST).largest_difference(sample()) == 0
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_zero_fork_and_compare() -> None:
    zero = zero_state(MANIFEST, 3)
    assert {name: tensor.shape for name, tensor in zero.tensors.items()} == dict.fromkeys(
        ("h0", "c0", "h1", "c1"), (3, 32)
    )
    state = sample(2)
    forked = state.fork(3)
    assert forked.batch == 6
    assert forked.continuation == state.continuation
    for name, tensor in state.tensors.items():
        assert np.array_equal(forked.tensors[name], tensor[[0, 0, 0, 1, 1, 1]])
    # A fork shares nothing with its origin.
    forked.tensors["h0"][0, 0] += 4
    assert forked.largest_difference(state.fork(3)) == pytest.approx(4)
    assert state.largest_difference(sample(2)) == 0
