"""Pretrained word vectors as the first rows of an embedding."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from rnn_edge.errors import DataError
from rnn_edge.tokenizer import Tokenizer
from rnn_edge_export.byte_stream import Progress
from rnn_edge_export.embedding import Embedding
from rnn_edge_export.recipe import Recipe
from rnn_edge_export.recipe_sections import Of, VectorFile
from rnn_edge_export.vector_files import read_vectors

R = TypeVar("R", bound=Recipe)
_WIDTHS: dict[Of, str] = {
    "input": "vector_width",
    "source": "source_vector_width",
    "target": "target_vector_width",
    "both": "target_vector_width",
}


@dataclass(frozen=True)
class PretrainedVectors:
    """Vectors float32 [N, width] of the tokens ``ids`` int64 [N], and where they are from.

    ``vocabulary_size`` counts all tokens, ``lowered`` those of N that only the lower case of their text has found,
    ``words`` those of the file.
    """

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    vocabulary_size: int
    lowered: int
    words: int
    name: str
    sha256: str

    @property
    def width(self) -> int:
        """Values of a vector."""
        width: int = self.vectors.shape[1]
        return width

    def __str__(self) -> str:
        """Coverage in one line for people."""
        found = f"{len(self.ids):,} of {self.vocabulary_size:,} tokens ({len(self.ids) / self.vocabulary_size:.1%})"
        lowered = f", {self.lowered:,} of them by lower case" if self.lowered else ""
        return f"{self.name}: {self.words:,} words × {self.width}; vectors for {found}{lowered}"

    @torch.no_grad()
    def write_into(self, embedding: Embedding) -> None:
        """Replace the random rows of these tokens; the others keep theirs.

        All vectors are scaled by one number, so that their root mean square is that of the random rows: the network's
        first weights expect it, and sources differ (0.4 in GloVe's 100 dimensions, 0.02 to 1 in word2vec's files).
        """
        rows = torch.from_numpy(self.vectors).double()
        own, expected = (values.square().mean().sqrt() for values in (rows, embedding.weight))
        scale = expected / own if own > 0 else 1.0
        embedding.weight[torch.from_numpy(self.ids)] = (rows * scale).float()


def load_vectors(
    path: Path, tokenizer: Tokenizer, encoding: str = "utf-8", progress: Progress = lambda done, total: None
) -> PretrainedVectors:
    """The vectors of a vocabulary's tokens: of their text as it is, else in lower case.

    Raises:
        DataError: the file cannot be used, or has a vector for no token.
        InvalidValueError: ``encoding`` is unknown.
    """
    texts = token_texts(tokenizer)
    wanted = {form for text in texts if text for form in (text, text.lower())}
    found = read_vectors(path, wanted, encoding, progress)
    ids, rows, lowered = [], [], 0
    for token, text in enumerate(texts):
        row = found.rows.get(text) if text else None
        if row is None and text:
            row = found.rows.get(text.lower())
            lowered += row is not None
        if row is not None:
            ids.append(token)
            rows.append(row)
    if not ids:
        raise DataError(
            f"{path} has {found.words:,} words, and none of them is among the {len(texts):,} tokens of the vocabulary",
            "give vectors of the text's language and writing, or leave them out",
        )
    return PretrainedVectors(
        np.array(ids), found.vectors[rows], len(texts), lowered, found.words, path.name, found.sha256
    )


def claim_vectors(plan: R, found: Mapping[Of, PretrainedVectors]) -> R:
    """The recipe with the files that its embeddings begin with, and their widths where they are not --embedding."""
    widths: dict[str, Any] = {item.name: 0 for item in fields(plan.model) if item.name in _WIDTHS.values()}
    widths |= {_WIDTHS[of]: vectors.width for of, vectors in found.items() if vectors.width != plan.model.embedding}
    files = tuple(VectorFile(of, vectors.name, vectors.sha256) for of, vectors in found.items())
    return replace(plan, model=replace(plan.model, **widths), data=replace(plan.data, vectors=files))


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """What each token stands for, without spaces around it; empty where that is no text, as half a character."""
    texts = [content.decode("utf-8", errors="replace").strip() for content in tokenizer.token_bytes]
    return ["" if "\ufffd" in text else text for text in texts]
