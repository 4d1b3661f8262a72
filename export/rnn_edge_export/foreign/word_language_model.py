"""Checkpoints of PyTorch's example ``word_language_model``: its state dict, as safetensors.

The example's model is an embedding ``encoder``, a recurrent module ``rnn`` (LSTM, GRU, tanh or ReLU RNN) and a linear
``decoder``, perhaps tied. Its vocabulary is the order of first appearance in ``train.txt``, ``valid.txt`` and
``test.txt``, where each line ends with ``<eos>``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rnn_edge.errors import DataError, InvalidValueError
from rnn_edge.text_files import read_text
from rnn_edge_export.foreign.language_model import Network, network_of

LINE_END = "<eos>"
_PARTS = ("train.txt", "valid.txt", "test.txt")
_GATES = {1: "rnn", 3: "gru", 4: "lstm"}
_MODULES: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn-tanh": partial(nn.RNN, nonlinearity="tanh"),
    "rnn-relu": partial(nn.RNN, nonlinearity="relu"),
}
CELLS = tuple(_MODULES)


def read_checkpoint(path: Path, cell: str | None = None) -> Network:
    """The network of a checkpoint; ``cell`` says which RNN it is where the shapes do not.

    Raises:
        DataError: damaged, weights missing or too many, or of shapes that do not fit together.
        InvalidValueError: ``cell`` is unknown, wrong, or needed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a whole safetensors file: {error}", "copy it or convert it again") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DataError(f"{path}: {name} is {tensor.dtype}, no floating point", "give unquantised weights")
        if not tensor.isfinite().all():
            raise DataError(
                f"{path}: {name} holds values that are not finite", "give weights from before training diverged"
            )
    return build_network({name: tensor.float() for name, tensor in tensors.items()}, str(path), cell)


def build_network(tensors: Mapping[str, Tensor], where: str, cell: str | None = None) -> Network:
    """The example's own modules with these weights. See ``read_checkpoint``."""
    if cell not in (*CELLS, None):
        raise InvalidValueError(f"--cell {cell} is unknown", f"use one of {', '.join(CELLS)}")
    layers = [int(found[1]) for name in tensors if (found := re.fullmatch(r"rnn\.weight_ih_l(\d{1,3})", name))]
    count = max(layers, default=0) + 1
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    expected = ["encoder.weight", *(f"rnn.{part}_l{layer}" for layer in range(count) for part in parts)]
    expected += ["decoder.weight", "decoder.bias"]
    missing, extra = [name for name in expected if name not in tensors], sorted(set(tensors) - set(expected))
    if missing or extra:
        faults = [f"{kind} {_list(names)}" for kind, names in (("lacks", missing), ("also has", extra)) if names]
        raise DataError(
            f"{where} is no word_language_model checkpoint: it {' and '.join(faults)}",
            "give the state dict of its RNNModel, with encoder.weight, rnn.…, decoder.weight and decoder.bias",
        )
    sizes = _sizes(tensors, count, where)
    rnn = _MODULES[_cell(sizes.gates, cell, where)](sizes.embedding, sizes.hidden, count)
    rnn.load_state_dict({name.removeprefix("rnn."): item for name, item in tensors.items() if name.startswith("rnn.")})
    embedding, output = nn.Embedding(sizes.vocabulary, sizes.embedding), nn.Linear(sizes.hidden, sizes.vocabulary)
    embedding.load_state_dict({"weight": tensors["encoder.weight"]})
    output.load_state_dict({"weight": tensors["decoder.weight"], "bias": tensors["decoder.bias"]})
    if tensors["decoder.weight"].equal(tensors["encoder.weight"]):  # saved twice, since safetensors share nothing
        output.weight = embedding.weight
    return network_of(embedding, rnn, output)


def read_dictionary(paths: Sequence[Path], encoding: str = "utf-8") -> list[str]:
    """The words of a corpus in the order in which the example numbers them; a folder stands for its three files.

    Raises:
        DataError: a file is missing, empty, or not text.
    """
    files = [file for path in paths for file in ([path / part for part in _PARTS] if path.is_dir() else [path])]
    words: dict[str, None] = {}
    for file in files:
        text, _ = read_text(file, encoding)
        first = re.split(r"[\r\n]", text, maxsplit=1)[0]  # after its words stands the first line end
        words |= dict.fromkeys([*first.split(), LINE_END])
        words |= dict.fromkeys(text.split())
    return list(words)


class _Sizes(NamedTuple):
    vocabulary: int
    embedding: int
    hidden: int
    gates: int


def _sizes(tensors: Mapping[str, Tensor], count: int, where: str) -> _Sizes:
    """The sizes that the first matrices have; all others must fit them."""
    first, recurrent = tensors["encoder.weight"], tensors["rnn.weight_hh_l0"]
    for name, tensor in (("encoder.weight", first), ("rnn.weight_hh_l0", recurrent)):
        if tensor.ndim != 2 or not tensor.numel():
            raise DataError(
                f"{where}: {name} is {list(tensor.shape)}, no matrix", "give the checkpoint as it was saved"
            )
    (vocabulary, embedding), (rows, hidden) = first.shape, recurrent.shape
    if rows % hidden or rows // hidden not in _GATES:
        raise DataError(
            f"{where}: rnn.weight_hh_l0 is {[rows, hidden]}: no cell has {rows / hidden:g} gates",
            "LSTM has 4, GRU 3, a plain RNN 1",
        )
    expected = {"decoder.weight": [vocabulary, hidden], "decoder.bias": [vocabulary]}
    for layer in range(count):
        expected[f"rnn.weight_ih_l{layer}"] = [rows, hidden if layer else embedding]
        expected[f"rnn.weight_hh_l{layer}"] = [rows, hidden]
        expected |= {f"rnn.{bias}_l{layer}": [rows] for bias in ("bias_ih", "bias_hh")}
    for name, shape in expected.items():
        if list(tensors[name].shape) != shape:
            raise DataError(
                f"{where}: {name} is {list(tensors[name].shape)}, not {shape}", "give the checkpoint of one model"
            )
    return _Sizes(vocabulary, embedding, hidden, rows // hidden)


def _cell(gates: int, asked: str | None, where: str) -> str:
    found = _GATES[gates]
    if asked is None and gates == 1:
        raise InvalidValueError(
            f"{where} is a plain RNN, and its weights do not tell tanh from ReLU",
            "add --cell rnn-tanh (RNN_TANH in the example) or --cell rnn-relu (RNN_RELU)",
        )
    if asked and asked.split("-")[0] != found:
        raise InvalidValueError(f"--cell {asked}: the weights are those of {found.upper()}", "leave --cell out")
    return asked or found


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
