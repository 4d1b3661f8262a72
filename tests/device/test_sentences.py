"""Sentences are taken out of a text and put back: nothing is lost, and no layout is changed."""

import re
import subprocess
import sys

import pytest
import sentencex  # type: ignore[import-untyped]  # has neither stubs nor py.typed
from hypothesis import example, given
from hypothesis import strategies as st

from rnn_edge.errors import InvalidValueError
from rnn_edge.sentences import Layout, split, split_long, unwrap_lines

# What splits sentences, breaks lines, indents and quotes, more often than chance would.
AWKWARD = st.lists(
    st.sampled_from(
        [
            *(
                "Dr.",
                "U.S.",
                "e.g.",
                "Hello",
                "world.",
                "Yes!",
                "Non…",
                "?!",
                "é.",
                "e\u0301.",
                "a",
                "Z.",
                "1.",
                "3.5",
                "42",
            ),
            *("\n", "\n\n", "\r\n", "\r\n\r\n", "\r", "\t", "\v", "\f", "\x1c", "\x1f", "\x85", "\u2028", "\u2029"),
            *(" ", "  ", "    ", "\u00a0", "\u3000", "\u200b", "\ufeff", "\x00", "\x1b[31m", "\x7f", "\ud800"),
            *('"', "'", "“", "”", "«", "»", "(", ")", "[1]", "- ", "* ", "> ", "# ", "—", "---", ",", ";", ": "),
            *("日本。", "世界", "「", "」", "！", "，", "אב", "नमस्ते।", "😀", "https://a.b/c.d"),
        ]
    ),
    max_size=40,
).map("".join)
TEXT = st.one_of(st.text(st.characters()), AWKWARD)  # st.characters() has lone surrogates too
LANGUAGE = st.sampled_from(["en", "fr", "de", "ja", "hi", "en-GB", "xx", "tlh", "", "-", "not a code", "\ud800"])
BREAK = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def cut_into(layout: Layout) -> str:
    """The text with each sentence marked."""
    return layout.join([f"<{sentence}>" for sentence in layout.sentences])


# --- there and back


@given(TEXT, LANGUAGE, st.booleans())
@example("", "en", True)
@example("\n", "en", True)
@example(" \t\n\n \n", "en", True)
@example("\r\nHello. World.\r\n\r\n\tNo final newline", "en", True)
def test_the_sentences_give_the_text_back(text: str, language: str, split_sentences: bool) -> None:
    layout = split(text, language, split_sentences=split_sentences)
    assert layout.join(layout.sentences) == text
    assert len(layout.gaps) == len(layout.sentences) + 1


@given(TEXT, LANGUAGE, st.booleans())
def test_a_sentence_is_stripped_has_a_letter_and_no_line_break(text: str, language: str, split_sentences: bool) -> None:
    layout = split(text, language, split_sentences=split_sentences)
    for sentence in layout.sentences:
        assert sentence == sentence.strip()
        assert any(character.isalpha() for character in sentence)
        assert not BREAK.search(sentence)
    assert not any(character.isalpha() for gap in layout.gaps for character in gap)


@given(TEXT, st.data())
def test_the_line_breaks_are_the_same_whatever_the_translations(text: str, data: st.DataObject) -> None:
    layout = split(text)
    count = len(layout.sentences)
    translations = data.draw(st.lists(AWKWARD, min_size=count, max_size=count))
    joined = layout.join(translations)
    assert BREAK.findall(joined) == BREAK.findall(text)
    assert joined.count("\n") == text.count("\n")


@given(st.text(st.characters(exclude_categories=["Cs"])) | AWKWARD, LANGUAGE)
def test_the_library_loses_nothing(text: str, language: str) -> None:
    """``split`` need not rely on it, but sentences would be whole lines if this were not so."""
    text, language = (value.replace("\ud800", "") for value in (text, language))
    assert "".join(sentencex.segment(language, text)) == text


def test_a_library_that_loses_something_costs_the_splitting_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencex, "segment", lambda language, line: ["One.", "Two."])
    assert cut_into(split("One. Two.\nOne.Two.")) == "<One. Two.>\n<One.><Two.>"


def test_as_many_translations_as_sentences() -> None:
    layout = split("One. Two.")
    with pytest.raises(InvalidValueError, match="1 translations of 2 sentences"):
        layout.join(["Un."])
    with pytest.raises(InvalidValueError, match="3 translations of 2 sentences"):
        layout.join(["Un.", "Deux.", "Trois."])


