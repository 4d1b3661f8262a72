"""A language model as it was trained against the shipped stepper: single steps, long runs, wiring, state files."""

from collections.abc import Iterator
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_edge.bundle import Bundle
from rnn_edge.errors import ParityError
from rnn_edge.state import State
from rnn_edge.stepper import StepGraph
from rnn_edge.verification import difference, resumption_difference
from rnn_edge_export.layers import LayerState
from rnn_edge_export.parity import LOGITS_TOLERANCE, STATE_TOLERANCE, Check, run_checks, state_difference

STEPS = (1, 16, 256)
BATCHES = (1, 3)

ModelState = list[LayerState]


class ReferenceModel(Protocol):
    """A language model as its own program computes it, on the CPU, with nothing dropped."""

    def __call__(self, tokens: Tensor, state: ModelState, /) -> tuple[Tensor, ModelState]:
        """tokens int64 [T, B], state → float32 logits [T, B, V], next state."""

    def zero_state(self, batch: int) -> ModelState:
        """Zeros for B streams, a tuple of [B, width] for each layer."""

    def state_names(self) -> list[str]:
        """Names of the state tensors in flat order, as in the bundle."""


def check_parity(model: ReferenceModel, bundle: Bundle) -> list[Check]:
    """All checks, in the order in which they are printed.

    Raises:
        ParityError: one fails; the message names it with its figures.
    """
    cpu, fastest = StepGraph(bundle, device="cpu"), StepGraph(bundle, device="auto")
    return run_checks(chain(_checks(model, cpu), _other_device(cpu, fastest)))


@torch.no_grad()
def _checks(model: ReferenceModel, graph: StepGraph) -> Iterator[Check]:
    random = np.random.default_rng(0)
    vocabulary_size, widths = _sizes(graph)
    names = list(widths)
    for batch in BATCHES:
        tokens = random.integers(0, vocabulary_size, (max(STEPS), batch))
        first = _random_state(random, widths, batch)
        stepper = graph.stepper(batch)
        stepper.load(first)
        expected_state = to_model(first, model)
        singles = np.empty((max(STEPS), batch, vocabulary_size), np.float32)
        for step in range(max(STEPS)):
            singles[step] = stepper.step(tokens[step])
            logits, expected_state = model(torch.from_numpy(tokens[step : step + 1]), expected_state)
            place = f"after {step + 1} step{'s' * (step > 0)}"
            if not logits.isfinite().all():
                raise ParityError(
                    f"the model's own logits are not finite {place} from a random state",
                    "export weights from before training diverged; a state must stay finite however long the text",
                )
            if step + 1 in STEPS:
                yield Check(f"logits {place}", difference(singles[step], logits[0].numpy()), LOGITS_TOLERANCE)
                distance = state_difference(stepper.state(), from_model(expected_state, names))
                yield Check(f"state {place}", distance, STATE_TOLERANCE)
        logits, _ = model(torch.from_numpy(tokens), to_model(first, model))
        distance = difference(singles, logits.numpy())
        yield Check(f"{max(STEPS)} single steps against one long run", distance, LOGITS_TOLERANCE)
    yield from _wiring(graph, model, random)
    yield Check("state saved and loaded in mid-stream", resumption_difference(graph), 0.0)


def _wiring(graph: StepGraph, model: ReferenceModel, random: np.random.Generator) -> Iterator[Check]:
    """Change one state input at a time: every output must answer as the model's does, and its own must change."""
    vocabulary_size, widths = _sizes(graph)
    names = list(widths)
    tokens = random.integers(0, vocabulary_size, 3)
    base = _random_state(random, widths, 3)
    _, rest = graph.step(tokens, base)
    worst, still = 0.0, 0.0
    for name in names:
        moved = State({**base.tensors, name: _random_state(random, {name: widths[name]}, 3).tensors[name]})
        _, answer = graph.step(tokens, moved)
        _, expected = model(torch.from_numpy(tokens[None]), to_model(moved, model))
        worst = max(worst, state_difference(answer, from_model(expected, names)))
        unchanged = np.array_equal(answer.tensors[name], rest.tensors[name])
        copied = np.array_equal(answer.tensors[name], moved.tensors[name])
        still += unchanged + copied
    yield Check("each state input moves the outputs it should", worst, STATE_TOLERANCE)
    yield Check("state outputs that ignore or copy their input", still, 0.0)


def _other_device(cpu: StepGraph, other: StepGraph) -> Iterator[Check]:
    """The same tokens on the GPU, where there is one."""
    if other.device == cpu.device:
        return
    tokens = np.random.default_rng(1).integers(0, cpu.manifest.tokenizer.vocabulary_size, 64).tolist()
    distance = difference(other.stepper().feed(tokens), cpu.stepper().feed(tokens))
    yield Check(f"logits on {other.device} after {len(tokens)} steps", distance, LOGITS_TOLERANCE)


def to_model(state: State, model: ReferenceModel) -> ModelState:
    """The runtime's state as the model's: flat names to one tuple a layer."""
    flat = iter(torch.from_numpy(state.tensors[name]) for name in model.state_names())
    return [tuple(next(flat) for _ in layer) for layer in model.zero_state(state.batch)]


def from_model(state: ModelState, names: list[str]) -> State:
    """The inverse of ``to_model``."""
    flat = [tensor.numpy() for layer in state for tensor in layer]
    return State(dict(zip(names, flat, strict=True)))


def _sizes(graph: StepGraph) -> tuple[int, dict[str, int]]:
    """The vocabulary, and the widths of the state tensors in flat order."""
    manifest = graph.manifest
    return manifest.tokenizer.vocabulary_size, {pair.input: pair.width for pair in manifest.state}


def _random_state(random: np.random.Generator, widths: dict[str, int], batch: int) -> State:
    def draw(width: int) -> NDArray[np.float32]:
        return random.uniform(-1, 1, (batch, width)).astype(np.float32)

    return State({name: draw(width) for name, width in widths.items()})
