"""What a batch gains in eight bits on one thread, and how near it comes to the processor's fastest integer products.

    python -m benchmarks.batches
    python -m benchmarks.batches --size 1024x2 --cell gru

A network with random weights in eight bits steps 1 to 128 streams at once; beside it, in the same rounds, one large
MatMulInteger by the same runtime stands for the peak. Target: 32 streams at least 2.5 times as many tokens/s as one.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.common import CELLS, CHARACTERS, interleave, machine, network_size, random_bundle, table, verdict
from rnn_edge.language_model import LanguageModel
from rnn_edge.manifest import Architecture
from rnn_edge.providers import open_session
from rnn_edge.stepper import AnyStepper
from rnn_edge_export.onnx_export import IR_VERSION, OPSET
from rnn_edge_export.quantisation.quantise import Material, quantise

TARGET, AT = 2.5, 32
PEAK = 1024, 2048, 2048  # rows, inner axis and columns of the large product
STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=network_size, default=(512, 2), metavar="WIDTHxLAYERS", help="default 512x2")
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    hidden, layers = options.size
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        bundle = random_bundle(folder, options.cell, hidden, layers, "operator")
        text = Material("all characters", text=CHARACTERS * 8)
        rounded, _ = quantise(bundle, folder / "int8", "int8", name="int8", material=text, force=True)
        graph = LanguageModel.load(rounded.path, device="cpu").graph
        contenders = {str(batch): stepping(graph.stepper(batch)) for batch in options.batches}
        products = products_of_a_step(bundle.manifest.architecture, len(CHARACTERS))
    seconds = interleave(contenders | {"peak": peak()}, rounds=options.rounds, units=STEPS)
    best = 2 * np.prod(PEAK) / statistics.median(seconds["peak"])

    print(f"{options.cell} {hidden}x{layers}, int8, 1 thread, {options.rounds} rounds of {STEPS} steps")
    print(machine("onnxruntime"))
    print(f"peak: {best / 1e9:,.0f} billion integer operations a second in a product of {PEAK[0]} rows\n")
    rows = []
    speeds = {batch: batch / statistics.median(seconds[str(batch)]) for batch in options.batches}
    for batch, speed in speeds.items():
        gain = speed / speeds[1] if 1 in speeds else float("nan")
        passed = verdict(gain >= TARGET) if batch == AT else ""
        rows.append([str(batch), f"{speed:,.0f}", f"{gain:.2f}", f"{2 * products * speed / best:.1%}", passed])
    print(table(["streams", "tokens/s", "× one stream", "of the peak", f"target {TARGET:g} at {AT}"], rows))


def stepping(stepper: AnyStepper) -> Callable[[], None]:
    """A turn of steps of all streams, each another token."""
    tokens = np.arange(stepper.batch) % len(CHARACTERS)

    def run() -> None:
        for _ in range(STEPS):
            stepper.step(tokens)

    return run


def products_of_a_step(architecture: Architecture, vocabulary: int) -> int:
    """Multiplications of a stream's step; the first layer's input is looked up."""
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[architecture.cell]
    hidden = architecture.hidden
    return gates * hidden * hidden * (2 * architecture.layers - 1) + hidden * vocabulary


def peak() -> Callable[[], None]:
    """As many large products as there are steps in a turn."""
    rows, inner, columns = PEAK
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (inner, columns)).astype(np.int8)
    given = random.integers(0, 256, (rows, inner)).astype(np.uint8)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array(128, np.uint8), "zero")]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, given.shape)
    y = helper.make_tensor_value_info("y", TensorProto.INT32, (rows, columns))
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])], "peak", [x], [y], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = open_session(model.SerializeToString(), "the product", device="cpu", integers=True)

    def run() -> None:
        for _ in range(STEPS):
            session.run(None, {"x": given})

    return run


if __name__ == "__main__":
    main()
