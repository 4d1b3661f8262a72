"""How attention looks in a terminal: a heat map that grows by a row for each word of the translation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import InvalidValueError
from rnn_edge.heatmap import clamp, colour, label

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# The nearest to the ramp among the 256 colours that are the same everywhere; rich's own choice turns grey and violet.
_NUMBERS = (255, 153, 111, 68, 26, 20, 18)
_SHADES = ("  ", "░░", "▒▒", "▓▓", "██")
_CELL = 2  # in columns of the terminal
_NARROWEST, _WIDEST = 10, 20  # of the names of rows
_TALLEST = 12  # of the names of columns


class TerminalHeatmap:
    """Prints the source words, then a row for each target word. No line is changed once it stands.

    Source words stand above their columns, letter below letter; those that the terminal has no room for share the last
    column. Terminals with fewer than 256 colours, and what is no terminal, get shades made of characters.
    """

    def __init__(self, source: Sequence[str], console: Console) -> None:
        """Print the source words."""
        self._console = console
        self._colours = None if console.no_color else console.color_system
        self._words = len(source)
        # The names of rows give way to columns, down to what is still readable.
        self._width = max(_NARROWEST, min(_WIDEST, console.width - 1 - _CELL * len(source)))
        room = max((console.width - self._width - 1) // _CELL, 1)
        self._own = len(source) if len(source) <= room else room - 1  # words with a column of their own
        names = [_letters(label(word)) for word in source[: self._own]]
        if self._own < self._words:
            names.append(["…"])
        height = max(map(len, names), default=0)
        columns = [[""] * (height - len(name)) + name for name in names]
        for line in range(height):
            cells = "".join(_pad(column[line]) for column in columns)
            self._print(" " * (self._width + 1) + cells.rstrip())
        if self._own < self._words:
            note = f"The column … adds up {self._words - self._own} more words: the screen is too narrow."
            console.print(note, style="dim", highlight=False, soft_wrap=True)

    def add(self, target: str, weights: Sequence[float] | NDArray[np.float32]) -> None:
        """Print a row: a target word, and what it attends to each source word, 0 to 1.

        Raises:
            InvalidValueError: there are more or fewer weights than source words.
        """
        if len(weights) != self._words:
            raise InvalidValueError(f"{len(weights)} weights for {self._words} source words", "give one for each word")
        from rich.text import Text

        shown = [float(weight) for weight in weights[: self._own]]
        if self._own < self._words:
            shown.append(float(sum(weights[self._own :])))
        name = Text(label(target))
        name.truncate(self._width, overflow="ellipsis")
        row = Text(" " * (self._width - name.cell_len)).append_text(name).append(" ")
        for weight in shown:
            row.append_text(self._cell(weight))
        if not row.spans:
            row.rstrip()
        self._print(row)

    def _cell(self, weight: float) -> Text:
        from rich.color import Color
        from rich.style import Style
        from rich.text import Text

        if self._colours == "truecolor":
            shade = Color.from_rgb(*colour(weight))
        elif self._colours == "256":
            shade = Color.from_ansi(_NUMBERS[_level(weight, len(_NUMBERS))])
        else:
            return Text(_SHADES[_level(weight, len(_SHADES))])
        return Text(" " * _CELL, Style(bgcolor=shade))

    def _print(self, line: str | Text) -> None:
        self._console.print(line, markup=False, emoji=False, highlight=False, no_wrap=True, overflow="crop")


def _level(weight: float, levels: int) -> int:
    """The nearest of ``levels`` equal steps from 0 to 1."""
    return round(clamp(weight) * (levels - 1))


def _letters(word: str) -> list[str]:
    """Letters with the accents that follow them; a word that is too tall ends in dots."""
    from rich.cells import cell_len

    letters: list[str] = []
    for character in word:
        if letters and not cell_len(character):
            letters[-1] += character
        else:
            letters.append(character)
    return letters if len(letters) <= _TALLEST else [*letters[: _TALLEST - 1], "⋮"]


def _pad(letter: str) -> str:
    from rich.cells import cell_len

    return letter + " " * (_CELL - cell_len(letter))
