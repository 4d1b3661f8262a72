"""What this machine has: facts in groups, and the mend beside each that stands in the way."""

import ctypes.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from rnn_edge import machine
from rnn_edge.bundle import list_bundles
from rnn_edge.device_install import RUNTIMES
from rnn_edge.errors import RnnEdgeError

# As the kernel names them → as people do; what ONNX Runtime's fast kernels ask for.
_FEATURES = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "asimd": "NEON",
    "asimddp": "NEON dot product",
    "asimdhp": "NEON fp16",
    "i8mm": "int8 matrix products",
    "sve": "SVE",
}
_CUDA_LIBRARIES = ("cuda", "cudart", "cublas", "cudnn")
_SCARCE = 200_000_000  # bytes of memory; a process with a small model has about 90 MB


@dataclass(frozen=True)
class Fact:
    """Something this machine has or lacks. ``mend`` is empty where nothing stands in the way."""

    group: str
    name: str
    value: str
    mend: str = ""


def examine() -> Iterator[Fact]:
    """Everything that a report of a problem should hold. Needs no ONNX Runtime."""
    yield Fact("python", "version", f"{platform.python_version()} {platform.python_implementation()}, {sys.executable}")
    yield Fact("python", "rnn-edge", metadata.version("rnn-edge"))
    yield from _packages()
    yield from _hardware()
    yield from _runtime()
    yield from _cuda()
    yield from _terminal()
    yield from _bundles()


def runtime_distributions() -> dict[str, str]:
    """Installed distributions that put files into the folder ``onnxruntime``, with their versions."""
    found = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name == "onnxruntime" or (name.startswith("onnxruntime-") and _is_runtime(distribution)):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def _is_runtime(distribution: metadata.Distribution) -> bool:
    """Not of those that stand beside the runtime, like onnxruntime-genai and onnxruntime-extensions."""
    if distribution.metadata["Name"].lower().replace("_", "-") in RUNTIMES:
        return True
    return any(path.parts[:1] == ("onnxruntime",) for path in distribution.files or ())


def _packages() -> Iterator[Fact]:
    for name in ("numpy", "tokenizers", "typer", "rich", "safetensors", "sentencex"):
        try:
            yield Fact("python", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Fact("python", name, "not installed", f"run: pip install {name}")
    for name in ("torch", "onnx"):
        found = next((metadata.version(name) for _ in [0] if util.find_spec(name)), None)
        yield Fact("python", name, found or "not installed: this machine runs bundles, and cannot train or export")


def _hardware() -> Iterator[Fact]:
    yield Fact("machine", "system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Fact("machine", "processor", f"{machine.describe_cpu()}, {os.cpu_count() or 1} cores")
    found = machine.cpu_flags()
    names = [label for flag, label in _FEATURES.items() if flag in found]
    yield Fact("machine", "features", ", ".join(names) if names else "none that matter here, or none that are told")
    memory = machine.available_memory()
    if memory is not None:
        scarce = memory < _SCARCE
        yield Fact("machine", "free memory", f"{memory / 1e6:,.0f} MB", "end other programs" if scarce else "")


def _runtime() -> Iterator[Fact]:
    found = runtime_distributions()
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(found) > 1:
        names = " ".join(found)
        mend = f"run: pip uninstall -y {names}, then: pip install 'rnn-edge[cpu]' or 'rnn-edge[cuda]'"
        yield Fact("runtime", "packages", f"{listed}: they write into the same folder", mend)
    else:
        mend = "" if found else "run: pip install 'rnn-edge[cpu]' — or 'rnn-edge[cuda]' for an NVIDIA GPU"
        yield Fact("runtime", "packages", listed or "ONNX Runtime is not installed", mend)
    if not found:
        return
    try:
        import onnxruntime

        yield Fact("runtime", "loaded", f"{onnxruntime.__version__}, {Path(onnxruntime.__file__).parent}")
        yield Fact("runtime", "build", " ".join(str(onnxruntime.get_build_info()).split()))
        yield Fact("runtime", "providers", ", ".join(onnxruntime.get_available_providers()))
    except (ImportError, AttributeError) as error:
        names = " ".join(found)
        mend = f"run: pip uninstall -y {names}, then: pip install 'rnn-edge[cpu]'"
        yield Fact("runtime", "loaded", f"ONNX Runtime is damaged: {error}", mend)


def _cuda() -> Iterator[Fact]:
    places = {name: _library(name) for name in _CUDA_LIBRARIES}
    driver = Path("/proc/driver/nvidia/version")
    # With the GPU's package and without its libraries, an explicit --device cuda fails.
    wanted = "onnxruntime-gpu" in runtime_distributions()
    yield Fact("cuda", "driver", driver.read_text().splitlines()[0] if driver.is_file() else "none")
    for name, place in places.items():
        mend = "run: pip install 'rnn-edge[cuda]'" if wanted and not place and name != "cuda" else ""
        if wanted and not place and name == "cuda":
            mend = "install NVIDIA's driver, or the package for the CPU: pip install 'rnn-edge[cpu]'"
        yield Fact("cuda", f"lib{name}", place or "not found", mend)


def _library(name: str) -> str:
    """Where a CUDA library is: in NVIDIA's Python packages, on LD_LIBRARY_PATH, or where the system's linker knows."""
    spec = util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob(f"**/lib{name}.so*")):
            return str(path)
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)):
        for path in sorted(Path(folder).glob(f"lib{name}.so*")):
            return str(path)
    return _linked(name) or ctypes.util.find_library(name) or ""


def _linked(name: str) -> str:
    """A path from the cache of the system's linker: lines like ``libcudnn.so.9 (libc6,x86-64) => /usr/lib/…``."""
    program = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not program:
        return ""
    done = subprocess.run([program, "-p"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        library, _, place = line.strip().partition(" => ")
        if library.startswith(f"lib{name}.so") and place:
            return place
    return ""


def _terminal() -> Iterator[Fact]:
    from rnn_edge.render import console

    size = shutil.get_terminal_size()
    out = console()
    kind = os.environ.get("TERM", "not set")
    if sys.stdout.isatty():
        value = f"TERM {kind}, {size.columns} × {size.lines}, {out.color_system or 'no'} colour, {out.encoding}"
    else:
        value = f"TERM {kind}, output is no terminal, {out.encoding}"
    yield Fact("terminal", "stdout", value + (", NO_COLOR is set" if os.environ.get("NO_COLOR") else ""))


def _bundles() -> Iterator[Fact]:
    good, bad = list_bundles()
    for bundle in good:
        yield Fact("bundles", bundle.path.name, f"{bundle.manifest.task}, {bundle.size / 1e6:.1f} MB, {bundle.path}")
    for path, error in bad:
        yield Fact("bundles", path.name, f"does not open: {error.message}", _first(error))
    if not good and not bad:
        yield Fact("bundles", "found", "none")


def _first(error: RnnEdgeError) -> str:
    return error.hint or "export the bundle again"
