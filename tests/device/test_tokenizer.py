"""Tokens to text and back, whole and as a stream."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Encoder

from rnn_edge.errors import BundleError, InvalidValueError, UnknownTokenError
from rnn_edge.tokenizer import StreamDecoder, Tokenizer, character_tokenizer
from tests.device.tiny import LSTM

# --- characters


@given(st.text(min_size=1))
def test_every_character_round_trips(text: str) -> None:
    tokenizer = character_tokenizer(text)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.vocabulary_size == len(set(text))
    assert tokenizer.decode(ids) == text


def test_newlines_tabs_and_other_spaces() -> None:
    text = "a\n\n\tb\r\n c\u00a0\u2028\x00\x0b <unk> \ufffd e\u0301 👩‍🚀"
    tokenizer = character_tokenizer(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_are_in_code_point_order() -> None:
    tokenizer = character_tokenizer("hello\n")
    assert tokenizer.encode("\nehlo") == [0, 1, 2, 3, 4]
    assert [tokenizer.id_of(character) for character in "\no?"] == [0, 4, None]
    assert tokenizer.encode("") == []


def test_the_file_alone_is_enough() -> None:
    tokenizer = character_tokenizer("ab\n")
    again = Tokenizer(tokenizer.content)
    assert again.encode("b\na") == tokenizer.encode("b\na") == [2, 0, 1]
    # A pattern that other implementations of the format load too.
    assert json.loads(tokenizer.content)["pre_tokenizer"]["pattern"] == {"Regex": r"[\s\S]"}


def test_unknown_characters_are_named_or_skipped() -> None:
    tokenizer = character_tokenizer("abc")
    with pytest.raises(UnknownTokenError) as caught:
        tokenizer.encode("a\tb€c€")
    assert caught.value.message == r"the model has never seen '\t' '€'"
    assert "--unknown skip" in caught.value.hint
    assert tokenizer.encode("a\tb€c€", unknown="skip") == [0, 1, 2]
    assert tokenizer.encode("€", unknown="skip") == []
    with pytest.raises(UnknownTokenError, match=" and 14 more"):
        tokenizer.encode("".join(chr(0x4E00 + index) for index in range(26)))
    with pytest.raises(InvalidValueError, match="unknown is 'maybe'"):
        tokenizer.encode("a", unknown="maybe")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"{}", b"[]", b'{"model": 3}', (LSTM / "tokenizer.json").read_bytes()[:99]]
)
def test_not_a_tokenizer(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(content)


def test_a_decoder_that_does_not_stand_for_bytes() -> None:
    encoder = Encoder(models.WordLevel({"a": 0}, unk_token="?"))
    encoder.decoder = decoders.WordPiece()
    with pytest.raises(BundleError, match="decoder of type WordPiece"):
        Tokenizer(encoder.to_str().encode())


def test_ids_with_gaps() -> None:
    encoder = Encoder(models.WordLevel({"a": 0, "b": 2}, unk_token="?"))
    encoder.decoder = decoders.Fuse()
    with pytest.raises(BundleError, match="no token with id 1"):
        Tokenizer(encoder.to_str().encode())


def test_size_against_the_manifest() -> None:
    tokenizer = character_tokenizer("abc")
    tokenizer.check_size(3)
    with pytest.raises(BundleError, match="the tokenizer has 3 tokens, the manifest says 4"):
        tokenizer.check_size(4)


# --- bytes


def byte_level() -> Encoder:
    """All 256 bytes, some merges (one of them half a character), and a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    euro = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("€")[0][0]  # three bytes, three symbols
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), (euro[0], euro[1])]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(left + right for left, right in merges)])}
    encoder = Encoder(models.BPE(vocab=vocabulary, merges=merges))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    encoder.add_special_tokens([AddedToken("<end>", special=True)])
    return encoder


