"""What generation costs beyond the graph itself, per token, at batch 1.

    python -m benchmarks.generation
    python -m benchmarks.generation --size 128x1 --cell gru --lowering cell

A bundle with random weights is exported, then five contenders take turns over the same session:

- the bare ``session.run`` with NumPy arrays in a dictionary, the state fed back: what a page of code would do;
- the bound ``Stepper.step`` alone;
- ``LanguageModel.generate`` with all events read, that is step, choice and decoding, in three ways: at temperature
  0.8, greedy, and at temperature 0.8 with top-k 40, top-p 0.95 and min-p 0.05.

Prints a table of median (fastest) µs per token and the ratio to the bare ``session.run``, and pass or MISS for the
target, which is set for 512x2 and one thread: end to end at most 1.25 times the bare run.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
    verdict,
)
from rnn_edge.language_model import LanguageModel
from rnn_edge.state import zero_state
from rnn_edge.stepper import StepGraph

TARGET = 1.25
BARE = "bare session.run"
FILTERS = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=network_size, default=(512, 2), metavar="WIDTHxLAYERS", help="default 512x2")
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--lowering", choices=LOWERINGS, default="operator")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512, help="tokens of one contender in one round")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    hidden, layers = options.size

    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder), options.cell, hidden, layers, options.lowering)
        model = LanguageModel.load(bundle.path, device="cpu", threads=options.threads)
    contenders = {
        BARE: bare_run(model.graph, options.tokens),
        "bound Stepper.step": bound_step(model.graph, options.tokens),
        "generate, temperature 0.8": generation(model, options.tokens, temperature=0.8),
        "generate, greedy": generation(model, options.tokens, temperature=0.0),
        "generate, all filters": generation(model, options.tokens, temperature=0.8, **FILTERS),
    }
    seconds = interleave(contenders, rounds=options.rounds, units=options.tokens)

    print(f"{options.cell} {hidden}x{layers}, {options.lowering} lowering, fp32, {options.threads} thread(s), batch 1")
    print(machine("onnxruntime"), end="\n\n")
    rows = []
    aimed_at = options.size == (512, 2) and options.threads == 1
    for name, values in seconds.items():
        relative = ratio(values, seconds[BARE])
        judged = (f"≤ {TARGET}", verdict(relative <= TARGET)) if aimed_at and name.startswith("generate") else ("", "")
        rows.append((name, microseconds(values), f"{relative:.3f}", *judged))
    print(table(("contender", "µs per token", "× bare run", "target", "result"), rows))


def bare_run(graph: StepGraph, tokens: int) -> Callable[[], None]:
    """The loop that a reader of ONNX Runtime's manual writes: all outputs asked for, new dictionary each step."""
    run, state = graph.session.run, zero_state(graph.manifest).tensors
    names = ["logits", *(pair.output for pair in graph.manifest.state)]
    ids = [np.array([index % len(CHARACTERS)], np.int64) for index in range(tokens)]

    def work() -> None:
        current = state
        for token in ids:
            _, *following = run(names, {"token": token, **current})
            current = dict(zip(state, following, strict=True))

    return work


def bound_step(graph: StepGraph, tokens: int) -> Callable[[], None]:
    """The same through bound buffers."""
    stepper = graph.stepper()
    ids = [index % len(CHARACTERS) for index in range(tokens)]

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