def test_line_breaks_of_a_translation_become_spaces() -> None:
    assert split("A.\nB.\n").join(["x\ny\r\nz\u2028w", "v\n"]) == "x y z w\nv\n"


# --- where sentences are


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("Hello there. How are you?  Fine!", "<Hello there.> <How are you?>  <Fine!>"),
        (
            "Dr. Smith of the U.S. Army left at 3.5 e.g. now. He did.",
            "<Dr. Smith of the U.S. Army left at 3.5 e.g. now.> <He did.>",
        ),
        ("One line\nand one more.\n", "<One line>\n<and one more.>\n"),
        ("One.\r\n\r\n\tTwo. \r\n", "<One.>\r\n\r\n\t<Two.> \r\n"),
        ("One.\fTwo\u2028three.", "<One.>\f<Two>\u2028<three.>"),
        (
            "  - One. Two.\n* three\n> > four – five\n– Bonjour",
            "  - <One.> <Two.>\n* <three>\n> > <four – five>\n– <Bonjour>",
        ),
        ("## Title\n\n1. One. 2. Two.", "## <Title>\n\n1. <One.> 2. <Two.>"),
        ("-5 degrees\n« Oui »\n¿Qué?", "<-5 degrees>\n<« Oui »>\n<¿Qué?>"),
        ("1999\n-----\n* * *\n...\n😀", "1999\n-----\n* * *\n...\n😀"),
        ("\ufeffOne.", "\ufeff<One.>"),
        ("One. Two\ud800. Three.", "<One. Two\ud800. Three.>"),
    ],
)
def test_by_hand(text: str, marked: str) -> None:
    assert cut_into(split(text)) == marked


def test_whole_lines() -> None:
    assert (
        cut_into(split(" One. Two.\n\n- Three. Four. ", split_sentences=False)) == " <One. Two.>\n\n- <Three. Four.> "
    )


@pytest.mark.parametrize("language", ["de", "DE", "de-AT", "de_CH"])
def test_the_language_matters_and_its_region_does_not(language: str) -> None:
    text = "Am 3. Mai kam er. Es war kalt."
    assert split(text, language).sentences == ["Am 3. Mai kam er.", "Es war kalt."]
    assert split(text, "en").sentences == ["Am 3.", "Mai kam er.", "Es war kalt."]


@pytest.mark.parametrize("language", ["", "xx", "tlh-Latn", "no such language", "\ud800"])
def test_an_unknown_language_is_no_error(language: str) -> None:
    assert split("Hello.", language).sentences == ["Hello."]


def test_spaces_where_the_source_had_none_to_give() -> None:
    layout = split("你好。世界！ 再见。")
    assert layout.sentences == ["你好。", "世界！", "再见。"]
    assert layout.join(["Hello.", "World!", "Bye."]) == "Hello. World! Bye."
    assert layout.join(["今日は。", "世界！", "では。"]) == "今日は。世界！ では。"
    assert layout.join(["", "", ""]).strip() == ""


# --- wrapped paragraphs


@pytest.mark.parametrize(
    ("text", "unwrapped"),
    [
        ("One\ntwo\n\n \nthree\nfour", "One two\n\n \nthree four"),
        ("One \r\ntwo\r\n\r\nthree\r\n", "One two\r\n\r\nthree\r\n"),
        ("    First\nline\nof it\n    Second\nline", "    First line of it\n    Second line"),
        ("  One\n  block\n    deeper\n  back", "  One block\n    deeper back"),
        ("- one\n  goes on\n- two\n  - three\nAfter", "- one goes on\n- two\n  - three\nAfter"),
        ("See:\n1. one\n   goes on\n2) two\nAfter\nall", "See:\n1. one goes on\n2) two\nAfter all"),
        ("- one\n  goes\n  on\nAfter", "- one goes on\nAfter"),
        ("It was in\n1999. Then\n-5 degrees", "It was in 1999. Then -5 degrees"),
        ("\tOne\n        two\n\n\t- one\n          goes on", "\tOne two\n\n\t- one goes on"),
        ("\t- one\n    After", "\t- one\n    After"),
        ("Title\n=====\nText", "Title\n=====\nText"),
        ("One\ftwo\u2028three\nfour", "One\ftwo\u2028three four"),
        ("你好\n世界\nand\n再见", "你好世界and 再见"),
        ("hyphen-\nated", "hyphen- ated"),
    ],
)
def test_unwrapping_by_hand(text: str, unwrapped: str) -> None:
    assert unwrap_lines(text) == unwrapped


