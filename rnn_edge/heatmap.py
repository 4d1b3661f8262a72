"""Attention as a picture: source words along the top, target words at the left, cells shaded by weight."""

from __future__ import annotations

import io
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnn_edge.errors import InvalidValueError, MissingDependencyError
from rnn_edge.files import check_output, write_bytes
from rnn_edge.render import visible

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFont import FreeTypeFont

# One hue, from weight 0 to weight 1 in equal steps of lightness: OKLCH (Ottosson 2020), L 0.955 to 0.300, h 257.
_RAMP = (
    (0xEC, 0xF0, 0xF7),
    (0xC1, 0xD3, 0xEC),
    (0x95, 0xB6, 0xE4),
    (0x6A, 0x98, 0xDA),
    (0x42, 0x7B, 0xC9),
    (0x1F, 0x5E, 0xAF),
    (0x05, 0x43, 0x8C),
    (0x00, 0x2B, 0x63),
)
_INK, _PAPER = "#1f2328", "#ffffff"
_CELL, _LINE, _FONT, _GAP, _MARGIN = 30, 2, 14, 8, 16  # in pixels
_ANGLE = math.radians(55)
_LONGEST_WORD, _LONGEST_TITLE = 32, 100  # in characters
_PNG_SCALE, _PNG_PIXELS = 2.0, 40e6
# Pillow's own font has hardly a letter beyond ASCII, so it comes last.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
)
_TAB_AND_BREAK = {ord("\t"): "␉", ord("\n"): "␊"}
_NO_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")


def clamp(weight: float) -> float:
    """``weight`` within 0 and 1; what is not a number is 0."""
    return min(max(0.0, weight), 1.0)  # 0.0 comes first: no comparison with a NaN is true


def colour(weight: float) -> tuple[int, int, int]:
    """Red, green and blue of a weight, 0 to 255: the lighter, the less."""
    place = clamp(weight) * (len(_RAMP) - 1)
    low = min(int(place), len(_RAMP) - 2)
    red, green, blue = (
        round(start + (place - low) * (end - start)) for start, end in zip(_RAMP[low], _RAMP[low + 1], strict=True)
    )
    return red, green, blue


def label(text: str) -> str:
    """``text`` in one line that a terminal and XML can take: what they cannot, shown as pictures or U+FFFD."""
    return _NO_XML.sub("\ufffd", visible(text).translate(_TAB_AND_BREAK))


def check_picture_path(path: Path, *, force: bool = False) -> None:
    """Refuse a picture that could not be written, before there is anything to draw.

    Raises:
        InvalidValueError: the name ends in neither .svg nor .png.
        MissingDependencyError: a .png, and Pillow is not installed.
        RnnEdgeError: the path exists and ``force`` is not given, or it can never be written.
    """
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".png"):
        raise InvalidValueError(f"{path} is neither an SVG nor a PNG picture", "use a name that ends in .svg or .png")
    check_output(path, force=force, folder=False)
    if suffix == ".png":
        try:
            import PIL.ImageFont  # noqa: F401  # only to see whether it is there
        except ImportError as error:
            raise MissingDependencyError(
                "Pillow is not installed; PNG pictures need it", "run: pip install 'rnn-edge[picture]'"
            ) from error


def write_heatmap(
    path: Path,
    source: Sequence[str],
    target: Sequence[str],
    weights: NDArray[np.float32],
    *,
    title: str = "",
    force: bool = False,
) -> None:
    """Draw weights between 0 and 1, [target, source], as an .svg or .png picture, whichever ``path`` ends in.

    An SVG is shown in the fonts of its viewer. A PNG is drawn in a font of the system, or in Pillow's where none is
    found: letters that the font lacks come out as boxes.

    Raises:
        InvalidValueError: the name ends in neither .svg nor .png, or the weights have another shape than the words.
        MissingDependencyError: a .png, and Pillow is not installed.
        RnnEdgeError: the path exists and ``force`` is not given, or it cannot be written.
    """
    check_picture_path(path, force=force)
    if weights.shape != (len(target), len(source)):
        raise InvalidValueError(
            f"the weights are {list(weights.shape)}, the words {[len(target), len(source)]}",
            "use one row for each target word and one column for each source word",
        )
    draw = _png if path.suffix.lower() == ".png" else _svg
    write_bytes(path, draw(source, target, weights, title))


@dataclass(frozen=True)
class _Layout:
    """Where things are, in pixels. Cells begin at (left, top); names of columns stand at the middle of their foot."""

    source: list[str]
    target: list[str]
    title: str
    width: int
    height: int
    left: int
    top: int
    slanted: bool

    def column(self, index: int) -> float:
        """The middle of a column."""
        return self.left + (index + 0.5) * _CELL

    def row(self, index: int) -> float:
        """The middle of a row."""
        return self.top + (index + 0.5) * _CELL


def _layout(source: Sequence[str], target: Sequence[str], title: str, measure: Callable[[str], float]) -> _Layout:
    """Room for every word; the names of columns slant when one is wider than its column."""
    columns = [_shorten(label(word), _LONGEST_WORD) for word in source]
    rows = [_shorten(label(word), _LONGEST_WORD) for word in target]
    title = _shorten(label(title), _LONGEST_TITLE)
    widths = [measure(word) for word in columns]
    slanted = max(widths, default=0.0) > _CELL - 4
    rise, reach = (math.sin(_ANGLE), math.cos(_ANGLE)) if slanted else (0.0, 0.0)
    left = math.ceil(_MARGIN + max(map(measure, rows), default=0.0) + _GAP)
    top = math.ceil(_MARGIN + (2 * _FONT if title else 0) + max(widths, default=0.0) * rise + _FONT + _GAP)
    ends = [left + (index + 0.5) * _CELL + width * reach + _FONT / 2 for index, width in enumerate(widths)]
    right = max(left + len(columns) * _CELL, _MARGIN + measure(title), *ends)
    height = top + len(rows) * _CELL + _MARGIN
    return _Layout(columns, rows, title, math.ceil(right + _MARGIN), height, left, top, slanted)


