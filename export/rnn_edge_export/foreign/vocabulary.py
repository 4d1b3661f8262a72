"""Tokenizers of models from elsewhere: their own ``tokenizer.json``, or a bare list of characters or words."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Encoder
from tokenizers.normalizers import Lowercase

from rnn_edge.errors import DataError, InvalidValueError
from rnn_edge.manifest import TokenizerKind
from rnn_edge.text_files import read_text
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.vocabularies import split_at_spaces

# A tokenizer, its file or the file's bytes; or tokens in the order of their ids, or with their ids.
Vocabulary = Tokenizer | Encoder | bytes | str | os.PathLike[str] | Sequence[str | None] | Mapping[str, int]

_UNKNOWN = ("<unk>", "[UNK]", "<UNK>", "<oov>", "[OOV]", "<OOV>")
_PADDING = ("<pad>", "[PAD]", "<PAD>", "<blank>")
# Names of roles rather than text, where all else is characters.
_ROLE = re.compile(r"<[^<>\s]+>|\[[A-Z]+\]")
_LARGEST = 2**24  # ids; far more than any vocabulary, far less than memory


def as_tokenizer(given: Vocabulary) -> Tokenizer:
    """The tokenizer that is given in one of the forms of ``Vocabulary``.

    Raises:
        BundleError: not a tokenizer, or one whose tokens do not stand for bytes.
        DataError: a file that cannot be read, or a list with one token twice.
    """
    if isinstance(given, Tokenizer):
        return given
    if isinstance(given, Encoder):
        return Tokenizer(given.to_str(pretty=True).encode() + b"\n", "the tokenizer")
    if isinstance(given, bytes):
        return Tokenizer(given, "the tokenizer")
    if isinstance(given, str | os.PathLike):
        try:
            return Tokenizer(Path(given).read_bytes(), os.fspath(given))
        except OSError as error:
            raise DataError(
                f"cannot read {given}: {error.strerror}", "give the path of a tokenizer.json, or a list of tokens"
            ) from error
    return vocabulary_tokenizer(given)


def vocabulary_tokenizer(
    tokens: Sequence[str | None] | Mapping[str, int], *, line_end: str = "\n", lowercase: bool = False
) -> Tokenizer:
    """A tokenizer of characters or words in the order of their ids, or with their ids.

    Where every token is one character, apart from names like ``<pad>``, texts are split into characters; else into what
    stands between spaces, and decoding puts one space before each word. The token ``line_end`` stands for a line end.
    None, an empty token, an id that a mapping leaves out and padding stand for no text. ``lowercase`` lets texts be
    lowercased first, as they were in training.

    Raises:
        DataError: no tokens, one twice, two with one id, or one with space inside.
    """
    names = _in_order(tokens) if isinstance(tokens, Mapping) else list(tokens)
    roles = {place: f"<{place}>" for place, name in enumerate(names) if not name}
    roles |= {place: name for place, name in enumerate(names) if name in _PADDING}
    known = ["\n" if name == line_end else roles.get(place, name or "") for place, name in enumerate(names)]
    texts = [name for name in known if not _ROLE.fullmatch(name)]
    if not texts:
        raise DataError("the vocabulary has no tokens", "give its characters or words")
    characters = all(len(name) == 1 for name in texts)
    vocabulary: dict[str, int] = {}
    for place, name in enumerate(known):
        if name in vocabulary:
            raise DataError(
                f"the vocabulary has {name!r} twice: as token {vocabulary[name]} and {place}",
                "give each token once, in the order of the ids",
            )
        if not characters and name != "\n" and name.split() != [name]:
            raise DataError(
                f"token {place} of the vocabulary is {name!r}, and words have no space inside",
                "give a tokenizer.json, which says how texts are split",
            )
        vocabulary[name] = place
    if characters:
        roles |= {place: name for place, name in enumerate(known) if len(name) > 1}
    unknown = next((name for name in _UNKNOWN if name in vocabulary), None)
    encoder = _character_encoder(vocabulary) if characters else split_at_spaces(vocabulary, unknown or "<unk>")
    if lowercase:
        encoder.normalizer = Lowercase()
    encoder.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in roles.values()])
    return as_tokenizer(encoder)


def read_vocabulary(
    path: Path, encoding: str = "utf-8", *, line_end: str | None = None, usual: str = "\n", lowercase: bool = False
) -> Tokenizer:
    """The vocabulary of a file.

    A ``tokenizer.json``; or a JSON list of tokens, or table of tokens to ids or of ids to tokens; or a text file with a
    token a line, where ``\\n`` is a line end. ``line_end`` is the token that stands for one, else ``usual``.

    Raises:
        DataError: unreadable, or no vocabulary.
    """
    text, _ = read_text(path, encoding)
    if path.suffix.lower() != ".json":
        lines = text.removesuffix("\n").split("\n")
        plain = (line.removesuffix("\r") for line in lines)
        found: Any = ["\n" if line == "\\n" else line for line in plain]
    else:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON: {error}", "give a list of tokens, or a table of their ids") from error
        if isinstance(found, dict) and isinstance(found.get("model"), dict):
            if lowercase or line_end is not None:
                raise InvalidValueError(
                    f"{path} is a whole tokenizer, which says itself what a line end is and what is lowercased",
                    "leave --lowercase and --line-end out",
                )
            return Tokenizer(text.encode(), str(path))
        if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
            found = {value: int(key) for key, value in found.items() if key.isdecimal()}
    tokens = list(found) if isinstance(found, dict | list) else [0]
    if not all(isinstance(token, str | None) for token in tokens):
        raise DataError(f"{path} is no list of tokens and no table of their ids", "give one of the two")
    return vocabulary_tokenizer(found, line_end=line_end or usual, lowercase=lowercase)


def kind_of(tokenizer: Tokenizer) -> TokenizerKind:
    """What its tokens are."""
    description = json.loads(tokenizer.content)
    if description["model"]["type"] == "WordLevel":
        splits = json.dumps(description["pre_tokenizer"])
        return "character" if json.dumps(r"[\s\S]") in splits else "word"
    return "byte" if tokenizer.vocabulary_size == 256 and not description["model"].get("merges") else "subword"


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token for all that the vocabulary lacks, if it has one."""
    found = (tokenizer.id_of(name) for name in _UNKNOWN)
    return next((index for index in found if index is not None), None)


def role_id(tokenizer: Tokenizer, role: str, token: str | None) -> int | None:
    """The id of the token that a caller names for a role.

    Raises:
        InvalidValueError: the vocabulary lacks it.
    """
    if token is None:
        return None
    found = tokenizer.id_of(token)
    if found is None:
        raise InvalidValueError(f"{role} is {token!r}, which the vocabulary lacks", "name one of its tokens")
    return found


def _in_order(ids: Mapping[str, int]) -> list[str | None]:
    if not ids or not all(type(index) is int and 0 <= index < _LARGEST for index in ids.values()):
        raise DataError("the vocabulary's ids are not whole numbers from 0", "give a mapping of tokens to their ids")
    names: list[str | None] = [None] * (max(ids.values()) + 1)
    for name, index in ids.items():
        if names[index] is not None:
            raise DataError(
                f"the vocabulary has id {index} twice: for {names[index]!r} and {name!r}", "give each id once"
            )
        names[index] = name
    return names


def _character_encoder(vocabulary: dict[str, int]) -> Encoder:
    encoder = Encoder(models.WordLevel(vocabulary, unk_token="<no token>"))  # what is unknown is an error
    encoder.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    encoder.decoder = decoders.Fuse()
    return encoder
