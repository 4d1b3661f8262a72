"""What a checkpoint file is, by its bytes; files that hold code are never opened further than that."""

import struct
import zipfile
from pathlib import Path
from typing import Literal, NoReturn

from rnn_edge.errors import DataError

Format = Literal["safetensors", "keras", "hdf5"]

_HDF5 = b"\x89HDF\r\n\x1a\n"
# Pickles of protocols 2 to 5, as torch.save and pickle.dump write them; older ones are text and no checkpoint.
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
KNOWN = "give a safetensors file, or a .keras or .h5 file that Keras saved"


def recognise(path: Path) -> Format:
    """The format of a checkpoint.

    Raises:
        DataError: missing, a folder, a pickle (with the line that converts it), or of no known format.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder", KNOWN)
    try:
        with path.open("rb") as file:
            head = file.read(16)
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check the path") from error
    if head.startswith(_HDF5):
        return "hdf5"
    if head.startswith(_PICKLES):
        _refuse_pickle(path)
    if head.startswith(b"PK\x03\x04"):
        return _recognise_archive(path)
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size:
        return "safetensors"
    raise DataError(f"{path} is no checkpoint that can be imported", KNOWN)


def _recognise_archive(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is a damaged archive: {error}", "copy it again") from error
    if any(name.endswith("data.pkl") for name in names):
        _refuse_pickle(path)
    if {"config.json", "model.weights.h5"} <= set(names):
        return "keras"
    raise DataError(f"{path} is an archive, but none that Keras or PyTorch saved", KNOWN)


def _refuse_pickle(path: Path) -> NoReturn:
    program = (
        "import torch, safetensors.torch as s; "
        f"d = torch.load({path.name!r}, weights_only=True); "
        f"s.save_file({{k: v.clone() for k, v in d.items()}}, {path.with_suffix('.safetensors').name!r})"
    )
    raise DataError(
        f"{path} is a pickle, which can run any program when it is opened",
        f'convert it where you trust it, with: python -c "{program}" (of a whole model, save model.state_dict() first)',
    )
