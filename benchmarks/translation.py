"""Translating on one thread beside PyTorch with the same weights and the same search.

    python -m benchmarks.translation RUN SOURCE [--sentences 1000] [--compile]

RUN is a training run of a translator, SOURCE a text with a sentence a line. The run is exported, then the contenders
take turns on the same sentences, greedy and with a beam of 5, one by one and in batches of 32:

- rnn-edge: the bundle through ONNX Runtime;
- PyTorch, nn.LSTM: the trained modules themselves, one step a call;
- PyTorch, written-out cell: the step with its gates as one product;
- PyTorch, compiled (with ``--compile``): the same through torch.compile with dynamic shapes.

With ``--precision int8`` the same bundle in eight bits takes part too.

The search is the project's own for all of them, so that only the network's runtime differs; all translations are
compared. Prints sentences/s and source words/s and the ratio to the fastest PyTorch, with the targets:
at least 2.5 one by one, at least 1.2 in batches, and 150 sentences/s greedy in batches.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import machine, table, verdict
from rnn_edge.encoder_decoder import Encoded
from rnn_edge.manifest import Manifest
from rnn_edge.state import State
from rnn_edge.stepper import LENGTHS, Logits
from rnn_edge.translation import TranslationOptions
from rnn_edge.translator import Translator
from rnn_edge_export.onnx_export import export_bundle
from rnn_edge_export.quantisation.quantise import write_unmeasured
from rnn_edge_export.recipe import TranslationRecipe
from rnn_edge_export.run import load_run
from rnn_edge_export.translation.export import load_source
from rnn_edge_export.translation.modules import EncoderDecoder, Memory
from rnn_edge_export.translation.steps import DecoderStep

OURS = "rnn-edge"
TARGETS = {1: 2.5, 32: 1.2}
GREEDY_BATCHED = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--one-by-one", type=int, default=100, help="sentences where they are translated one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("int8", "int4"), help="the bundle in this precision too")
    parser.add_argument("--compile", action="store_true", help="also through torch.compile, which takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sentences = options.source.read_text(encoding="utf-8").splitlines()[: options.sentences]

    content = load_run(options.run)
    assert isinstance(content.recipe, TranslationRecipe)
    source = load_source(options.run, content, content.recipe)
    with tempfile.TemporaryDirectory() as folder:
        bundle, _ = export_bundle(source, Path(folder) / "bundle", name="bundle")
        ours = Translator.load(bundle.path, device="cpu", threads=1)
        contenders = {OURS: ours}
        if options.precision:
            rounded = write_unmeasured(bundle, Path(folder) / "rounded", options.precision)
            contenders[f"{OURS}, {options.precision}"] = Translator.load(rounded.path, device="cpu", threads=1)
    peers: dict[str, ModuleStep | CellStep] = {
        "PyTorch, nn.LSTM": ModuleStep(source.model),
        "PyTorch, written-out cell": CellStep(source.model),
    }
    if options.compile:
        peers["PyTorch, compiled"] = CellStep(source.model, compiled=True)
    for name, step in peers.items():
        graphs: Any = TorchGraphs(ours.manifest, source.model, step)
        contenders[name] = Translator(ours.bundle, graphs, ours.source_tokenizer, ours.tokenizer)

    print(f"{source.recipe.data.title}: {len(sentences)} sentences, fp32, 1 thread")
    print(machine("onnxruntime", "torch"), end="\n\n")
    rows = []
    for beam in (1, 5):
        for batch in (1, 32):
            some = sentences if batch > 1 else sentences[: options.one_by_one]
            rows += compare(contenders, some, TranslationOptions(beam=beam, batch_size=batch), options.rounds)
    headings = ("search", "contender", "sentences/s", "source words/s", "× fastest PyTorch", "target", "result")
    print(table(headings, rows))


def compare(
    contenders: dict[str, Translator], sentences: list[str], options: TranslationOptions, rounds: int
) -> list[Sequence[str]]:
    """One row for each contender."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    texts: dict[str, list[str]] = {}
    for index in range(rounds + 1):
        for name, translator in contenders.items():
            some = sentences if index else sentences[: 2 * options.batch_size]  # the first round is to warm up
            started = perf_counter()
            texts[name] = [found.text for found in translator.translate_sentences(some, options)]
            if index:
                seconds[name].append(perf_counter() - started)
    differing = {name: sum(a != b for a, b in zip(found, texts[OURS], strict=True)) for name, found in texts.items()}
    fastest = min(
        (name for name in contenders if not name.startswith(OURS)), key=lambda name: statistics.median(seconds[name])
    )
    search = f"{'greedy' if options.beam == 1 else f'beam {options.beam}'}, {options.batch_size} at once"
    rows: list[Sequence[str]] = []
    for name, values in seconds.items():
        rate = len(sentences) / statistics.median(values)
        words = sum(len(text.split()) for text in sentences) / statistics.median(values)
        relative = statistics.median(b / a for a, b in zip(values, seconds[fastest], strict=True))
        target = TARGETS[options.batch_size]
        passed = relative >= target
        wanted = f"≥ {target}"
        if options.beam == 1 and options.batch_size > 1:
            passed, wanted = passed and rate >= GREEDY_BATCHED, f"{wanted}, ≥ {GREEDY_BATCHED}/s"
        judged = (wanted, verdict(passed)) if name == OURS else ("", f"{differing[name]} differ")
        rows.append((search, name, f"{rate:.1f}", f"{words:,.0f}", f"{relative:.2f}", *judged))
    return rows


