"""Reading the text files that people train on and evaluate with."""

import hashlib
from pathlib import Path
from typing import NoReturn

from rnn_edge.errors import DataError, InvalidValueError

Pair = tuple[str, str]
BOM = "\ufeff"  # which some editors put in front


def read_text(path: Path, encoding: str) -> tuple[str, str]:
    """A text file, line ends untouched, without a mark of its byte order, and the SHA-256 of its bytes.

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
        raise_empty(path)
    try:
        return content.decode(encoding).removeprefix(BOM), hashlib.sha256(content).hexdigest()
    except (LookupError, UnicodeError) as error:
        raise_not_text(path, encoding, error)


def raise_empty(path: Path) -> NoReturn:
    """A file that should have text has none."""
    raise DataError(f"{path} is empty", "give a text file with some text in it")


def raise_not_text(path: Path, encoding: str, error: LookupError | UnicodeError, before: int = 0) -> NoReturn:
    """What decoding raised, as an error with a mend; ``before`` is the number of bytes in front of those decoded."""
    if isinstance(error, LookupError):
        raise InvalidValueError(f"--encoding {encoding} is unknown", "use a name like utf-8 or latin-1") from error
    if isinstance(error, UnicodeDecodeError):  # others come from codecs that are not for files
        raise DataError(
            f"{path} is not {encoding}: byte {before + error.start} is 0x{error.object[error.start]:02x}",
            "convert the file, or name its encoding with --encoding (for example latin-1)",
        ) from error
    raise DataError(f"{path} is not {encoding}: {error}", "name its encoding with --encoding") from error


def read_pairs(paths: list[Path], encoding: str = "utf-8") -> tuple[list[Pair], str]:
    """Pairs from one TSV file, or from two aligned files; and a SHA-256 over the content.

    Sides are stripped. Of a TSV line the first two columns count, so that files with notes behind them can be used.

    Raises:
        DataError: a line without a tab, or files of different length; the line is named.
    """
    texts = [read_text(path, encoding) for path in paths]
    if len(paths) == 1:
        lines = _lines(texts[0][0])
        pairs = []
        for number, line in enumerate(lines, 1):
            columns = line.split("\t")
            if len(columns) < 2:
                if not line.strip():
                    continue
                raise DataError(
                    f"{paths[0]}, line {number} has no tab: {_excerpt(line)}",
                    "put the two sides on one line with a tab between them, or give two files",
                )
            pairs.append((columns[0].strip(), columns[1].strip()))
        return pairs, texts[0][1]
    sides = [_lines(text) for text, _ in texts]
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"{paths[0]} has {len(sides[0]):,} lines, {paths[1]} has {len(sides[1]):,}; "
            f"the first suspicious line is {_suspicious(*sides)}",
            "give files whose lines belong together",
        )
    together = hashlib.sha256("\n".join(sha256 for _, sha256 in texts).encode()).hexdigest()
    return [(a.strip(), b.strip()) for a, b in zip(*sides, strict=True)], together


def _lines(text: str) -> list[str]:
    """Lines ended by line feeds; other line separators of Unicode may stand inside a sentence."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _suspicious(source: list[str], target: list[str]) -> int:
    """The first line whose sides differ most unlikely in length: there a line was probably lost or split."""
    for number, (a, b) in enumerate(zip(source, target, strict=False), 1):
        if (not a.strip()) != (not b.strip()) or max(len(a), len(b)) > 40 + 3 * min(len(a), len(b)):
            return number
    return min(len(source), len(target)) + 1


def _excerpt(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:57] + "…")
