"""An export must fail, and leave nothing behind, whenever the graph is not the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from rnn_edge.errors import ParityError
from rnn_edge_export import lowering as lowering_module
from rnn_edge_export.language_model import export as language_model_export
from rnn_edge_export.language_model import steps
from rnn_edge_export.language_model.export import LanguageModelSource
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.language_model.parity import BATCHES, STEPS, check_parity
from rnn_edge_export.onnx_export import export_bundle
from tests.export.conftest import contents

if TYPE_CHECKING:
    from rnn_edge.manifest import Cell, Lowering
    from tests.export.conftest import Export, MakeSource

Change = Callable[[onnx.GraphProto], None]


def _swap(one: str, other: str) -> Change:
    """Swap two values of a graph; inputs and outputs keep their names, order and shapes."""

    def change(graph: onnx.GraphProto) -> None:
        swapped = {one: other, other: one}
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [swapped.get(name, name) for name in names]

    return change


def _edit(operator: str, place: int, edit: Callable[[np.ndarray], None], which: int = 0) -> Change:
    """Change the weights that an operator reads as its input ``place``."""

    def change(graph: onnx.GraphProto) -> None:
        made = {item.name: item for item in graph.initializer}
        nodes = [node for node in graph.node if node.op_type == operator and node.input[place] in made]
        item = made[nodes[which].input[place]]
        array = numpy_helper.to_array(item).copy()
        edit(array)
        item.CopyFrom(numpy_helper.from_array(array, item.name))

    return change


def _nudge(array: np.ndarray) -> None:
    array.flat[3] += 1e-3


def _swap_gates(first: int, second: int) -> Callable[[np.ndarray], None]:
    def edit(array: np.ndarray) -> None:
        a, b = slice(first * 8, first * 8 + 8), slice(second * 8, second * 8 + 8)
        array[:, a], array[:, b] = array[:, b].copy(), array[:, a].copy()

    return edit


def _zero(array: np.ndarray) -> None:
    array[:] = 0


def _reset_before(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "linear_before_reset":
                attribute.i = 0


def _forget(name: str) -> Change:
    """A state output that only hands its input on."""

    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [f"{name}_unused" if item == f"{name}_next" else item for item in names]
        graph.node.append(onnx.helper.make_node("Identity", [name], [f"{name}_next"]))

    return change


_MUTANTS: dict[str, tuple[Cell, Lowering, Change]] = {
    "state outputs of two layers swapped": ("lstm", "operator", _swap("h0_next", "h1_next")),
    "cells of two layers swapped": ("lstm", "operator", _swap("c1_next", "c2_next")),
    "h and c swapped at the output": ("lstm", "cell", _swap("h0_next", "c0_next")),
    "state inputs of two layers swapped": ("gru", "cell", _swap("h0", "h1")),
    "h and c swapped at the input": ("lstm", "operator", _swap("h2", "c2")),
    "a state output that copies its input": ("lstm", "operator", _forget("c1")),
    "the last state output copies its input": ("rnn", "cell", _forget("h2")),
    "gates f and g as PyTorch orders them": ("lstm", "operator", _edit("LSTM", 1, _swap_gates(2, 3))),
    "two recurrent gates swapped": ("gru", "operator", _edit("GRU", 2, _swap_gates(0, 1), which=2)),
    "two biases swapped": ("gru", "operator", _edit("GRU", 3, _swap_gates(0, 1))),
    "reset before the product": ("gru", "operator", _reset_before),
    "an embedding off by 1e-3": ("rnn", "operator", _edit("Gather", 0, _nudge)),
    "an output weight off by 1e-3": ("lstm", "cell", _edit("MatMul", 1, _nudge, which=-1)),
    "a recurrent weight off by 1e-3": ("rnn", "operator", _edit("RNN", 2, _nudge)),
    "no output bias": ("gru", "cell", _edit("Add", 1, _zero, which=-1)),
}


@pytest.fixture
def source(exported: Export) -> Callable[[Cell, Lowering], tuple[LanguageModelSource, bytes]]:
    """The model of a bundle of three layers as a source again, and the right graph for it."""

    def find(cell: Cell, lowering: Lowering) -> tuple[LanguageModelSource, bytes]:
        from rnn_edge.tokenizer import Tokenizer
        from rnn_edge_export.recipe import LanguageModelRecipe

        model, bundle = exported(cell, lowering, 3, True)
        tokenizer = Tokenizer(bundle.read("tokenizer.json"))
        return LanguageModelSource(model, tokenizer, LanguageModelRecipe(model=model.recipe)), bundle.graph("step")

    return find


@pytest.mark.parametrize("name", _MUTANTS)
def test_a_wrong_graph_is_never_written(
    source: Callable[[Cell, Lowering], tuple[LanguageModelSource, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    cell, lowering, change = _MUTANTS[name]
    origin, right = source(cell, lowering)
    model = onnx.load_model_from_string(right)
    change(model.graph)
    wrong = model.SerializeToString(deterministic=True)
    assert wrong != right
    onnx.checker.check_model(model, full_check=True)  # nothing that a look at the graph alone could find

    def export(content: bytes) -> list[str]:
        monkeypatch.setattr(language_model_export, "step_graph", lambda *_: content)
        _, checks = export_bundle(origin, tmp_path / "bundle", name="tiny", lowering=lowering, force=True)
        return [check.name for check in checks]

    with pytest.raises(ParityError, match=r"differs by .*, allowed are"):
        export(wrong)
    assert list(tmp_path.iterdir()) == []
    assert len(export(right)) == 2 * len(STEPS) + 4  # the same way, unchanged, it passes
    before = contents(tmp_path)
    with pytest.raises(ParityError):
        export(wrong)
    assert contents(tmp_path) == before  # the old bundle is kept, and nothing beside it


@pytest.mark.parametrize(
    ("cell", "attribute", "value"),
    [
        ("lstm", "_ONNX_GATES", {"lstm": (0, 1, 2, 3)}),
        ("gru", "_ONNX_GATES", {"gru": (0, 1, 2)}),
        ("gru", "OperatorGRU.attributes", {}),
    ],
)
def test_a_mistake_in_the_lowering_is_found(
    make_source: MakeSource,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cell: Cell,
    attribute: str,
    value: object,
) -> None:
    monkeypatch.setattr(f"{lowering_module.__name__}.{attribute}", value)
    with pytest.raises(ParityError, match="differs by"):
        export_bundle(make_source(cell, 1, False), tmp_path / "bundle", name="tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_folding_is_found(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lowering_module, "_reorder", lambda tensor, _: tensor)
    with pytest.raises(ParityError, match="differs by"):
        export_bundle(make_source("lstm", 1, False), tmp_path / "bundle", name="tiny", lowering="cell")


def test_an_operator_that_is_not_allowed_stops_the_export(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(steps.ALLOWED_OPERATORS, "cell", steps.ALLOWED_OPERATORS["cell"] - {"Tanh"})
    with pytest.raises(ParityError, match="the lowering produced Tanh"):
        export_bundle(make_source("rnn", 1, False), tmp_path / "bundle", name="tiny", lowering="cell")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_stop_the_export(make_source: MakeSource, tmp_path: Path) -> None:
    good = make_source("rnn", 1, False)
    model = RecurrentLanguageModel(good.recipe.model, good.tokenizer.vocabulary_size).requires_grad_(False).eval()
    model.output.bias[0] = torch.nan
    with pytest.raises(ParityError, match="logits are not finite after 1 step"):
        export_bundle(replace(good, model=model), tmp_path / "bundle", name="tiny")
    assert list(tmp_path.iterdir()) == []


def test_every_check_is_shown_with_its_figures(exported: Export) -> None:
    checks = check_parity(*exported("lstm", "cell", 3, False))
    assert BATCHES == (1, 3)
    assert STEPS == (1, 16, 256)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    for place in ("after 1 step", "after 16 steps", "after 256 steps"):
        assert {f"logits {place}", f"state {place}"} <= set(names)
    assert all(check.passed and 0 <= check.difference <= check.tolerance <= 1e-4 for check in checks)
    assert any(check.difference > 0 for check in checks)  # two programs, not one compared with itself
