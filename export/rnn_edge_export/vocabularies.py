"""Tokenizers from text: characters, bytes, words and subwords of language models.

Line ends are tokens of their own (runs of them may become one subword), and no token reaches past one. So a text may be
tokenised in parts that are cut there, and the parts together are what the whole would have been.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Encoder

from rnn_edge.errors import DataError
from rnn_edge.tokenizer import Tokenizer, byte_level_alphabet, character_tokenizer
from rnn_edge_export.recipe_sections import StreamSection

UNKNOWN = "<unk>"


def train_tokenizer(
    training: StreamSection, chunks: Callable[[], Iterable[str]], characters: Iterable[str]
) -> Tokenizer:
    """The tokenizer that a recipe asks for, from ``chunks`` of the training text and all ``characters`` of all texts.

    Chunks are cut where no token is.

    Raises:
        DataError: no word is left.
    """
    if training.tokenizer == "character":
        return character_tokenizer("".join(characters))
    if training.tokenizer == "byte":
        return byte_tokenizer()
    if training.tokenizer == "subword":
        return train_subwords(chunks(), training.vocabulary_size)
    return train_words(
        chunks(),
        training.vocabulary_size,
        minimum_count=training.minimum_count,
        between_spaces=training.words == "spaces",
    )


def byte_tokenizer() -> Tokenizer:
    """256 tokens, each the byte of its id."""
    vocabulary = {character: byte for byte, character in enumerate(byte_level_alphabet())}
    encoder = Encoder(models.BPE(vocab=vocabulary, merges=[]))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.decoder = decoders.ByteLevel()
    return _finish(encoder)


def train_subwords(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; bytes as in Radford et al. 2019) of at most ``size`` tokens.

    Nothing is unknown, and decoding gives the text back.
    """
    encoder = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(byte_level_alphabet()), show_progress=False, special_tokens=[]
    )
    encoder.train_from_iterator(texts, trainer)
    return _finish(encoder)


def train_words(texts: Iterable[str], size: int, *, minimum_count: int = 1, between_spaces: bool = False) -> Tokenizer:
    """The most frequent words, line ends among them, and ``<unk>`` for all others: at most ``size`` tokens.

    Words and punctuation marks, each with the space before it (``" house"``, ``","``); decoding gives known words back
    as they were. ``between_spaces`` takes whatever stands between spaces instead, for texts that are tokenised already:
    decoding puts one space before each.

    Raises:
        DataError: no word is as frequent as ``minimum_count``.
    """
    encoder = split_at_spaces() if between_spaces else _byte_level(models.WordLevel({}, UNKNOWN))
    split = encoder.pre_tokenizer.pre_tokenize_str
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in split(text))
    counts.pop(UNKNOWN, None)  # tokenised corpora have it in their text
    line_end = "\n" if between_spaces else "Ċ"
    kept = [word for word, count in counts.items() if count >= minimum_count and word != line_end]
    if not kept:
        raise DataError(
            f"no word occurs {minimum_count} times in the training text",
            "lower --minimum-count, or give more text",
        )
    # Ties go to the earlier one in the alphabet, so that the order of the text does not matter.
    kept.sort(key=lambda word: (-counts[word], word))
    vocabulary = {word: index for index, word in enumerate([UNKNOWN, line_end, *kept[: size - 2]])}
    encoder.model = models.WordLevel(vocabulary, UNKNOWN)
    return _finish(encoder)


def _byte_level(model: models.Model) -> Encoder:
    encoder = Encoder(model)
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+" if isinstance(model, models.BPE) else r"\n"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    encoder.decoder = decoders.ByteLevel()
    return encoder


def split_at_spaces(vocabulary: dict[str, int] | None = None, unknown: str = UNKNOWN) -> Encoder:
    """What stands between spaces, and line ends."""
    encoder = Encoder(models.WordLevel(vocabulary or {}, unknown))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), behavior="isolated"),
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), behavior="removed"),
        ]
    )
    return encoder


def _finish(encoder: Encoder) -> Tokenizer:
    return Tokenizer((encoder.to_str(pretty=True) + "\n").encode())
