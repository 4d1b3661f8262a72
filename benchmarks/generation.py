"""What generation costs beyond the graph itself, per token, at batch 1.

    python -m benchmarks.generation
    python -m benchmarks.generation --size 128x1 --cell gru --lowering cell
    python -m benchmarks.generation --bundle models/shakespeare

A bundle, exported with random weights unless one is given, and contenders that take turns:

- the bare ``session.run`` with NumPy arrays in a dictionary, the state fed back: what a page of code would do;
- the bound ``Stepper.step`` alone;
- ``LanguageModel.generate`` with all events read, that is step, choice and decoding: greedy, at temperature 0.8, and
  there with each filter and the repeat penalty alone and with all of them. Texts are so long that graphs of several
  steps are made while the contenders warm up.

Prints a table of median (fastest) µs per token and two ratios. At 512x2 and one thread there are targets: end to end at
most 1.25 times the bare run, and for a bundle at most 1.1 times the bound step.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    CELLS,
    LOWERINGS,
    interleave,
    machine,
    microseconds,
    network_size,
    random_bundle,
    ratio,
    table,
    verdict,
)
from rnn_edge.language_model import LanguageModel
from rnn_edge.state import zero_state
from rnn_edge.stepper import StepGraph

ABOVE_BARE, ABOVE_BOUND = 1.25, 1.1
BARE, BOUND = "bare session.run", "bound Stepper.step"
FILTERS = {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=network_size, default=(512, 2), metavar="WIDTHxLAYERS", help="default 512x2")
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--lowering", choices=LOWERINGS, default="operator")
    parser.add_argument("--bundle", type=Path, help="instead of random weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512, help="tokens of one contender in one round")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    hidden, layers = options.size

    def load(path: Path) -> LanguageModel:
        return LanguageModel.load(path, device="cpu", threads=options.threads)

    ways: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0.0}, "temperature 0.8": {}}
    ways |= {f"{name.replace('_', '-')} {value}": {name: value} for name, value in FILTERS.items()}
    ways["all of them"] = FILTERS
    with tempfile.TemporaryDirectory() as folder:
        path = options.bundle
        if path is None:
            path = random_bundle(Path(folder), options.cell, hidden, layers, options.lowering).path
        model = load(path)
        contenders = {BARE: bare_run(model.graph, options.tokens), BOUND: bound_step(model.graph, options.tokens)}
        # Each has its own model: one makes graphs of a few filters only.
        contenders |= {
            f"generate, {name}": generation(load(path), options.tokens, **{"temperature": 0.8} | way)
            for name, way in ways.items()
        }
        seconds = interleave(contenders, rounds=options.rounds, units=options.tokens, warm_up=3)

    manifest = model.manifest
    architecture = manifest.architecture
    print(f"{architecture.cell} {architecture.hidden}x{architecture.layers}, {manifest.lowering} lowering, ", end="")
    print(f"{manifest.precision}, {manifest.tokenizer.vocabulary_size} ids, {options.threads} thread(s), batch 1")
    print(machine("onnxruntime"), end="\n\n")
    aimed_at = (architecture.hidden, architecture.layers) == (512, 2) and options.threads == 1
    base, target = (BOUND, ABOVE_BOUND) if options.bundle else (BARE, ABOVE_BARE)
    rows = []
    for name, values in seconds.items():
        ratios = [ratio(values, seconds[reference]) for reference in (BARE, BOUND)]
        judged = ("", "")
        if aimed_at and name.startswith("generate"):
            judged = (f"≤ {target} {base}", verdict(ratio(values, seconds[base]) <= target))
        rows.append((name, microseconds(values), *(f"{item:.3f}" for item in ratios), *judged))
    print(table(("contender", "µs per token", "× bare run", "× bound step", "target", "result"), rows))


def bare_run(graph: StepGraph, tokens: int) -> Callable[[], None]:
    """The loop that a reader of ONNX Runtime's manual writes: all outputs asked for, new dictionary each step."""
    run, state = graph.session.run, zero_state(graph.manifest).tensors
    names = ["logits", *(pair.output for pair in graph.manifest.state)]
    size = graph.manifest.tokenizer.vocabulary_size
    ids = [np.array([index % size], np.int64) for index in range(tokens)]

    def work() -> None:
        current = state
        for token in ids:
            _, *following = run(names, {"token": token, **current})
            current = dict(zip(state, following, strict=True))

    return work


def bound_step(graph: StepGraph, tokens: int) -> Callable[[], None]:
    """The same through bound buffers."""
    stepper = graph.stepper()
    ids = [index % graph.manifest.tokenizer.vocabulary_size for index in range(tokens)]

    def work() -> None:
        for token in ids:
            stepper.step(token)

    return work


def generation(model: LanguageModel, tokens: int, **sampling: Any) -> Callable[[], None]:
    """A prompt of one token, so that ``tokens`` steps are run; the set-up of a generation is part of its time."""

    def work() -> None:
        for _ in model.generate("A", max_tokens=tokens, seed=1, **sampling):
            pass

    return work


if __name__ == "__main__":
    main()
