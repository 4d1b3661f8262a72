"""Word vectors of both sides of sentence pairs, by gensim's word2vec, as files that training begins with.

    pip install gensim
    python -m benchmarks.word2vec PAIRS.tsv -o FOLDER

Texts are cut into the words of a word-level translator. Each side's vectors are written as text and as binary, and read
again by our own reader: the table says what was found, and how far it is from gensim's own matrix.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table
from rnn_edge.text_files import read_pairs
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.pretrained import load_vectors, token_texts
from rnn_edge_export.recipe_sections import PairSection
from rnn_edge_export.translation.subwords import UNKNOWN, train_tokenizers

SIDES = ("source", "target")
WORDS = 100_000  # more than the pairs have


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="TSV file: source, tab, target")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--minimum-count", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="with more than one the vectors differ from run to run")
    options = parser.parse_args()
    pairs, sha256 = read_pairs([options.pairs])
    options.output.mkdir(parents=True, exist_ok=True)
    tokenizers = train_tokenizers(pairs, PairSection(tokenizer="word", vocabulary_size=WORDS))
    rows = []
    for side, tokenizer in enumerate(tokenizers):
        texts = token_texts(tokenizer)
        vectors = train([pair[side] for pair in pairs], tokenizer, options)
        for binary in (False, True):
            path = options.output / f"{SIDES[side]}.{'bin' if binary else 'txt'}"
            vectors.save_word2vec_format(str(path), binary=binary)
            found = load_vectors(path, tokenizer)
            names = [texts[token] for token in found.ids]
            expected = vectors[[name if name in vectors else name.lower() for name in names]]
            difference = np.abs(found.vectors - expected).max()
            covered = f"{len(found.ids):,} of {len(texts):,}"
            rows.append([path.name, f"{found.words:,}", covered, f"{difference:g}"])
    print(table(("file", "words", "tokens with a vector", "largest difference from gensim's"), rows))
    print(f"{options.pairs.name}, {len(pairs):,} pairs, SHA-256 {sha256}")


def train(texts: list[str], tokenizer: Tokenizer, options: argparse.Namespace) -> Any:
    """gensim's ``KeyedVectors`` of skip-gram with negative sampling (Mikolov et al. 2013)."""
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise SystemExit("error: gensim is not installed\nhint: run: pip install gensim") from error
    names = token_texts(tokenizer)
    unknown = tokenizer.id_of(UNKNOWN)
    sentences = [[names[token] for token in ids if token != unknown] for ids in tokenizer.encode_batch(texts)]
    model = Word2Vec(
        sentences,
        sg=1,
        vector_size=options.width,
        window=options.window,
        min_count=options.minimum_count,
        epochs=options.epochs,
        workers=options.workers,
        seed=1,
    )
    return model.wv


if __name__ == "__main__":
    main()
