"""Whether memory holds a batch, before anything is allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnn_edge.errors import InvalidValueError
from rnn_edge.machine import available_memory

if TYPE_CHECKING:
    from rnn_edge.manifest import Manifest

_KEPT = 4096  # bytes of what is kept of a stream beside its numbers


def stream_bytes(manifest: Manifest, source: int = 0, burst: int = 0) -> int:
    """Bytes that one stream of a batch takes.

    ``source`` is the length of a translator's sources, ``burst`` the number of steps that a ``Chooser`` makes at once.
    """
    size, architecture = manifest.tokenizer.vocabulary_size, manifest.architecture
    floats = max(2, burst) * sum(pair.width for pair in manifest.state) + 4 * architecture.hidden
    # What the encoder leaves is copied when sentences come and go; attention is kept to the end.
    floats += 2 * source * sum(item.width for item in manifest.memory) + source * (source + 10)
    # float32: logits, these scaled, sorted and filtered, and noise; float64: sorted, differences, powers and their sum.
    # Of each step of a burst: logits, and noise where it is drawn and where the graph reads it.
    return 4 * floats + max(5 * 4 + 4 * 8, 3 * 4 * burst) * size + _KEPT


def check_batch(manifest: Manifest, batch: int, source: int = 0, burst: int = 0, beam: int = 1) -> None:
    """Refuse a number of streams, or of sentences with ``beam`` streams each, that memory does not hold at once.

    Raises:
        InvalidValueError: fewer than one, or too many; with the bytes needed and those free.
    """
    if batch < 1:
        raise InvalidValueError(f"batch-size is {batch}", "use at least 1")
    available, stream = available_memory(), beam * stream_bytes(manifest, source, burst)
    if available is not None and batch * stream > available:
        raise InvalidValueError(
            f"a batch of {batch:,} with {manifest.name} needs {batch * stream / 1e6:,.0f} MB, "
            f"and {available / 1e6:,.0f} MB are free",
            f"use at most {max(1, available // stream)}",
        )
