"""How the rows of a batch go on: step by step, or in bursts of steps whose tokens the graph chooses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rnn_edge.batch_sampling import BatchSampler, Ids, RowNoise, log_probability_rows
from rnn_edge.chooser import DEPTH, Chooser
from rnn_edge.providers import IDLE_UP_TO
from rnn_edge.sampling import Logits
from rnn_edge.state import State, zero_state
from rnn_edge.stepper import StepGraph
from rnn_edge.text_stream import TextOptions

Given = Mapping[int, Sequence[int]]  # of some rows the tokens that come first whatever the model thinks: their prompt

BURSTS_UP_TO = 32  # rows on the CPU
_SHRINK_BELOW = 0.7  # of a batch still in use, on the CPU
_DRAWING = 4  # threads that draw noise for a GPU, whose processor is idle: more of them wait for each other


@dataclass(frozen=True)
class Rows:
    """What goes on in the rows of a batch: noise, None for greedy text; state; tokens to be fed [batch]."""

    noise: RowNoise | None
    state: State
    tokens: Ids


class RowWriter(Protocol):
    """Tokens of all rows. Their noise is that of ``noise``, None for greedy text."""

    noise: RowNoise | None

    @property
    def length(self) -> int:
        """Steps that are sensibly made in one go."""

    def seat(self, rows: Sequence[int], state: State, tokens: Sequence[int]) -> None:
        """These rows go on from the state of one stream, with these tokens to be fed."""

    def run(self, count: int, given: Given, recent: Iterable[Sequence[int]]) -> tuple[Ids, NDArray[np.float64] | None]:
        """``count`` steps, or fewer → tokens [steps, batch], and where they are wanted their log probabilities.

        ``recent`` has for each row the ids that a repeat penalty weakens.
        """

    def rows(self, rows: Sequence[int]) -> Rows:
        """These rows, for another writer to go on with."""


def smaller_batch(graph: StepGraph, batch: int, used: int) -> int:
    """The size of batch to go on with when no more rows are used, so that making it anew pays.

    On CUDA in few and large steps: each size takes time to capture, and small batches are no faster.
    """
    if graph.device == "cpu":
        return used if used < _SHRINK_BELOW * batch else batch
    while batch >= 4 * IDLE_UP_TO and used <= batch // 4:
        batch //= 4
    return batch


def larger_batch(graph: StepGraph, batch: int, used: int, most: int) -> int:
    """The size of batch to go on with when so many rows are used, which are more than it has."""
    if graph.device == "cpu":
        return used
    while batch < used:  # again in large steps
        batch = min(most, 4 * batch)
    return batch


def burst_depth(graph: StepGraph, options: TextOptions, batch: int) -> int:
    """How many steps may be made in one go, with logits and a state kept of each; 0 for step by step."""
    # Large batches are a little faster step by step on the CPU: two states stay in its caches, where eight do not.
    return DEPTH if options.sampling.plain and (graph.device == "cuda" or batch <= BURSTS_UP_TO) else 0


def row_writer(graph: StepGraph, options: TextOptions, batch: int) -> RowWriter:
    """What suits these options, for a batch whose rows are then seated."""
    depth, noise = burst_depth(graph, options, batch), None
    if not options.sampling.greedy:
        size = graph.manifest.tokenizer.vocabulary_size
        threads = graph.threads if graph.device == "cpu" else min(_DRAWING, os.cpu_count() or 1)
        noise = RowNoise(size, batch, seed=options.seed, least=max(1, depth), threads=threads)
    rows = Rows(noise, zero_state(graph.manifest, batch), np.zeros(batch, np.int64))
    return next_writer(graph, options, rows)


def next_writer(graph: StepGraph, options: TextOptions, rows: Rows) -> RowWriter:
    """What suits these options and so many rows, and goes on with them."""
    return (_Bursts if burst_depth(graph, options, rows.state.batch) else _Steps)(graph, options, rows)


class _Steps:
    """One step at a time: logits come back, and NumPy chooses."""

    length = 1

    def __init__(self, graph: StepGraph, options: TextOptions, rows: Rows) -> None:
        size, batch = graph.manifest.tokenizer.vocabulary_size, rows.state.batch
        self.noise = rows.noise
        self._graph, self._options = graph, options
        self._stepper = graph.stepper(batch)
        self._stepper.load(rows.state)
        self._sampler = BatchSampler(options.sampling, size, batch, rows.noise, barred=options.barred)
        self._tokens = rows.tokens

    def seat(self, rows: Sequence[int], state: State, tokens: Sequence[int]) -> None:
        self._stepper.replace(np.array(rows)[:, None], state)
        self._tokens[rows] = tokens

    def run(self, count: int, given: Given, recent: Iterable[Sequence[int]]) -> tuple[Ids, NDArray[np.float64] | None]:
        logits = self._stepper.step(self._tokens)
        opinions = None
        if len(given) < len(self._tokens):
            self._tokens = self._sampler.choose(logits, recent)
            if self._options.log_probabilities:
                opinions = log_probability_rows(logits, self._tokens)[None]
        elif self.noise:  # nothing to be chosen, and the noise goes on
            self.noise.take()
        self._tokens[list(given)] = [tokens[0] for tokens in given.values()]
        return self._tokens[None], opinions

    def rows(self, rows: Sequence[int]) -> Rows:
        noise = _kept_noise(self.noise, rows, burst_depth(self._graph, self._options, len(rows)))
        return Rows(noise, self._stepper.state().take(rows), self._tokens[rows])


class _Bursts:
    """Many steps in one go: only tokens come back."""

    def __init__(self, graph: StepGraph, options: TextOptions, rows: Rows) -> None:
        self.noise = rows.noise
        self._graph, self._options = graph, options
        self._size = graph.manifest.tokenizer.vocabulary_size
        self._chooser: Chooser = graph.borrow_chooser(self, rows.state.batch)
        temperature = options.sampling.temperature if rows.noise else 1.0
        self._chooser.start(rows.state, rows.tokens, temperature, options.barred)

    @property
    def length(self) -> int:
        return self._chooser.length

    def seat(self, rows: Sequence[int], state: State, tokens: Sequence[int]) -> None:
        self._chooser.replace(rows, state, tokens)

    def run(self, count: int, given: Given, recent: Iterable[Sequence[int]]) -> tuple[Ids, NDArray[np.float64] | None]:
        noise = self._noise(count, given)
        chooser, count = self._chooser, count if noise is None else len(noise)
        tokens = chooser.run(count, noise)
        if not self._options.log_probabilities:
            return tokens, None
        return tokens, np.stack([log_probability_rows(chooser.logits(step), tokens[step]) for step in range(count)])

    def rows(self, rows: Sequence[int]) -> Rows:
        noise = _kept_noise(self.noise, rows, burst_depth(self._graph, self._options, len(rows)))
        return Rows(noise, self._chooser.state().take(rows), self._chooser.tokens[rows])

    def _noise(self, count: int, given: Given) -> Logits | None:
        """What chooses the tokens given too: noise without end for them, and none for others."""
        if self.noise:
            noise = self.noise.take(count)
        elif given:
            noise = np.zeros((count, self._chooser.batch, self._size), np.float32)
        else:
            return None
        if self._options.barred is not None:
            noise[..., self._options.barred] = -np.inf
        for row, tokens in given.items():
            steps = np.arange(min(len(tokens), len(noise)))
            noise[steps, row] = 0
            noise[steps, row, tokens[: len(steps)]] = np.inf
        return noise


def _kept_noise(noise: RowNoise | None, rows: Sequence[int], depth: int) -> RowNoise | None:
    return noise.keep(rows, max(1, depth)) if noise else None
