"""One step at a time: buffers against functions, batches against rows, and graphs that do not fit their manifest."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnn_edge.bundle import open_bundle
from rnn_edge.errors import BundleError, InvalidValueError, StateError
from rnn_edge.language_model import LanguageModel
from rnn_edge.providers import fuses_products
from rnn_edge.state import State
from rnn_edge.stepper import StepGraph, Tokens
from tests.device.tiny import GRU, LSTM, copy_bundle, replace_file

TOLERANCE = 1e-5  # another batch size may take another kernel


@pytest.fixture(params=["lstm", "gru"])
def graph(request: pytest.FixtureRequest) -> StepGraph:
    model: LanguageModel = request.getfixturevalue(request.param)
    return model.graph


def tokens(steps: int, batch: int) -> Tokens:
    return np.random.default_rng(7).integers(0, 70, (steps, batch))


def random_state(graph: StepGraph, batch: int) -> State:
    random = np.random.default_rng(8)
    return State(
        {pair.input: random.uniform(-1, 1, (batch, pair.width)).astype(np.float32) for pair in graph.manifest.state}
    )


def test_shapes(graph: StepGraph) -> None:
    for batch in (1, 3):
        stepper = graph.stepper(batch)
        assert stepper.state().batch == batch
        assert not any(tensor.any() for tensor in stepper.state().tensors.values())
        logits = stepper.step(np.zeros(batch, np.int64))
        assert logits.shape == (batch, 70)
        assert logits.dtype == np.float32
        assert all(tensor.any() for tensor in stepper.state().tensors.values())


def test_batch_of_three_agrees_with_each_row_alone(graph: StepGraph) -> None:
    fed, first = tokens(50, 3), random_state(graph, 3)
    together = graph.stepper(3)
    together.load(first)
    rows = [graph.stepper() for _ in range(3)]
    for index, row in enumerate(rows):
        row.load(State({name: tensor[index : index + 1] for name, tensor in first.tensors.items()}))
    for column in fed:
        logits = together.step(column)
        for index, row in enumerate(rows):
            np.testing.assert_allclose(row.step(int(column[index]))[0], logits[index], rtol=0, atol=TOLERANCE)
    for index, row in enumerate(rows):
        state = State({name: tensor[index : index + 1] for name, tensor in together.state().tensors.items()})
        assert row.state().largest_difference(state) < TOLERANCE


def test_the_functional_step_equals_the_buffers(graph: StepGraph) -> None:
    """Over odd and even steps: a side that is not swapped, or swapped twice, shows here."""
    stepper, state = graph.stepper(2), random_state(graph, 2)
    stepper.load(state)
    for column in tokens(9, 2):
        before = State({name: tensor.copy() for name, tensor in state.tensors.items()})
        expected, following = graph.step(column, state)
        assert state.largest_difference(before) == 0
        assert np.array_equal(stepper.step(column), expected)
        assert stepper.state().largest_difference(following) == 0
        state = following


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_load_and_state_round_trip_on_either_side(graph: StepGraph, steps: int) -> None:
    stepper, state = graph.stepper(), random_state(graph, 1)
    stepper.feed([3] * steps)
    stepper.load(state)
    assert stepper.state().largest_difference(state) == 0
    expected = graph.step(np.array([5]), state)[0]
    assert np.array_equal(stepper.step(5), expected)


def test_a_state_is_a_copy(graph: StepGraph) -> None:
    stepper = graph.stepper()
    stepper.step(1)
    state = stepper.state()
    kept = State({name: tensor.copy() for name, tensor in state.tensors.items()})
    stepper.feed([2, 3])
    assert state.largest_difference(kept) == 0
    for tensor in state.tensors.values():
        tensor[:] = 9
    assert np.abs(stepper.state().tensors["h0"]).max() <= 1


def test_every_state_tensor_matters(graph: StepGraph) -> None:
    state = random_state(graph, 1)
    logits, _ = graph.step(np.array([4]), state)
    for name in state.tensors:
        moved = State({**state.tensors, name: -state.tensors[name]})
        assert np.abs(graph.step(np.array([4]), moved)[0] - logits).max() > 1e-4


def test_feed_is_one_step_after_another(graph: StepGraph) -> None:
    stepper = graph.stepper()
    first = stepper.feed([1, 2, 3]).copy()
    stepper = graph.stepper()
    for token in (1, 2, 3):
        logits = stepper.step(token)
    assert np.array_equal(logits, first)


def test_a_wide_batch_of_equal_streams(graph: StepGraph) -> None:
    stepper = graph.stepper(17)
    stepper.load(random_state(graph, 1).fork(17))
    logits = stepper.step(6)
    np.testing.assert_allclose(logits, np.repeat(logits[:1], 17, axis=0), rtol=0, atol=TOLERANCE)


def test_misuse(graph: StepGraph, lstm: LanguageModel, gru: LanguageModel) -> None:
    with pytest.raises(InvalidValueError, match="batch is 0"):
        graph.stepper(0)
    with pytest.raises(InvalidValueError, match="the state has 2 streams, not 1"):
        graph.stepper().load(random_state(graph, 2))
    other = gru.graph if graph is lstm.graph else lstm.graph
    with pytest.raises(StateError, match="has tensors"):
        graph.stepper().load(random_state(other, 1))


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_threads_out_of_range(threads: int) -> None:
    with pytest.raises(InvalidValueError, match=f"threads is {threads}"):
        StepGraph(open_bundle(LSTM), device="cpu", threads=threads)


def test_more_threads_compute_the_same(lstm: LanguageModel) -> None:
    two = StepGraph(open_bundle(LSTM), device="cpu", threads=min(2, os.cpu_count() or 1)).stepper().feed([1, 2, 3])
    np.testing.assert_allclose(two, lstm.graph.stepper().feed([1, 2, 3]), rtol=0, atol=TOLERANCE)


# --- graphs that are not what the manifest says


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        StepGraph(open_bundle(path), device="cpu")
    assert str(path) in caught.value.message
    assert "again" in caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda manifest: manifest["state"].pop(), "is not what the manifest says"),
        (lambda manifest: manifest["state"][0].update(input="x0"), "is not what the manifest says"),
        (
            lambda manifest: manifest["state"][0].update(output="x0_next"),
            "output h0_next is not what the manifest says",
        ),
        (lambda manifest: manifest["state"][1].update(width=33), "c0 is 32 wide, the manifest says 33"),
        (
            lambda manifest: manifest["tokenizer"].update(vocabulary_size=71),
            "logits is 70 wide, the manifest says 71",
        ),
        (lambda manifest: manifest.update(name="other"), "rnn_edge.name = 'tiny-lstm', the manifest 'other'"),
        (lambda manifest: manifest.update(lowering="cell"), "rnn_edge.lowering = 'operator', the manifest 'cell'"),
        (lambda manifest: manifest["architecture"].update(cell="gru"), "rnn_edge.cell = 'lstm', the manifest 'gru'"),
        (
            # Inputs and outputs exist, but crossed: plausible text that slowly degrades.
            lambda manifest: (
                manifest["state"][0].update(output="h1_next"),
                manifest["state"][2].update(output="h0_next"),
            ),
            "rnn_edge.state",
        ),
    ],
)
def test_graph_that_disagrees_with_the_manifest(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    assert expected in refusal(copy_bundle(LSTM, tmp_path / "b", change))


def test_graph_of_another_bundle(tmp_path: Path) -> None:
    path = copy_bundle(LSTM, tmp_path / "b")
    replace_file(path, "step.onnx", (GRU / "step.onnx").read_bytes())
    assert "is not what the manifest says" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)])
def test_foreign_graph(tmp_path: Path, content: bytes) -> None:
    path = copy_bundle(LSTM, tmp_path / "b")
    replace_file(path, "step.onnx", content)
    assert "step.onnx is not an ONNX model" in refusal(path)


def test_truncated_graph(tmp_path: Path) -> None:
    """With a manifest that agrees, so that only the reader itself can tell."""
    path, whole = copy_bundle(LSTM, tmp_path / "b"), (LSTM / "step.onnx").read_bytes()
    for cut in (1, 10, 100, 1000, len(whole) // 2, len(whole) - 400, len(whole) - 1):
        replace_file(path, "step.onnx", whole[:cut])
        assert refusal(path)


def test_graph_that_the_runtime_cannot_load(tmp_path: Path) -> None:
    path, whole = copy_bundle(LSTM, tmp_path / "b"), (LSTM / "step.onnx").read_bytes()
    replace_file(path, "step.onnx", whole.replace(b"\x22\x04LSTM", b"\x22\x04LTSM"))
    assert "ONNX Runtime cannot load" in refusal(path)


def test_external_data_is_refused(tmp_path: Path) -> None:
    path, whole = copy_bundle(LSTM, tmp_path / "b"), (LSTM / "step.onnx").read_bytes()
    (path / "weights.bin").write_bytes(bytes(100_000))
    # ModelProto.functions (25) . node (7) . attribute (5) . t (5) . data_location (14) = EXTERNAL
    tensor = b"\x2a\x02\x70\x01"
    attribute = b"\x2a" + bytes([len(tensor)]) + tensor
    node = b"\x3a" + bytes([len(attribute)]) + attribute
    replace_file(path, "step.onnx", whole + b"\xca\x01" + bytes([len(node)]) + node)
    assert "keeps tensors in other files" in refusal(path)


@pytest.mark.parametrize("name", ["shakespeare", "sherlock"])
def test_many_streams_take_other_kernels_and_give_the_same_bits(name: str) -> None:
    """With 8 bits many streams have a session of their own on processors that add products exactly."""
    graph = StepGraph(open_bundle(name), device="cpu")
    assert graph.session_of(15) is graph.session
    assert (graph.session_of(16) is graph.session) != fuses_products("cpu")
    assert graph.session_of(16) is graph.session_of(40)
    together, given = graph.stepper(16), np.random.default_rng(1).integers(0, 65, (4, 16))
    logits = np.stack([together.step(row).copy() for row in given])
    for stream in (0, 15):
        alone = graph.stepper()
        for step, row in enumerate(given):
            assert alone.step(int(row[stream]))[0].tobytes() == logits[step, stream].tobytes()
        assert alone.state().largest_difference(together.state().take([stream])) == 0


def test_many_streams_go_on_when_the_bundle_is_replaced(tmp_path: Path) -> None:
    path = copy_bundle(open_bundle("shakespeare").path, tmp_path / "b")
    graph = StepGraph(open_bundle(path), device="cpu")
    (path / "step.onnx").write_bytes(b"another model")
    assert graph.session_of(16) is graph.session
    assert np.isfinite(graph.stepper(16).step(np.arange(16))).all()
