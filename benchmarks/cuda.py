"""Everything about CUDA in one go, for a person with a GPU: the tests, then the speed beside PyTorch.

    python -m benchmarks.cuda
    python -m benchmarks.cuda --no-tests --size 1024x2 --batches 1 4096

Needs the workstation side with ``onnxruntime-gpu`` and a PyTorch with CUDA. A network with random weights writes greedy
text, all contenders in turns on the same weights:

- rnn-edge in bursts, as texts are generated: tokens stay on the GPU, each step is a CUDA graph; in fp32 and fp16;
- the same with four steps in one graph, as on the CPU; on CUDA the product does so for filters alone;
- rnn-edge step by step, as where tokens are filtered: logits come back, NumPy chooses;
- rnn-edge from end to end, up to strings: ``generate`` or ``generate_batch``, greedy, drawn for the cost of noise, and
  one stream with a filter;
- PyTorch: ``nn.LSTM`` and the cell written out, both eager and as CUDA graphs of their own; the cell compiled, which
  takes minutes and therefore comes last, for all sizes of batches (``--no-compile`` leaves it out).

All compute fp32 in fp32: no TF32. Tokens are compared before anything is timed. Targets: one stream at least 3 times as
fast as PyTorch's fastest, and 4,096 streams at least 50 times as many tokens/s as one. ``--device cpu`` tries the
script where there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import CHARACTERS, interleave, machine, network_size, ratio, table, verdict
from benchmarks.peers.network import Network, Shape
from benchmarks.peers.ours import language_model_source
from benchmarks.peers.reference import random_network
from benchmarks.peers.torch_step import CellStep, ModuleStep
from rnn_edge.bundle import Bundle
from rnn_edge.chooser import DEPTH, Chooser
from rnn_edge.language_model import LanguageModel
from rnn_edge.providers import Device, captures_graphs
from rnn_edge.state import zero_state
from rnn_edge_export.onnx_export import export_bundle
from rnn_edge_export.quantisation.quantise import Material, quantise

STEPS = 64
ONE_STREAM, MANY_STREAMS = 3.0, 50.0
DRAWN = " at 0.8"  # in the names of contenders whose text is not greedy
FILTER: dict[str, Any] = {"temperature": 0.8, "top_k": 40}
BURSTS = ", bursts"  # and this of ours as they write texts
Greedy = Callable[[], list[int]]  # writes STEPS tokens of every stream → those of the first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-tests", action="store_true", help="only measure")
    parser.add_argument("--size", type=network_size, default=(512, 2), metavar="WIDTHxLAYERS", help="default 512x2")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 512, 4096])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    device: Device = options.device
    if device == "cuda" and not options.no_tests:
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "cuda"], check=True)

    print(machine("onnxruntime-gpu" if device == "cuda" else "onnxruntime", "torch"))
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        print(torch.cuda.get_device_name(), torch.version.cuda)
    gc.freeze()  # PyTorch's objects, which a process that generates text does not have
    hidden, layers = options.size
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        network = random_network(Shape("lstm", hidden, layers, 1))
        bundle = export_bundle(language_model_source(network), folder / "fp32", name="fp32")[0]
        text = Material("all characters", text=CHARACTERS * 8)
        half, _ = quantise(bundle, folder / "fp16", "fp16", name="fp16", material=text, force=True)
        print(f"\ngreedy text, lstm {hidden}x{layers}, {device}, {options.rounds} rounds of {STEPS} steps")
        speeds: dict[tuple[str, int], float] = {}
        for compiled in [False, True] if device == "cuda" and not options.no_compile else [False]:
            for batch in options.batches:
                contenders = ours(bundle, "fp32", device, batch, bursts_only=compiled)
                contenders |= ours(half, "fp16", device, batch, bursts_only=compiled)
                contenders |= pytorch(network, device, batch, compiled=compiled)
                report(contenders, batch, options.rounds, speeds)
            if {1, 4096} <= set(options.batches) and not compiled:
                gain = speeds[f"rnn-edge fp32{BURSTS}", 4096] / speeds[f"rnn-edge fp32{BURSTS}", 1]
                print(f"\n4,096 streams: {gain:.0f} × one, target {MANY_STREAMS:g}: {verdict(gain >= MANY_STREAMS)}")
        print(f"\n--device auto takes: {LanguageModel.load(bundle.path).graph.place}")


def report(contenders: dict[str, Greedy], batch: int, rounds: int, speeds: dict[tuple[str, int], float]) -> None:
    """Measure and print a table, and put tokens/s into ``speeds``."""
    notes = agreement(contenders)
    seconds = interleave(contenders, rounds=rounds, units=STEPS)
    peers = [name for name in contenders if name.startswith("PyTorch")]
    fastest = min(peers, key=lambda name: statistics.median(seconds[name]))
    rows = []
    for name, found in seconds.items():
        speeds[name, batch] = batch / statistics.median(found)
        gain = ratio(seconds[fastest], found)
        passed = verdict(gain >= ONE_STREAM) if batch == 1 and name.endswith(BURSTS) else ""
        rows.append([str(batch), name, f"{speeds[name, batch]:,.0f}", f"{gain:.2f}", passed, notes[name]])
    headings = ["streams", "contender", "tokens/s", "× fastest PyTorch here", f"target {ONE_STREAM:g}", "tokens"]
    print(f"\n{table(headings, rows)}", flush=True)  # what is measured is not lost when time runs out


def ours(bundle: Bundle, precision: str, device: Device, batch: int, *, bursts_only: bool) -> dict[str, Greedy]:
    """A bundle in bursts and step by step."""
    model = LanguageModel.load(bundle.path, device=device)
    graph, prompts = model.graph, [CHARACTERS[0]] * batch  # the token 0, as the others begin with
    zero, first = zero_state(bundle.manifest, batch), np.zeros(batch, np.int64)
    chooser, stepper = Chooser(graph, batch), graph.stepper(batch)
    if device == "cuda" and not captures_graphs(graph.session):
        print(f"{precision}: steps are not captured")

    def bursts_of(chooser: Chooser) -> list[int]:
        chooser.start(zero, first, 1.0)
        return [int(row[0]) for _ in range(STEPS // DEPTH) for row in chooser.run(DEPTH)]

    def steps() -> list[int]:
        stepper.load(zero)
        tokens, found = first, []
        for _ in range(STEPS):
            tokens = stepper.step(tokens).argmax(axis=1)
            found.append(int(tokens[0]))
        return found

    def text(**settings: Any) -> list[int]:
        found = model.generate(prompts[0], max_tokens=STEPS, seed=0, **settings)
        return model.tokenizer.encode("".join(event.text for event in found))

    def texts(**settings: Any) -> list[int]:
        found = model.generate_batch(prompts, batch_size=batch, max_tokens=STEPS, seed=0, **settings)
        first, *_ = (text.text for text in found.texts())
        return model.tokenizer.encode(first)

    found = {f"rnn-edge {precision}{BURSTS}": lambda: bursts_of(chooser)}
    if bursts_only:
        return found
    several = LanguageModel.load(bundle.path, device=device).graph
    if unrolled := several.unrolled(batch):
        unrolled.always()
        longer = Chooser(several, batch)
        found[f"rnn-edge {precision}, four steps a graph"] = lambda: bursts_of(longer)
    found[f"rnn-edge {precision}, step by step"] = steps
    if batch > 1:
        found[f"rnn-edge {precision}, generate_batch"] = lambda: texts(temperature=0.0)
        found[f"rnn-edge {precision}, generate_batch{DRAWN}"] = lambda: texts(temperature=0.8)
    else:
        found[f"rnn-edge {precision}, generate"] = lambda: text(temperature=0.0)
        found[f"rnn-edge {precision}, generate{DRAWN}"] = lambda: text(temperature=0.8)
        for _ in model.generate(prompts[0], max_tokens=1100, seed=0, **FILTER):
            pass  # until its filter has a graph
        found[f"rnn-edge {precision}, generate{DRAWN}, top-k 40"] = lambda: text(**FILTER)
    return found


def pytorch(network: Network, device: str, batch: int, *, compiled: bool) -> dict[str, Greedy]:
    """PyTorch's ways, those with a compiled cell or the others; on a CPU the eager ones."""
    cell = CellStep(network).eval().requires_grad_(False).to(device)
    module = ModuleStep(network).eval().requires_grad_(False).to(device)
    hidden, layers = network.shape.hidden, network.shape.layers
    zero = [torch.zeros(batch, hidden, device=device) for _ in range(2 * layers)]
    stacked = [torch.zeros(layers, batch, hidden, device=device) for _ in range(2)]
    found: dict[str, _Torch | _Captured] = {}
    if compiled:
        fused = torch.compile(cell, mode="max-autotune-no-cudagraphs", dynamic=False)
        found["PyTorch, compiled"] = _Torch(fused, zero)
        found["PyTorch, compiled, CUDA graph"] = _Captured(fused, zero)
    else:
        found["PyTorch, nn.LSTM"] = _Torch(module, stacked)
        found["PyTorch, written-out cell"] = _Torch(cell, zero)
        if device == "cuda":
            found["PyTorch, CUDA graph"] = _Captured(cell, zero)
            found["PyTorch, nn.LSTM, CUDA graph"] = _Captured(module, stacked)
    return {name: contender.write for name, contender in found.items()}


