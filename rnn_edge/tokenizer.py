"""Text to token ids and back, and decoding as tokens stream in.

Decoding is defined over bytes: each token stands for some bytes, and a text is the UTF-8 reading of their
concatenation, with U+FFFD for what is not UTF-8. Streaming follows the same definition piece by piece.

What a token stands for is told by the decoder of its ``tokenizer.json``: ``Fuse`` for characters as they are,
``ByteLevel`` for bytes spelled in GPT-2's alphabet, and none at all, which joins by spaces, for words that stood
between spaces: each brings the space before it, and a line end brings none.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Encoder

from rnn_edge.errors import BundleError, InvalidValueError, UnknownTokenError

if TYPE_CHECKING:
    from rnn_edge.bundle import Bundle
    from rnn_edge.manifest import TokenizerSpec

Unknown = Literal["error", "skip"]


class Tokenizer:
    """Encode and decode by a ``tokenizer.json`` of the ``tokenizers`` library."""

    def __init__(self, content: bytes, where: str = "tokenizer.json") -> None:
        """Load from the file's bytes; ``where`` names it in errors.

        Raises:
            BundleError: not a tokenizer, or one whose tokens do not stand for bytes.
        """
        try:
            text = content.decode("utf-8")
            self._encoder = Encoder.from_str(text)
            description = json.loads(text)
            kind = description["model"].get("type")
            self._encoder.encode_special_tokens = True  # a text that spells a special token is only a text
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{where} is not a tokenizer: {error}", "export the bundle again") from error
        self.content = content
        self.vocabulary_size: int = self._encoder.get_vocab_size()
        self.token_bytes = _token_bytes(self._encoder, description, where)
        vocabulary: dict[str, int] = self._encoder.get_vocab()
        # A vocabulary of characters or words that has no token for others.
        closed = kind == "WordLevel" and description["model"].get("unk_token") not in vocabulary
        self._closed = vocabulary if closed else None
        plain = description.get("pre_tokenizer") == _CHARACTER_SPLIT and description.get("normalizer") is None
        self._characters = self._closed if plain else None

    def encode(self, text: str, *, unknown: Unknown = "error") -> list[int]:
        """Token ids of ``text``. Characters or words that the vocabulary lacks are an error, or left out (``"skip"``).

        Raises:
            UnknownTokenError: ``unknown`` is ``"error"`` and some are lacking; they are named.
        """
        if unknown not in ("error", "skip"):
            raise InvalidValueError(f"unknown is {unknown!r}", "use error or skip")
        if self._characters is not None:
            missing = sorted(set(text).difference(self._characters))
            if missing and unknown == "error":
                raise _never_seen(missing)
            if missing:
                text = text.translate(dict.fromkeys(map(ord, missing)))
            return list(map(self._characters.__getitem__, text))  # the same ids as the library's, without its objects
        if self._closed is not None:
            pieces = self._pieces(text)
            missing = sorted(set(pieces).difference(self._closed))
            if missing and unknown == "error":
                raise _never_seen(missing)
            return [self._closed[piece] for piece in pieces if piece in self._closed]
        try:
            return list(self._encoder.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # the library raises bare Exception
            raise _failure([text], error) from error

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text.

        Raises:
            UnknownTokenError: a text has what the vocabulary lacks, or surrogates, which are no characters.
        """
        if self._closed is not None:
            return [self.encode(text) for text in texts]
        try:
            # Fast is: without the places in the text.
            return [found.ids for found in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]
        except Exception as error:  # the library raises bare Exception
            raise _failure(texts, error) from error

    def covered(self, text: str, ids: Sequence[int]) -> int:
        """How many characters of ``text`` its ``ids`` stand for: all, but for those that were skipped."""
        closed = self._characters is not None or self._closed is not None
        return min(len(text), len(self.decode(ids))) if closed else len(text)

    def _pieces(self, text: str) -> list[str]:
        """The characters or words of a text, as the library splits it."""
        encoder = self._encoder
        try:
            normal = encoder.normalizer.normalize_str(text) if encoder.normalizer else text
            return (
                [piece for piece, _ in encoder.pre_tokenizer.pre_tokenize_str(normal)]
                if encoder.pre_tokenizer
                else [normal]
            )
        except Exception as error:  # the library raises bare Exception
            raise _failure([text], error) from error

    def spans(self, text: str) -> list[str]:
        """The part of ``text`` that each token stands for."""
        return [text[start:end] for start, end in self._encoder.encode(text, add_special_tokens=False).offsets]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``: their bytes read as UTF-8, with U+FFFD for what is not."""
        return b"".join([self.token_bytes[token] for token in ids]).decode("utf-8", errors="replace")

    def check_size(self, expected: int) -> None:
        """Compare the vocabulary with what a manifest says.

        Raises:
            BundleError: they differ.
        """
        if self.vocabulary_size != expected:
            raise BundleError(
                f"the tokenizer has {self.vocabulary_size} tokens, the manifest says {expected}",
                "export the bundle again",
            )

    def id_of(self, token: str) -> int | None:
        """The id of a token, or None."""
        found: int | None = self._encoder.token_to_id(token)
        return found

    @property
    def line_end(self) -> int | None:
        """The id of the token that is a line end and nothing else, or None."""
        return self.token_bytes.index(b"\n") if b"\n" in self.token_bytes else None


class StreamDecoder:
    """Decode ids one at a time.

    Invariant: the pieces of ``push`` and a last ``flush``, joined, equal ``Tokenizer.decode`` of all ids. Between
    calls at most the first three bytes of one character are held back (RFC 3629: no character has more than four).
    """

    def __init__(self, tokenizer: Tokenizer, pending: bytes = b"") -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder.decode(pending)

    def push(self, token: int) -> str:
        """The text that became certain with this token; it may be empty."""
        return self._decoder.decode(self._token_bytes[token])

    def push_all(self, tokens: Sequence[int]) -> str:
        """``push`` for several tokens."""
        return self._decoder.decode(b"".join([self._token_bytes[token] for token in tokens]))

    def push_bytes(self, piece: bytes) -> str:
        """``push`` for a token that stands for other bytes here than in the vocabulary."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is held back, as U+FFFD, since no byte will complete it."""
        return self._decoder.decode(b"", final=True)

    @property
    def pending(self) -> bytes:
        """The bytes of an incomplete character."""
        return self._decoder.getstate()[0]


