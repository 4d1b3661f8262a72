"""The parity grid: cell × lowering × layers × tied, and what the exported graphs are made of."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, get_args

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from rnn_edge.manifest import Cell, Lowering
from rnn_edge.sessions import graph_metadata
from rnn_edge.state import State
from rnn_edge.stepper import StepGraph
from rnn_edge_export.language_model.export import step_graph
from rnn_edge_export.language_model.modules import State as ModelState
from rnn_edge_export.language_model.steps import ALLOWED_OPERATORS

if TYPE_CHECKING:
    from tests.export.conftest import Export, Exported

CELLS: tuple[Cell, ...] = get_args(Cell)
LOWERINGS: tuple[Lowering, ...] = get_args(Lowering)
_STEPS = 48


@pytest.fixture(
    scope="module",
    params=list(itertools.product(CELLS, LOWERINGS, (1, 3), (False, True))),
    ids=lambda p: f"{p[0]}-{p[1]}-{p[2]}-{'tied' if p[3] else 'free'}",
)
def exported_one(request: pytest.FixtureRequest, exported: Export) -> Exported:
    """One combination of the grid."""
    return exported(*request.param)


def _graph(exported: Exported) -> onnx.ModelProto:
    return onnx.load_model_from_string(exported.bundle.graph("step"))


@pytest.mark.parametrize("batch", [1, 2, 5])  # the exporter traced 3
def test_the_graph_computes_what_the_model_computes(exported_one: Exported, batch: int) -> None:
    model, bundle = exported_one
    random = np.random.default_rng(batch)
    tokens = random.integers(0, model.embedding.num_embeddings, (_STEPS, batch))
    names = model.state_names()
    first = {name: random.uniform(-1, 1, (batch, 8)).astype(np.float32) for name in names}
    per_layer = len(names) // len(model.layers)
    tensors = [torch.from_numpy(first[name]) for name in names]
    state: ModelState = [tuple(tensors[i : i + per_layer]) for i in range(0, len(tensors), per_layer)]
    expected, state = model(torch.from_numpy(tokens), state)

    stepper = StepGraph(bundle, device="cpu").stepper(batch)
    stepper.load(State(first))
    logits = np.stack([stepper.step(row).copy() for row in tokens])
    last = stepper.state().tensors

    assert _largest(logits, expected.numpy()) < 5e-5
    flat = [tensor.numpy() for layer in state for tensor in layer]
    differences = {name: _largest(last[name], tensor) for name, tensor in zip(names, flat, strict=True)}
    assert max(differences.values()) < 5e-5, differences


def _largest(mine: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    assert mine.shape == other.shape
    return float(np.abs(mine - other).max())


def test_what_the_file_says(exported_one: Exported) -> None:
    model, bundle = exported_one
    graph = _graph(exported_one)
    onnx.checker.check_model(graph, full_check=True)
    assert [(item.domain, item.version) for item in graph.opset_import] == [("", 18)]
    assert graph.ir_version == 8
    assert graph.producer_name == "rnn-edge"
    assert {item.key: item.value for item in graph.metadata_props} == graph_metadata(bundle.manifest)

    names = model.state_names()
    assert [item.name for item in graph.graph.input] == ["token", *names]
    assert [item.name for item in graph.graph.output] == ["logits", *(f"{name}_next" for name in names)]
    types = {item.name: item.type.tensor_type for item in (*graph.graph.input, *graph.graph.output)}
    for name, kind in types.items():
        assert kind.elem_type == (onnx.TensorProto.INT64 if name == "token" else onnx.TensorProto.FLOAT)
        width = {"token": [], "logits": [model.embedding.num_embeddings]}.get(name, [8])
        assert [axis.dim_param or axis.dim_value for axis in kind.shape.dim] == ["batch", *width]


def test_the_operators_are_those_allowed(exported_one: Exported) -> None:
    graph, manifest = _graph(exported_one), exported_one.bundle.manifest
    used = [node.op_type for node in graph.graph.node]
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions
    assert set(used) <= ALLOWED_OPERATORS[manifest.lowering]
    layers, cell = manifest.architecture.layers, manifest.architecture.cell
    if manifest.lowering == "operator":
        assert used.count(cell.upper()) == layers
    else:
        # Weights are folded: nothing reorders, transposes or joins them at run time.
        assert used.count("MatMul") == layers * (2 if cell == "gru" else 1) + 1
        assert used.count("Sigmoid") == (0 if cell == "rnn" else layers)
        made = {item.name for item in graph.graph.initializer}
        joined = [node for node in graph.graph.node if node.op_type == "Concat"]
        assert all(not made & set(node.input) for node in joined)


def test_nothing_of_the_exporting_machine_is_inside(exported_one: Exported) -> None:
    content = exported_one.bundle.graph("step")
    for trace in (rb"\.py", rb"site-packages", rb"torch", rb"pkg\.", rb"namespace", rb"/\w+/\w+/"):
        assert re.search(trace, content) is None, trace
    graph = _graph(exported_one)
    assert all(not node.metadata_props and not node.doc_string for node in graph.graph.node)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_exporting_again_gives_the_same_bytes(exported: Export, cell: Cell, lowering: Lowering) -> None:
    model, bundle = exported(cell, lowering, 3, True)
    assert step_graph(model, bundle.manifest) == bundle.graph("step")
