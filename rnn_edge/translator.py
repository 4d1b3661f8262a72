"""A translator on a device: text in; translations, or a stream of events, out. Prints nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

from rnn_edge.beam_search import beam_search
from rnn_edge.bundle import Bundle, open_bundle, require_task
from rnn_edge.encoder_decoder import EncoderDecoderGraphs
from rnn_edge.manifest import Manifest
from rnn_edge.memory import check_batch
from rnn_edge.placement import Threads, place
from rnn_edge.providers import Device
from rnn_edge.sampling import Sampler
from rnn_edge.search import Choose, Hypothesis, Step, collect, follow
from rnn_edge.sentences import Layout, one_line, split
from rnn_edge.slots import Slots
from rnn_edge.stepper import Logits
from rnn_edge.tokenizer import Tokenizer, load_tokenizer
from rnn_edge.translation import Candidate, Sentence, Translation, TranslationOptions
from rnn_edge.translation_stream import TranslationStream


class Translator:
    """``Translator.load("en-fr").translate("Good morning.").text``, or ``stream`` for events."""

    def __init__(
        self, bundle: Bundle, graphs: EncoderDecoderGraphs, source_tokenizer: Tokenizer, tokenizer: Tokenizer
    ) -> None:
        self.bundle = bundle
        self.graphs = graphs
        self.source_tokenizer = source_tokenizer
        self.tokenizer = tokenizer
        ids = bundle.manifest.special_ids
        assert bundle.manifest.source is not None
        assert ids.end is not None
        self._source, self.end, self._unknown = bundle.manifest.source, ids.end, ids.unknown
        self._pieces = list(tokenizer.token_bytes)
        self._pieces[ids.end] = b""  # which is a word like others in vocabularies from elsewhere
        if ids.unknown is not None:
            self._pieces[ids.unknown] = b" <unk>"

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike[str], *, device: Device = "auto", threads: Threads = None, streams: int = 1
    ) -> Translator:
        """Open a bundle by name or folder, check its bytes, and load its graphs.

        ``threads`` is the number of CPU threads, None for one; ``"auto"`` measures once and remembers (``placement``),
        for ``streams`` at once.

        Raises:
            BundleError: not found, damaged, not what its manifest says, or not a translator.
            DeviceError: CUDA is asked for and not available.
            MissingDependencyError: there is no ONNX Runtime.
        """
        bundle = open_bundle(name_or_path)
        require_task(bundle, "translation")
        manifest = bundle.manifest
        assert manifest.source is not None
        target = load_tokenizer(bundle)
        shared = manifest.source.tokenizer.file == manifest.tokenizer.file
        source = target if shared else load_tokenizer(bundle, manifest.source.tokenizer)
        where = place(bundle, device, threads, streams)
        return cls(bundle, EncoderDecoderGraphs(bundle, device=where.device, threads=where.threads), source, target)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def defaults(self) -> TranslationOptions:
        """The bundle's own options."""
        decoding = self.manifest.decoding
        return TranslationOptions(beam=decoding.beam, length_penalty=decoding.length_penalty)

    def options(self, **given: Any) -> TranslationOptions:
        """The bundle's own options with those given in their place, None leaving one alone.

        Raises:
            InvalidValueError: a value is out of its range, or two exclude each other.
        """
        return replace(self.defaults, **{name: value for name, value in given.items() if value is not None})

    @overload
    def translate(self, text: str, options: TranslationOptions | None = None, first: int = 0) -> Translation: ...
    @overload
    def translate(
        self, text: list[str] | tuple[str, ...], options: TranslationOptions | None = None, first: int = 0
    ) -> list[Translation]: ...
    def translate(
        self, text: str | list[str] | tuple[str, ...], options: TranslationOptions | None = None, first: int = 0
    ) -> Translation | list[Translation]:
        """Translate a text, or each of several. Line breaks and white space around sentences stay.

        The sentences of all texts go through the model together: when one ends, the next takes its place. What is drawn
        is keyed by the seed and a sentence's number, counted from ``first``: a text in parts is drawn as it is in one.
        Without a beam, scores are NaN unless the options ask for ``log_probabilities``.
        """
        options = options or self.defaults
        plans = [self.plan(item, options) for item in ([text] if isinstance(text, str) else text)]
        parts = [part for layout, _ in plans for part in layout.sentences]
        found = iter(self.translate_sentences(parts, options, first))
        results = []
        for layout, cut in plans:
            sentences = tuple(next(found) for _ in layout.sentences)
            joined = layout.join([sentence.text for sentence in sentences])
            results.append(Translation(joined, sentences, layout, cut))
        return results[0] if isinstance(text, str) else results

    def translate_sentences(
        self, sentences: Sequence[str], options: TranslationOptions, first: int = 0
    ) -> list[Sentence]:
        """Translate sentences as they are, ``batch_size`` at once; the order is kept. ``first`` as in ``translate``."""
        sources = self.sources(sentences)
        if options.sampling and options.seed is None:
            options = replace(options, seed=secrets.randbits(32))
        found = self.search(self.slots(sources, options), options, first) if sources else []
        return [self.read(*item, options) for item in zip(sentences, sources, found, strict=True)]

    def stream(self, text: str, options: TranslationOptions | None = None, first: int = 0) -> TranslationStream:
        """Translate a text sentence by sentence, and token by token; with a beam each sentence comes whole.

        ``first`` as in ``translate``.
        """
        return TranslationStream(self, text, options or self.defaults, first)

    def score(self, pairs: Sequence[tuple[str, str]], batch_size: int = 32) -> list[tuple[float, int]]:
        """Log probability of each target given its source, the end token included, and its number of tokens.

        Raises:
            InvalidValueError: ``batch_size`` is out of its range, or memory does not hold so many.
        """
        options = TranslationOptions(batch_size=batch_size)
        sources = self.sources([source for source, _ in pairs])
        targets = [[*ids, self.end] for ids in self.tokenizer.encode_batch([target for _, target in pairs])]
        totals = [0.0] * len(pairs)
        if pairs:
            lengths = [len(target) for target in targets]
            for step in follow(self.slots(sources, options), lengths, prefixes=targets):
                for sentence, value in zip(step.sentences, step.log_probabilities or (), strict=True):
                    totals[sentence] += value
        return [(total, len(target)) for total, target in zip(totals, targets, strict=True)]

    def plan(self, text: str, options: TranslationOptions) -> tuple[Layout, int]:
        """The sentences of a text, and how many are longer than any the model was trained on: these are in parts."""
        layout = split(text, self._source.language or "en", unwrap=options.unwrap)
        lengths = [len(ids) for ids in self.source_tokenizer.encode_batch(layout.sentences)]
        cut = sum(length > self._source.longest for length in lengths)
        return (layout.cut(self._token_count, self._source.longest) if cut else layout), cut

    def sources(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each sentence, the end token last."""
        return [[*ids, self._source.end] for ids in self.source_tokenizer.encode_batch(sentences)]

    def source_pieces(self, text: str, source: Sequence[int]) -> tuple[bytes, ...]:
        """What each source token stands for; of words that the vocabulary lacks, what stands in the text."""
        table, unknown = self.source_tokenizer.token_bytes, self._source.unknown
        if unknown not in source:
            return tuple(table[token] for token in source)
        # As in the vocabulary: the first word and what follows a space begin with one.
        words = [
            (" " if not index or span[:1].isspace() else "") + span.strip()
            for index, span in enumerate(self.source_tokenizer.spans(text))
        ]
        return tuple(
            word.encode() if token == unknown else table[token]
            for token, word in zip(source, [*words, ""], strict=True)
        )

    def limits(self, sources: Sequence[Sequence[int]], options: TranslationOptions) -> list[int]:
        """The most target tokens for each source, the end token included."""
        prefix = len(self.prefix(options))
        return [int(options.maximum_ratio * len(source)) + 10 + prefix for source in sources]

    def prefix(self, options: TranslationOptions) -> list[int]:
        """The tokens that every target starts with."""
        return self.tokenizer.encode(options.prefix) if options.prefix else []

    def chooser(self, options: TranslationOptions, first: int = 0) -> Callable[[int], Choose] | None:
        """How tokens are drawn; the noise of a sentence is keyed by its number, counted from ``first``."""
        sampling = options.sampling
        if sampling is None:
            return None
        size, seed = self.tokenizer.vocabulary_size, options.seed or 0

        def choose_for(sentence: int) -> Choose:
            return Sampler(sampling, size, seed=seed, stream=first + sentence).choose

        return choose_for

    def read(
        self, text: str, source: Sequence[int], found: Iterable[Hypothesis], options: TranslationOptions
    ) -> Sentence:
        """The hypotheses as text in one line, each text once."""
        pieces = self.source_pieces(text, source)
        candidates: dict[str, Candidate] = {}
        for item in found:
            texts = [self._pieces[token] for token in item.tokens]
            if options.replace_unknown:
                attention = item.attention[: len(texts)]
                texts = [self.piece(*row, pieces, options) for row in zip(item.tokens, attention, strict=True)]
            joined = one_line(b"".join(texts).decode("utf-8", errors="replace").lstrip(" "))
            end = (b"",) if item.finished else ()
            candidates.setdefault(
                joined,
                Candidate(joined, item.score, item.log_probability, item.finished, (*texts, *end), item.attention),
            )
        return Sentence(text, pieces, tuple(candidates.values())[: options.n_best])

    def piece(self, token: int, attention: Logits, source: Sequence[bytes], options: TranslationOptions) -> bytes:
        """The bytes of a target token, none of the end; of an unknown one, if asked for, those of the source word it
        looks at.
        """
        words = source[:-1]
        if token == self._unknown and options.replace_unknown and words:
            return words[int(attention[: len(words)].argmax())]
        return self._pieces[token]

    def slots(self, sources: Sequence[Sequence[int]], options: TranslationOptions) -> Slots:
        """Places for so many sources at once as the options say, with the first of them encoded.

        Raises:
            InvalidValueError: memory does not hold so many.
        """
        longest = max(len(source) for source in sources)
        check_batch(self.graphs.manifest, min(options.batch_size, len(sources)), longest, beam=options.beam)
        return Slots(self.graphs, sources, options.batch_size, options.beam)

    def search(self, slots: Slots, options: TranslationOptions, first: int = 0) -> list[list[Hypothesis]]:
        """Hypotheses of each source, best first; ``first`` as in ``follow``."""
        if options.beam > 1:
            n_best = options.beam if options.n_best > 1 else 1  # some may be the same text in other tokens
            limits, prefix = self.limits(slots.sources, options), self.prefix(options)
            return beam_search(slots, limits, n_best=n_best, scoring=options.scoring, prefix=prefix)
        steps = self.follow(slots, options, first)
        return [[item] for item in collect(steps, slots.sources, self.end, options.scoring)]

    def follow(self, slots: Slots, options: TranslationOptions, first: int = 0) -> Iterator[Step]:
        """One hypothesis for each source, step by step; what is drawn is keyed by numbers that count from ``first``."""
        limits, prefix = self.limits(slots.sources, options), self.prefix(options)
        prefixes = [prefix] * len(slots.sources) if prefix else None
        chooser = self.chooser(options, first)
        return follow(slots, limits, chooser, prefixes, log_probabilities=options.log_probabilities)

    def _token_count(self, text: str) -> int:
        return len(self.source_tokenizer.encode(text))