def load_tokenizer(bundle: Bundle, spec: TokenizerSpec | None = None) -> Tokenizer:
    """A bundle's tokenizer, by default the manifest's ``tokenizer``, checked against its manifest."""
    spec = spec or bundle.manifest.tokenizer
    tokenizer = Tokenizer(bundle.read(spec.file), str(bundle.path / spec.file))
    tokenizer.check_size(spec.vocabulary_size)
    return tokenizer


def character_tokenizer(text: str) -> Tokenizer:
    """A tokenizer with one token for each distinct character of ``text``, ids in code point order."""
    vocabulary = {character: index for index, character in enumerate(sorted(set(text)))}
    encoder = Encoder(models.WordLevel(vocabulary, unk_token="<unk>"))  # not in the vocabulary: unknown is an error
    # [\s\S] rather than (?m:.): other implementations of the format read it too.
    encoder.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    encoder.decoder = decoders.Fuse()
    return Tokenizer((encoder.to_str(pretty=True) + "\n").encode())


def _never_seen(missing: Sequence[str]) -> UnknownTokenError:
    names = " ".join(map(repr, missing[:12]))
    more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
    return UnknownTokenError(f"the model has never seen {names}{more}", "leave them out, or pass --unknown skip")


def _failure(texts: Iterable[str], error: Exception) -> BundleError | UnknownTokenError:
    """Bytes of the command line that are not UTF-8 come as surrogates, and no tokenizer takes those."""
    surrogates = sorted({character for text in texts for character in text if "\ud800" <= character <= "\udfff"})
    if surrogates:
        return UnknownTokenError(f"the text has {surrogates[0]!r}, which is no character", "give text in UTF-8")
    return BundleError(f"the tokenizer fails: {error}", "export the bundle again")


_CHARACTER_SPLIT = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


def _token_bytes(encoder: Encoder, description: dict[str, object], where: str) -> tuple[bytes, ...]:
    decoder = description.get("decoder")
    kind = decoder.get("type") if isinstance(decoder, dict) else decoder
    if kind not in ("Fuse", "ByteLevel", None):
        raise BundleError(f"{where} has a decoder of type {kind}", "use a decoder of type Fuse or ByteLevel, or none")
    alphabet = {character: byte for byte, character in enumerate(byte_level_alphabet())}
    special = {index for index, token in encoder.get_added_tokens_decoder().items() if token.special}
    table: list[bytes] = []
    for index in range(encoder.get_vocab_size()):
        token = encoder.id_to_token(index)
        if token is None:
            raise BundleError(f"{where} has no token with id {index}", "export the bundle again")
        if index in special:
            table.append(b"")
        elif kind is None:
            table.append(b"\n" if token == "\n" else b" " + token.encode())
        elif kind == "ByteLevel" and all(character in alphabet for character in token):
            table.append(bytes(alphabet[character] for character in token))
        else:
            table.append(token.encode())
    return tuple(table)


def byte_level_alphabet() -> Sequence[str]:
    """The printable character that stands for each byte in byte-level vocabularies (Radford et al. 2019, GPT-2).

    Bytes that are printable in Latin-1 stand for themselves; the others are moved to U+0100 and up, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]
