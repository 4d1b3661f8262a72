"""Where training runs, and in which arithmetic."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

from rnn_edge.errors import DeviceError


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` to a device.

    Raises:
        DeviceError: CUDA is asked for and this PyTorch cannot use it.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "--device cuda: PyTorch finds no CUDA GPU",
            "install a CUDA build of torch and a driver, or use --device cpu",
        )
    use_cuda = torch.cuda.is_available() if name == "auto" else name == "cuda"
    if use_cuda:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.fp32_precision = "tf32"
    return torch.device("cuda" if use_cuda else "cpu")


def resolve_precision(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """``auto`` takes bf16 where there are matrix units for it: recent GPUs, and CPUs with AMX.

    On CPUs without them bf16 is slower than fp32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases cannot tell
    return "bf16" if capabilities.get("amx_bf16") else "fp32"


def autocast(device: torch.device, precision: Literal["fp32", "bf16"]) -> AbstractContextManager[object]:
    """Mixed precision for a block; weights and optimiser stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
