"""ncnn, with its files written by hand: a converter is not needed, and none quantises its LSTM and GRU layers.

The layers are Embed, LSTM or GRU with their state as inputs and outputs, and InnerProduct. Eight bits are symmetric
with one scale a row; recurrent layers quantise their inputs by themselves, the output layer's get 127, since |h| < 1.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.peers.network import Array, Network, SkippedError, Step, Tokens

_FLOAT, _INT8 = 0x00000000, 0x000D4B38  # tags before a weight


def load(network: Network, folder: str, variant: str) -> Step:
    """Writes its files into ``folder``."""
    if network.shape.batch > 1:
        raise SkippedError("its recurrent layers have no batch")
    return Ncnn(network, Path(folder), variant == "int8")


class Ncnn:
    """State stays in the runtime's own matrices."""

    def __init__(self, network: Network, folder: Path, quantised: bool) -> None:
        ncnn: Any = import_module("ncnn")
        self._net = ncnn.Net()
        self._net.opt.num_threads = 1
        stem = folder / ("int8" if quantised else "fp32")
        parameters, weights = stem.with_suffix(".param"), stem.with_suffix(".bin")
        parameters.write_text(_graph(network, quantised), encoding="utf-8")
        with weights.open("wb") as file:
            _write_weights(file, network, quantised)
        if self._net.load_param(str(parameters)) or self._net.load_model(str(weights)):
            raise RuntimeError("ncnn does not load its files")
        # A matrix made from an array borrows its memory and does not keep it alive.
        self._token, self._zeros = np.zeros(1, np.int32), np.zeros((1, network.shape.hidden), np.float32)
        self._token_matrix, self._zero = ncnn.Mat(self._token), ncnn.Mat(self._zeros)
        self._names = network.shape.state_names
        self._next = [f"{name}_next" for name in self._names]
        self.reset()

    def reset(self) -> None:
        self._state = [self._zero] * len(self._names)

    def step(self, tokens: Tokens | int) -> Array:
        self._token[:] = tokens
        extractor = self._net.create_extractor()
        extractor.input("token", self._token_matrix)
        for name, matrix in zip(self._names, self._state, strict=True):
            extractor.input(name, matrix)
        _, logits = extractor.extract("logits")
        self._state = [extractor.extract(name)[1] for name in self._next]
        self._logits = logits  # the array below is a view of it
        return np.asarray(logits).reshape(1, -1)


def _graph(network: Network, quantised: bool) -> str:
    """The graph's text: layer type, name, numbers of inputs and outputs, their names, parameters."""
    shape, gates = network.shape, 4 if network.shape.cell == "lstm" else 3
    vocabulary, embedding = network.embedding.shape
    lines = ["Input token 0 1 token"]
    lines += [f"Input {name} 0 1 {name}" for name in shape.state_names]
    lines.append(f"Embed embedding 1 1 token x0 0={embedding} 1={vocabulary} 2=0 3={network.embedding.size}")
    for index, layer in enumerate(network.layers):
        before = [f"{kind}{index}" for kind in shape.kinds]
        blobs = [f"x{index}", *before, f"x{index + 1}", *(f"{name}_next" for name in before)]
        parameters = [f"0={shape.hidden}", f"1={gates * shape.hidden * layer.w.shape[1]}", "2=0"]
        parameters += [f"3={shape.hidden}"] * (shape.cell == "lstm") + ["8=2"] * quantised
        count = 1 + len(before)
        kind = shape.cell.upper()
        lines.append(f"{kind} layer{index} {count} {count} {' '.join(blobs)} {' '.join(parameters)}")
    scaled = " 8=2" * quantised
    lines.append(f"InnerProduct output 1 1 x{shape.layers} logits 0={vocabulary} 1=1 2={network.output.size}{scaled}")
    blobs_in_all = len({name for line in lines for name in line.split()[4:] if "=" not in name})
    return "\n".join(["7767517", f"{len(lines)} {blobs_in_all}", *lines, ""])


def _write_weights(file: IO[bytes], network: Network, quantised: bool) -> None:
    _tagged(file, network.embedding)
    for layer in network.layers:
        if network.shape.cell == "lstm":
            order = (0, 1, 3, 2)  # i, f, o, g; PyTorch has i, f, g, o
            w, u = _reordered(layer.w, order), _reordered(layer.u, order)
            bias = _reordered(layer.b + layer.d, order)
        else:
            w, u = layer.w, layer.u
            b, d = layer.b.reshape(3, -1), layer.d.reshape(3, -1)
            bias = np.concatenate([b[0] + d[0], b[1] + d[1], b[2], d[2]])
        w_scales, u_scales = _matrix(file, w, quantised), None
        _tagged(file, bias)
        u_scales = _matrix(file, u, quantised)
        for scales in (w_scales, u_scales) if quantised else ():
            file.write(scales.tobytes())
    scales = _matrix(file, network.output, quantised)
    file.write(network.bias.astype(np.float32).tobytes())
    if quantised:
        file.write(scales.tobytes())
        file.write(np.float32(127).tobytes())


def _reordered(tensor: Array, order: tuple[int, ...]) -> Array:
    gates = np.split(tensor, len(order))
    return np.concatenate([gates[index] for index in order])


def _tagged(file: IO[bytes], values: Array) -> None:
    file.write(np.uint32(_FLOAT).tobytes())
    file.write(values.astype(np.float32).tobytes())


def _matrix(file: IO[bytes], values: Array, quantised: bool) -> Array:
    """Write a matrix, in eight bits if so asked → its scale a row."""
    scales: Array = (127 / np.abs(values).max(axis=1)).astype(np.float32)
    if quantised:
        file.write(np.uint32(_INT8).tobytes())
        content = np.rint(values * scales[:, None]).astype(np.int8).tobytes()
        file.write(content + b"\0" * (-len(content) % 4))
    else:
        _tagged(file, values)
    return scales
