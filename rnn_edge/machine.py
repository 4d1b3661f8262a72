"""Facts about the machine that figures depend on: processor, versions, free memory, and how fast memory is read."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

_PROBES = 3
_PROBE_SECONDS = 0.03


@dataclass(frozen=True)
class Machine:
    """Where something was measured, and with which versions."""

    cpu: str
    cores: int
    os: str
    versions: dict[str, str]


def describe() -> Machine:
    """This machine, and the versions that matter for speed."""
    from importlib.metadata import version

    import numpy as np
    import onnxruntime

    versions = {
        "python": platform.python_version(),
        "rnn-edge": version("rnn-edge"),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    return Machine(describe_cpu(), os.cpu_count() or 1, _system(), versions)


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say."""
    found = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    if found is not None:
        return found
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def peak_memory() -> int:
    """Bytes of this process's memory that were resident at most."""
    found = _kilobytes(Path("/proc/self/status"), "VmHWM")
    if found is not None:
        return found
    import resource

    # Only where there is no /proc: a process that was forked inherits the peak of its parent in this figure.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def read_bandwidth(size: int) -> float:
    """Bytes a second that one thread reads from a buffer of ``size`` bytes, in the best of three probes.

    A probe reads the buffer again and again, and its fastest pass counts: so what is measured is the cache or memory
    that a buffer of this size stays in.
    """
    import numpy as np

    # The largest of integers: the fastest of NumPy's reductions, one thread everywhere, and never stopped early.
    buffer = np.ones(max(1, size // 8), np.int64)
    best = 0.0
    for _ in range(_PROBES):
        end = perf_counter() + _PROBE_SECONDS
        while (started := perf_counter()) < end:
            buffer.max()
            best = max(best, buffer.nbytes / (perf_counter() - started))
    return best


def _kilobytes(path: Path, name: str) -> int | None:
    """Bytes from a line of /proc like ``NAME:   123 kB``."""
    found = _field(path, name)
    number = found.split()[0] if found else ""
    return int(number) * 1024 if number.isdecimal() else None


def _field(path: Path, name: str) -> str:
    """What stands behind ``NAME:`` in a file of /proc; nothing where there is no such file or line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name), "")


def describe_cpu() -> str:
    """The processor's name."""
    # ARM boards name no processor model, but the board.
    information = Path("/proc/cpuinfo")
    found = _field(information, "model name") or _field(information, "Model") or platform.processor()
    return found or platform.machine()


def describe_gpus() -> list[str]:
    """What NVIDIA's driver says of itself and of the GPUs that this process may see; nothing without one."""
    folder = Path("/proc/driver/nvidia")
    found = [os.environ.get("CUDA_VISIBLE_DEVICES", "")]
    for path in (folder / "version", *sorted(folder.glob("gpus/*/information"))):
        with contextlib.suppress(OSError):
            found.append(path.read_text(encoding="utf-8", errors="replace"))
    return found if len(found) > 1 else []


def cpu_flags() -> frozenset[str]:
    """What the kernel says the processor can do, in its own words; empty where it says nothing."""
    information = Path("/proc/cpuinfo")
    return frozenset((_field(information, "flags") or _field(information, "Features")).split())


def _system() -> str:
    kernel = f"{platform.system()} {platform.release()} {platform.machine()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        return kernel
