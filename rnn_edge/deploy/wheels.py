"""A device's packages, downloaded here for its platform."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from rnn_edge.errors import DeployError, RnnEdgeError
from rnn_edge.files import cache_folder, new_folder

_ARCHITECTURES = ("x86_64", "aarch64")  # that ONNX Runtime has wheels for, on Linux
_OLDEST_GLIBC = 17  # 2.17, of manylinux2014
_DOWNLOADING = threading.Lock()


def download(requirements: Sequence[str], machine: str, libc: Sequence[str], python: str) -> list[Path]:
    """Wheels of pinned requirements for a device, from this machine's package index; kept for the next device.

    Args:
        requirements: Lines like ``numpy==2.1.0``, all that is needed.
        machine: As ``uname -m`` says it.
        libc: Name and version, as ``platform.libc_ver`` says them.
        python: The device's version, like ``3.11.2``.

    Raises:
        DeployError: there are no wheels for such a device, or the index cannot be reached.
    """
    if not requirements:
        return []
    platforms = platform_tags(machine, libc)
    version = ".".join(python.split(".")[:2])
    key = hashlib.sha256("\n".join([*requirements, *platforms, version]).encode()).hexdigest()[:16]
    target = cache_folder() / "wheels" / key
    with _DOWNLOADING:  # devices that are alike wait for one download
        if not target.is_dir():
            try:
                with new_folder(target, force=False) as folder:
                    _download(requirements, platforms, version, folder)
            except RnnEdgeError:
                if not target.is_dir():  # else another process was faster
                    raise
    return sorted(target.glob("*.whl"))


def platform_tags(machine: str, libc: Sequence[str]) -> list[str]:
    """The wheel platforms that a Linux device takes, newest first (PEP 600).

    Raises:
        DeployError: a device that ONNX Runtime has no wheels for.
    """
    if machine not in _ARCHITECTURES:
        hint = "use a 64-bit system" if machine.startswith(("arm", "i")) else "use an x86-64 or 64-bit Arm device"
        raise DeployError(f"there is no ONNX Runtime for the architecture {machine}", hint)
    name, version = libc
    minor = version.partition(".")[2]
    if name != "glibc" or not minor.isdecimal():
        hint = "use a system like Debian or Raspberry Pi OS"
        raise DeployError("there is no ONNX Runtime for systems without glibc", hint)
    tags = [f"manylinux_2_{number}_{machine}" for number in range(int(minor), _OLDEST_GLIBC - 1, -1)]
    return [*tags, f"manylinux2014_{machine}"]


def _download(requirements: Sequence[str], platforms: Sequence[str], version: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps"]
    command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", version]
    for abi in (f"cp{version.replace('.', '')}", "abi3", "none"):
        command += ["--abi", abi]
    for tag in platforms:
        command += ["--platform", tag]
    done = subprocess.run(
        [*command, "--dest", str(folder), *requirements],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise DeployError(
            f"the packages cannot be downloaded here: {lines[-1].removeprefix('ERROR: ')}",
            "check this machine's package index, and that there are wheels for the device's Python",
        )
