"""What a device needs beside a bundle: this package's device side as a wheel, and pinned requirements."""

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from rnn_edge.errors import MissingDependencyError

NAME = "rnn-edge"
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that zip files know
_METADATA = ("Metadata-Version", "Name", "Version", "Summary", "License-Expression", "License-File", "Requires-Python")


def requirements(device: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """``name==version`` of all that the device side needs, at the versions that are installed here.

    That is what runs, verifies and measures here. ONNX Runtime is the one for the CPU; where only the one for GPUs is
    installed, its version is taken. ``device`` has the environment markers (PEP 508) that differ there
    from here, like ``python_version``; what is needed there alone has no version here, and so comes without a pin.

    Raises:
        MissingDependencyError: something of it is not installed here.
    """
    from packaging.requirements import Requirement  # ONNX Runtime needs it, so it is there

    there = {"extra": "", **(device or {})}  # "extra" is empty: what an extra needs is not needed
    lines: dict[str, str] = {}
    waiting = [Requirement(line) for line in [*(metadata.requires(NAME) or ()), RUNTIMES[0]]]
    while waiting:
        needed = waiting.pop()
        name = _normal(needed.name)
        if name in lines or (needed.marker and not needed.marker.evaluate(there)):
            continue
        try:
            found = _installed(name)
        except MissingDependencyError:
            if not needed.marker or needed.marker.evaluate({"extra": ""}):
                raise
            lines[name] = f"{name}{needed.specifier}"
            continue
        lines[name] = f"{name}=={found.version}"
        waiting += [Requirement(line) for line in found.requires or ()]
        for extra in needed.extras:
            optional = (Requirement(line) for line in found.requires or ())
            waiting += [line for line in optional if line.marker and line.marker.evaluate({**there, "extra": extra})]
    return tuple(line for _, line in sorted(lines.items()))


def device_wheel() -> tuple[str, bytes]:
    """File name and bytes of a wheel of the running ``rnn_edge``, without models and without the workstation side.

    The same package gives the same bytes. The wheel is pure Python, so it fits every device.
    """
    version = metadata.version(NAME)
    root = Path(__file__).parent
    paths = sorted(path for path in root.rglob("*") if path.is_file() and _belongs(path.relative_to(root)))
    files = {f"rnn_edge/{path.relative_to(root).as_posix()}": path.read_bytes() for path in paths}
    information = f"rnn_edge-{version}.dist-info"
    files[f"{information}/METADATA"] = _wheel_metadata().encode()
    files[f"{information}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: rnn-edge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{information}/entry_points.txt"] = b"[console_scripts]\nrnn-edge = rnn_edge.__main__:main\n"
    if licence := metadata.distribution(NAME).read_text("licenses/LICENSE"):
        files[f"{information}/licenses/LICENSE"] = licence.encode()
    record = "".join(f"{name},{_record_hash(content)},{len(content)}\n" for name, content in files.items())
    files[f"{information}/RECORD"] = f"{record}{information}/RECORD,,\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr = 0o100644 << 16
            member.create_system = 3
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, content)
    return f"rnn_edge-{version}-py3-none-any.whl", out.getvalue()


def _belongs(path: Path) -> bool:
    return path.parts[0] != "models" and "__pycache__" not in path.parts


def _wheel_metadata() -> str:
    """The package's own metadata, with what the device side may need of the extras."""
    own = metadata.metadata(NAME)
    lines = [f"{key}: {own[key]}" for key in _METADATA if own[key]]
    lines += [f"Requires-Dist: {line}" for line in metadata.requires(NAME) or () if "extra ==" not in line]
    return "\n".join(lines) + "\n"


def _record_hash(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"


def _installed(name: str) -> metadata.Distribution:
    for candidate in RUNTIMES if name in RUNTIMES else (name,):
        try:
            return metadata.distribution(candidate)
        except metadata.PackageNotFoundError:
            continue
    raise MissingDependencyError(
        f"{name} is not installed here, so there is no version of it to pin", f"run: pip install {name}"
    )


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
