"""From text files to token streams for training, and to the windows that validation reads."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rnn_edge import render
from rnn_edge.errors import DataError, RnnEdgeError, UnknownTokenError
from rnn_edge.files import cache_folder, write_bytes
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.language_model.text_source import TextSource, survey
from rnn_edge_export.language_model.token_files import Progress, Tokens, open_tokens, write_tokens
from rnn_edge_export.recipe_sections import StreamSection
from rnn_edge_export.vocabularies import train_tokenizer

Window = tuple[Tensor, Tensor]
Bar = Callable[[str], AbstractContextManager[Progress]]
_SILENT: Bar = partial(render.progress, quiet=True)
_SHORTEST = 5  # steps of a window whose length is drawn
_FORMAT = 2  # of what is remembered: raised when tokenisers are trained or texts are cut in another way


@dataclass(frozen=True)
class Texts:
    """The files of a training: corpus, and those of validation and test where they are not parts of it."""

    corpus: TextSource
    valid: TextSource | None = None
    test: TextSource | None = None

    @classmethod
    def survey(
        cls, corpus: Sequence[Path], valid: Sequence[Path] = (), test: Sequence[Path] = (), encoding: str = "utf-8"
    ) -> "Texts":
        """Read all files once.

        Raises:
            DataError: a file is missing, empty or not text in ``encoding``.
        """
        return cls(survey(corpus, encoding), *(survey(files, encoding) if files else None for files in (valid, test)))

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of all files of a kind, by its field in a recipe; empty where a part of the corpus serves."""
        texts = {"sha256": self.corpus, "valid_sha256": self.valid, "test_sha256": self.test}
        return {field: text.sha256 if text else "" for field, text in texts.items()}

    @property
    def alphabet(self) -> frozenset[str]:
        """Every character that occurs."""
        return self.corpus.alphabet.union(*(text.alphabet for text in (self.valid, self.test) if text))


@dataclass(frozen=True)
class Part:
    """Tokens [N] of one part of the data, the characters they stand for, and in words where it is from."""

    tokens: Tokens
    characters: int
    source: str


@dataclass(frozen=True)
class Corpus:
    """Tokenised training and validation text, and a test where there is one."""

    tokenizer: Tokenizer
    train: Part
    valid: Part
    test: Part | None = None


def load_corpus(
    texts: Texts, training: StreamSection, *, tokenizer: Tokenizer | None = None, bar: Bar = _SILENT
) -> Corpus:
    """Split and tokenise, by a new tokenizer or the one given. What was tokenised before is only mapped.

    A vocabulary of characters has all that occur in any text; others are made from the training text alone.

    Raises:
        DataError: a text is too short for one window of every stream, or has what the vocabulary given lacks.
    """
    parts = _split(texts, training)
    tokenizer = tokenizer or _trained(training, parts[0], texts.alphabet, bar)
    train, validation = (_tokenise(part, tokenizer, bar) for part in parts[:2])
    held = _tokenise(parts[2], tokenizer, bar) if parts[2] else None
    steps = max(training.sequence_length, _SHORTEST) if training.random_lengths else training.sequence_length
    needed = training.batch_size * steps + 1
    if len(train.tokens) < needed:
        names = " and ".join(map(str, texts.corpus.paths))
        raise DataError(
            f"{names} has {len(train.tokens):,} training tokens; {training.batch_size} streams of "
            f"{steps} steps need {needed:,}",
            "give more text, or lower --batch-size or --sequence-length",
        )
    for what, part in (("validation", validation), ("test", held)):
        if part and len(part.tokens) < 2:
            raise DataError(
                f"the {what} text ({part.source}) has {len(part.tokens)} tokens",
                f"give more text with --{what[:5]}, or raise --{what}-fraction",
            )
    return Corpus(tokenizer, train, validation, held)


