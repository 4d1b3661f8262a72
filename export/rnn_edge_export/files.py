"""Reading the text files that people train on."""

import hashlib
from pathlib import Path

from rnn_edge.errors import DataError, InvalidValueError


def read_text(path: Path, encoding: str) -> tuple[str, str]:
    """A text file, line ends untouched, and the SHA-256 of its bytes.

    Raises:
        DataError: missing, a folder, empty, or not text in ``encoding``; the byte offset is named.
    """
    try:
        content = path.read_bytes()
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder", "give one text file") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check the path") from error
    if not content:
        raise DataError(f"{path} is empty", "give a text file with some text in it")
    try:
        return content.decode(encoding), hashlib.sha256(content).hexdigest()
    except LookupError as error:
        raise InvalidValueError(f"--encoding {encoding} is unknown", "use a name like utf-8 or latin-1") from error
    except UnicodeDecodeError as error:  # before its base class, which codecs that are not for files raise
        raise DataError(
            f"{path} is not {encoding}: byte {error.start} is 0x{content[error.start]:02x}",
            "convert the file, or name its encoding with --encoding (for example latin-1)",
        ) from error
    except UnicodeError as error:
        raise DataError(f"{path} is not {encoding}: {error}", "name its encoding with --encoding") from error
