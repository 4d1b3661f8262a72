"""What goes to a device, as it is here: a bundle's files, our wheel, and the packages that it needs there."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnn_edge.bundle import Bundle
from rnn_edge.device_install import device_wheel, requirements
from rnn_edge.manifest import MANIFEST_NAME


@dataclass(frozen=True)
class Payload:
    """What goes to every device.

    ``files`` is hash → path here, ``names`` the bundle's file name → hash, ``wheel`` name, hash and path of ours.
    """

    bundle: str
    digest: str
    files: dict[str, Path]
    names: dict[str, str]
    wheel: tuple[str, str, Path]

    @classmethod
    def of(cls, bundle: Bundle, scratch: Path) -> "Payload":
        """Check a bundle and gather it; our wheel is written into ``scratch``.

        Raises:
            BundleError: a file is not what the manifest says.
        """
        for name in bundle.manifest.files:
            bundle.read(name)
        manifest = (bundle.path / MANIFEST_NAME).read_bytes()
        names = {name: entry.sha256 for name, entry in bundle.manifest.files.items()}
        names[MANIFEST_NAME] = hashlib.sha256(manifest).hexdigest()
        files = {sha: bundle.path / name for name, sha in names.items()}
        wheel, content = device_wheel()
        (scratch / wheel).write_bytes(content)
        sha = hashlib.sha256(content).hexdigest()
        return cls(bundle.path.resolve().name, names[MANIFEST_NAME], files, names, (wheel, sha, scratch / wheel))


@dataclass(frozen=True)
class Packages:
    """What one device needs beside the bundle. ``environment`` is the name of its virtual environment there."""

    requirements: tuple[str, ...]
    environment: str

    @classmethod
    def of(cls, payload: Payload, facts: Mapping[str, Any]) -> "Packages":
        """For a device of these facts, as the agent tells them: its Python may need others than ours."""
        python = facts["python"]
        markers = {
            "python_version": ".".join(python.split(".")[:2]),
            "python_full_version": python,
            "platform_machine": facts["machine"],
            "platform_system": "Linux",
            "sys_platform": "linux",
            "os_name": "posix",
        }
        needed = requirements(device=markers)
        # An environment stays with the Python that made it: a newer one after an upgrade of the system needs another.
        parts = [*needed, payload.wheel[1], markers["python_version"], markers["platform_machine"]]
        return cls(needed, hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16])
