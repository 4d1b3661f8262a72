"""All peers: what they are called, where they run, and what makes their files."""

from __future__ import annotations

from dataclasses import dataclass

MAIN = "main"  # the Python that runs the benchmark, with the workstation side installed


@dataclass(frozen=True)
class Converter:
    """A module with ``convert(network, folder, variant)`` and the environment that it needs."""

    module: str
    variant: str
    environment: str = MAIN


@dataclass(frozen=True)
class Peer:
    """A module with ``load(network, folder, variant)``; ``packages`` are those whose versions count."""

    name: str
    precision: str
    module: str
    variant: str
    packages: tuple[str, ...]
    environment: str = MAIN
    converter: Converter | None = None
    slow_start: bool = False  # compiles for a long time


OURS = "rnn-edge"
_OPERATOR_FILE, _CELL_FILE = Converter("onnx_files", "operator"), Converter("onnx_files", "cell")
_EXECUTORCH_FILE = Converter("executorch", "int8", "executorch")


def _ours(precision: str) -> Peer:
    converter = Converter("ours", precision)
    return Peer(f"{OURS} {precision}", precision, "ours", precision, ("onnxruntime",), converter=converter)


def _onnx_runtime(name: str, precision: str, variant: str) -> Peer:
    converter = Converter("onnx_files", variant)
    return Peer(name, precision, "onnx_runtime", variant, ("onnxruntime",), converter=converter)


def _litert(precision: str) -> Peer:
    converter = Converter("litert", precision, "litert-convert")
    return Peer(f"LiteRT {precision}", precision, "litert", precision, ("ai-edge-litert",), "litert", converter)


PEERS: tuple[Peer, ...] = (
    _ours("fp32"),
    _ours("int8"),
    _ours("int4"),
    Peer("NumPy by hand", "fp32", "by_hand", "fp32", ("numpy",)),
    _onnx_runtime("ONNX Runtime, exported operator", "fp32", "operator"),
    _onnx_runtime("ONNX Runtime, DynamicQuantizeLSTM", "int8", "operator-int8"),
    Peer("PyTorch eager, nn module", "fp32", "pytorch", "module", ("torch",)),
    Peer("PyTorch eager, written-out cell", "fp32", "pytorch", "cell", ("torch",)),
    Peer("PyTorch dynamic int8, frozen cell", "int8", "pytorch", "int8", ("torch",)),
    Peer("torch.compile, frozen cell", "fp32", "pytorch", "compiled", ("torch",), slow_start=True),
    _litert("int8"),
    _litert("int4"),
    Peer("OpenVINO int8", "int8", "openvino", "int8", ("openvino", "nncf"), "openvino", _CELL_FILE),
    Peer("tract", "fp32", "tract", "operator", ("tract",), "tract", _OPERATOR_FILE),
    Peer("ncnn int8", "int8", "ncnn", "int8", ("ncnn",), "ncnn"),
    Peer("ExecuTorch int8", "int8", "executorch", "int8", ("executorch",), "executorch", _EXECUTORCH_FILE),
)

_USED = {peer.environment for peer in PEERS} | {peer.converter.environment for peer in PEERS if peer.converter}
ENVIRONMENTS = sorted(_USED - {MAIN})
