"""Operator against cell lowering for fp32 weights: the figure behind the exporter's default.

    python -m benchmarks.lowerings
    python -m benchmarks.lowerings --cells lstm --sizes 512x2 --threads 2

Both lowerings of the same random-weight network are exported and take turns through the bound ``Stepper``. Prints a
Markdown table: median (fastest) µs per step of each, and the ratio cell / operator, above 1 where the operator wins;
then how often it does, and the geometric mean of the ratios.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from benchmarks.common import (
    CELLS,
    CHARACTERS,
    LOWERINGS,
    interleave,
    machine,
    microseconds,
    network_size,
    random_bundle,
    ratio,
    table,
)
from rnn_edge.manifest import Cell
from rnn_edge.stepper import AnyStepper, StepGraph

SIZES = [(128, 1), (256, 2), (512, 2), (1024, 2)]
CHUNK_SECONDS = 0.02  # long enough for the clock, short enough that both of a round meet the same machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--sizes", nargs="+", type=network_size, default=SIZES, metavar="WIDTHxLAYERS")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()

    print(f"fp32, {options.threads} thread(s), batch {options.batch}")
    print(machine("onnxruntime"), end="\n\n")
    rows, ratios = [], []
    for cell in options.cells:
        for hidden, layers in options.sizes:
            seconds = compare(cell, hidden, layers, options.batch, options.threads, options.rounds)
            ratios.append(ratio(seconds["cell"], seconds["operator"]))
            times = [microseconds(seconds[lowering]) for lowering in LOWERINGS]
            rows.append((f"{cell} {hidden}x{layers}", *times, f"{ratios[-1]:.2f}"))
    print(table(("network", "operator, µs per step", "cell, µs per step", "cell / operator"), rows))
    faster = sum(value > 1 for value in ratios)
    print(f"\nThe operator is faster in {faster} of {len(ratios)}; mean ratio {statistics.geometric_mean(ratios):.2f}.")


def compare(cell: Cell, hidden: int, layers: int, batch: int, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per step of both lowerings."""
    with tempfile.TemporaryDirectory() as folder:
        bundles = {name: random_bundle(Path(folder), cell, hidden, layers, name) for name in LOWERINGS}
        graphs = {name: StepGraph(bundle, device="cpu", threads=threads) for name, bundle in bundles.items()}
    steppers = {name: graph.stepper(batch) for name, graph in graphs.items()}
    count = max(steps_in(CHUNK_SECONDS, stepper) for stepper in steppers.values())
    return interleave(
        {name: stepping(stepper, count) for name, stepper in steppers.items()}, rounds=rounds, units=count
    )


def stepping(stepper: AnyStepper, count: int) -> Callable[[], None]:
    """Walk through the vocabulary."""
    ids = [index % len(CHARACTERS) for index in range(count)]

    def work() -> None:
        for token in ids:
            stepper.step(token)

    return work


def steps_in(seconds: float, stepper: AnyStepper) -> int:
    """About how many steps are made in so much time."""
    stepping(stepper, 5)()
    started = perf_counter()
    stepping(stepper, 10)()
    return max(5, round(10 * seconds / (perf_counter() - started)))


if __name__ == "__main__":
    main()
