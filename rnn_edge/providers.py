"""ONNX Runtime sessions on the device that was asked for, checked after they open."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rnn_edge.errors import BundleError, DeviceError, InvalidValueError, MissingDependencyError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")
_PROCESSOR = Path("/proc/cpuinfo")
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_CAPTURE, _CAPTURED_AS = "enable_cuda_graph", "gpu_graph_id"  # options of the provider, and of a run
IDLE_UP_TO = 64  # streams with which a GPU waits for the processor, more or less
_HURRY = "disable_synchronize_execution_providers"


def open_session(
    content: bytes,
    where: str,
    *,
    device: Device = "auto",
    threads: int | None = None,
    integers: bool = False,
    capture: bool = False,
) -> InferenceSession:
    """A session over a graph's bytes. ``auto`` takes CUDA where it opens and the CPU otherwise.

    ``threads`` is the number of CPU threads of one step; None takes one, which is fastest for small models.
    ``integers`` says that the graph multiplies 8-bit integers, and that every machine must get the same sums;
    ``capture`` that its runs shall become CUDA graphs, where CUDA has all of its operators.

    Raises:
        DeviceError: CUDA is asked for and not available; nothing falls back in silence.
        BundleError: ONNX Runtime cannot load the graph.
        InvalidValueError: an unknown device, or a number of threads outside the machine's cores.
        MissingDependencyError: there is no ONNX Runtime.
    """
    check_device(device)
    if threads is not None:
        check_threads(threads)
    runtime = _import_runtime()
    has_cuda = _CUDA in runtime.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise DeviceError(
            "--device cuda: this ONNX Runtime has no CUDA provider",
            "run: pip uninstall -y onnxruntime && pip install 'rnn-edge[cuda]' — or use --device cpu",
        )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 1
    options.inter_op_num_threads = 1
    if integers and not _adds_products_exactly():
        options.add_session_config_entry("session.x64quantprecision", "1")
    # What matters is raised; warnings would stand in the middle of a text.
    options.log_severity_level = 4
    runtime.set_default_logger_severity(4)
    providers: list[Any] = [_CPU]
    if has_cuda and device != "cpu":
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            runtime.preload_dlls()
        # TF32 would put the ids of fp32 weights at the mercy of the GPU's generation.
        providers = [(_CUDA, {"use_tf32": "0", _CAPTURE: "1" if capture else "0"}), _CPU]
    printed: Any = io.StringIO() if len(providers) > 1 else sys.stdout
    try:
        # Its own fallback hides why, and prints; versions of 2025 know no other way.
        with contextlib.redirect_stdout(printed):
            session = runtime.InferenceSession(content, options, providers=providers, enable_fallback=0)
    except Exception as error:  # the runtime's exceptions share no base class
        if len(providers) > 1 and capture:
            return open_session(content, where, device=device, threads=threads, integers=integers)
        if device == "auto" and len(providers) > 1:
            return open_session(content, where, device="cpu", threads=threads, integers=integers)
        if device == "cuda":
            raise DeviceError(
                f"--device cuda: ONNX Runtime cannot open {where} there: {first_line(error)}", "use --device cpu"
            ) from error
        raise BundleError(
            f"ONNX Runtime cannot load {where}: {first_line(error)}", "copy or export the bundle again"
        ) from error
    if device == "cuda" and session.get_providers()[0] != _CUDA:
        raise DeviceError(
            "--device cuda: ONNX Runtime could not start CUDA and fell back to the CPU",
            "check the driver, CUDA and cuDNN (pip install 'rnn-edge[cuda]' brings both), or use --device cpu",
        )
    return session


def check_device(device: str) -> None:
    """Raises InvalidValueError for an unknown device."""
    if device not in DEVICES:
        raise InvalidValueError(f"device is {device!r}", f"use one of {', '.join(DEVICES)}")


def check_threads(threads: int) -> None:
    """A number of CPU threads that this machine has cores for.

    Raises:
        InvalidValueError: fewer than one, or more than cores; very many would stop the machine.
    """
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise InvalidValueError(f"threads is {threads}", f"use 1 to {cores}, the cores of this machine")


def cuda_available() -> bool:
    """Whether this ONNX Runtime was built with CUDA; a session may fail to open all the same."""
    return _CUDA in _import_runtime().get_available_providers()


def _adds_products_exactly() -> bool:
    """Whether sums of uint8 × int8 products are exact in the runtime's fast kernels on this processor.

    On x86 without the VNNI or AMX instructions two neighbouring products are added in 16 bits, and saturate; a slower
    kernel is exact there (onnxruntime_session_options_config_keys.h, session.x64quantprecision).
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return True
    try:
        with _PROCESSOR.open(encoding="utf-8", errors="replace") as lines:
            flags = next((line.split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8"))


def fuses_products(device: str) -> bool:
    """Whether an eight-bit product and its scale may be one operator (``fusion``) in a session on this device.

    CUDA has none, and what makes sums exact on old processors is documented for MatMulInteger alone.
    """
    return device == "cpu" and _adds_products_exactly()


def session_device(session: InferenceSession) -> Literal["cpu", "cuda"]:
    """Where a session runs."""
    return "cuda" if session.get_providers()[0] == _CUDA else "cpu"


def captures_graphs(session: InferenceSession) -> bool:
    """Whether runs of a session become CUDA graphs."""
    return bool(session.get_provider_options().get(_CUDA, {}).get(_CAPTURE) == "1")


def capturing_run(number: int, *, wait: bool = True) -> RunOptions:
    """Options of runs with the same buffers each time: the first is captured under this number, the others replay it.

    The first executes the graph twice, so it may not write what it reads. The number −1 captures nothing. Without
    waiting, a run may return before it is done: what it writes is there after another of the same session that waits.
    """
    options = _import_runtime().RunOptions()
    options.add_run_config_entry(_CAPTURED_AS, str(number))
    options.add_run_config_entry(_HURRY, "0" if wait else "1")
    return options


def _import_runtime() -> Any:  # a module without types
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX Runtime is not installed", "run: pip install 'rnn-edge[cpu]' — or 'rnn-edge[cuda]' for an NVIDIA GPU"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):  # what is left after one of two conflicting packages is removed
        raise MissingDependencyError(
            "ONNX Runtime is damaged, as happens when onnxruntime and onnxruntime-gpu are installed together",
            "run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'rnn-edge[cpu]'",
        )
    return onnxruntime


def run_failure(where: str, error: Exception) -> BundleError:
    """What to raise where a graph fails while it runs."""
    message = first_line(error)
    if "Failed to allocate memory" in message:
        return BundleError(f"{where}: memory does not hold what it computes", "use a smaller batch, or free memory")
    return BundleError(f"{where}: the graph fails: {message}", "export the bundle again")


def first_line(error: Exception) -> str:
    """The first line of the runtime's message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
