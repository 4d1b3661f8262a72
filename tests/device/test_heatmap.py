"""Pictures read back as pictures, and terminal maps letter by letter."""

import io
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.console import Console

from rnn_edge import heatmap
from rnn_edge.errors import InvalidValueError, MissingDependencyError, RnnEdgeError
from rnn_edge.heatmap import check_picture_path, colour, label, write_heatmap
from rnn_edge.terminal_heatmap import _NUMBERS, TerminalHeatmap

SOURCE, TARGET = ["Das", "Büro"], ["The", "office", "<&>"]
WEIGHTS = np.array([[0.9, 0.1], [0.0, 1.0], [0.5, 0.256]], np.float32)
SVG = "{http://www.w3.org/2000/svg}"


def oklch(rgb: Sequence[int]) -> tuple[float, float, float]:
    """Lightness, chroma and hue in degrees (Ottosson 2020)."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in np.divide(rgb, 255)]
    cones = np.cbrt(
        np.array(
            [
                [0.4122214708, 0.5363325363, 0.0514459929],
                [0.2119034982, 0.6806995451, 0.1073969566],
                [0.0883024619, 0.2817188376, 0.6299787005],
            ]
        )
        @ linear
    )
    lightness, a, b = (
        np.array(
            [
                [0.2104542553, 0.7936177850, -0.0040720468],
                [1.9779984951, -2.4285922050, 0.4505937099],
                [0.0259040371, 0.7827717662, -0.8086757660],
            ]
        )
        @ cones
    )
    return float(lightness), math.hypot(a, b), math.degrees(math.atan2(b, a)) % 360


def test_equal_weights_apart_are_equal_lightness_apart_in_one_hue() -> None:
    found = [oklch(colour(weight)) for weight in np.linspace(0, 1, 29)]
    steps = np.diff([lightness for lightness, _, _ in found])
    assert steps == pytest.approx(np.full(28, -0.655 / 28), abs=0.005)
    assert all(abs(hue - 257) < 4 for _, chroma, hue in found if chroma > 0.02)


@pytest.mark.parametrize(("weight", "same"), [(-1, 0), (1.001, 1), (math.inf, 1), (-math.inf, 0), (math.nan, 0)])
def test_weights_out_of_range(weight: float, same: float) -> None:
    assert colour(weight) == colour(same)


def test_labels_are_one_line_of_characters_that_xml_allows() -> None:
    assert label("a\x1b[2J\t\n\r\0\x9b\ud800\uffff é日") == "a␛[2J␉␊␍␀\ufffd\ufffd\ufffd é日"


# Pictures


def draw_svg(
    folder: Path, source: Sequence[str], target: Sequence[str], weights: NDArray[np.float32], title: str = ""
) -> ElementTree.Element:
    write_heatmap(folder / "map.svg", source, target, weights, title=title, force=True)
    return ElementTree.fromstring((folder / "map.svg").read_bytes())


def test_svg_has_a_cell_for_each_weight(tmp_path: Path) -> None:
    root = draw_svg(tmp_path, SOURCE, TARGET, WEIGHTS, "Büro & <office>")
    assert [text.text for text in root.iter(f"{SVG}text")] == ["Büro & <office>", *SOURCE, *TARGET]
    paper, *cells = root.iter(f"{SVG}rect")
    assert (paper.get("width"), paper.get("height")) == (root.get("width"), root.get("height"))
    names = [cell.findtext(f"{SVG}title") for cell in cells]
    assert names == [
        *("Das → The: 0.90", "Büro → The: 0.10"),
        *("Das → office: 0.00", "Büro → office: 1.00"),
        *("Das → <&>: 0.50", "Büro → <&>: 0.26"),
    ]
    assert [cell.get("fill") for cell in cells] == [
        "#" + bytes(colour(weight)).hex() for weight in WEIGHTS.flatten().tolist()
    ]
    assert len({cell.get("x") for cell in cells}) == 2
    assert len({cell.get("y") for cell in cells}) == 3
    assert [cell.get("y") for cell in cells] == sorted((cell.get("y") for cell in cells), key=lambda y: float(y or ""))


def test_svg_takes_any_text(tmp_path: Path) -> None:
    hostile = "</text><script>\x00\x1b\n\ufffe\udc80&\"'"
    root = draw_svg(tmp_path, [hostile], [hostile], np.ones((1, 1), np.float32), hostile)
    shown = "</text><script>␀␛␊\ufffd\ufffd&\"'"
    assert [text.text for text in root.iter(f"{SVG}text")] == [shown] * 3
    assert root.find(f".//{SVG}script") is None


def test_long_words_slant_and_are_cut(tmp_path: Path) -> None:
    def transforms(*source: str) -> list[str]:
        root = draw_svg(tmp_path, source, ["a"], np.zeros((1, len(source)), np.float32))
        return [text.get("transform", "") for text in root.iter(f"{SVG}text")][:-1]

    assert not any("rotate" in transform for transform in transforms("a", "is"))
    assert all("rotate(-55)" in transform for transform in transforms("a", "longer"))
    root = draw_svg(tmp_path, ["x" * 10_000], ["y" * 10_000], np.zeros((1, 1), np.float32))
    assert [text.text for text in root.iter(f"{SVG}text")] == ["x" * 31 + "…", "y" * 31 + "…"]
    assert float(root.get("width", "")) < 1000


def test_svg_without_words(tmp_path: Path) -> None:
    for source, target in (([], []), (["a"], []), ([], ["a"])):
        root = draw_svg(tmp_path, source, target, np.zeros((len(target), len(source)), np.float32))
        assert len(list(root.iter(f"{SVG}rect"))) == 1
        assert len(list(root.iter(f"{SVG}text"))) == len(source) + len(target)


def test_png_shows_the_colours_of_the_weights(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    write_heatmap(tmp_path / "map.PNG", SOURCE, TARGET, WEIGHTS, title="Büro")
    with image.open(tmp_path / "map.PNG") as picture:
        assert picture.format == "PNG"
        page = heatmap._layout(SOURCE, TARGET, "Büro", heatmap._font(heatmap._font_name({*"Büro"}), 14).getlength)
        assert picture.size == (2 * page.width, 2 * page.height)
        for row, column in np.ndindex(WEIGHTS.shape):
            assert picture.getpixel((2 * page.column(column), 2 * page.row(row))) == colour(float(WEIGHTS[row, column]))


@pytest.mark.parametrize("word", ["no", "Geschwindigkeitsbegrenzung", "W" * 16])
@pytest.mark.parametrize("title", ["", "Title", "A title as wide as any, and wider than that" * 2])
def test_png_keeps_words_off_the_edges_and_the_cells(word: str, title: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    write_heatmap(tmp_path / "map.png", [word] * 3, [word] * 2, np.ones((2, 3), np.float32), title=title)
    with image.open(tmp_path / "map.png") as picture:
        pixels = np.asarray(picture)
    inked = (pixels != 255).any(axis=2)
    cells = (pixels == colour(1)).all(axis=2)
    assert cells.sum() == 6 * 56 * 56  # whole squares at twice 28 pixels: no word covers any of them
    assert inked[20:-20, 20:-20].sum() == inked.sum() > cells.sum()
    if title:  # between it and the words, and between them and the cells, there are lines with nothing on them
        lines = inked.any(axis=1)
        assert np.count_nonzero(lines[:-1] & ~lines[1:]) == 2 + 2


@pytest.mark.parametrize(
    ("characters", "expected"),
    [("abc", "first"), ("aé", "second"), ("日", "third"), ("é日", "second"), ("ж", "first"), ("", "first")],
)
def test_the_font_is_the_one_that_lacks_least(characters: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = {"first": "abc", "second": "abcé", "third": "日", None: "abc"}

    def find(name: str | None, size: float) -> str | None:
        if name not in fonts:
            raise OSError("cannot open resource")
        return name

    monkeypatch.setattr(heatmap, "_FONTS", ("absent", "first", "second", "third"))
    monkeypatch.setattr(heatmap, "_font", find)
    monkeypatch.setattr(heatmap, "_pixels", lambda font, letter: letter if letter in fonts[font] else "box")
    assert heatmap._font_name({*characters}) == expected


def test_png_in_pillows_own_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(heatmap, "_FONTS", ("no such font.ttf",))
    assert heatmap._font_name({*"Büro"}) is None
    write_heatmap(tmp_path / "map.png", SOURCE, TARGET, WEIGHTS)
    with image.open(tmp_path / "map.png") as picture:
        picture.load()


def test_png_of_many_words_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(heatmap, "_PNG_PIXELS", 250_000)
    write_heatmap(tmp_path / "map.png", ["a"] * 50, ["a"] * 50, np.zeros((50, 50), np.float32))
    with image.open(tmp_path / "map.png") as picture:
        assert 240_000 < picture.width * picture.height < 252_000


def test_png_without_words(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    write_heatmap(tmp_path / "map.png", [], [], np.zeros((0, 0), np.float32))
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_png_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    for call in (check_picture_path, lambda path: write_heatmap(path, SOURCE, TARGET, WEIGHTS)):
        with pytest.raises(MissingDependencyError) as caught:
            call(tmp_path / "map.png")
        assert caught.value.hint == "run: pip install 'rnn-edge[picture]'"
    write_heatmap(tmp_path / "map.svg", SOURCE, TARGET, WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == ["map.svg"]


@pytest.mark.parametrize("name", ["map", "map.jpg", "map.svg.gz", ".svg"])
def test_other_pictures_are_refused(name: str, tmp_path: Path) -> None:
    for call in (check_picture_path, lambda path: write_heatmap(path, SOURCE, TARGET, WEIGHTS)):
        with pytest.raises(InvalidValueError) as caught:
            call(tmp_path / name)
        assert str(tmp_path / name) in caught.value.message
        assert ".svg or .png" in caught.value.hint


def test_an_existing_picture_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "map.svg"
    check_picture_path(path)
    path.write_bytes(b"old")
    for call in (check_picture_path, lambda path: write_heatmap(path, SOURCE, TARGET, WEIGHTS)):
        with pytest.raises(RnnEdgeError, match="exists already"):
            call(path)
    assert path.read_bytes() == b"old"
    check_picture_path(path, force=True)
    write_heatmap(path, SOURCE, TARGET, WEIGHTS, force=True)
    assert path.read_bytes().startswith(b"<svg")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=re.escape("[2, 3], the words [3, 2]")):
        write_heatmap(tmp_path / "map.svg", SOURCE, TARGET, WEIGHTS.T)
    assert list(tmp_path.iterdir()) == []


# Terminals


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


def screen(width: int = 80, **options: Any) -> tuple[Console, io.StringIO]:
    """A console, and what is written to it."""
    out = io.StringIO()
    return Console(file=out, width=width, **options), out


def draw(source: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]], width: int = 80) -> list[str]:
    """The lines of a map without colours."""
    console, out = screen(width)
    found = TerminalHeatmap(source, console)
    for target, weights in rows:
        found.add(target, weights)
    return out.getvalue().split("\n")[:-1]


def test_a_map_without_colours() -> None:
    indent = " " * 21
    assert draw(["Das", "Bu\u0308ro", "日本"], [("The", [0.1, 0.2, 0.4]), ("office", [0.7, 0.9, 0])]) == [
        indent + "  B",
        indent + "D u\u0308",
        indent + "a r 日",
        indent + "s o 本",
        " " * 17 + "The   ░░▒▒",
        " " * 14 + "office ▓▓██",
    ]


def test_shades_change_half_way_between_quarters() -> None:
    edges = [0.0, 0.12, 0.13, 0.37, 0.38, 0.62, 0.63, 0.87, 0.88, 1.0]
    assert draw(["a"] * 10, [("x", edges)])[-1].removeprefix(f"{'x':>20} ") == "    ░░░░▒▒▒▒▓▓▓▓████"


def test_rows_come_one_by_one_and_stay() -> None:
    console, out = screen(force_terminal=True, color_system="truecolor")
    found = TerminalHeatmap(["a", "b"], console)
    before = out.getvalue()
    for weights in ([0.25, 0.75], [1.0, 0.0]):
        found.add("x", weights)
        row = out.getvalue().removeprefix(before)
        red, green, blue = colour(weights[0])
        assert row.startswith(f"{'x':>20} \x1b[48;2;{red};{green};{blue}m  \x1b[0m")
        assert row.count("\n") == 1
        assert row.endswith("\n")
        assert set(re.findall(r"\x1b\[[\d;]*(.)", row)) == {"m"}  # colours, and nothing that moves the cursor
        before = out.getvalue()


def test_256_colours_keep_to_the_ramp() -> None:
    console, out = screen(force_terminal=True, color_system="256")
    weights = [index / 6 for index in range(7)]
    TerminalHeatmap(["a"] * 7, console).add("x", weights)
    numbers = [int(number) for number in re.findall(r"\x1b\[48;5;(\d+)m", out.getvalue())]
    assert numbers == list(_NUMBERS)
    levels = (0, 95, 135, 175, 215, 255)
    colours = [
        (levels[number // 36], levels[number // 6 % 6], levels[number % 6])
        for number in (number - 16 for number in numbers[1:])
    ]
    for weight, found in zip(weights[1:], colours, strict=True):
        lightness, _, hue = oklch(found)
        assert lightness == pytest.approx(oklch(colour(weight))[0], abs=0.06)
        assert 245 < hue < 270
    assert numbers[0] == 255  # the lightest grey, 238


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        ({"force_terminal": True, "color_system": "standard"}, {}),
        ({"force_terminal": True}, {"TERM": "dumb"}),
        ({"force_terminal": True, "color_system": "truecolor"}, {"NO_COLOR": "1"}),
        ({"force_terminal": True, "color_system": "truecolor", "no_color": True}, {}),
        ({}, {"TERM": "xterm-256color"}),  # a pipe
    ],
)
def test_shades_where_there_are_few_colours(
    options: dict[str, Any], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    console, out = screen(**options)
    TerminalHeatmap(["a", "b"], console).add("x", [0.5, 1])
    assert out.getvalue() == f"{'':21}a b\n{'x':>20} ▒▒██\n"


def test_words_without_room_share_a_column() -> None:
    # 21 columns: 10 for the names of rows, one space, and five cells.
    lines = draw(list("abcdefgh"), [("xyz", [0, 0, 0, 0.5, 0.25, 0.25, 0.25, 0.25])], width=21)
    assert lines[0] == " " * 11 + "a b c d …"
    assert lines[1:-1] == ["The column … adds up 4 more words: the screen is too narrow."]
    assert lines[-1] == "       xyz       ▒▒██"


def test_names_of_rows_give_way_to_columns() -> None:
    name, weights = "a" * 30, [1.0] * 30
    for width, names in ((82, 20), (81, 20), (80, 19), (71, 10)):
        lines = draw(["x"] * 30, [(name, weights)], width)
        assert len(lines) == 2
        assert lines[1] == "a" * (names - 1) + "… " + "██" * 30
    assert len(draw(["x"] * 30, [(name, weights)], 70)) == 3


def test_forty_words_fit_a_hundred_columns() -> None:
    lines = draw(["wort"] * 40, [("word", [1.0] * 40)], width=100)
    assert lines[:4] == [" " * 20 + " ".join(letter * 40) for letter in "wort"]
    assert cell_len(lines[4]) == 100


def test_tall_words_are_cut() -> None:
    lines = draw(["Internationalisierung", "a"], [])
    assert [line.strip() for line in lines] == [*"Internation", "⋮ a"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("日本語", "日本語"),
        ("cafe\u0301", "cafe\u0301"),
        ("\x1b[2J\n\t", "␛[2J␊␉"),
        ("日本" * 10, "日本日本日本日本日 …"),
        ("[bold]:smile:", "[bold]:smile:"),
    ],
)
def test_names_of_rows_end_before_the_cells(name: str, shown: str) -> None:
    row = draw(["a"], [(name, [1.0])])[-1]
    assert row.lstrip() == f"{shown} ██"
    assert cell_len(row.split("█")[0]) == 21


@given(st.text(max_size=30), st.text(st.characters(categories=["L", "N", "P", "Cc", "Mn"]), max_size=8))
def test_every_row_is_one_line_within_the_screen(target: str, source: str) -> None:
    lines = draw([source], [(target, [1.0])], width=30)
    assert all(cell_len(line) <= 30 for line in lines)
    assert [line.endswith("██") for line in lines] == [False] * (len(lines) - 1) + [True]


@pytest.mark.parametrize("width", [1, 5, 11, 12])
def test_a_screen_without_room_is_cut_off(width: int) -> None:
    assert cell_len(draw(["a", "b"], [("word", [1.0, 1.0])], width)[-1]) <= width


def test_a_map_without_source_words() -> None:
    assert draw([], [("word", [])]) == [f"{'word':>20}"]


def test_every_source_word_wants_a_weight() -> None:
    console, _ = screen()
    with pytest.raises(InvalidValueError, match="1 weights for 2 source words"):
        TerminalHeatmap(["a", "b"], console).add("x", [1.0])
