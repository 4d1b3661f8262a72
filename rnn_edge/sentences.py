"""Text to sentences and back: what is translated is taken out of its layout, and the layout is put around it again.

The sentences of a text and the gaps between them are the text, character by character. Gaps hold the line breaks, the
indentation, the white space between sentences, the bullets at the start of lines, and whatever has no letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rnn_edge.errors import InvalidValueError

_BULLETS = r"[\s\ufeff]*(?:[-–—*+•◦‣▪>#]+\s+)*"  # several may follow each other: > > - text
_START = re.compile(_BULLETS)
_ITEM = re.compile(_BULLETS + r"(?:\d{1,3}[.)]\s+)?")
_CLAUSE_END = re.compile(r"[;:,؛،][\"'”’»)\]]*\s+|[；：，、]\s*")
_SPACE = re.compile(r"\s+")
# Chinese and Japanese, which put no space between sentences.
_UNSPACED = re.compile(r"[\u3000-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff]")


@dataclass(frozen=True)
class Layout:
    """The sentences of a text, without the white space around them, and the gaps before, between and after them."""

    sentences: list[str]
    gaps: list[str]

    def join(self, translations: Sequence[str]) -> str:
        """The text with a translation in the place of each sentence.

        The text keeps its line breaks and gets no others: a break inside a translation becomes a space, one at its end
        goes. The sentences themselves give back the text that was split.

        Raises:
            InvalidValueError: more or fewer translations than sentences.
        """
        if len(translations) != len(self.sentences):
            raise InvalidValueError(
                f"{len(translations)} translations of {len(self.sentences)} sentences", "give one for each"
            )
        parts = [self.gaps[0]]
        for index, translation in enumerate(translations):
            line = one_line(translation)
            parts += (line, self.gap_after(index, line))
        return "".join(parts)

    def gap_after(self, index: int, translation: str) -> str:
        """What stands behind a sentence, where its translation is ``translation``."""
        gap = self.gaps[index + 1]
        last = index == len(self.sentences) - 1
        if (
            not gap
            and not last
            and _UNSPACED.match(self.sentences[index][-1])
            and not _UNSPACED.match(translation[-1:])
        ):
            return " "  # from a language without spaces to one with them
        return gap

    def cut(self, ids_length: Callable[[str], int], longest: int) -> Layout:
        """The same text with its long sentences in pieces, by ``split_long``."""
        sentences: list[str] = []
        gaps = [self.gaps[0]]
        for sentence, gap in zip(self.sentences, self.gaps[1:], strict=True):
            for piece in split_long(ids_length, sentence, longest):
                words = piece.rstrip()  # no piece begins with white space
                sentences.append(words)
                gaps.append(piece[len(words) :])
            gaps[-1] += gap
        return Layout(sentences, gaps)


def split(text: str, language: str = "en", *, split_sentences: bool = True, unwrap: bool = False) -> Layout:
    """Take the sentences out of ``text``.

    Each line is a text of its own: no sentence runs over the end of a line. A sentence has at least one letter; what
    has none (numbers, rules, dots) stays as it is, in a gap, and so do bullets and ``>`` at the start of a line.

    Args:
        text: any text; lines end where ``str.splitlines`` says.
        language: code of the text's language, whose abbreviations do not end sentences; ``en-GB`` is read as ``en``,
            and languages that the splitter does not know are split like English.
        split_sentences: False takes each line as one sentence.
        unwrap: first put the wrapped lines of each paragraph into one, by ``unwrap_lines``; ``Layout.join`` then gives
            paragraphs of one line.
    """
    if unwrap:
        text = unwrap_lines(text)
    return _arrange(_parts(text, language, split_sentences))


def unwrap_lines(text: str) -> str:
    """Put the wrapped lines of each paragraph into one line.

    A line goes on the one before unless one of the two has no letter or digit, it begins with a bullet or an item's
    number, or it is indented deeper than the words before, or, after an item, no deeper than the item's bullet. What is
    left of a line break is a space, or nothing after a Chinese or Japanese character. Words broken by a hyphen stay
    broken.
    """
    lines: list[str] = []
    least = most = -1  # how far a line that goes on may be indented; -1 at most: none can
    for line in text.splitlines(keepends=True):
        start = line[: _end(_ITEM, line)]
        bullet = start.strip()
        column = len(start.expandtabs())
        words = any(map(str.isalnum, line))
        if words and not bullet and least <= column <= most:
            before = lines[-1].rstrip()
            lines[-1] = before if _UNSPACED.match(before[-1]) else before + " "
            line = line.lstrip()
        else:
            least = len(start[: start.index(bullet)].expandtabs()) + 1 if bullet else 0
        lines.append(line)
        most = column if words and line.endswith(("\n", "\r")) else -1
    return "".join(lines)


def one_line(text: str) -> str:
    """``text`` with spaces for its line breaks, and none for one at its end."""
    return " ".join(text.splitlines())


def split_long(ids_length: Callable[[str], int], sentence: str, longest: int) -> list[str]:
    """Cut ``sentence`` into pieces of at most ``longest`` ids, which joined are the sentence.

    It is halved until the pieces fit: after the semicolon, colon or comma nearest its middle if there is one in the
    middle half, else after the white space nearest its middle, else inside the word. White space stays at the end of
    pieces, and is left out when a piece is measured. A single character is never cut, however many ids it has.

    Args:
        ids_length: the number of ids of a text.
        sentence: any text.
        longest: ids a piece may have.
    """
    start, end = len(sentence) - len(sentence.lstrip()), len(sentence.rstrip())
    if end - start < 2 or ids_length(sentence[start:end]) <= longest:
        return [sentence]
    quarter = (end - start) // 4
    place = (
        _nearest(_CLAUSE_END, sentence, start, end, start + quarter, end - quarter)
        or _nearest(_SPACE, sentence, start, end, start, end)
        or (start + end) // 2
    )
    return [
        *split_long(ids_length, sentence[:place], longest),
        *split_long(ids_length, sentence[place:], longest),
    ]


def _parts(text: str, language: str, split_sentences: bool) -> Iterator[str]:
    """Pieces that joined are the text, each with one sentence at most."""
    for line in text.splitlines(keepends=True):
        start = _end(_START, line)
        yield line[:start]
        if split_sentences and start < len(line):
            yield from _segment(line[start:], language)
        else:
            yield line[start:]


def _arrange(parts: Iterable[str]) -> Layout:
    sentences: list[str] = []
    gaps: list[str] = []
    gap: list[str] = []  # joined only when it ends: a text may be all gap
    for part in parts:
        if not any(map(str.isalpha, part)):
            gap.append(part)
            continue
        sentence = part.strip()
        start = part.index(sentence)
        gaps.append("".join([*gap, part[:start]]))
        sentences.append(sentence)
        gap = [part[start + len(sentence) :]]
    return Layout(sentences, [*gaps, "".join(gap)])


def _segment(line: str, language: str) -> list[str]:
    import sentencex  # type: ignore[import-untyped]  # has neither stubs nor py.typed

    code = re.split("[-_]", language, maxsplit=1)[0].lower()  # it knows de and not DE or de-AT
    try:
        pieces: list[str] = sentencex.segment(code, line)
    except UnicodeEncodeError:  # a lone surrogate, from a file name or a damaged argument
        return [line]
    return pieces if "".join(pieces) == line else [line]


def _nearest(pattern: re.Pattern[str], text: str, start: int, end: int, low: int, high: int) -> int | None:
    """The end of a match that is nearest the middle of ``text[start:end]`` and lies from ``low`` to ``high``."""
    ends = [match.end() for match in pattern.finditer(text, start, end) if low <= match.end() <= high]
    return min((place for place in ends if place < end), key=lambda place: abs(2 * place - start - end), default=None)


def _end(pattern: re.Pattern[str], line: str) -> int:
    """Where a match at the start of ``line`` ends; the pattern matches every line."""
    match = pattern.match(line)
    assert match is not None
    return match.end()
