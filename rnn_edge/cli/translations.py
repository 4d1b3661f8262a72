"""How translations are written out: as they stream, and line by line."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnn_edge import render
from rnn_edge.alignment import Word, align, pharaoh, word_attention, words
from rnn_edge.translation import Candidate, Sentence, Translation, TranslationEvent

if TYPE_CHECKING:
    from rnn_edge.terminal_heatmap import TerminalHeatmap


class Show:
    """Shows the events of a stream: text as it comes; or, where that is asked for, whole sentences or JSON."""

    def __init__(
        self, *, lists: bool, alignments: bool, json_lines: bool, attention: bool, picture: Path | None, force: bool
    ) -> None:
        self._out = render.StreamWriter()
        self._lists, self._alignments, self._json = lists, alignments, json_lines
        self._map = _LiveMap() if attention and picture is None else None
        self._picture, self._force = picture, force
        self._pictures = 0
        self._held = ""  # text that waits for the end of its sentence, below the map

    def event(self, event: TranslationEvent) -> None:
        """Show one event."""
        if self._map:
            self._map.event(event)
        if event.result is not None and self._picture is not None:
            self._draw(event.result, self._picture)
        if self._json:
            self._out.write(event_line(event))
        elif self._lists or self._alignments:
            if event.result is not None:
                self._out.write(sentence_lines(event.result, lists=self._lists, alignments=self._alignments))
        elif self._map:
            self._held += event.text
            if event.result is not None or event.finish_reason:
                self._out.write(self._held.lstrip(" ") if sys.stdout.isatty() else self._held)
                self._out.close()  # the next map begins on a line of its own
                self._held = ""
        else:
            self._out.write(event.text)

    def end_text(self) -> None:
        """After the last event of a text."""
        self._out.close()

    def _draw(self, sentence: Sentence, path: Path) -> None:
        from rnn_edge.heatmap import write_heatmap

        self._pictures += 1
        best = sentence.candidates[0]
        if self._pictures > 1:
            path = path.with_name(f"{path.stem}-{self._pictures}{path.suffix}")
        source, target = words(sentence.pieces), words(best.pieces)
        weights = word_attention(best.attention, source, target)
        write_heatmap(path, [word.text for word in source], [word.text for word in target], weights, force=self._force)
        render.note(f"attention drawn in {path}")


class _LiveMap:
    """The attention of a sentence in the terminal, a row a word, as soon as the word is whole."""

    def __init__(self) -> None:
        self._map: TerminalHeatmap | None = None
        self._source: list[Word] = []
        self._pieces: list[bytes] = []
        self._rows: list[Any] = []

    def event(self, event: TranslationEvent) -> None:
        """Take one event."""
        from rnn_edge.terminal_heatmap import TerminalHeatmap

        if event.source is not None:
            self._source = words(event.source)
            self._map = TerminalHeatmap([word.text for word in self._source], render.console(stderr=True))
        if event.piece is not None:
            if event.piece.startswith(b" ") or not event.piece:
                self._flush()
            self._pieces.append(event.piece)
            self._rows.append(event.attention)
        if event.result is not None:
            if not self._pieces:  # a beam's sentence comes whole
                best = event.result.candidates[0]
                self._pieces, self._rows = list(best.pieces), list(best.attention)
            self._flush()
        if event.finish_reason == "interrupt":
            self._flush()

    def _flush(self) -> None:
        """Draw the words that are whole."""
        import numpy as np

        if self._map and self._pieces:
            target = words(self._pieces)
            weights = word_attention(np.stack(self._rows), self._source, target)
            for word, row in zip(target, weights.tolist(), strict=True):
                self._map.add(word.text, row)
        self._pieces, self._rows = [], []


class LineWriter:
    """One line out for each line in; with lists, one for each candidate, as LINE ||| TEXT ||| SCORE."""

    def __init__(self, *, lists: bool, alignments: bool, json_lines: bool) -> None:
        self._out = render.StreamWriter()
        self._lists, self._alignments, self._json = lists, alignments, json_lines
        self._number = 0

    def line(self, translation: Translation, source: str) -> None:
        """Write the translation of one line, which may have its line break at the end."""
        self._number += 1
        text = translation.text.removesuffix("\n")
        if self._json:
            record = {
                "line": self._number,
                "translation": text,
                "sentences": [sentence_record(sentence) for sentence in translation.sentences],
            }
            self._out.write(json.dumps(record, ensure_ascii=False) + "\n")
        elif self._lists:
            for rank in range(max((len(item.candidates) for item in translation.sentences), default=1)):
                chosen = [item.candidates[min(rank, len(item.candidates) - 1)] for item in translation.sentences]
                joined = translation.layout.join([candidate.text for candidate in chosen]).strip()
                score = sum(candidate.score for candidate in chosen)
                self._out.write(f"{self._number} ||| {joined} ||| {score:.4f}\n")
        else:
            line = text.rstrip("\r")  # the line break of a file from Windows stays the last
            pairs = "\t" + alignment_of(translation.sentences) if self._alignments else ""
            self._out.write(line + pairs + text[len(line) :] + ("\n" if source.endswith("\n") else ""))

    def flush(self) -> None:
        """Show everything so far."""
        self._out.flush()


def sentence_lines(sentence: Sentence, *, lists: bool, alignments: bool) -> str:
    """A line for each candidate: its score where there are several, its text, its alignment."""
    lines = []
    for candidate in sentence.candidates:
        score = [f"{candidate.score:.4f}"] if lists else []
        pairs = [alignment_of([sentence], candidate)] if alignments else []
        lines.append("\t".join([*score, candidate.text, *pairs]) + "\n")
    return "".join(lines)


def alignment_of(sentences: tuple[Sentence, ...] | list[Sentence], candidate: Candidate | None = None) -> str:
    """Pharaoh pairs over all sentences of a line, words counted through."""
    pairs: list[tuple[int, int]] = []
    before = [0, 0]
    for sentence in sentences:
        best = candidate or sentence.candidates[0]
        source, target = words(sentence.pieces), words(best.pieces)
        found = align(word_attention(best.attention, source, target))
        pairs += [(a + before[0], b + before[1]) for a, b in found]
        before = [before[0] + len(source), before[1] + len(target)]
    return pharaoh(pairs)


def sentence_record(sentence: Sentence) -> dict[str, Any]:
    """Everything about a sentence, for JSON."""
    return {
        "source": sentence.source,
        "pieces": [_text(piece) for piece in sentence.pieces],
        "candidates": [
            {
                "text": candidate.text,
                "score": candidate.score,
                "log_probability": candidate.log_probability,
                "finished": candidate.finished,
                "pieces": [_text(piece) for piece in candidate.pieces],
                "attention": _numbers(candidate.attention),
                "alignment": alignment_of([sentence], candidate),
            }
            for candidate in sentence.candidates
        ],
    }


def event_line(event: TranslationEvent) -> str:
    """One event as a line of JSON; fields without a value are left out."""
    from dataclasses import asdict

    record: dict[str, Any] = {"text": event.text, "sentence": event.sentence}
    if event.source is not None:
        record["source"] = [_text(piece) for piece in event.source]
    if event.token is not None:
        record |= {"token": event.token, "piece": _text(event.piece or b"")}
    if event.log_probability is not None:
        record["log_probability"] = event.log_probability
    if event.attention is not None:
        record["attention"] = _numbers(event.attention)
    if event.result is not None:
        record["result"] = sentence_record(event.result)
    if event.timings is not None:
        record |= {"finish_reason": event.finish_reason, "timings": asdict(event.timings)}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", errors="replace")


def _numbers(array: Any) -> Any:
    return array.astype(float).round(4).tolist()
