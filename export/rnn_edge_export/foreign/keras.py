"""Keras models of Embedding → LSTM, GRU or SimpleRNN layers → Dense as language models.

What matters in training alone (dropout, initialisers, regularisers, statefulness) is passed over; whatever else a
layer could be asked to do is refused by name.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rnn_edge.errors import DataError
from rnn_edge.manifest import Cell
from rnn_edge_export.foreign.formats import Format
from rnn_edge_export.foreign.keras_file import Array, Place, Weights, major_version, open_keras
from rnn_edge_export.foreign.keras_reference import KerasLayer, KerasReference
from rnn_edge_export.foreign.language_model import Network
from rnn_edge_export.foreign.layers import LayerWeights

_CELLS: dict[str, Cell] = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn"}
_GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_PASSED_OVER = {"InputLayer", "Dropout", "SpatialDropout1D", "GaussianDropout", "GaussianNoise"}
_REASONS = {
    "Bidirectional": "it reads a text from its end too, which a stream does not know",
    "Lambda": "it holds code, which is never run",
    "Masking": "a stream has nothing to mask",
    "CuDNNLSTM": "its weights stand in another order; load the model in Keras and save it with LSTM layers",
    "CuDNNGRU": "its weights stand in another order; load the model in Keras and save it with GRU layers",
}
_LARGEST = 2**24  # values along an axis
_CHAIN = "a language model is Embedding, then LSTM, GRU or SimpleRNN layers, then one Dense"


@dataclass(frozen=True)
class _Layer:
    """A layer of the file: its class, name, settings, and where its weights stand in new files."""

    kind: str
    name: str
    config: Mapping[str, Any]
    place: Place
    where: str = field(repr=False)

    def number(self, key: str) -> int:
        value = self.config.get(key)
        if type(value) is not int or not 1 <= value <= _LARGEST:
            raise DataError(
                f"{self.where}: {key} of {self.name} is {value!r}, no size", "give a model that Keras saved"
            )
        return value

    def choice(self, key: str, known: Sequence[str], default: str | None = None) -> str:
        value = self.config.get(key, default)
        value = "linear" if value is None else value
        if value not in known:
            raise DataError(
                f"{self.where}: {key} of {self.name} is {value!r}", f"it can be imported with {' or '.join(known)} only"
            )
        return str(value)


def read_keras(path: Path, kind: Format) -> tuple[Network, list[str]]:
    """The network of a Keras file, and remarks on what was passed over that a user should know.

    Raises:
        DataError: damaged, weights missing or too many, or a layer or setting that cannot be imported.
    """
    with open_keras(path, kind) as file:
        layers = _chain(file.config, str(path))
        return _build(layers, file.weights, file.version)


def _build(layers: Sequence[_Layer], weights: Weights, version: str) -> tuple[Network, list[str]]:
    first, *stack, last = _roles(layers)
    size, width = first.number("input_dim"), first.number("output_dim")
    table = weights.read(first.name, first.place, {"embeddings": (size, width)})["embeddings"]
    remarks = ["Padding (id 0) was masked in Keras; a stream has none."] if first.config.get("mask_zero") else []
    found: list[KerasLayer] = []
    below = width
    for layer in stack:
        found.append(_recurrent(layer, weights, below, version))
        below = layer.number("units")
    kernel, bias = _dense(last, weights, below)
    weights.check_all_read()
    if kernel.shape[1] != size:
        raise DataError(
            f"{last.where}: {last.name} gives {kernel.shape[1]} values, the embedding has {size} rows",
            "give a model that writes the vocabulary it reads",
        )
    arrays = [table, kernel, bias, *(array for layer in found for array in (layer.kernel, layer.recurrent, layer.bias))]
    names = ", ".join(f"{layer.kind}({layer.config.get('units')})" for layer in stack)
    return Network(
        torch.from_numpy(table),
        [_weights(layer) for layer in found],
        torch.from_numpy(kernel),
        torch.from_numpy(np.zeros(size, np.float32) if bias is None else bias),
        KerasReference(table, found, kernel, bias),
        sum(array.size for array in arrays if array is not None),
        False,
        f"Keras {version} {names}".replace("  ", " "),
    ), remarks


def _recurrent(layer: _Layer, weights: Weights, below: int, version: str) -> KerasLayer:
    cell, units = _CELLS[layer.kind], layer.number("units")
    for key in ("go_backwards", "return_state"):
        if layer.config.get(key):
            raise DataError(f"{layer.where}: {layer.name} has {key}", "a stream is read forwards, step by step")
    gates = "" if cell == "rnn" else layer.choice("recurrent_activation", ("sigmoid", "hard_sigmoid"))
    activation = layer.choice("activation", ("tanh", "relu") if cell == "rnn" else ("tanh",))
    after = cell == "gru" and bool(layer.config.get("reset_after", False))
    shapes: dict[str, Sequence[int]] = {
        "kernel": (below, _GATES[cell] * units),
        "recurrent_kernel": (units, _GATES[cell] * units),
    }
    if layer.config.get("use_bias", True):
        shapes["bias"] = (2, 3 * units) if after else (_GATES[cell] * units,)
    found = weights.read(layer.name, layer.place._replace(inner=("cell",)), shapes)
    # Keras 3 made it relu6(x + 3) / 6; before it was clip(0.2 x + 0.5).
    slope = (1 / 6 if (major_version(version) or 0) >= 3 else 0.2) if gates == "hard_sigmoid" else 0.0
    return KerasLayer(cell, found["kernel"], found["recurrent_kernel"], found.get("bias"), activation, after, slope)


def _dense(layer: _Layer, weights: Weights, below: int) -> tuple[Array, Array | None]:
    layer.choice("activation", ("softmax", "linear"))  # logits are what stands before a softmax
    units = layer.number("units")
    shapes: dict[str, Sequence[int]] = {"kernel": (below, units)}
    if layer.config.get("use_bias", True):
        shapes["bias"] = (units,)
    found = weights.read(layer.name, layer.place, shapes)
    return found["kernel"], found.get("bias")


def _weights(layer: KerasLayer) -> LayerWeights:
    """Gates in PyTorch's order: of an LSTM it is Keras's too, of a GRU Keras has z, r, n."""
    order = (1, 0, 2) if layer.cell == "gru" else tuple(range(_GATES[layer.cell]))

    def turned(array: Array) -> torch.Tensor:
        parts = np.split(array, len(order), axis=-1)
        return torch.from_numpy(np.ascontiguousarray(np.concatenate([parts[gate] for gate in order], axis=-1).T))

    zeros = np.zeros(layer.kernel.shape[1], np.float32)
    biases = (zeros, zeros) if layer.bias is None else layer.bias if layer.bias.ndim == 2 else (layer.bias, zeros)
    return LayerWeights(
        layer.cell,
        turned(layer.kernel),
        turned(layer.recurrent),
        turned(biases[0]),
        turned(biases[1]),
        relu=layer.activation == "relu",
        reset_before=layer.cell == "gru" and not layer.reset_after,
        hard_slope=layer.hard_slope,
    )


def _roles(layers: Sequence[_Layer]) -> list[_Layer]:
    """Embedding, recurrent layers, Dense; what says nothing about a step is left out."""
    for layer in layers:
        if layer.kind in _REASONS:
            raise DataError(f"{layer.where}: {layer.name} is a {layer.kind} layer: {_REASONS[layer.kind]}", _CHAIN)
    kept = [layer for layer in layers if layer.kind not in _PASSED_OVER]
    if kept and kept[-1].kind == "Activation":
        kept[-1].choice("activation", ("softmax", "linear"))
        kept.pop()
    kinds = [layer.kind for layer in kept]
    cells = set(kinds[1:-1])
    if not cells or not cells <= set(_CELLS) or (kinds[0], kinds[-1]) != ("Embedding", "Dense"):
        raise DataError(
            f"{layers[0].where if layers else 'the file'} has the layers {', '.join(kinds) or 'none'}", _CHAIN
        )
    if len(cells) > 1:
        raise DataError(
            f"{kept[0].where} mixes {' and '.join(dict.fromkeys(kinds[1:-1]))} layers", "a bundle names one cell"
        )
    for layer in kept[1:-2]:
        if not layer.config.get("return_sequences"):
            raise DataError(
                f"{layer.where}: {layer.name} gives its last step alone to the layer above",
                "give a model whose lower layers have return_sequences=True",
            )
    return kept


def _chain(config: Mapping[str, Any], where: str) -> list[_Layer]:
    """The layers of a sequential model, or of a functional one whose layers each read the one before."""
    kind, content = config.get("class_name"), config.get("config")
    if kind not in ("Sequential", "Functional", "Model"):
        raise DataError(f"{where} holds a {kind} model, whose layers stand in no order", _CHAIN)
    # The first versions of Keras had the bare list.
    entries = content.get("layers") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
        raise DataError(f"{where} has no list of layers", "give a model that Keras saved")
    used: Counter[str] = Counter()
    layers = {}
    for entry in entries:
        layer = _read_layer(entry, used, where)
        layers[layer.name] = layer
    if len(layers) != len(entries):
        raise DataError(f"{where} has two layers of one name", "give a model that Keras saved")
    if kind == "Sequential":
        return list(layers.values())
    # Keras 3 computes the mask of padding (``mask_zero``) in an operation of its own; see ``_build``.
    names = {name for name, layer in layers.items() if layer.kind != "NotEqual"}
    nodes = {name: entry.get("inbound_nodes") for name, entry in zip(layers, entries, strict=True)}
    sources = {name: _sources(nodes[name], set(layers)) & names for name in layers if name in names}
    order: list[str] = []
    following = [name for name, found in sources.items() if not found]
    while len(following) == 1 and len(order) < len(names):
        order += following
        following = [name for name, found in sources.items() if found == {order[-1]}]
    if len(order) != len(names):
        raise DataError(f"{where}: its layers are no chain in which each reads the one before", _CHAIN)
    return [layers[name] for name in order]


def _read_layer(entry: Mapping[str, Any], used: Counter[str], where: str) -> _Layer:
    kind, config = entry.get("class_name"), entry.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    if not isinstance(kind, str) or not isinstance(config, dict) or not isinstance(name, str):
        raise DataError(f"{where} has a layer without class, name or settings", "give a model that Keras saved")
    if entry.get("registered_name") not in (None, kind):
        raise DataError(f"{where}: {name} is a layer of its author's own, {entry['registered_name']}", _CHAIN)
    folder = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()
    place = Place(folder, used[folder])
    used[folder] += 1
    inner = config.get("layer")
    if kind == "TimeDistributed" and isinstance(inner, dict) and inner.get("class_name") == "Dense":
        return _Layer("Dense", name, inner.get("config") or {}, place._replace(inner=("layer",)), where)
    return _Layer(kind, name, config, place, where)


def _sources(nodes: object, names: set[str]) -> set[str]:
    """The layers that a functional layer reads: all histories ``[name, node, tensor]`` in its description."""
    if isinstance(nodes, dict):
        return set().union(*(_sources(item, names) for item in nodes.values()))
    if not isinstance(nodes, list):
        return set()
    if len(nodes) >= 3 and isinstance(nodes[0], str) and nodes[0] in names and type(nodes[1]) is int:
        return {nodes[0]}
    return set().union(*(_sources(item, names) for item in nodes))
