"""Several steps as one graph.

A run of a session costs some microseconds whatever its graph does, and what Python does in between is done with cold
caches. So long texts are written by a graph of several steps, each of which chooses the token that the next one reads;
here filters cost little, too. Making such a graph takes as long as it saves in some thousand tokens, and memory for
the weights once more: it is made when so many tokens were written without it that as many will probably follow.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rnn_edge.choice import CHOICE, NO_FILTERS, NOISE, TEMPERATURE, WEIGHTS, Filters, choice_nodes, weigh
from rnn_edge.errors import BundleError, DeviceError
from rnn_edge.onnx_model import FLOAT, INT64, Model, constant_nodes, read_model, renamed, value
from rnn_edge.providers import Device, open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from rnn_edge.bundle import Bundle
    from rnn_edge.manifest import StatePair

STEPS = 4  # of one graph: twice as many save little more, and take twice the time to be made
_LARGEST = 8_000_000  # bytes of a graph: in larger ones steps take so long that little is saved
_LARGEST_ON_CUDA = 100_000_000  # there each step has the weights to itself
_PAYS_AFTER = 1024  # tokens
_FILTERS_PAY_AFTER = 256
_SLOW = 0.0025  # seconds of a step, from which on each is better shown at once
_NESTED = ("If", "Loop", "Scan", "SequenceMap")  # whose inner graphs would read values of other steps
_COUNTED = 100  # filters
_MOST = 4  # sessions: later filters do without, as making them in turns would cost more than it saves


class UnrolledGraphs:
    """The sessions of a bundle's step graph unrolled, by what they filter."""

    def __init__(self, bundle: Bundle, device: Device, threads: int | None) -> None:
        """On CUDA only filters make them, which are computed on the CPU otherwise; single steps are captured there."""
        self._bundle, self._device, self._threads = bundle, device, threads
        self._always = False
        self._written: Counter[Filters] = Counter()  # steps
        self._fastest = 0.0  # seconds of a step
        self._sessions: dict[Filters, InferenceSession] = {}
        graph = bundle.path / bundle.manifest.graphs["step"]
        self._where = str(graph)
        # ONNX Runtime would widen fp16 weights once for every step.
        size = graph.stat().st_size
        on_cpu = size <= _LARGEST and bundle.manifest.precision != "fp16"
        self._suits = on_cpu if device == "cpu" else size <= _LARGEST_ON_CUDA

    def always(self) -> None:
        """Make them at once, whatever they cost."""
        self._always = True

    def note(self, filters: Filters, steps: int, seconds: float | None = None) -> None:
        """So many more were made, in so many seconds each."""
        if filters in self._written or len(self._written) < _COUNTED:
            self._written[filters] += steps
        if seconds is not None:
            self._fastest = min(self._fastest or seconds, seconds)

    def steps_before(self, filters: Filters) -> int:
        """How many must still be made until a graph of its own pays for them."""
        if self._always or filters in self._sessions:
            return 0
        if not self._suits or self._fastest > _SLOW or len(self._sessions) >= _MOST:
            return sys.maxsize
        if self._device == "cpu":
            pays_after = _FILTERS_PAY_AFTER if filters.any else _PAYS_AFTER
        else:
            pays_after = _PAYS_AFTER if filters.any else sys.maxsize
        return max(0, pays_after - self._written[filters])

    def session(self, filters: Filters) -> InferenceSession | None:
        """A graph that pays by now, made when it is first asked for.

        None also where it cannot be made, as when the bundle was replaced meanwhile: texts go on without.
        """
        if self.steps_before(filters):
            return None
        if filters not in self._sessions:
            try:
                self._sessions[filters] = self._open(filters)
            except (BundleError, DeviceError):
                self._always = self._suits = False
        return self._sessions.get(filters)

    def _open(self, filters: Filters) -> InferenceSession:
        content, integers = self._content(filters)
        return open_session(
            content, self._where, device=self._device, threads=self._threads, integers=integers, capture=True
        )

    def _content(self, filters: Filters) -> tuple[bytes, bool]:
        """The graph, and whether it multiplies integers. What it is made from is gone when the session opens."""
        manifest = self._bundle.manifest
        model = read_model(self._bundle.graph("step") + choice_nodes(), self._where)
        operators = {node.operator for node in model.nodes}
        integers = "MatMulInteger" in operators
        if not operators.isdisjoint(_NESTED):
            raise BundleError(f"{self._where} has graphs within its graph", "it runs one step at a time")
        return unroll(model, manifest.state, manifest.tokenizer.vocabulary_size, filters), integers


def unroll(model: Model, state: Sequence[StatePair], vocabulary_size: int, filters: Filters = NO_FILTERS) -> bytes:
    """``STEPS`` steps of a step graph that chooses, as one. Changes ``model``.

    Inputs ``token``, ``temperature`` and the state are as before, noise is ``noise.0``, ``noise.1`` …; ``choice.0``,
    ``logits.0``, ``h0_next.0`` and so on are the outputs of each step. Graphs with filters take one stream alone. With
    a penalty ``weights.0`` and so on are inputs, too, for which what the graph itself chooses does not yet count.
    """
    if filters.any:
        filters.apply(model, vocabulary_size)
    constant, body = constant_nodes(model)
    model.nodes = constant
    penalised = filters.penalty != 1
    made = {name for node in body for name in node.outputs}
    inputs = {name: model.inputs[name] for name in ("token", TEMPERATURE, *(pair.input for pair in state))}
    outputs = {}
    previous: dict[str, str] = {}  # what stands for the inputs that a step before makes
    chosen: list[str] = []
    for step in range(STEPS):
        names = {name: numbered(name, step) for name in (*made, NOISE)} | previous
        if penalised:
            given = numbered(WEIGHTS, step)
            inputs[given] = value(given, FLOAT, (vocabulary_size,))
            names[WEIGHTS] = f"rnn_edge.{given}" if chosen else given
            if chosen:
                weigh(model, given, chosen, filters.penalty, names[WEIGHTS])
            chosen.append(names[CHOICE])
        model.nodes += [renamed(node, names) for node in body]
        previous = {"token": names[CHOICE]} | {pair.input: names[pair.output] for pair in state}
        inputs[names[NOISE]] = value(names[NOISE], FLOAT, ("rnn_edge.rows", vocabulary_size))
        outputs[names[CHOICE]] = value(names[CHOICE], INT64, ("batch",))
        outputs[names["logits"]] = value(names["logits"], FLOAT, ("batch", vocabulary_size))
        for pair in state:
            outputs[names[pair.output]] = value(names[pair.output], FLOAT, ("batch", pair.width))
    initializers = {name: item for name, item in model.initializers.items() if name != NOISE}
    return replace(model, inputs=inputs, outputs=outputs, initializers=initializers).encode()


def numbered(name: str, step: int) -> str:
    """The name of a value in one of the steps."""
    return f"{name}.{step}"