def _shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _svg(source: Sequence[str], target: Sequence[str], weights: NDArray[np.float32], title: str) -> bytes:
    from xml.sax.saxutils import escape

    page = _layout(source, target, title, _estimate)
    size = f'width="{page.width}" height="{page.height}"'
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {page.width} {page.height}" {size}'
            f' font-family="system-ui, sans-serif" font-size="{_FONT}" fill="{_INK}">'
        ),
        f'<rect {size} fill="{_PAPER}"/>',
    ]
    if page.title:
        lines.insert(1, f"<title>{escape(page.title)}</title>")
        lines.append(f'<text x="{_MARGIN}" y="{_MARGIN + _FONT}" font-weight="600">{escape(page.title)}</text>')
    # Not dominant-baseline, which some viewers do not know: 0.35 em below the middle is the baseline of most fonts.
    lines.append(f'<g text-anchor="{"start" if page.slanted else "middle"}">')
    turn = f" rotate({-math.degrees(_ANGLE):g})" if page.slanted else ""
    lines += [
        f'<text transform="translate({page.column(index):g} {_foot(page):g}){turn}" dy="0.35em">{escape(word)}</text>'
        for index, word in enumerate(page.source)
    ]
    lines += ["</g>", '<g text-anchor="end">']
    lines += [
        f'<text x="{page.left - _GAP}" y="{page.row(index):g}" dy="0.35em">{escape(word)}</text>'
        for index, word in enumerate(page.target)
    ]
    lines.append("</g>")
    size = f'width="{_CELL - _LINE}" height="{_CELL - _LINE}"'
    for row, target_word in enumerate(target):
        for column, source_word in enumerate(source):
            weight = float(weights[row, column])
            place = f'x="{page.left + column * _CELL}" y="{page.top + row * _CELL}"'
            name = escape(f"{label(source_word)} → {label(target_word)}: {weight:.2f}")
            lines.append(f'<rect {place} {size} fill="{_hex(weight)}"><title>{name}</title></rect>')
    return "\n".join([*lines, "</svg>", ""]).encode()


def _foot(page: _Layout) -> float:
    """Where the names of columns stand."""
    return page.top - _GAP - (0 if page.slanted else _FONT / 2)


def _hex(weight: float) -> str:
    return "#" + bytes(colour(weight)).hex()


def _estimate(text: str) -> float:
    """The width of a text in a font that is not known: rather too much."""
    narrow, wide = 0.62 * _FONT, 1.05 * _FONT
    return sum(
        0 if unicodedata.combining(character) else wide if unicodedata.east_asian_width(character) in "WF" else narrow
        for character in text
    )


def _png(source: Sequence[str], target: Sequence[str], weights: NDArray[np.float32], title: str) -> bytes:
    from PIL import Image, ImageDraw

    name = _font_name({*"".join(map(label, [*source, *target, title]))})
    small = _font(name, _FONT)
    page = _layout(source, target, title, small.getlength)
    scale = min(_PNG_SCALE, math.sqrt(_PNG_PIXELS / (page.width * page.height)))
    font = _font(name, _FONT * scale)
    picture = Image.new("RGB", (math.ceil(page.width * scale), math.ceil(page.height * scale)), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN * scale, (_MARGIN + _FONT) * scale), page.title, fill=_INK, font=font, anchor="ls")
    for index, word in enumerate(page.source):
        at = (page.column(index) * scale, _foot(page) * scale)
        if page.slanted:
            _draw_slanted(picture, at, word, font)
        else:
            draw.text(at, word, fill=_INK, font=font, anchor="mm")
    for row, word in enumerate(page.target):
        at = ((page.left - _GAP) * scale, page.row(row) * scale)
        draw.text(at, word, fill=_INK, font=font, anchor="rm")
        for column in range(len(page.source)):
            x, y = (page.left + column * _CELL) * scale, (page.top + row * _CELL) * scale
            size = (_CELL - _LINE) * scale - 1  # both corners are part of the rectangle
            draw.rectangle((x, y, x + size, y + size), fill=colour(float(weights[row, column])))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _draw_slanted(picture: Picture, at: tuple[float, float], text: str, font: FreeTypeFont) -> None:
    """``text`` upwards from ``at``: drawn level on a sheet of its own and turned about the sheet's middle."""
    from PIL import Image, ImageDraw

    half = math.ceil(font.getlength(text) + font.size)
    sheet = Image.new("L", (2 * half, 2 * half))
    ImageDraw.Draw(sheet).text((half, half), text, fill=255, font=font, anchor="lm")
    turned = sheet.rotate(math.degrees(_ANGLE), resample=Image.Resampling.BICUBIC)
    picture.paste(_INK, (round(at[0]) - half, round(at[1]) - half), turned)


def _font_name(characters: set[str]) -> str | None:
    """The font of the system that lacks the fewest characters, the first of equals; None is Pillow's."""
    fewest, best = len(characters) + 1, None
    for name in (*_FONTS, None):
        try:
            font = _font(name, _FONT)
        except OSError:
            continue
        box = _pixels(font, "\uffff")  # no font has this one
        lacking = sum(_pixels(font, character) == box for character in characters)
        if lacking < fewest:
            fewest, best = lacking, name
        if not fewest:
            break
    return best


def _font(name: str | None, size: float) -> FreeTypeFont:
    from PIL import ImageFont

    font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # always with a size
    return font


def _pixels(font: FreeTypeFont, character: str) -> bytes:
    return bytes(font.getmask(character))
