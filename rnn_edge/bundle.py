"""Find, check and list bundles. A bundle is untrusted until its bytes match its manifest."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from rnn_edge.errors import BundleError, RnnEdgeError
from rnn_edge.files import cache_folder
from rnn_edge.manifest import MANIFEST_NAME, Manifest, Task

_MAXIMUM_MANIFEST = 16 * 2**20
SEARCH_VARIABLE = "RNN_EDGE_MODELS"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read. Files are read, and checked, when they are asked for."""

    path: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """The bytes of a file that the manifest lists, checked against its size and hash.

        Raises:
            BundleError: missing, a link, or other bytes than the manifest says.
        """
        entry, path = self.manifest.files[name], self.path / name
        mend = "copy or export the bundle again"
        # A link could lead out of the bundle's folder.
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path} is missing or not a plain file", mend)
        if path.stat().st_size != entry.size:
            raise BundleError(
                f"{path} has {path.stat().st_size:,} bytes, not {entry.size:,}: truncated or changed", mend
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(f"{path} has changed: its SHA-256 is not the manifest's", mend)
        return content

    def graph(self, role: str) -> bytes:
        """The bytes of the graph with this role, like ``step``."""
        return self.read(self.manifest.graphs[role])

    @property
    def size(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(entry.size for entry in self.manifest.files.values())


def open_bundle(name_or_path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle by folder, by archive, or by the name of one that is found (see ``search_path``).

    An archive is unpacked into the user's cache folder, once.

    Raises:
        BundleError: not found, or its manifest is missing or wrong.
    """
    path = Path(name_or_path)
    try:
        packed, unpacked = path.is_file(), (path / MANIFEST_NAME).is_file()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}", "give the name or folder of a bundle") from error
    if packed:
        return read_bundle(_unpacked(path))
    return read_bundle(path if unpacked else _search(name_or_path))


def read_bundle(path: Path) -> Bundle:
    """Open the bundle in a folder."""
    manifest = path / MANIFEST_NAME
    try:
        if manifest.stat().st_size > _MAXIMUM_MANIFEST:
            raise BundleError(f"{manifest} is larger than 16 MB", "export the bundle again")
        content = manifest.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {manifest}: {error.strerror}", "copy or export the bundle again") from error
    return Bundle(path, Manifest.from_json(content, str(manifest)))


def require_task(bundle: Bundle, task: Task) -> None:
    """Refuse a bundle of another task.

    Raises:
        BundleError: naming the command that fits.
    """
    found = bundle.manifest.task
    if found != task:
        command = {"language-model": "rnn-edge generate", "translation": "rnn-edge translate"}[found]
        names = {"language-model": "a language model", "translation": "a translator"}
        raise BundleError(f"{bundle.path} is {names[found]}, not {names[task]}", f"use {command} {bundle.path}")


def search_path() -> list[Path]:
    """Folders whose subfolders are bundles: $RNN_EDGE_MODELS, ./bundles, ./models, and the bundled models."""
    package = Path(__file__).parent
    listed = [Path(item) for item in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if item]
    # An installed wheel has the models inside the package, a checkout beside it.
    folders = [*listed, Path("bundles"), Path("models"), package / "models", package.parent / "models"]
    seen: dict[Path, Path] = {}
    for folder in folders:
        if folder.is_dir():
            seen.setdefault(folder.resolve(), folder)
    return list(seen.values())


def find_bundles() -> list[Path]:
    """Every folder with a manifest on the search path; a name found earlier hides later ones."""
    found: dict[str, Path] = {}
    for folder in search_path():
        for path in sorted(folder.iterdir()):
            if (path / MANIFEST_NAME).is_file():
                found.setdefault(path.name, path)
    return list(found.values())


def list_bundles() -> tuple[list[Bundle], list[tuple[Path, RnnEdgeError]]]:
    """Bundles that open, and those that do not with their errors."""
    good: list[Bundle] = []
    bad: list[tuple[Path, RnnEdgeError]] = []
    for path in find_bundles():
        try:
            good.append(read_bundle(path))
        except RnnEdgeError as error:
            bad.append((path, error))
    return good, bad


def _unpacked(path: Path) -> Path:
    # Imported here: most bundles are folders.
    from rnn_edge.archive import SUFFIXES, cached

    if not path.name.endswith(SUFFIXES):
        raise BundleError(f"{path} is neither a bundle's folder nor an archive of one", _choices(find_bundles()))
    return cached(path, cache_folder())


def _search(name: str | os.PathLike[str]) -> Path:
    bundles = find_bundles()
    for path in bundles:
        if path.name == os.fspath(name):
            return path
    if Path(name).exists():
        raise BundleError(f"{Path(name)} is not a bundle: it has no {MANIFEST_NAME}", _choices(bundles))
    raise BundleError(f"there is no bundle {os.fspath(name)}", _choices(bundles))


def _choices(bundles: list[Path]) -> str:
    if not bundles:
        return "give the folder of a bundle; none is found here by name"
    return f"give the folder of a bundle, or one of: {', '.join(path.name for path in bundles)}"
