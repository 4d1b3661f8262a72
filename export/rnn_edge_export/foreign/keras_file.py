"""Reading Keras files without Keras: ``.keras`` archives and ``.h5`` files, both untrusted.

Of HDF5 only plain datasets are read that lie whole inside the file: no links to other files, no external or virtual
storage, no filters. What the file claims about sizes is compared with its length before memory is taken.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import DataError
from rnn_edge_export.foreign.formats import Format

_LARGEST_TEXT = 16 * 2**20
_LARGEST_GROWTH = 100  # of an archive's members to the archive: weights hardly shrink
_MEND = "save the whole model again with Keras: model.save('model.keras')"
# Where layers stand in weights files of Keras 3, and of the first versions of the format.
_ROOTS = ("layers", "_layer_checkpoint_dependencies")

Array = NDArray[np.float32]


@dataclass(frozen=True)
class KerasFile:
    """A model's configuration as it was saved, the version of Keras (empty where it is not told), and the weights."""

    config: Mapping[str, Any]
    version: str
    weights: "Weights"


class Place(NamedTuple):
    """Where a layer's weights stand in new files: the how many-eth of its class it is, and the folders inside it."""

    kind: str
    ordinal: int
    inner: tuple[str, ...] = ()


class Weights:
    """The weights of layers by name, in an open HDF5 file."""

    def __init__(self, file: h5py.File, size: int, where: str, *, legacy: bool) -> None:
        self._file, self._size, self._where, self._legacy = file, size, where, legacy
        self._read: set[str] = set()

    def read(self, layer: str, place: Place, shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
        """The arrays of one layer, which must be those of ``shapes`` in Keras's order, and no others.

        ``layer`` names it in legacy files, ``place`` is where it stands in others.

        Raises:
            DataError: some are missing or too many, of another shape, or not stored as plain numbers.
        """
        found = self._named(layer) if self._legacy else self._numbered(place)
        names = list(shapes) if self._legacy else [str(index) for index in range(len(shapes))]
        missing, extra = [name for name in names if name not in found], sorted(set(found) - set(names))
        if missing or extra:
            what = [(kind, items) for kind, items in (("lacks", missing), ("also has", extra)) if items]
            text = " and ".join(f"{kind} {', '.join(items)}" for kind, items in what)
            raise DataError(f"{self._where}: of the weights of {layer} it {text}", _MEND)
        return {
            wanted: self._array(found[name], shape, f"{wanted} of {layer}")
            for name, (wanted, shape) in zip(names, shapes.items(), strict=True)
        }

    def check_all_read(self) -> None:
        """Raises DataError for weights of layers that the configuration does not have."""
        unread = []

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and item.name not in self._read and "seed_generator" not in name:
                unread.append(name)

        for root in ("model_weights", *_ROOTS):
            group = self._group(self._file, [root])
            if group is not None:
                group.visititems(visit)  # which follows no links
        if unread:
            more = f" and {len(unread) - 6} more" if len(unread) > 6 else ""
            raise DataError(f"{self._where} also has weights of no layer: {', '.join(unread[:6])}{more}", _MEND)

    def _numbered(self, place: Place) -> dict[str, h5py.Dataset]:
        root = next((name for name in _ROOTS if self._child(self._file, name) is not None), _ROOTS[0])
        layers = self._group(self._file, [root])
        same = [] if layers is None else [name for name in layers if re.fullmatch(rf"{place.kind}(_\d{{1,9}})?", name)]
        same.sort(key=lambda name: int(name.removeprefix(place.kind).lstrip("_") or 0))
        group = self._group(layers, [*same[place.ordinal : place.ordinal + 1], *place.inner, "vars"]) if same else None
        return {} if group is None else {name: self._child(group, name) for name in group}

    def _named(self, layer: str) -> dict[str, h5py.Dataset]:
        group = self._group(self._file, ["model_weights", layer])
        if group is None:
            return {}
        found = {}
        for path in _text_list(group.attrs, "weight_names"):
            *folders, name = path.split("/")
            parent = self._group(group, folders)
            dataset = None if parent is None else self._child(parent, name)
            if dataset is not None:
                found[name.split(":")[0]] = dataset  # old versions add :0
        return found

    def _group(self, group: h5py.Group, path: Sequence[str]) -> h5py.Group | None:
        for name in path:
            child = self._child(group, name)
            if not isinstance(child, h5py.Group):
                return None
            group = child
        return group

    def _child(self, group: h5py.Group, name: str) -> Any:
        """What stands under a name in this very file, or None."""
        if not name or name == "." or "/" in name or name not in group.keys():  # noqa: SIM118
            return None
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise DataError(f"{self._where}: {group.name}/{name} is a link to elsewhere", _MEND)
        return group[name]

    def _array(self, dataset: object, shape: Sequence[int], name: str) -> Array:
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(f"{self._where}: {name} is no array", _MEND)
        if dataset.shape != tuple(shape):
            raise DataError(
                f"{self._where}: {name} is {list(dataset.shape or ())}, not {list(shape)}",
                "give a file whose weights and configuration are of one model",
            )
        if dataset.dtype.kind != "f":
            raise DataError(f"{self._where}: {name} is stored as {dataset.dtype}", "save the model in float32")
        plain = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS and not dataset.external
        start = dataset.id.get_offset() if plain else None
        if dataset.is_virtual or start is None or start + dataset.nbytes > self._size:
            raise DataError(f"{self._where}: {name} is not stored whole inside the file", _MEND)
        self._read.add(dataset.name)
        values = np.asarray(dataset[()], np.float32)
        if not np.isfinite(values).all():
            raise DataError(
                f"{self._where}: {name} holds values that are not finite", "give weights from before training diverged"
            )
        return values


@contextmanager
def open_keras(path: Path, kind: Format) -> Iterator[KerasFile]:
    """A Keras file to read from.

    Raises:
        DataError: damaged, or without a configuration.
    """
    try:
        if kind == "keras":
            with zipfile.ZipFile(path) as archive:
                members = {name: _member(archive, path, name) for name in _MEMBERS}
            content = members["model.weights.h5"]
            version = str(_json(members["metadata.json"], path).get("keras_version", ""))
            config = _json(members["config.json"], path)
            with h5py.File(io.BytesIO(content), "r") as file:
                yield KerasFile(config, version, Weights(file, len(content), str(path), legacy=False))
        else:
            with h5py.File(path, "r", locking=False) as file:
                text = _text(file.attrs.get("model_config"))
                if not text:
                    raise DataError(f"{path} holds weights alone, without the model they are of", _MEND)
                version, size = _text(file.attrs.get("keras_version")), path.stat().st_size
                yield KerasFile(_json(text.encode(), path), version, Weights(file, size, str(path), legacy=True))
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{path} is damaged: {' '.join(str(error).split())}", "copy it again") from error


_MEMBERS = ("config.json", "metadata.json", "model.weights.h5")


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    info = archive.getinfo(name)
    limit = _LARGEST_TEXT if name.endswith(".json") else _LARGEST_GROWTH * path.stat().st_size
    if info.file_size > limit:
        raise DataError(f"{path}: {name} unpacks to {info.file_size:,} bytes, more than is plausible", _MEND)
    return archive.read(info)


def _json(content: bytes, path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise ValueError("its configuration is nested too deeply") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: its configuration is no table", _MEND)
    return found


def _text(value: object) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _text_list(attributes: Mapping[str, Any], name: str) -> list[str]:
    """A list of names; long ones are cut into attributes that are numbered."""
    parts = [attributes[name]] if name in attributes else []
    while f"{name}{len(parts)}" in attributes:
        parts.append(attributes[f"{name}{len(parts)}"])
    return [_text(item) for part in parts for item in part]


def major_version(version: str) -> int | None:
    """The first number of a version, or None."""
    found = re.match(r"\d+", version)
    return int(found[0]) if found else None
