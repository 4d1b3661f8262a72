"""The choice of a token as nodes of a graph: ``sampling``'s rule, operation by operation.

What is float32 there is float32 here, and its float64 (the sums of probabilities, the border of min-p) is float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rnn_edge import onnx_nodes
from rnn_edge.onnx_model import DOUBLE, FLOAT, Model, Node, integer, tensor, value
from rnn_edge.onnx_nodes import Tensor, graph_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from rnn_edge.sampling import SamplingOptions

TEMPERATURE, NOISE, WEIGHTS, CHOICE = "temperature", "noise", "weights", "choice"
_SCALED, _NOISY = "rnn_edge.scaled", "rnn_edge.noisy"
_SHORTEST_WINDOW = 8  # tokens: none that a graph has chosen may leave it within one run
_SORTED_UP_TO = 512  # ids of a vocabulary: the runtime sorts larger ones more slowly than NumPy
_REMOVED = np.full(1, -np.inf, np.float32)
_ROWS = np.ones(1, np.int64)  # the axis along a row


def choice_nodes() -> bytes:
    """What makes a step graph choose: ``choice`` [batch] = argmax(logits / temperature + noise).

    ``temperature`` [1] is 1 and ``noise`` [batch, vocabulary] 0 where they are left out: the likeliest token.
    """
    return graph_bytes(
        [
            onnx_nodes.Node("Div", ("logits", TEMPERATURE), _SCALED),
            onnx_nodes.Node("Add", (_SCALED, NOISE), _NOISY),
            onnx_nodes.Node("ArgMax", (_NOISY,), CHOICE, (("axis", 1), ("keepdims", 0))),
        ],
        # Free axes: what is left out has one value for all.
        [Tensor(TEMPERATURE, "float32", (1,)), Tensor(NOISE, "float32", ("rnn_edge.rows", "rnn_edge.columns"))],
        [Tensor(CHOICE, "int64", ("batch",))],
        {TEMPERATURE: np.ones(1, np.float32), NOISE: np.zeros((1, 1), np.float32)},
    )


@dataclass(frozen=True)
class Filters:
    """What comes between the logits and the choice; nothing by default."""

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    penalty: float = 1.0
    barred: int | None = None  # an id that does not count among those from which filters choose

    @classmethod
    def of(cls, options: SamplingOptions, barred: int | None, vocabulary_size: int) -> Filters | None:
        """Those of ``options``; None where a graph cannot choose so, or is slower at it than NumPy."""
        penalty = options.repeat_penalty
        if penalty != 1 and options.repeat_window < _SHORTEST_WINDOW:
            return None
        if not options.filters:
            return cls(penalty=penalty)
        if options.top_p < 1 and vocabulary_size > _SORTED_UP_TO:
            return None
        top_k = options.top_k if options.top_k < vocabulary_size else 0
        return cls(top_k, options.top_p, options.min_p, penalty, barred)

    @property
    def any(self) -> bool:
        """Whether there is anything, so that a graph of its own is needed."""
        return self._removes or self.penalty != 1

    @property
    def _removes(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def apply(self, model: Model, vocabulary_size: int) -> None:
        """Let a model of one stream that ends with ``choice_nodes`` choose so.

        With a penalty it gets an input ``weights`` [vocabulary]: what ``sampling.RepeatPenalty`` divides by.
        """
        divide, add, choose = model.nodes[-3:]
        del model.nodes[-3:]
        graph = _Builder(model)
        if self.penalty != 1:
            # Of a positive logit the quotient is the smaller one, of a negative one the product.
            both = graph.add("Div", "logits", WEIGHTS), graph.add("Mul", "logits", WEIGHTS)
            weakened = graph.add("Min" if self.penalty > 1 else "Max", *both)
            divide = replace(divide, inputs=(weakened, TEMPERATURE))
            model.inputs[WEIGHTS] = value(WEIGHTS, FLOAT, (vocabulary_size,))
        model.nodes += [divide, add]
        if not self._removes:
            model.nodes.append(choose)
            return
        scaled = _SCALED
        if self.barred is not None:
            bars = np.zeros((1, vocabulary_size), np.float32)
            bars[0, self.barred] = -np.inf
            scaled = graph.add("Add", scaled, graph.constant(bars))
        threshold = self._threshold(graph, scaled, vocabulary_size)
        remains = graph.add("GreaterOrEqual", scaled, threshold)
        noisy = graph.add("Where", remains, _NOISY, graph.constant(_REMOVED))
        model.nodes.append(replace(choose, inputs=(noisy,)))

    def _threshold(self, graph: _Builder, scaled: str, size: int) -> str:
        """The least of ``scaled`` that remains."""
        found = []
        if self.top_p < 1:
            ordered = graph.add("TopK", scaled, graph.constant(np.array([size])), also=1)
            if self.top_k:
                last = graph.add("Gather", ordered, graph.constant(np.array([self.top_k - 1])), axis=1)
                among = graph.add("GreaterOrEqual", ordered, last)
                ordered = graph.add("Where", among, ordered, graph.constant(_REMOVED))
            shares = graph.add("Softmax", graph.add("Cast", ordered, to=DOUBLE), axis=1)
            before = graph.add("CumSum", shares, graph.constant(np.array(1)), exclusive=1)
            short = graph.add("Less", before, graph.constant(np.array([self.top_p])))
            kept = graph.add("Where", short, ordered, graph.constant(-_REMOVED))
            found.append(graph.add("ReduceMin", kept, graph.constant(_ROWS)))
        elif self.top_k:
            largest = graph.add("TopK", scaled, graph.constant(np.array([self.top_k])), also=1, sorted=0)
            found.append(graph.add("ReduceMin", largest, graph.constant(_ROWS)))
        if self.min_p > 0:
            likeliest = graph.add("Cast", graph.add("ReduceMax", scaled, graph.constant(_ROWS)), to=DOUBLE)
            border = graph.add("Add", likeliest, graph.constant(np.array([np.log(self.min_p)])))
            found.append(graph.add("Cast", border, to=FLOAT))
        return graph.add("Max", *found) if len(found) > 1 else found[0]


NO_FILTERS = Filters()


def weigh(model: Model, weights: str, chosen: Sequence[str], penalty: float, output: str) -> None:
    """Add nodes: ``output`` is ``weights`` with ``penalty`` for the ids ``chosen`` since, each int64 [1]."""
    graph = _Builder(model, output)
    ids = graph.add("Concat", *chosen, axis=0) if len(chosen) > 1 else chosen[0]
    updates = graph.constant(np.full(len(chosen), penalty, np.float32))
    model.nodes.append(Node("ScatterElements", (weights, ids, updates), (output,), (integer("axis", 0),)))


class _Builder:
    """Nodes at the end of a model, whose values get names as they come."""

    def __init__(self, model: Model, prefix: str = "rnn_edge.filter") -> None:
        self._model, self._prefix = model, prefix
        self._made = 0

    def add(self, operator: str, *inputs: str, also: int = 0, **attributes: int) -> str:
        """A node, with ``also`` more outputs that nobody reads → the name of its first output."""
        outputs = tuple(self._name() for _ in range(1 + also))
        encoded = tuple(integer(name, value) for name, value in attributes.items())
        self._model.nodes.append(Node(operator, inputs, outputs, encoded))
        return outputs[0]

    def constant(self, value: NDArray[np.generic]) -> str:
        name = self._name()
        self._model.initializers[name] = tensor(name, value)
        return name

    def _name(self) -> str:
        self._made += 1
        return f"{self._prefix}.{self._made}"
