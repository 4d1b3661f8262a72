"""Cold start and memory of whole processes, as a person at a terminal has them, with a warm page cache.

    python -m benchmarks.startup models/shakespeare
    python -m benchmarks.startup models/shakespeare --litert PYTHON MODEL

Measures, in turns: ``rnn-edge generate BUNDLE -n 1 -p A --seed 1`` from process start to the first generated character
on its stdout, ``rnn-edge --help`` to its end, and for scale the start of a bare Python and of one that imports what a
device needs. Then the peak resident memory of a run of 1,000 characters. Prints a table with medians and pass or MISS
for the targets 0.35 s, 0.25 s and 100 MB. With ``--litert``, a Python that has ai-edge-litert and a model of one step
(``python -m benchmarks.peers --work work`` makes both), the process that loads it and runs one step takes its turns
too: the first character should come at most 0.25 s after its end.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from benchmarks.common import machine, table, verdict

FIRST_CHARACTER, HELP, PEAK_MEGABYTES, AFTER_LITERT = 0.35, 0.25, 100.0, 0.25
IMPORTS = "import numpy, tokenizers, onnxruntime"
LITERT = """
import sys
import numpy
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
for item in interpreter.get_input_details():
    interpreter.set_tensor(item["index"], numpy.zeros(item["shape"], item["dtype"]))
interpreter.invoke()
print("done")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="name or folder of a bundle")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--prompt", default="A", help="text that the bundle's vocabulary has (default A)")
    parser.add_argument("--litert", nargs=2, metavar=("PYTHON", "MODEL"), help="measure LiteRT's start too")
    options = parser.parse_args()

    generate = [*program(), "generate", options.bundle, "-p", options.prompt, "--seed", "1", "--no-display-prompt"]
    first, to_help, python, imports = "generate -n 1 to the first character", "--help", "python", "python, imports only"
    contenders: dict[str, Callable[[], float]] = {
        first: lambda: seconds_to_first_byte([*generate, "-n", "1"]),
        to_help: lambda: seconds_to_end([*program(), "--help"]),
        python: lambda: seconds_to_end([sys.executable, "-c", "pass"]),
        imports: lambda: seconds_to_end([sys.executable, "-c", IMPORTS]),
    }
    litert = "python, LiteRT, one step"
    if options.litert:
        runtime, model = options.litert
        contenders[litert] = lambda: seconds_to_first_byte([runtime, "-c", LITERT, model])
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(options.warm_up + options.rounds):
        for name, measure in contenders.items():
            value = measure()
            if index >= options.warm_up:
                seconds[name].append(value)
    peak = peak_megabytes([*generate, "-n", "1000"])

    print(f"{options.bundle}, {options.rounds} rounds, started as: {' '.join(map(shown, program()))}")
    print(machine("onnxruntime", "tokenizers", "typer"), end="\n\n")
    rows = []
    judged_by: dict[str, float] = {first: FIRST_CHARACTER, to_help: HELP}
    if options.litert:
        judged_by[first] = min(FIRST_CHARACTER, statistics.median(seconds[litert]) + AFTER_LITERT)
    for name in contenders:
        target = judged_by.get(name)
        median = statistics.median(seconds[name])
        judged = ("", "") if target is None else (f"≤ {target:.3g} s", verdict(median <= target))
        rows.append((name, f"{median:.3f} s ({min(seconds[name]):.3f})", *judged))
    rows.append(("peak memory, -n 1000", f"{peak:.1f} MB", f"≤ {PEAK_MEGABYTES:g} MB", verdict(peak <= PEAK_MEGABYTES)))
    print(table(("process", "median (least)", "target", "result"), rows))


def program() -> list[str]:
    """The installed script beside this Python, else the module."""
    script = Path(sys.executable).parent / "rnn-edge"
    return [str(script)] if script.is_file() else [sys.executable, "-m", "rnn_edge"]


def shown(part: str) -> str:
    """A path by its name: results are for publishing."""
    return Path(part).name


def seconds_to_first_byte(command: list[str]) -> float:
    """From process start to the first byte on stdout. The prompt is not displayed: it is the model's."""
    started = perf_counter()
    # Unbuffered here: the read returns with the first byte. An open stdin would be taken for a prompt to wait for.
    with subprocess.Popen(
        command, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = perf_counter() - started
        _, errors = process.communicate()
    if process.returncode or not first:
        raise SystemExit(f"{command} failed: {errors.decode()}")
    return seconds


def seconds_to_end(command: list[str]) -> float:
    """From process start to its end."""
    started = perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return perf_counter() - started


def peak_megabytes(command: list[str]) -> float:
    """Peak resident memory of a process, in millions of bytes.

    Linux counts what the forked child shared with its parent before exec, so this script stays small: no NumPy here.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed with exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main()
