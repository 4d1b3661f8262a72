"""The tiny bundles of tests/data, and ways to damage copies of them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data"
LSTM, GRU = DATA / "lstm", DATA / "gru"
TRANSLATOR, WORDS = DATA / "translator", DATA / "translator-word"

Change = Callable[[dict[str, Any]], None]


def copy_bundle(source: Path, target: Path, change: Change | None = None) -> Path:
    """A copy of a bundle; ``change`` edits its manifest in place."""
    shutil.copytree(source, target)
    if change:
        edit_manifest(target, change)
    return target


def edit_manifest(folder: Path, change: Change) -> None:
    """Edit a manifest as plain JSON."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Other bytes for a file, with a manifest that agrees."""
    (folder / name).write_bytes(content)

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}

    edit_manifest(folder, change)