class _Torch:
    """Greedy text by a module of one step; the tokens stay on the device until the end."""

    def __init__(self, module: Callable[..., Any], zero: list[Tensor]) -> None:
        self._module, self._zero = module, zero
        self._first = torch.zeros(zero[0].shape[-2], dtype=torch.int64, device=zero[0].device)

    @torch.no_grad()
    def write(self) -> list[int]:
        tokens, state, found = self._first, self._zero, []
        for _ in range(STEPS):
            logits, *state = self._module(tokens, *state)
            tokens = logits.argmax(dim=1)
            found.append(tokens)
        return [int(token) for token in torch.stack(found)[:, 0].tolist()]


class _Captured:
    """The same with one captured step, replayed; its state is copied back to where the step reads it."""

    @torch.no_grad()
    def __init__(self, module: Callable[..., Any], zero: list[Tensor]) -> None:
        self._state = [tensor.clone() for tensor in zero]
        self._tokens = torch.zeros(zero[0].shape[-2], dtype=torch.int64, device=zero[0].device)
        self._found = torch.zeros(STEPS, dtype=torch.int64, device=zero[0].device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                module(self._tokens, *self._state)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            logits, *state = module(self._tokens, *self._state)
            self._tokens.copy_(logits.argmax(dim=1))
            for old, new in zip(self._state, state, strict=True):
                old.copy_(new)

    @torch.no_grad()
    def write(self) -> list[int]:
        for tensor in (self._tokens, *self._state):
            tensor.zero_()
        for index in range(STEPS):
            self._graph.replay()
            self._found[index] = self._tokens[0]
        return [int(token) for token in self._found.tolist()]


def agreement(contenders: dict[str, Greedy]) -> dict[str, str]:
    """How many tokens each has in common with the first before they differ."""
    texts = {name: contender() for name, contender in contenders.items()}
    expected = next(iter(texts.values()))
    same = {
        name: next((index for index in range(STEPS) if text[index] != expected[index]), STEPS)
        for name, text in texts.items()
    }
    notes = {name: "the same" if count == STEPS else f"{count} the same" for name, count in same.items()}
    return {name: "drawn" if DRAWN in name else note for name, note in notes.items()}


if __name__ == "__main__":
    main()
