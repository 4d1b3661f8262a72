"""Where training runs, and in which arithmetic."""

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from rnn_edge.errors import DeviceError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


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


def keep_freed_memory() -> None:
    """Let the C library (glibc) keep freed blocks for the next step instead of giving them back to the system.

    By default every large tensor of every step is made of new pages, and faulting these in takes up to a third of a
    step on a CPU. Nothing happens where the C library is another one.
    """
    mallopt = _c_function("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def keep_few_kernels() -> None:
    """Let oneDNN keep the kernels of fewer shapes than its 1,024, each of which holds memory of its own.

    A translator's batches have hundreds of shapes. Kept for all of them, a training that needs 1.4 GB took 7.5 GB; with
    256, 2.5 GB in its first epoch and 3 % of the speed. oneDNN reads this when it computes for the first time.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def release_freed_memory() -> None:
    """Give back what ``keep_freed_memory`` kept.

    Batches of many shapes leave holes that none of the next fits: without this, a translator's training that needs
    1.4 GB grows to 10 GB. Given back every 50 steps it stays below 4 GB, at 2 % of the speed.
    """
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(0)


def _c_function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def gradient_scale(device: torch.device, precision: Literal["fp32", "bf16"]) -> float:
    """What the loss is multiplied by before the way back, and gradients are divided by after it: a power of two.

    On CUDA, PyTorch's autocast runs cuDNN's recurrent kernels in fp16 whatever it is asked for, and gradients of a mean
    over thousands of tokens lie where fp16 has few bits or none. What is too large then, a gradient of 64 in one
    element, is far above any ``clip_norm``: such a step is left out.
    """
    return 1024.0 if device.type == "cuda" and precision == "bf16" else 1.0


def autocast(device: torch.device, precision: Literal["fp32", "bf16"]) -> AbstractContextManager[object]:
    """Mixed precision for a block; weights and optimiser stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
