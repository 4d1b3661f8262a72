"""Workstation commands. Nothing here imports torch or onnx before a command runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from rnn_edge.errors import MissingDependencyError


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
