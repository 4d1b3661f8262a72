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

_SHADES = ("  ", "░░", "▒▒", "▓▓", "██")
_CELL = 2  # in columns of the terminal
_NARROWEST, _WIDEST = 10, 20  # of the names of rows
_TALLEST = 12  # of the names of columns


class TerminalHeatmap:
    """Prints the names of the source words, then a row for each target word; nothing printed is ever touched again.

    Source words stand above their columns, letter below letter. Those beyond the terminal's width share one column.
    """

    def __init__(self, source: Sequence[str], console: Console) -> None:
        """Print the names of the columns."""
        self._console = console
        self._in_colour = console.color_system is not None and not console.no_color
        self._words = len(source)
        # The names of rows give way to columns, down to what still is readable.
        self._width = max(_NARROWEST, min(_WIDEST, console.width - 1 - _CELL * len(source)))
        room = max((console.width - self._width - 1) // _CELL, 1)
        self._own = len(source) if len(source) <= room else room - 1
        names = [_letters(label(word)) for word in source[: self._own]]
        if self._own < self._words:
            names.append(["…"])
        height = max(map(len, names), default=0)
        columns = [[""] * (height - len(name)) + name for name in names]
        for line in range(height):
            cells = "".join(_pad(column[line], _CELL) for column in columns)
            self._print(" " * (self._width + 1) + cells.rstrip())
        if self._own < self._words:
            self._print(
                f"The last column adds up the last {self._words - self._own} words: there is no room for each.", "dim"
            )

    def add(self, target: str, weights: Sequence[float] | NDArray[np.float32]) -> None:
        """Print a row: a target word, and what it attends to each source word, 0 to 1.

        Raises:
            InvalidValueError: there are more or fewer weights than source words.
        """
        if len(weights) != self._words:
            raise InvalidValueError(f"{len(weights)} weights for {self._words} source words", "give one for each word")
        from rich.color import Color
        from rich.style import Style
        from rich.text import Text

        shown = [float(weight) for weight in weights[: self._own]]
        if self._own < self._words:
            shown.append(float(sum(weights[self._own :])))
        name = Text(label(target))
        name.truncate(self._width, overflow="ellipsis")
        row = Text(" " * (self._width - name.cell_len)).append_text(name).append(" ")
        for weight in shown:
            if self._in_colour:
                row.append(" " * _CELL, Style(bgcolor=Color.from_rgb(*colour(weight))))
            else:
                row.append(_SHADES[round(clamp(weight) * (len(_SHADES) - 1))])
        if not self._in_colour:
            row.rstrip()
        self._print(row)

    def _print(self, line: str | Text, style: str | None = None) -> None:
        self._console.print(
            line, style=style, markup=False, emoji=False, highlight=False, no_wrap=True, overflow="crop"
        )


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


def _pad(text: str, width: int) -> str:
    from rich.cells import cell_len

    return text + " " * (width - cell_len(text))