def windows(
    tokens: Tokens,
    batch: int,
    length: int | Sequence[int],
    offset: int = 0,
    done: int = 0,
    rows: slice = slice(None),
) -> Iterator[Window]:
    """Cut ``tokens`` [N] into ``batch`` parallel streams and yield inputs and targets, each int64 [length, batch].

    ``length`` is that of every window, or has one for each.

    The text is read as a ring from ``offset``, so that streams start elsewhere each epoch. Every stream continues in
    the next window where the last one ended; what is left at its end, shorter than ``length``, is left out. The first
    ``done`` windows are passed over, and only the streams ``rows`` are read.
    """
    span = (len(tokens) - 1) // batch
    streams = offset + span * np.arange(batch)[rows]
    lengths = [length] * (span // length) if isinstance(length, int) else length
    start = sum(lengths[:done])
    for size in lengths[done:]:
        places = (np.arange(start, start + size + 1)[:, None] + streams) % len(tokens)
        window = torch.from_numpy(tokens[places].astype(np.int64))
        yield window[:-1], window[1:]
        start += size


def random_lengths(span: int, mean: int, random: np.random.Generator) -> list[int]:
    """Lengths of windows that fill ``span`` steps: normal around ``mean`` with a deviation of 5, one in twenty around
    half of it, never below 5 (Merity et al. 2017, section 5).
    """
    lengths: list[int] = []
    while span >= _SHORTEST:
        centre = mean if random.random() < 0.95 else mean / 2
        size = max(_SHORTEST, int(random.normal(centre, 5)))
        lengths.append(min(size, span))
        span -= lengths[-1]
    return lengths


def windows_per_epoch(token_count: int, batch: int, length: int) -> int:
    """How many windows ``windows`` yields."""
    return (token_count - 1) // batch // length


@dataclass(frozen=True)
class _Range:
    """The characters of a text from ``start`` to ``stop``."""

    text: TextSource
    start: int
    stop: int
    source: str

    def key(self, *more: object) -> str:
        """Identity of this text, and of what is made of it by ``more``."""
        facts = [_FORMAT, self.text.sha256, self.text.encoding, self.start, self.stop, *more]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _split(texts: Texts, training: StreamSection) -> tuple[_Range, _Range, _Range | None]:
    """Training, validation and test: from files of their own, or the last characters of the corpus, the test's last."""
    corpus, valid, test = texts.corpus, texts.valid, texts.test
    held = 0.0 if valid else training.validation_fraction
    last = 0.0 if test else training.test_fraction
    first, second = int(corpus.characters * (1 - (held + last))), int(corpus.characters * (1 - last))

    def part(text: TextSource | None, start: int, stop: int, source: str) -> _Range:
        return _Range(text, 0, text.characters, text.name) if text else _Range(corpus, start, stop, source)

    before = f"the last {100 * held:.3g}% of {corpus.name}" + (f" before the test's {100 * last:.3g}%" if last else "")
    return (
        _Range(corpus, 0, first, corpus.name),
        part(valid, first, second, before),
        part(test, second, corpus.characters, f"the last {100 * last:.3g}% of {corpus.name}") if test or last else None,
    )


def _trained(training: StreamSection, part: _Range, alphabet: frozenset[str], bar: Bar) -> Tokenizer:
    """The tokenizer that the recipe asks for, remembered by what it was made of."""
    if training.tokenizer in ("character", "byte"):
        return train_tokenizer(training, list, alphabet)
    choices = (training.tokenizer, training.vocabulary_size, training.minimum_count, training.words)
    path = cache_folder() / "tokens" / f"{part.key(*choices)}.json"
    with contextlib.suppress(OSError, RnnEdgeError):  # made again where it is not there, or damaged
        return Tokenizer(path.read_bytes(), str(path))
    with bar("reading words") as progress:

        def chunks() -> Iterator[str]:
            done = 0
            # Short ones: the library waits for 256 before it looks at any.
            for chunk in part.text.chunks(part.start, part.stop, read=2**14):
                yield chunk
                done += len(chunk)
                progress(done, part.stop - part.start)

        tokenizer = train_tokenizer(training, chunks, alphabet)
    part.text.check_unchanged()
    write_bytes(path, tokenizer.content)
    return tokenizer


def _tokenise(part: _Range, tokenizer: Tokenizer, bar: Bar) -> Part:
    """The tokens of a part, made where they are not remembered."""
    key = part.key(hashlib.sha256(tokenizer.content).hexdigest())
    path = cache_folder() / "tokens" / f"{key}.safetensors"
    found = open_tokens(path)
    if found is None:
        chunks, count = part.text.chunks(part.start, part.stop), part.stop - part.start
        with bar("tokenising") as progress:
            try:
                write_tokens(path, chunks, count, tokenizer, progress, part.text.check_unchanged)
            except UnknownTokenError as error:
                raise DataError(
                    f"{part.source}: {error.message}", "train on it with a vocabulary of its own, or leave them out"
                ) from error
        found = open_tokens(path)
    if found is None:  # the disk lies
        raise DataError(f"{path} is damaged as soon as it is written", "check the disk, then run it again")
    return Part(found.tokens, found.characters, part.source)
