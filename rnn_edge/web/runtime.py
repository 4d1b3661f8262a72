"""What a page runs on: files of two npm packages, pinned by version and hash, fetched once and kept in a cache."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from rnn_edge.errors import RnnEdgeError
from rnn_edge.files import cache_folder, write_bytes

WASM = "ort-wasm-simd-threaded.wasm"
_LOCK = Path(__file__).with_name("runtime.lock.json")
_REGISTRY = "https://registry.npmjs.org"
_LARGEST = 256 * 2**20
_TIMEOUT = 60  # seconds without a byte

Note = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """An npm package, and the SHA-256 and size of each file of it that a page needs."""

    name: str
    version: str
    files: dict[str, tuple[str, int]]

    @property
    def archive(self) -> str:
        """The file that ``npm pack`` writes."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def url(self) -> str:
        """Where its registry has it."""
        return f"{registry(self.name)}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"


@cache
def locked() -> tuple[Package, ...]:
    """The packages of the lock file."""
    content = json.loads(_LOCK.read_text(encoding="utf-8"))
    return tuple(
        Package(
            name, item["version"], {path: (entry["sha256"], entry["size"]) for path, entry in item["files"].items()}
        )
        for name, item in content.items()
    )


def runtime_files(folder: Path | None = None, note: Note = lambda _: None) -> dict[str, bytes]:
    """The contents of all locked files by ``package/path``, each checked.

    Args:
        folder: take them from here and fetch nothing: a ``node_modules``, what ``npm pack`` wrote, or the plain files.
        note: is told what is being fetched.

    Raises:
        RnnEdgeError: a file is missing or has another hash; the registry cannot be reached.
    """
    found: dict[str, bytes] = {}
    for package in locked():
        files = _from_folder(package, folder) if folder else _from_cache(package, note)
        found |= {f"{package.name}/{path}": content for path, content in files.items()}
    return found


def compressed(content: bytes) -> bytes:
    """``content`` in gzip at its smallest, the same bytes each time; kept in the cache, for it takes seconds."""
    path = cache_folder() / "web" / f"{hashlib.sha256(content).hexdigest()}.gz"
    try:
        kept = path.read_bytes()
        if gzip.decompress(kept) == content:
            return kept
    except (OSError, EOFError, gzip.BadGzipFile, ValueError):
        pass
    result = gzip.compress(content, 9, mtime=0)
    _keep(path, result)
    return result


def registry(package: str) -> str:
    """The registry that npm is set to, by its environment variables or the user's .npmrc."""
    environment = {name.lower(): value for name, value in os.environ.items()}  # npm reads them in any case
    settings = _npmrc(environment.get("npm_config_userconfig") or "~/.npmrc")
    scope = package.partition("/")[0] if package.startswith("@") else ""
    found = settings.get(f"{scope}:registry") if scope else None
    found = found or environment.get("npm_config_registry") or settings.get("registry") or _REGISTRY
    return found.rstrip("/")


def _npmrc(path: str) -> dict[str, str]:
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, RuntimeError):  # there is no home
        return {}
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith(("#", ";")))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def _from_folder(package: Package, folder: Path) -> dict[str, bytes]:
    hint = f"run: npm pack {package.name}@{package.version} in that folder"
    if not folder.is_dir():
        raise RnnEdgeError(f"there is no folder {folder}", hint)
    archive = folder / package.archive
    if archive.is_file():
        return _unpacked(package, archive.read_bytes(), str(archive))
    found = {}
    for path in package.files:
        places = [folder / package.name / path, folder / "node_modules" / package.name / path, folder / Path(path).name]
        place = next((item for item in places if item.is_file()), None)
        if place is None:
            raise RnnEdgeError(f"{folder} has no {package.archive}, nor {package.name}/{path}", hint)
        content = place.read_bytes()
        _check(package, path, content, str(place))
        found[path] = content
    return found


def _from_cache(package: Package, note: Note) -> dict[str, bytes]:
    folder = cache_folder() / "web" / package.archive.removesuffix(".tgz")
    try:
        found = {path: (folder / Path(path).name).read_bytes() for path in package.files}
        for path, content in found.items():
            _check(package, path, content, str(folder))
        return found
    except (OSError, RnnEdgeError):
        pass  # not there, or damaged: it is fetched again
    note(f"fetching {package.name} {package.version} from {registry(package.name)}, once")
    found = _unpacked(package, _fetch(package), package.url)
    for path, content in found.items():
        _keep(folder / Path(path).name, content)
    return found


def _fetch(package: Package) -> bytes:
    hint = (
        "check the network and npm's registry, or fetch it elsewhere with"
        f" npm pack {package.name}@{package.version} and give that folder with --runtime"
    )
    if not package.url.startswith(("https://", "http://")):
        raise RnnEdgeError(
            f"npm's registry is {registry(package.name)}, which is no address", "npm config set registry"
        )
    try:
        with urllib.request.urlopen(package.url, timeout=_TIMEOUT) as response:
            content: bytes = response.read(_LARGEST)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise RnnEdgeError(f"cannot fetch {package.url}: {reason}", hint) from error
    return content


def _unpacked(package: Package, archive: bytes, where: str) -> dict[str, bytes]:
    """Members are read by name; nothing is written where an archive says."""
    found = {}
    try:
        with tarfile.open(fileobj=BytesIO(archive), mode="r:gz") as content:
            for member in content:
                path = member.name.partition("/")[2]
                if path in package.files and member.isfile() and member.size == package.files[path][1]:
                    file = content.extractfile(member)
                    assert file is not None
                    found[path] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise RnnEdgeError(f"{where} is not an npm package: {error}", "fetch it again") from error
    for path in package.files:
        if path not in found:
            raise RnnEdgeError(f"{where} has no {path} of the size that is pinned", "fetch it again")
        _check(package, path, found[path], where)
    return found


def _check(package: Package, path: str, content: bytes, where: str) -> None:
    if hashlib.sha256(content).hexdigest() != package.files[path][0]:
        raise RnnEdgeError(
            f"{where}: {path} is not that of {package.name} {package.version}: its SHA-256 is another",
            f"fetch {package.name}@{package.version} again",
        )


def _keep(path: Path, content: bytes) -> None:
    """In the cache if it can be written: what is not kept is made again."""
    try:
        write_bytes(path, content)
    except RnnEdgeError:
        return
