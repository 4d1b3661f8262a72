"""From files of pairs to training and validation pairs, and the report of what was left out."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_edge.errors import DataError, InvalidValueError
from rnn_edge.text_files import Pair, read_pairs
from rnn_edge_export.recipe_sections import PairSection
from rnn_edge_export.translation.data import Filtered, load_pairs, split_pairs
from tests.export.translation.conftest import PAIRS, write_pairs

_SMALL = PairSection(tokenizer="word", vocabulary_size=300, validation_pairs=4, maximum_length=15)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PLENTY = [(f"{a}a {b}b", f"{a}c {b}d") for a in _LETTERS for b in _LETTERS[:3]]


def _file(folder: Path, content: str | bytes, name: str = "pairs.tsv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_sentences_of_these_tests() -> None:
    pairs, _ = read_pairs([PAIRS])
    assert 150 <= len(pairs) == len(set(pairs)) <= 200
    assert all(source and target for source, target in pairs)
    assert ("I like the summer.", "J'aime l'été.") in pairs


def test_a_tsv_file_and_two_files_give_the_same_pairs(tmp_path: Path) -> None:
    tsv = _file(tmp_path, "Good day.\tBonjour.\r\n Yes. \t  Oui.\n\n\tNon.\nWait\tAttends\tsaid twice\tNo. 5")
    expected = [("Good day.", "Bonjour."), ("Yes.", "Oui."), ("", "Non."), ("Wait", "Attends")]
    assert read_pairs([tsv]) == (expected, hashlib.sha256(tsv.read_bytes()).hexdigest())
    sides = [_file(tmp_path, "".join(f" {pair[side]}\r\n" for pair in expected), f"side{side}") for side in (0, 1)]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sides]
    assert read_pairs(sides) == (expected, hashlib.sha256("\n".join(hashes).encode()).hexdigest())
    assert read_pairs(sides[::-1])[1] != read_pairs(sides)[1]


def test_a_line_without_a_tab_is_named(tmp_path: Path) -> None:
    path = _file(tmp_path, "one\tun\n\ntwo    deux\nthree\ttrois\n")
    with pytest.raises(DataError, match=r"pairs\.tsv, line 3 has no tab: 'two    deux'") as caught:
        read_pairs([path])
    assert "two files" in caught.value.hint
    with pytest.raises(DataError, match=f"line 1 has no tab: '{'x' * 57}…'"):
        read_pairs([_file(tmp_path, "x" * 61)])
    with pytest.raises(DataError, match=f"line 1 has no tab: '{'x' * 60}'"):
        read_pairs([_file(tmp_path, "x" * 60)])


@pytest.mark.parametrize(
    ("source", "target", "line"),
    [
        # Line 2 is lost in the target: line 3 stands beside it. 56 is more than 40 and three times 5.
        (["Yes.", "m" * 56, "Short", "End."], ["Oui.", "Court", "Fin."], 2),
        (["Yes.", "m" * 55, "Short", "End."], ["Oui.", "Court", "Fin."], 4),  # not suspicious: the end is
        (["Yes.", "No."], ["Oui.", "", "Non."], 2),
        (["Yes.", "No."], ["Oui.", "Non.", "Peut-être."], 3),
    ],
)
def test_files_of_different_length(tmp_path: Path, source: list[str], target: list[str], line: int) -> None:
    files = [_file(tmp_path, "\n".join(lines) + "\n", name) for name, lines in (("a.en", source), ("a.fr", target))]
    words = f"a.en has {len(source)} lines, .*a.fr has {len(target)}; the first suspicious line is {line}$"
    with pytest.raises(DataError, match=words):
        read_pairs(files)


def test_other_line_separators_stand_inside_a_sentence(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"
    assert read_pairs([_file(tmp_path, f"{odd}\tune\nx\ty\n")])[0] == [(odd, "une"), ("x", "y")]
    files = [_file(tmp_path, f"{odd}\nx\n", "a"), _file(tmp_path, "une\ny\n", "b")]
    assert read_pairs(files)[0] == [(odd, "une"), ("x", "y")]


def test_another_encoding(tmp_path: Path) -> None:
    path = _file(tmp_path, "summer\tété\nisland\tîle\n".encode("latin-1"))
    assert read_pairs([path], "latin-1")[0] == [("summer", "été"), ("island", "île")]
    with pytest.raises(DataError, match="is not utf-8: byte 7 is 0xe9"):
        read_pairs([path])
    with pytest.raises(InvalidValueError, match="--encoding klingon"):
        load_pairs([path], [], _SMALL, "klingon")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    good = write_pairs(tmp_path / "good.tsv", _PLENTY)
    for bad, words in [
        (tmp_path / "missing.tsv", "cannot read .*missing.tsv"),
        (tmp_path, "is a folder"),
        (_file(tmp_path, b"", "empty.tsv"), "empty.tsv is empty"),
    ]:
        for paths, valid in (([bad], []), ([good, bad], []), ([good], [bad])):
            with pytest.raises(DataError, match=words):
                load_pairs(paths, valid, _SMALL)


def test_every_reason_is_counted_and_told(tmp_path: Path) -> None:
    sixteen, fifteen = " ".join(_LETTERS[:16]), " ".join(_LETTERS[:15])
    odd = [
        *[("", "seul"), ("alone", " "), ("", "")],  # three with an empty side
        *_PLENTY[:2],  # two seen before
        *[(sixteen, fifteen), (fifteen, sixteen)],  # two too long
        *[("a b", " ".join(_LETTERS[:9])), (fifteen, "a b c d")],  # within the limits, the first being short
        ("a b", " ".join(_LETTERS[:11])),  # five and a half times
    ]
    path = write_pairs(tmp_path / "p.tsv", [*_PLENTY, *odd])
    corpus = load_pairs([path], [write_pairs(tmp_path / "v.tsv", [("x", "y")])], _SMALL)
    filtered = corpus.filtered
    assert filtered == Filtered(read=len(_PLENTY) + 10, empty=3, duplicate=2, shared=0, long=2, ratio=1)
    assert filtered.kept == len(corpus.train) == len(_PLENTY) + 2
    assert corpus.train[-2:] == odd[7:9]
    told = str(filtered)
    assert told.startswith("80 of 88 pairs; left out: ")
    for count, reason in ((3, "empty"), (2, "seen before"), (2, "too long"), (1, "different length")):
        assert [part for part in told.split(": ")[1].split(", ") if part.startswith(f"{count} ") and reason in part]
    assert corpus.longest == 15
    everything = replace(_SMALL, maximum_length=16, maximum_ratio=5.5)
    corpus = load_pairs([path], [tmp_path / "v.tsv"], everything)
    assert (corpus.filtered.long, corpus.filtered.ratio, corpus.longest) == (0, 0, 16)
    assert str(Filtered(1200, 0, 0, 0, 0, 0)) == "1,200 of 1,200 pairs"


def test_the_longest_source_is_of_what_is_trained_on(tmp_path: Path) -> None:
    targets = [("a b c", "a b c d e f g"), ("a b c d e", "a"), ("a " * 16, "a " * 16)]
    files = [write_pairs(tmp_path / "p.tsv", targets)], [write_pairs(tmp_path / "v.tsv", [("a " * 9, "b")])]
    assert load_pairs(*files, _SMALL).longest == 5


_SIDES = st.text("ab", min_size=1, max_size=3)


@given(st.lists(st.tuples(_SIDES, _SIDES), unique=True, max_size=30), st.integers(1, 8), st.integers(0, 3))
def test_a_split_shares_no_side(pairs: list[Pair], count: int, seed: int) -> None:
    train, valid = split_pairs(pairs, count, seed)
    assert len(valid) == len(set(valid)) == min(count, len(pairs) // 2)
    for side in range(2):
        assert not {pair[side] for pair in train} & {pair[side] for pair in valid}
    for pair in set(pairs) - set(train) - set(valid):  # left out for a reason
        assert any(pair[side] == other[side] for other in valid for side in range(2))
    assert train == [pair for pair in pairs if pair in set(train)]  # the order stays
    assert split_pairs(pairs, count, seed) == (train, valid)


def test_a_split_is_a_function_of_the_seed() -> None:
    splits = [split_pairs(_PLENTY, 10, seed)[1] for seed in range(5)]
    assert len({frozenset(valid) for valid in splits}) == 5
    assert splits[0] != _PLENTY[:10]


def test_drawn_validation_pairs(tmp_path: Path) -> None:
    doubles = [(source, target.upper()) for source, target in _PLENTY]  # each source has two targets
    path = write_pairs(tmp_path / "p.tsv", [*_PLENTY, *doubles, *_PLENTY[:5]])
    corpus = load_pairs([path], [], replace(_SMALL, seed=3))
    assert (corpus.train, corpus.valid) == split_pairs([*_PLENTY, *doubles], 4, 3)
    assert len(corpus.valid) == 4
    assert len({source for source, _ in corpus.valid}) == 4  # so each leaves out its double
    assert corpus.filtered == Filtered(2 * len(_PLENTY) + 5 - 4, 0, 5, 4, 0, 0)
    assert corpus.filtered.kept == len(corpus.train) == 2 * len(_PLENTY) - 8
    assert corpus.valid_source == "4 pairs of p.tsv, drawn with seed 3"
    assert (corpus.leaked, corpus.valid_sha256) == (0, "")


def test_validation_pairs_of_their_own(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "p.tsv", _PLENTY)
    held = [(_PLENTY[0][0], "neuf"), ("new", _PLENTY[1][1]), ("new", "neuf"), ("", "vide"), _PLENTY[2]]
    valid = write_pairs(tmp_path / "v.tsv", held)
    corpus = load_pairs([path], [valid], _SMALL)
    assert corpus.train == _PLENTY
    assert corpus.valid == [*held[:3], held[4]]
    assert corpus.leaked == 3
    assert corpus.filtered == Filtered(len(_PLENTY), 0, 0, 0, 0, 0)
    assert corpus.valid_source == "v.tsv"
    assert corpus.valid_sha256 == hashlib.sha256(valid.read_bytes()).hexdigest()
    # Words of the validation pairs alone are not in the vocabularies.
    assert [tokenizer.id_of("Ġnew") for tokenizer in (corpus.source_tokenizer, corpus.target_tokenizer)] == [None] * 2
    assert corpus.source_tokenizer.id_of("Ġaa") is not None


def test_two_aligned_files(tmp_path: Path) -> None:
    train = [_file(tmp_path, "".join(f"{pair[side]}\n" for pair in _PLENTY), f"t.{side}") for side in (0, 1)]
    valid = [_file(tmp_path, f"{text}\n", f"v.{side}") for side, text in enumerate(("new", "neuf"))]
    corpus = load_pairs(train, valid, _SMALL)
    assert (corpus.train, corpus.valid) == (_PLENTY, [("new", "neuf")])
    assert corpus.valid_source == "v.0 and v.1"
    assert load_pairs(train, [], _SMALL).valid_source == "4 pairs of t.0 and t.1, drawn with seed 1"


def test_too_few_pairs(tmp_path: Path) -> None:
    alone = write_pairs(tmp_path / "one.tsv", [("a", "b"), ("a", "b"), ("", "c")])
    with pytest.raises(DataError, match=r"one\.tsv has 1 pairs: too few") as caught:
        load_pairs([alone], [], _SMALL)
    assert "--valid" in caught.value.hint
    with pytest.raises(DataError, match="too few"):  # each shares its source with the one that is drawn
        load_pairs([write_pairs(tmp_path / "same.tsv", [("a", letter) for letter in _LETTERS])], [], _SMALL)
    good = write_pairs(tmp_path / "p.tsv", _PLENTY)
    with pytest.raises(DataError, match=r"blank\.tsv has no pair with two sides"):
        load_pairs([good], [write_pairs(tmp_path / "blank.tsv", [("", "b")])], _SMALL)
    with pytest.raises(DataError, match=rf"no pair of p\.tsv is left: {len(_PLENTY) - 4} too long, 0 of") as caught:
        load_pairs([good], [], replace(_SMALL, maximum_length=1))
    assert "--maximum-length" in caught.value.hint


def test_a_resumed_run_keeps_its_tokenizers(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "p.tsv", _PLENTY)
    first = load_pairs([path], [], _SMALL)
    known = (first.source_tokenizer, first.target_tokenizer)
    again = load_pairs([path], [], _SMALL, tokenizers=known)
    assert again.source_tokenizer is known[0]
    assert again.target_tokenizer is known[1]
    assert (again.train, again.valid, again.sha256) == (first.train, first.valid, first.sha256)