class ModuleStep:
    """A step of the trained modules."""

    def __init__(self, model: EncoderDecoder) -> None:
        self._model = model

    def __call__(self, tokens: torch.Tensor, state: list[torch.Tensor], memory: Memory) -> Any:
        logits, attention, following = self._model.decode(tokens.unsqueeze(0), state, memory)
        return logits[0], attention[:, 0], following


class CellStep:
    """A step with the gates written out, as it is exported in the ``cell`` lowering."""

    def __init__(self, model: EncoderDecoder, *, compiled: bool = False) -> None:
        step = DecoderStep(model, "cell").eval()
        self._step: Any = torch.compile(step, dynamic=True) if compiled else step

    def __call__(self, tokens: torch.Tensor, state: list[torch.Tensor], memory: Memory) -> Any:
        keys = [] if memory.keys is memory.values else [memory.keys]
        logits, attention, *following = self._step(tokens, memory.values, *keys, memory.lengths, *state)
        return logits, attention, following


class TorchGraphs:
    """What ``EncoderDecoderGraphs`` is to the search, by PyTorch."""

    device = "cpu"

    def __init__(self, manifest: Manifest, model: EncoderDecoder, step: ModuleStep | CellStep) -> None:
        self.manifest, self._model, self._step = manifest, model, step

    @torch.inference_mode()
    def encode(self, sources: Sequence[Sequence[int]]) -> Encoded:
        rows = [torch.tensor(source) for source in sources]
        lengths = torch.tensor([len(row) for row in rows])
        memory, state = self._model.encode(torch.nn.utils.rnn.pad_sequence(rows), lengths)
        arrays = {"memory": memory.values.contiguous().numpy(), LENGTHS: lengths.numpy()}
        arrays |= {"keys": memory.keys.contiguous().numpy()} if memory.keys is not memory.values else {}
        names = [pair.input for pair in self.manifest.state]
        return Encoded(arrays, State({name: tensor.numpy() for name, tensor in zip(names, state, strict=True)}))

    def stepper(self, encoded: Encoded) -> "TorchStepper":
        return TorchStepper(self.manifest, self._step, encoded)


class TorchStepper:
    """What ``Stepper`` is to the search, by PyTorch."""

    def __init__(self, manifest: Manifest, step: ModuleStep | CellStep, encoded: Encoded) -> None:
        self._names = [pair.input for pair in manifest.state]
        self._step = step
        self.memory = encoded.memory
        values, lengths = (torch.from_numpy(encoded.memory[name]) for name in ("memory", LENGTHS))
        keys = torch.from_numpy(encoded.memory["keys"]) if "keys" in encoded.memory else values
        self._memory = Memory(values, keys, lengths)  # of the same arrays
        self._state = [torch.from_numpy(encoded.state.tensors[name]) for name in self._names]
        self.batch = len(lengths)
        self.attention: Logits = np.empty(values.shape[:2], np.float32)

    @torch.inference_mode()
    def step(self, tokens: NDArray[np.int64]) -> Logits:
        logits, attention, self._state = self._step(torch.from_numpy(tokens), self._state, self._memory)
        self.attention = attention.numpy()
        return np.asarray(logits.numpy())

    def reorder(self, rows: NDArray[np.int64]) -> None:
        index = torch.from_numpy(rows)
        self._state = [tensor[index] for tensor in self._state]

    @torch.inference_mode()
    def replace(self, rows: NDArray[np.int64], state: State, memory: dict[str, NDArray[Any]]) -> None:
        for name, array in memory.items():
            self.memory[name][rows if array.ndim == 1 else (rows, slice(array.shape[1]))] = array[:, None]
        self._state = [tensor.clone() for tensor in self._state]  # what a step gives may be shared
        for tensor, name in zip(self._state, self._names, strict=True):
            tensor[torch.from_numpy(rows)] = torch.from_numpy(state.tensors[name])[:, None]

    def state(self) -> State:
        return State({name: tensor.numpy() for name, tensor in zip(self._names, self._state, strict=True)})


if __name__ == "__main__":
    main()