ENCODER = byte_level()
BYTES = Tokenizer(ENCODER.to_str().encode())
BY_BYTES = {content: index for index, content in enumerate(BYTES.token_bytes)}
IDS = st.lists(st.integers(0, BYTES.vocabulary_size - 1))
# Bytes that begin, continue and break characters more often than chance would.
AWKWARD = st.lists(
    st.sampled_from([0x41, 0x80, 0xBF, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xEF, 0xBD, 0xED, 0xF0, 0x9F, 0xF4, 0xFF])
)


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(token) for token in ids]
    return [*pieces, decoder.flush()]


def test_the_vocabulary_stands_for_every_byte() -> None:
    assert {bytes([byte]) for byte in range(256)} < set(BY_BYTES)
    assert {b"hell", b"\xe2\x82", b""} < set(BY_BYTES)


@given(st.text())
def test_text_round_trips(text: str) -> None:
    ids = BYTES.encode(text.replace("<end>", ""))
    assert BYTES.decode(ids) == text.replace("<end>", "")
    assert "".join(stream(BYTES, ids)) == text.replace("<end>", "")


@given(IDS)
def test_the_stream_joined_equals_the_whole(ids: list[int]) -> None:
    whole = BYTES.decode(ids)
    assert whole == ENCODER.decode(ids, skip_special_tokens=True)
    assert "".join(stream(BYTES, ids)) == whole


@given(AWKWARD)
def test_invalid_bytes_too(content: list[int]) -> None:
    ids = [BY_BYTES[bytes([byte])] for byte in content]
    whole = bytes(content).decode("utf-8", errors="replace")
    assert BYTES.decode(ids) == whole == ENCODER.decode(ids)
    assert "".join(stream(BYTES, ids)) == whole


@given(st.lists(st.sampled_from(["\ufffd", "é", "€", "😀", "a"])), st.integers(0, 20))
def test_a_real_replacement_character_is_text_like_any_other(characters: list[str], lost: int) -> None:
    content = "".join(characters).encode()
    content = content[: max(0, len(content) - lost)]
    pieces = stream(BYTES, [BY_BYTES[bytes([byte])] for byte in content])
    assert "".join(pieces) == content.decode("utf-8", errors="replace")


@given(AWKWARD)
def test_never_holds_back_more_than_three_bytes(content: list[int]) -> None:
    decoder = StreamDecoder(BYTES)
    shown = ""
    for count, byte in enumerate(content, 1):
        shown += decoder.push(BY_BYTES[bytes([byte])])
        assert len(decoder.pending) <= 3
        # All but the bytes held back is shown.
        assert shown == bytes(content[: count - len(decoder.pending)]).decode("utf-8", errors="replace")


@given(AWKWARD, st.integers(0, 30))
def test_goes_on_from_the_bytes_held_back(content: list[int], cut: int) -> None:
    ids = [BY_BYTES[bytes([byte])] for byte in content]
    first = StreamDecoder(BYTES)
    text = "".join(first.push(token) for token in ids[:cut])
    second = StreamDecoder(BYTES, first.pending)
    text += "".join(second.push(token) for token in ids[cut:]) + second.flush()
    assert text == BYTES.decode(ids)


def test_half_a_character_waits_for_the_rest() -> None:
    euro = [BY_BYTES[bytes([byte])] for byte in "€".encode()]
    assert stream(BYTES, euro) == ["", "", "€", ""]
    assert stream(BYTES, [BY_BYTES[b"\xe2\x82"], euro[2]]) == ["", "€", ""]
    assert stream(BYTES, [*euro[:2], BY_BYTES[b"a"]]) == ["", "", "\ufffda", ""]


def test_flush_shows_what_never_came_whole_and_only_once() -> None:
    decoder = StreamDecoder(BYTES)
    assert decoder.push(BY_BYTES[b"\xe2\x82"]) == ""
    assert decoder.pending == b"\xe2\x82"
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""
    assert decoder.pending == b""
