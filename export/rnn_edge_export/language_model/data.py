"""From a text file to token streams for training, and to the windows that validation reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rnn_edge.errors import DataError
from rnn_edge.text_files import read_text
from rnn_edge.tokenizer import Tokenizer, character_tokenizer
from rnn_edge_export.recipe import StreamSection


@dataclass(frozen=True)
class Corpus:
    """Tokenised training and validation text.

    ``train`` and ``valid`` are int64 [N]; ``sha256`` is the corpus file's; ``valid_sha256`` that of --valid's file,
    or empty; ``valid_source`` says in words where the validation text is from.
    """

    tokenizer: Tokenizer
    train: Tensor
    valid: Tensor
    sha256: str
    valid_sha256: str
    valid_source: str


def load_corpus(path: Path, valid: Path | None, training: StreamSection, encoding: str = "utf-8") -> Corpus:
    """Read, split and tokenise. The vocabulary is every character of all text given.

    Raises:
        DataError: a file is missing, empty, not text in ``encoding``, or too short for one window of every stream.
    """
    text, sha256 = read_text(path, encoding)
    if valid is None:
        split = int(len(text) * (1 - training.validation_fraction))
        train_text, valid_text, valid_sha256 = text[:split], text[split:], ""
        source = f"the last {training.validation_fraction:.0%} of {path.name}"
    else:
        train_text = text
        valid_text, valid_sha256 = read_text(valid, encoding)
        source = valid.name
    tokenizer = character_tokenizer(train_text + valid_text)
    corpus = Corpus(
        tokenizer, _encode(tokenizer, train_text), _encode(tokenizer, valid_text), sha256, valid_sha256, source
    )
    needed = training.batch_size * training.sequence_length + 1
    if len(corpus.train) < needed:
        raise DataError(
            f"{path} has {len(corpus.train):,} training tokens; {training.batch_size} streams of "
            f"{training.sequence_length} steps need {needed:,}",
            "give more text, or lower --batch-size or --sequence-length",
        )
    if len(corpus.valid) < 2:
        raise DataError(
            f"the validation text ({source}) has {len(corpus.valid)} tokens",
            "give more text with --valid, or raise --validation-fraction",
        )
    return corpus


def windows(tokens: Tensor, batch: int, length: int, offset: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut ``tokens`` [N] into ``batch`` parallel streams and yield inputs and targets, each [length, batch].

    The text is read as a ring from ``offset``, so that streams start elsewhere each epoch. Every stream continues in
    the next window where the last one ended; what is left at its end, shorter than ``length``, is left out.
    """
    ring = torch.roll(tokens, -offset)
    span = (len(ring) - 1) // batch
    inputs = ring[: span * batch].view(batch, span).t()
    targets = ring[1 : span * batch + 1].view(batch, span).t()
    for start in range(0, span - length + 1, length):
        yield inputs[start : start + length], targets[start : start + length]


def windows_per_epoch(token_count: int, batch: int, length: int) -> int:
    """How many windows ``windows`` yields."""
    return (token_count - 1) // batch // length


def _encode(tokenizer: Tokenizer, text: str) -> Tensor:
    # Character by character through the library costs seconds and gigabytes for long texts; by code point it is
    # one table look-up. Both give the same ids.
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    characters = np.unique(codes)
    ids = np.array([tokenizer.id_of(chr(code)) for code in characters], dtype=np.int64)
    return torch.from_numpy(ids[np.searchsorted(characters, codes)])
