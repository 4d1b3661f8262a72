"""Bundles in other runtimes: fp32 with the standard operators writes the same greedy text in OpenVINO and in tract.

Neither is part of an extra: ``pip install openvino tract`` (180 MB and 33 MB on disk). Without them the tests skip.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnn_edge.bundle import Bundle, read_bundle
from rnn_edge.encoder_decoder import EncoderDecoderGraphs
from rnn_edge.stepper import StepGraph
from tests.device.tiny import DATA

MODELS = Path(__file__).parents[2] / "models"
Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]
Load = Callable[[Bundle, str], Run]


def openvino(bundle: Bundle, role: str) -> Run:
    """Computing in float32: by itself it takes bfloat16 where the processor has that."""
    runtime: Any = pytest.importorskip("openvino")
    model = runtime.Core().read_model(bundle.path / bundle.manifest.graphs[role])
    if role == "encoder":  # its passes stumble over two unknown axes beside one another
        model.reshape({"source": [1, -1], "source_lengths": [1]})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = runtime.compile_model(model, "CPU", settings)
    request, names = compiled.create_infer_request(), [item.get_any_name() for item in compiled.outputs]

    def run(inputs: Arrays) -> Arrays:
        found = request.infer(inputs)
        return {name: np.array(found[name]) for name in names}

    return run


def tract(bundle: Bundle, role: str) -> Run:
    """Its outputs have names of its own: they go by their order."""
    runtime: Any = pytest.importorskip("tract")
    manifest = bundle.manifest
    model = runtime.onnx().load(str(bundle.path / manifest.graphs[role])).into_model()
    inputs = [model.input_name(index) for index in range(model.input_count())]
    outputs = ["logits", *(["attention"] if manifest.memory else []), *(pair.output for pair in manifest.state)]
    assert model.output_count() == len(outputs)
    assert inputs[0] == "token"
    assert inputs[-len(manifest.state) :] == [pair.input for pair in manifest.state]
    runnable = model.into_runnable()

    def run(values: Arrays) -> Arrays:
        found = runnable.run([values[name] for name in inputs])
        return dict(zip(outputs, (item.to_numpy() for item in found), strict=True))

    return run


RUNTIMES = pytest.mark.parametrize("load", [openvino, tract], ids=lambda load: load.__name__)


def carried(bundle: Bundle, outputs: Arrays) -> Arrays:
    return {pair.input: outputs[pair.output] for pair in bundle.manifest.state}


# The operators' lowering, and the other one.
@RUNTIMES
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_language_model_writes_its_golden_text(name: str, load: Load) -> None:
    bundle = read_bundle(DATA / name)
    run, golden = load(bundle, "step"), bundle.manifest.golden[0]
    assert golden.kind == "greedy"
    close = next((step for step, margin in enumerate(golden.margins) if margin < golden.tolerance), len(golden.best))
    assert close > 60
    state: Arrays = {pair.input: np.zeros((1, pair.width), np.float32) for pair in bundle.manifest.state}
    token, text = golden.tokens[0], []
    for _ in range(close):
        outputs = run({"token": np.array([token]), **state})
        state, token = carried(bundle, outputs), int(outputs["logits"].argmax())
        text.append(token)
    assert text == list(golden.best[:close])


@RUNTIMES
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_logits_and_states_of_a_batch_stay_close_over_many_steps(name: str, load: Load) -> None:
    bundle = read_bundle(DATA / name)
    run, graph, random = load(bundle, "step"), StepGraph(bundle, device="cpu"), np.random.default_rng(0)
    stepper = graph.stepper(3)
    state: Arrays = {name: tensor.copy() for name, tensor in stepper.state().tensors.items()}
    for _ in range(200):
        tokens = random.integers(0, bundle.manifest.tokenizer.vocabulary_size, 3)
        outputs = run({"token": tokens, **state})
        state = carried(bundle, outputs)
        np.testing.assert_allclose(outputs["logits"], stepper.step(tokens), rtol=1e-4, atol=1e-4)
    for key, tensor in stepper.state().tensors.items():
        np.testing.assert_allclose(state[key], tensor, rtol=1e-4, atol=1e-4)


@RUNTIMES
@pytest.mark.parametrize("name", ["translator", "translator-word"])
def test_a_decoder_translates_what_the_encoder_left(name: str, load: Load) -> None:
    """tract has no recurrent operators over sequences of several lengths: there the encoder is ONNX Runtime's."""
    bundle = read_bundle(DATA / name)
    decoder, graphs = load(bundle, "decoder"), EncoderDecoderGraphs(bundle, device="cpu")
    assert bundle.manifest.golden_translations
    for golden in bundle.manifest.golden_translations:
        encoded = graphs.encode([list(golden.source)])
        state: Arrays = {**encoded.memory, **encoded.state.tensors}
        if load is openvino:
            lengths = np.array([len(golden.source)])
            found = load(bundle, "encoder")({"source": np.array([golden.source]), "source_lengths": lengths})
            for key, array in found.items():
                np.testing.assert_allclose(array, state[key], rtol=1e-4, atol=1e-4)
            state = found | {"source_lengths": lengths}
        for token, best, margin in zip(golden.tokens, golden.best, golden.margins, strict=True):
            outputs = decoder({"token": np.array([token]), **state})
            state |= carried(bundle, outputs)
            assert margin < golden.tolerance or int(outputs["logits"].argmax()) == best


@RUNTIMES
def test_eight_bits_write_the_golden_text_too(load: Load) -> None:
    bundle = read_bundle(MODELS / "shakespeare")
    run, golden = load(bundle, "step"), bundle.manifest.golden[0]
    state: Arrays = {pair.input: np.zeros((1, pair.width), np.float32) for pair in bundle.manifest.state}
    for token, best, margin in zip(golden.tokens, golden.best, golden.margins, strict=True):
        outputs = run({"token": np.array([token]), **state})
        state = carried(bundle, outputs)
        assert margin < golden.tolerance or int(outputs["logits"].argmax()) == best


def test_an_encoder_of_eight_bits_reads_sources_of_several_lengths() -> None:
    """Its loops are standard operators alone; tract wants to know the number of sources."""
    bundle = read_bundle(MODELS / "en-fr")
    random, lengths = np.random.default_rng(2), np.array([9, 4, 1])
    source = random.integers(2, 6000, (3, 9))
    expected = EncoderDecoderGraphs(bundle, device="cpu").encode(
        [row[:length].tolist() for row, length in zip(source, lengths, strict=True)]
    )
    file = bundle.path / bundle.manifest.graphs["encoder"]
    names = [*(item.name for item in bundle.manifest.memory), *expected.state.tensors]
    runtime: Any = pytest.importorskip("openvino")
    compiled = runtime.compile_model(runtime.Core().read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled({"source": source, "source_lengths": lengths})
    found = [{name: np.array(answer[name]) for name in names}]
    runtime = pytest.importorskip("tract")
    model = runtime.onnx().load(str(file))
    model.set_input_fact(0, "3,S,i64")
    model.set_input_fact(1, "3,i64")
    outputs = model.into_model().into_runnable().run([source, lengths])
    found.append(dict(zip(names, (item.to_numpy() for item in outputs), strict=True)))
    for values in found:
        for name, tensor in expected.state.tensors.items():
            np.testing.assert_allclose(values[name], tensor, atol=1e-4)
        for row, length in enumerate(lengths):
            for name in ("memory", "keys"):
                ours = expected.memory[name][row, :length]
                np.testing.assert_allclose(values[name][row, :length], ours, atol=0.02)
