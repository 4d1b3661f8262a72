"""A translator in PyTorch against the shipped graphs: encoder, single steps, batches, wiring."""

from collections.abc import Iterator
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnn_edge.bundle import Bundle
from rnn_edge.encoder_decoder import Encoded, EncoderDecoderGraphs
from rnn_edge.state import State
from rnn_edge.stepper import LENGTHS
from rnn_edge.verification import batch_difference, difference
from rnn_edge_export.parity import LOGITS_TOLERANCE, STATE_TOLERANCE, Check, run_checks, state_difference
from rnn_edge_export.translation.modules import Memory
from rnn_edge_export.translation.modules import State as ModelState

STEPS = 32
# Source lengths of batches; the graphs were traced with three sources of at most seven tokens.
BATCHES = ([1], [9], [6, 6], [1, 23, 8, 60, 3])
BATCH_TOLERANCE = 1e-5


class ReferenceTranslator(Protocol):
    """A translator as its own program computes it, on the CPU, with nothing dropped."""

    def encode(self, source: Tensor, lengths: Tensor, /) -> tuple[Memory, ModelState]:
        """source int64 [S, B], lengths int64 [B] → memory, the decoder's first state."""

    def decode(self, tokens: Tensor, state: ModelState, memory: Memory, /) -> tuple[Tensor, Tensor, ModelState]:
        """tokens int64 [T, B] → logits [T, B, V], attention [B, T, S], next state."""

    def state_names(self) -> list[str]:
        """Names of the decoder's state tensors in flat order, as in the bundle."""

    def state_widths(self) -> list[int]:
        """Last axis of each."""


def check_parity(model: ReferenceTranslator, bundle: Bundle) -> list[Check]:
    """All checks, in the order in which they are printed.

    Raises:
        ParityError: one fails; the message names it with its figures.
    """
    cpu, fastest = EncoderDecoderGraphs(bundle, device="cpu"), EncoderDecoderGraphs(bundle, device="auto")
    return run_checks(chain(_checks(model, cpu), _other_device(cpu, fastest)))


@torch.no_grad()
def _checks(model: ReferenceTranslator, graphs: EncoderDecoderGraphs) -> Iterator[Check]:
    random = np.random.default_rng(0)
    for lengths in BATCHES:
        sources = _sources(random, graphs, lengths)
        encoded = graphs.encode(sources)
        memory, state = _encode(model, sources)
        names = model.state_names()
        yield Check("encoder: memory", _memory_difference(encoded, memory), STATE_TOLERANCE)
        expected = State({name: tensor.numpy() for name, tensor in zip(names, state, strict=True)})
        yield Check("encoder: first state", state_difference(encoded.state, expected), STATE_TOLERANCE)
        tokens = random.integers(0, graphs.manifest.tokenizer.vocabulary_size, (STEPS, len(lengths)))
        stepper = graphs.stepper(encoded)
        logits, attention, last = model.decode(torch.from_numpy(tokens), state, memory)
        worst, worst_attention = 0.0, 0.0
        for step in range(STEPS):
            worst = max(worst, difference(stepper.step(tokens[step]), logits[step].numpy()))
            worst_attention = max(worst_attention, difference(stepper.attention, attention[:, step].numpy()))
        yield Check(f"decoder: logits of {STEPS} single steps against one run", worst, LOGITS_TOLERANCE)
        yield Check(f"decoder: attention of {STEPS} steps", worst_attention, STATE_TOLERANCE)
        expected = State({name: tensor.numpy() for name, tensor in zip(names, last, strict=True)})
        distance = state_difference(stepper.state(), expected)
        yield Check(f"decoder: state after {STEPS} steps", distance, STATE_TOLERANCE)
        distance = batch_difference(graphs, sources, tokens)
        yield Check("a padded batch against each sentence alone", distance, BATCH_TOLERANCE)
    yield from _wiring(model, graphs, random)


def _wiring(model: ReferenceTranslator, graphs: EncoderDecoderGraphs, random: np.random.Generator) -> Iterator[Check]:
    """Change one state input at a time: every output must answer as the model's does, and its own must change."""
    names, widths = model.state_names(), model.state_widths()
    sources = _sources(random, graphs, [4, 11, 7])
    encoded = graphs.encode(sources)
    memory, _ = _encode(model, sources)
    tokens = random.integers(0, graphs.manifest.tokenizer.vocabulary_size, 3)

    def draw(width: int) -> NDArray[np.float32]:
        return random.uniform(-1, 1, (3, width)).astype(np.float32)

    def answer(state: State) -> State:
        stepper = graphs.stepper(Encoded(encoded.memory, state))
        stepper.step(tokens)
        return stepper.state()

    def expect(state: State) -> State:
        flat = [torch.from_numpy(state.tensors[item]) for item in names]
        _, _, found = model.decode(torch.from_numpy(tokens[None]), flat, memory)
        return State({name: tensor.numpy() for name, tensor in zip(names, found, strict=True)})

    base = State({name: draw(width) for name, width in zip(names, widths, strict=True)})
    rest, expected_rest = answer(base), expect(base)
    worst, still = 0.0, 0.0
    for name, width in zip(names, widths, strict=True):
        moved = State({**base.tensors, name: draw(width)})
        found, expected = answer(moved), expect(moved)
        worst = max(worst, state_difference(found, expected))
        # Unless the model's own does so: the last readout, for one, need not depend on the one before.
        for before, expected_before in ((moved, moved), (rest, expected_rest)):
            same = np.array_equal(found.tensors[name], before.tensors[name])
            still += same and not np.array_equal(expected.tensors[name], expected_before.tensors[name])
    yield Check("each state input moves the outputs it should", worst, STATE_TOLERANCE)
    yield Check("state outputs that ignore or copy their input", still, 0.0)


def _other_device(cpu: EncoderDecoderGraphs, other: EncoderDecoderGraphs) -> Iterator[Check]:
    """The same sources and tokens on the GPU, where there is one."""
    if other.device == cpu.device:
        return
    random = np.random.default_rng(1)
    sources = _sources(random, cpu, [3, 12])
    tokens = random.integers(0, cpu.manifest.tokenizer.vocabulary_size, (STEPS, 2))
    first, second = (graphs.stepper(graphs.encode(sources)) for graphs in (cpu, other))
    worst = max(difference(second.step(step), first.step(step)) for step in tokens)
    yield Check(f"logits on {other.device} after {STEPS} steps", worst, LOGITS_TOLERANCE)


def _sources(random: np.random.Generator, graphs: EncoderDecoderGraphs, lengths: list[int]) -> list[list[int]]:
    spec = graphs.manifest.source
    assert spec is not None
    size = spec.tokenizer.vocabulary_size
    return [[*random.integers(0, size, length - 1).tolist(), spec.end] for length in lengths]


def _encode(model: ReferenceTranslator, sources: list[list[int]]) -> tuple[Memory, list[torch.Tensor]]:
    rows = [torch.tensor(source) for source in sources]
    padded = torch.nn.utils.rnn.pad_sequence(rows)
    memory, state = model.encode(padded, torch.tensor([len(row) for row in rows]))
    return memory, list(state)


def _memory_difference(encoded: Encoded, expected: Memory) -> float:
    """Over the steps that are not padding."""
    tensors = {"memory": expected.values.numpy(), "keys": expected.keys.numpy()}
    worst = 0.0
    for name, array in encoded.memory.items():
        if name != LENGTHS:
            for row, length in enumerate(encoded.lengths):
                worst = max(worst, difference(array[row, :length], tensors[name][row, :length]))
    return worst
