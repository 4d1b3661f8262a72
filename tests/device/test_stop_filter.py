"""Stop texts are found wherever the borders of tokens fall, and nothing else is lost."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rnn_edge.text_stream import StopFilter

# A small alphabet, so that stop texts begin, overlap and come true often.
TEXT = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=3)


def filtered(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop_filter, shown = StopFilter(stops), ""
    for piece in pieces:
        text, stopped = stop_filter.push(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + stop_filter.flush(), False


def by_character(stops: list[str], text: str) -> tuple[str, bool]:
    """The definition: read character by character, end at the first stop text that is complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(TEXT, STOPS)
def test_character_by_character(text: str, stops: list[str]) -> None:
    assert filtered(stops, list(text)) == by_character(stops, text)


@settings(max_examples=500)
@given(TEXT, STOPS, st.lists(st.integers(0, 30)))
@example("abc", ["abc", "b"], [])
def test_the_borders_of_tokens_do_not_matter(text: str, stops: list[str], cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert filtered(stops, pieces) == by_character(stops, text)


@given(TEXT, STOPS)
def test_holds_back_only_what_may_become_a_stop_text(text: str, stops: list[str]) -> None:
    stop_filter, shown = StopFilter(stops), ""
    for count, character in enumerate(text, 1):
        new, stopped = stop_filter.push(character)
        shown += new
        if stopped:
            return
        held = text[len(shown) : count]
        assert text[:count] == shown + held
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["\n\n"], ["a\n", "b\n", "\nc"], ("a\nb", True)),
        (["END"], ["xE", "N", "Dy"], ("x", True)),
        (["END"], ["xE", "N", "d"], ("xENd", False)),
        (["aab"], ["a", "a", "a", "b"], ("a", True)),
        (["ab", "abc"], ["abc"], ("", True)),
        (["END"], ["xEN"], ("xEN", False)),
        (["abc", "b"], ["a", "b", "c"], ("a", True)),
        (["abc", "b"], ["abc"], ("a", True)),
    ],
)
def test_by_hand(stops: list[str], pieces: list[str], expected: tuple[str, bool]) -> None:
    assert filtered(stops, pieces) == expected
