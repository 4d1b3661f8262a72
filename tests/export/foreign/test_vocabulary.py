"""Tokenizers of bare vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rnn_edge.errors import BundleError, DataError, InvalidValueError, UnknownTokenError
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export import vocabulary_tokenizer
from rnn_edge_export.foreign.vocabulary import as_tokenizer, kind_of, read_vocabulary, unknown_id


def test_characters_keep_the_order_of_their_ids() -> None:
    found = vocabulary_tokenizer(["b", "\n", "a", "é"])
    assert found.encode("ab\né") == [2, 0, 1, 3]
    assert found.decode([3, 1, 0]) == "é\nb"
    assert (kind_of(found), found.line_end, unknown_id(found)) == ("character", 1, None)
    with pytest.raises(UnknownTokenError, match="never seen 'c'"):
        found.encode("abc")
    assert found.encode("abc", unknown="skip") == [2, 0]


def test_roles_among_characters_stand_for_no_text() -> None:
    found = vocabulary_tokenizer(["<pad>", "[UNK]", "a", None, "b", ""])
    assert (found.vocabulary_size, unknown_id(found), found.id_of("<pad>")) == (6, 1, 0)
    assert found.decode([0, 2, 1, 3, 4, 5]) == "ab"
    assert found.encode("ab") == [2, 4]
    with pytest.raises(UnknownTokenError):
        found.encode("<pad>")  # a text that spells a role is only a text


def test_words_stand_between_spaces() -> None:
    found = vocabulary_tokenizer(["<pad>", "<unk>", "<eos>", "the", "lamp", "."], line_end="<eos>")
    assert found.encode("the  lamp\nfell .\n") == [3, 4, 2, 1, 5, 2]
    assert found.decode([3, 4, 2, 3, 0, 5]) == " the lamp\n the ."
    assert (kind_of(found), found.line_end, unknown_id(found)) == ("word", 2, 1)


def test_words_without_one_for_others() -> None:
    found = vocabulary_tokenizer(["the", "lamp", "\n"])
    with pytest.raises(UnknownTokenError, match="never seen 'a' 'fell'"):
        found.encode("a lamp fell")
    with pytest.raises(UnknownTokenError):
        found.encode_batch(["the lamp", "a lamp"])
    assert found.encode("a lamp fell", unknown="skip") == [1]
    assert found.encode_batch(["the lamp", "lamp"]) == [[0, 1], [1]]


@pytest.mark.parametrize("tokens", [["a", "b"], ["<unk>", "ab", "c"]])
def test_texts_may_be_lowercased_first(tokens: list[str]) -> None:
    plain, lower = vocabulary_tokenizer(tokens), vocabulary_tokenizer(tokens, lowercase=True)
    assert lower.encode(tokens[1].upper()) == [1]
    if len(tokens) == 2:
        with pytest.raises(UnknownTokenError):
            plain.encode("B")
    else:
        assert plain.encode("AB") == [0]


def test_ids_of_a_mapping_may_leave_some_out() -> None:
    """Keras numbers words from 1; id 0 is padding."""
    found = vocabulary_tokenizer({"the": 1, "lamp": 3})
    assert found.vocabulary_size == 4
    assert found.encode("the lamp") == [1, 3]
    assert found.decode([0, 1, 2]) == " the"


WRONG: list[tuple[Any, str]] = [
    ([], "no tokens"),
    (["<pad>", None], "no tokens"),
    (["a", "b", "a"], "'a' twice: as token 0 and 2"),
    (["ab", "c d"], "token 1 of the vocabulary is 'c d'"),
    ({"a": 0, "b": 0}, "id 0 twice: for 'a' and 'b'"),
    ({"a": -1}, "whole numbers from 0"),
    ({"a": 0.5}, "whole numbers from 0"),
    ({"a": 2**40}, "whole numbers from 0"),
    ({}, "whole numbers from 0"),
]


@pytest.mark.parametrize(("tokens", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_vocabularies_that_are_refused(tokens: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        vocabulary_tokenizer(tokens)


def test_tokenizers_whose_tokens_stand_for_no_bytes_are_refused() -> None:
    from tokenizers import Tokenizer as Encoder
    from tokenizers import decoders, models

    encoder = Encoder(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    encoder.decoder = decoders.WordPiece()
    with pytest.raises(BundleError, match="decoder of type WordPiece"):
        as_tokenizer(encoder)
    with pytest.raises(DataError, match=r"cannot read nowhere\.json"):
        as_tokenizer("nowhere.json")


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8", newline="")
    return path


def test_files_from_windows(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    found = []
    for line_end in (b"\n", b"\r\n"):
        path.write_bytes(line_end.join([b"a", b"\\n", b"b", b""]))
        found.append(read_vocabulary(path).encode("a\nb"))
    assert found[0] == found[1] == [0, 1, 2]


def test_files(tmp_path: Path) -> None:
    expected = ["a", "\n", " ", "b"]
    for name, content in {
        "lines.txt": "a\n\\n\n \nb\n",
        "windows.txt": "a\r\n\\n\n \nb",
        "list.json": json.dumps(expected),
        "ids.json": json.dumps({token: index for index, token in enumerate(expected)}),
        "tokens.json": json.dumps(dict(enumerate(expected))),
    }.items():
        found = read_vocabulary(write(tmp_path / name, content))
        assert found.encode("a b\n") == [0, 2, 3, 1], name
    whole = tmp_path / "tokenizer.json"
    whole.write_bytes(found.content)
    assert read_vocabulary(whole).content == found.content
    with pytest.raises(InvalidValueError, match="is a whole tokenizer"):
        read_vocabulary(whole, lowercase=True)


@pytest.mark.parametrize("content", ["3", '"text"', "[1, 2]", '{"a": [1]}', "{", "[" * 100_000])
def test_files_that_are_no_vocabulary(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError):
        read_vocabulary(write(tmp_path / "v.json", content))


def test_a_tokenizer_is_taken_as_it_is() -> None:
    found = vocabulary_tokenizer(["a", "b"])
    assert as_tokenizer(found) is found
    assert isinstance(as_tokenizer(found.content), Tokenizer)
