"""Translating on one thread beside PyTorch with the same weights and the same search.

    python -m benchmarks.translation RUN SOURCE [--sentences 1000] [--compile]

RUN is a training run of a translator, SOURCE a text with a sentence a line. The run is exported, then the contenders
take turns on the same sentences, greedy and with a beam of 5, one by one and in batches of 32:

- rnn-edge: the bundle through ONNX Runtime;
- PyTorch, nn.LSTM: the trained modules themselves, one step a call;
- PyTorch, written-out cell: the step with its gates as one product;
- PyTorch, dynamic int8: the same in linear layers, quantised by PyTorch, traced and frozen; for LSTM without input
  feeding;
- PyTorch, compiled (with ``--compile``): the same through torch.compile with dynamic shapes.

With ``--precision int8`` the same bundle in eight bits takes part too.

The search is the project's own for all of them, so that only the network's runtime differs; all translations are
compared with those of rnn-edge in fp32. Prints sentences/s, source words/s and the ratio to the fastest PyTorch of as
many bits or more, with the targets: in fp32 at least 2.5 one by one, at least 1.2 in batches, and 150 sentences/s
greedy in batches; in eight bits, greedy in batches, at least 2 and 4,000 source words/s.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

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
from rnn_edge_export.translation.steps import DecoderStep, step_scores

OURS = "rnn-edge"
FP32 = {1: 2.5, 32: 1.2}  # by batch size
GREEDY_SENTENCES = 150
INT8, INT8_WORDS = 2, 4000


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
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> None:
    """All searches with all contenders, in a table."""
    sentences = options.source.read_text(encoding="utf-8").splitlines()[: options.sentences]
    content = load_run(options.run)
    assert isinstance(content.recipe, TranslationRecipe)
    source = load_source(options.run, content, content.recipe)
    bundle, _ = export_bundle(source, folder / "bundle", name="bundle")
    ours = Translator.load(bundle.path, device="cpu", threads=1)
    contenders = {OURS: ours}
    if options.precision:
        rounded = write_unmeasured(bundle, folder / "rounded", options.precision)
        contenders[f"{OURS}, {options.precision}"] = Translator.load(rounded.path, device="cpu", threads=1)
    peers: dict[str, Step] = {
        "PyTorch, nn.LSTM": ModuleStep(source.model),
        "PyTorch, written-out cell": CellStep(source.model),
    }
    if source.recipe.model.cell == "lstm" and not source.recipe.model.input_feeding:
        peers["PyTorch, dynamic int8"] = int8_step(source.model)
    if options.compile:
        peers["PyTorch, compiled"] = CellStep(source.model, compiled=True)
    for name, step in peers.items():
        graphs: Any = TorchGraphs(ours.manifest, source.model, step)
        contenders[name] = Translator(ours.bundle, graphs, ours.source_tokenizer, ours.tokenizer)

    print(f"{source.recipe.data.title}: {len(sentences)} sentences, 1 thread")
    print(machine("onnxruntime", "torch"), end="\n\n")
    rows = []
    for beam in (1, 5):
        for batch in (1, 32):
            some = sentences if batch > 1 else sentences[: options.one_by_one]
            rows += compare(contenders, some, TranslationOptions(beam=beam, batch_size=batch), options.rounds)
    headings = ("search", "contender", "sentences/s", "source words/s", "× PyTorch", "target", "result", "differ")
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
    ours = texts[OURS]
    rows: list[Sequence[str]] = []
    for name, values in seconds.items():
        peers = [peer for peer in seconds if not peer.startswith(OURS) and ("int8" in name or "int8" not in peer)]
        fastest = min(peers, key=lambda peer: statistics.median(seconds[peer]))
        rate = len(sentences) / statistics.median(values)
        words = sum(len(text.split()) for text in sentences) / statistics.median(values)
        relative = statistics.median(b / a for a, b in zip(values, seconds[fastest], strict=True))
        differing = sum(a != b for a, b in zip(texts[name], ours, strict=True))
        wanted, passed = target(name, options, relative, rate, words)
        search = f"{'greedy' if options.beam == 1 else f'beam {options.beam}'}, {options.batch_size} at once"
        judged = (wanted, verdict(passed) if wanted else "", f"{differing}")
        rows.append((search, name, f"{rate:.1f}", f"{words:,.0f}", f"{relative:.2f}", *judged))
    return rows


def target(name: str, options: TranslationOptions, relative: float, rate: float, words: float) -> tuple[str, bool]:
    """In words, nothing where there is none, and whether it is reached."""
    greedy_batch = options.beam == 1 and options.batch_size > 1
    if name == OURS:
        wanted = FP32[options.batch_size]
        if greedy_batch:
            return f"≥ {wanted}, ≥ {GREEDY_SENTENCES}/s", relative >= wanted and rate >= GREEDY_SENTENCES
        return f"≥ {wanted}", relative >= wanted
    if name == f"{OURS}, int8" and greedy_batch:
        return f"≥ {INT8}, ≥ {INT8_WORDS:,} words/s", relative >= INT8 and words >= INT8_WORDS
    return "", True


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


class LinearStep(nn.Module):
    """The written-out cell in linear layers, which PyTorch's dynamic quantisation knows; LSTM without input feeding."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.attention, self.scale, self.combine = model.attention, model.recipe.embedding**0.5, model.combine
        self.embedding = nn.Buffer(model.target_embedding.folded().detach().clone())
        self.gates = nn.ModuleList()
        for layer in model.decoder:
            weights = {name: value.detach() for name, value in layer.named_parameters()}
            stacked = torch.cat([weights["weight_ih_l0"], weights["weight_hh_l0"]], dim=1)
            self.gates.append(linear(stacked, weights["bias_ih_l0"] + weights["bias_hh_l0"]))
        self.output = linear(self.embedding, model.output.bias.detach())

    def forward(
        self, token: torch.Tensor, values: torch.Tensor, keys: torch.Tensor, lengths: torch.Tensor, *state: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        x = context = attention = nn.functional.embedding(token, self.embedding) * self.scale
        following: list[torch.Tensor] = []
        for index, product in enumerate(self.gates):
            if index == 1:
                x = torch.cat([x, context], dim=1)
            h, c = state[2 * index : 2 * index + 2]
            i, f, g, o = product(torch.cat([x, h], dim=1)).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            following += [x, c]
            if index == 0:
                scores = step_scores(self.attention, x, keys)
                places = torch.arange(values.shape[1])
                attention = torch.where(places < lengths.unsqueeze(1), scores, -torch.inf).softmax(dim=1)
                context = (attention.unsqueeze(1) @ values).squeeze(1)
        readout = self.combine(torch.cat([x, context], dim=1)).tanh()
        return self.output(readout), attention, *following


def int8_step(model: EncoderDecoder) -> "Step":
    """What is fastest in PyTorch with eight bits: linear layers with dynamic int8, traced and frozen."""
    module = torch.ao.quantization.quantize_dynamic(LinearStep(model).eval(), {nn.Linear}, dtype=torch.qint8)
    token, lengths = torch.zeros(2, dtype=torch.int64), torch.tensor([3, 2])
    with torch.inference_mode():
        memory, state = model.encode(torch.zeros(3, 2, dtype=torch.int64), lengths)
        traced = torch.jit.freeze(torch.jit.trace(module, (token, memory.values, memory.keys, lengths, *state)))

    def step(tokens: torch.Tensor, state: list[torch.Tensor], memory: Memory) -> Any:
        logits, attention, *following = traced(tokens, memory.values, memory.keys, memory.lengths, *state)
        return logits, attention, following

    return step


def linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """A layer of given weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, bias
    return layer


# Tokens [B], state, memory → logits [B, V], attention [B, S], next state.
Step = Callable[[torch.Tensor, list[torch.Tensor], Memory], Any]


class TorchGraphs:
    """What ``EncoderDecoderGraphs`` is to the search, by PyTorch."""

    device = "cpu"

    def __init__(self, manifest: Manifest, model: EncoderDecoder, step: Step) -> None:
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

    def __init__(self, manifest: Manifest, step: Step, encoded: Encoded) -> None:
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
