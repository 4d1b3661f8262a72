"""Workstation commands. Nothing here imports torch or onnx before a command runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

from rnn_edge.errors import InvalidValueError, MissingDependencyError
from rnn_edge.manifest import Lowering


@contextmanager
def workstation() -> Iterator[None]:
    """Name the line to install where a package of the workstation side is missing."""
    try:
        yield
    except ImportError as error:
        if isinstance(error, MissingDependencyError) or error.name is None or error.name.startswith("rnn_edge"):
            raise
        raise MissingDependencyError(
            f"{error.name} is not installed; training and exporting need it",
            "run: pip install 'rnn-edge[export,cpu]'",
        ) from error


def known_lowering(lowering: str) -> Lowering:
    """Raises InvalidValueError for another than there are."""
    for known in get_args(Lowering):
        if known == lowering:
            found: Lowering = known
            return found
    raise InvalidValueError(f"--lowering {lowering} is unknown", "use operator or cell")