@given(TEXT)
def test_unwrapping_changes_white_space_only(text: str) -> None:
    unwrapped = unwrap_lines(text)
    assert "".join(unwrapped.split()) == "".join(text.split())
    assert len(unwrapped) <= len(text)
    blank = [line for line in text.splitlines(keepends=True) if not line.strip()]
    assert [line for line in unwrapped.splitlines(keepends=True) if not line.strip()] == blank


@given(TEXT)
def test_splitting_unwrapped_is_splitting_what_is_unwrapped(text: str) -> None:
    layout = split(text, unwrap=True)
    assert layout == split(unwrap_lines(text))
    assert layout.join(layout.sentences) == unwrap_lines(text)


def test_a_sentence_runs_over_line_breaks() -> None:
    text = "He came\nand went. She\nstayed.\n\nThe end."
    assert cut_into(split(text, unwrap=True)) == "<He came and went.> <She stayed.>\n\n<The end.>"
    assert cut_into(split(text)) == "<He came>\n<and went.> <She>\n<stayed.>\n\n<The end.>"


# --- long sentences

WORDY = st.lists(
    st.sampled_from(["a", "word", "x" * 40, " ", "  ", "\t", ", ", "; ", '," ', "，", "，　", "1,5", "。", "\ufeff"])
).map("".join)


@given(WORDY | TEXT, st.integers(0, 40))
def test_pieces_fit_and_are_the_sentence(sentence: str, longest: int) -> None:
    pieces = split_long(len, sentence, longest)
    assert "".join(pieces) == sentence
    for piece in pieces:
        assert len(piece.strip()) <= max(longest, 1)
    if len(pieces) > 1:
        assert all(piece.strip() for piece in pieces)
    for piece in pieces[1:]:
        assert piece == piece.lstrip()


@given(TEXT | WORDY, st.integers(1, 20))
def test_a_layout_of_pieces_gives_the_text_back(text: str, longest: int) -> None:
    layout = split(text).cut(len, longest)
    assert layout.join(layout.sentences) == text
    assert all(0 < len(sentence) <= longest and sentence == sentence.strip() for sentence in layout.sentences)
    assert len(layout.gaps) == len(layout.sentences) + 1


@pytest.mark.parametrize(
    ("sentence", "longest", "pieces"),
    [
        ("fits well", 9, ["fits well"]),
        (" fits well  ", 9, [" fits well  "]),
        ("", 3, [""]),
        ("   ", 1, ["   "]),
        ("one two three", 9, ["one two ", "three"]),
        ("one two, three four five", 20, ["one two, ", "three four five"]),
        ("one (two;)  three four five", 20, ["one (two;)  ", "three four five"]),
        ("it costs 1,500 euros at 10:30", 20, ["it costs 1,500 ", "euros at 10:30"]),
        ("so, this one has its comma early", 31, ["so, this one has ", "its comma early"]),
        ("你好世界，再见世界", 6, ["你好世界，", "再见世界"]),
        ("abcdefgh", 3, ["ab", "cd", "ef", "gh"]),
        ("a abcdefgh b", 8, ["a ", "abcdefgh ", "b"]),
        ("ab", 0, ["a", "b"]),
    ],
)
def test_where_it_is_cut(sentence: str, longest: int, pieces: list[str]) -> None:
    assert split_long(len, sentence, longest) == pieces


def test_the_space_at_a_cut_is_put_back_between_translations() -> None:
    layout = split("One two, three. Four.\n").cut(len, 8)
    assert layout.sentences == ["One two,", "three.", "Four."]
    assert layout.join(["Un,", "trois.", "Quatre."]) == "Un, trois. Quatre.\n"


@pytest.mark.parametrize("sentence", ["word " * 10_000, "word, " * 10_000, "x" * 50_000, "a, " * 900 + "word " * 9_000])
def test_ten_thousand_words_are_read_a_few_times_only(sentence: str) -> None:
    read: list[int] = []

    def ids_length(text: str) -> int:
        read.append(len(text))
        return len(text) // 4

    assert "".join(split_long(ids_length, sentence, 128)) == sentence
    assert len(read) < 4 * len(sentence) / (4 * 128) + 100
    assert sum(read) < 20 * len(sentence)


# --- start-up


def test_the_library_is_imported_when_it_is_needed() -> None:
    program = (
        "import sys\n"
        "from rnn_edge.sentences import split\n"
        "split('A. B.', split_sentences=False)\n"
        "before = 'sentencex' in sys.modules\n"
        "split('A. B.')\n"
        "print(before, 'sentencex' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
