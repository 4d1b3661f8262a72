"""What ``rnn-edge bench`` lets a language model and a translator do. Everything is untimed but the work itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnn_edge.bench import STEP, Figure, Subject, Work
from rnn_edge.choice import Filters
from rnn_edge.errors import BundleError
from rnn_edge.language_model import LanguageModel
from rnn_edge.text_stream import TextOptions
from rnn_edge.translator import Translator

if TYPE_CHECKING:
    from rnn_edge.encoder_decoder import Encoded
    from rnn_edge.stepper import AnyStepper
    from rnn_edge.translation import TranslationOptions

_RING = 256  # random ids of a stream, used again and again
_WARM = 4  # untimed steps before timed ones: the buffers are new
_REPETITIONS = 4  # of a text: a graph of several steps that these come to counts
_SENTENCES = 8  # at least, of one translation that is timed
_PROCESS_TOKENS = 64
# The command itself, and what its process has to say afterwards.
_PROCESS = """
import sys
from rnn_edge.cli import run
code = run(sys.argv[1:])
from rnn_edge.machine import peak_memory
print(peak_memory(), file=sys.stderr)
sys.exit(code)
"""


@dataclass(frozen=True)
class Lengths:
    """What is combined: lengths of prompts (or sources) and of texts made, and numbers of streams."""

    prompts: tuple[int, ...]
    texts: tuple[int, ...]
    batches: tuple[int, ...]


def language_model_works(subject: Subject, model: LanguageModel, lengths: Lengths) -> Iterator[Work]:
    """Prompt and generation speed of each batch, time to first token, cold start and memory."""
    for batch in lengths.batches:
        for count in lengths.prompts:
            figure = Figure("prompt", "tokens/s", "random tokens fed, nothing chosen")
            yield Work(subject, batch, count, (figure,), partial(_prompt, model, batch, count))
        for count in lengths.texts:
            figure = Figure("generate", "tokens/s", "from the start token, with the bundle's sampling, to text")
            yield Work(subject, batch, count, (figure,), partial(_generate, model, batch, count))
            figure = Figure(STEP, "tokens/s", "the graph alone, nothing chosen")
            yield Work(subject, batch, count, (figure,), partial(_prompt, model, batch, count))
    for count in lengths.prompts:
        figure = Figure("first token", "ms", "from a prompt's text to its first new token, model loaded")
        yield Work(subject, 1, count, (figure,), partial(_first_token, model, _text(model, count)))
    yield _process_work(subject, ["generate", "-n", str(_PROCESS_TOKENS), "-s", "0"], ["-p", ""])


def translator_works(
    subject: Subject, translator: Translator, lengths: Lengths, sentences: Sequence[str] = ()
) -> Iterator[Work]:
    """Speed of encoder, translation and decoder, time to first token, cold start and memory.

    ``sentences`` are translated in place of random ones.
    """
    source = translator.manifest.source
    assert source is not None
    wanted = [0] if sentences else dict.fromkeys(min(count, source.longest) for count in lengths.prompts)
    texts = {count: sentences or _sentences(translator, count, max(lengths.batches)) for count in wanted}
    what = f"{len(sentences):,} sentences of the file" if sentences else "random words"
    encoding = Figure("encode", "tokens/s", f"source tokens of {what}")
    greedy = f"{what}, greedy; tokens are the translations'"
    translating = (Figure("translate", "tokens/s", greedy), Figure("translate", "sentences/s", greedy))
    stepping = Figure(STEP, "tokens/s", "the decoder alone, nothing chosen")
    for batch in lengths.batches:
        options = translator.options(beam=1, batch_size=batch)
        for count, found in texts.items():
            some = found if sentences else found[: max(_SENTENCES, batch)]
            yield Work(subject, batch, count, (encoding,), partial(_encode, translator, some, batch))
            yield Work(subject, batch, count, translating, partial(_translate, translator, some, options))
        some = next(iter(texts.values()))
        for count in lengths.texts:
            yield Work(subject, batch, count, (stepping,), partial(_decode, translator, some, batch, count))
    for count, found in texts.items():
        figure = Figure("first token", "ms", "from a sentence to its first target token, greedy, model loaded")
        yield Work(subject, 1, count, (figure,), partial(_first_translated, translator, found[0]))
    yield _process_work(subject, ["translate", "-b", "1"], ["--", next(iter(texts.values()))[0]])


# --- language models


def _prompt(model: LanguageModel, batch: int, count: int) -> tuple[float, ...]:
    size = model.manifest.tokenizer.vocabulary_size
    return (batch * count / _step(model.graph.stepper(batch), _random_tokens(size, batch), count),)


def _generate(model: LanguageModel, batch: int, count: int) -> tuple[float, ...]:
    options, unrolled = TextOptions.of(model.manifest, seed=0), model.graph.unrolled(batch)
    filters = Filters.of(options.sampling, options.barred, model.manifest.tokenizer.vocabulary_size)
    # A graph that would be made in the midst of what is measured is made while it warms up.
    if filters and unrolled and (steps := unrolled.steps_before(filters)) <= _REPETITIONS * count:
        unrolled.note(filters, steps)
    started = perf_counter()
    if batch > 1:
        texts = model.generate_samples("", batch, batch_size=batch, max_tokens=count, seed=0).texts()
        made = sum(text.timings.generated_tokens for text in texts)
    else:
        made = sum(event.token is not None for event in model.generate(max_tokens=count, seed=0))
    return (made / (perf_counter() - started),)


def _first_token(model: LanguageModel, text: str) -> tuple[float, ...]:
    started = perf_counter()
    next(model.generate(text, max_tokens=1, seed=0, unknown="skip"))
    return (1e3 * (perf_counter() - started),)


def _text(model: LanguageModel, count: int) -> str:
    """A text of ``count`` tokens that the model writes itself."""
    return "".join(event.text for event in model.generate(max_tokens=count, seed=0))


# --- translators


def _encode(translator: Translator, sentences: Sequence[str], batch: int) -> tuple[float, ...]:
    sources = sorted(translator.sources(sentences), key=len)
    started = perf_counter()
    for first in range(0, len(sources), batch):
        translator.graphs.encode(sources[first : first + batch])
    return (sum(map(len, sources)) / (perf_counter() - started),)


def _translate(translator: Translator, sentences: Sequence[str], options: TranslationOptions) -> tuple[float, ...]:
    started = perf_counter()
    found = translator.translate_sentences(sentences, options)
    seconds = perf_counter() - started
    return sum(len(item.candidates[0].pieces) for item in found) / seconds, len(found) / seconds


def _decode(translator: Translator, sentences: Sequence[str], batch: int, count: int) -> tuple[float, ...]:
    sources = translator.sources(list(islice(cycle(sentences), batch)))
    encoded: Encoded = translator.graphs.encode(sources)
    tokens = _random_tokens(translator.manifest.tokenizer.vocabulary_size, batch)
    return (batch * count / _step(translator.graphs.stepper(encoded), tokens, count),)


def _first_translated(translator: Translator, sentence: str) -> tuple[float, ...]:
    started = perf_counter()
    stream = translator.stream(sentence, replace(translator.defaults, beam=1))
    next(event for event in stream if event.token is not None)
    return (1e3 * (perf_counter() - started),)


def _sentences(translator: Translator, count: int, at_least: int) -> list[str]:
    """Sentences of about ``count`` tokens, of words that the vocabulary holds whole, drawn at random."""
    pieces = [piece.decode("utf-8", errors="replace") for piece in translator.source_tokenizer.token_bytes]
    words = [piece for piece in pieces if piece.strip().isalnum()] or pieces
    draws = np.random.default_rng(0).integers(0, len(words), (max(_SENTENCES, at_least), count))
    return ["".join(words[draw] for draw in row).strip() for row in draws]


# --- both


def _random_tokens(vocabulary_size: int, batch: int) -> Iterable[NDArray[np.int64] | int]:
    """Random ids, step after step."""
    ids = np.random.default_rng(0).integers(0, vocabulary_size, (_RING, batch))
    return list(ids) if batch > 1 else ids[:, 0].tolist()


def _step(stepper: AnyStepper, tokens: Iterable[NDArray[np.int64] | int], count: int) -> float:
    """Seconds of ``count`` steps."""
    step = stepper.step
    for item in islice(tokens, _WARM):
        step(item)
    started = perf_counter()
    for item in islice(cycle(tokens), count):
        step(item)
    return perf_counter() - started


def _process_work(subject: Subject, command: list[str], given: list[str]) -> Work:
    path = subject.bundle.path.resolve()
    line = [command[0], str(path), *command[1:], "-q", "-t", str(subject.threads), "--device", subject.device, *given]
    where = f"of a process of its own, `rnn-edge {' '.join(command)}`"
    figures = (
        Figure("cold start", "s", f"{where}: from its start to its first character, files in the page cache; median"),
        Figure("memory", "MB", "of the same process: resident at most; median"),
    )
    return Work(subject, 1, 0, figures, partial(_process, line, subject.bundle.path), use_median=True)


def _process(line: list[str], path: Path) -> tuple[float, ...]:
    # From the folder of this package, so that the process imports the same one.
    folder = Path(__file__).resolve().parent.parent
    pipe = subprocess.PIPE
    started = perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", _PROCESS, *line], cwd=folder, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = perf_counter() - started
        errors = process.communicate()[1].decode(errors="replace").splitlines()
    if process.returncode or not errors or not errors[-1].isdecimal():
        raise BundleError(
            f"rnn-edge {line[0]} {path} fails in a process of its own: {errors[0] if errors else process.returncode}",
            f"run it by hand: rnn-edge {line[0]} {path}",
        )
    return seconds, int(errors[-1]) / 1e6
