"""Fixtures of the quantisation tests: models whose matrices are large enough to be rounded, and their fp32 graphs."""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import pytest

from rnn_edge.manifest import Cell, Lowering, Manifest
from rnn_edge.tokenizer import character_tokenizer
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.recipe_sections import DataRecipe, LanguageModelSection

# The translators' fixtures, by a name that does not hide that of language models.
from tests.export.translation.conftest import Combination, pairs, tokenizers  # noqa: F401
from tests.export.translation.conftest import make_source as make_translator  # noqa: F401

if TYPE_CHECKING:
    from rnn_edge_export.language_model.export import LanguageModelSource
    from rnn_edge_export.language_model.modules import RecurrentLanguageModel
    from rnn_edge_export.translation.modules import EncoderDecoder
    from tests.export.translation.conftest import MakeSource

if find_spec("torch") is None:  # a device: nothing here applies
    collect_ignore_glob = ["test_*.py"]

EMBEDDING, HIDDEN = 56, 64
FEW, MANY = 68, 600  # letters: the table of FEW is worth being multiplied by the first layer's weights beforehand


class LanguageModelGraphs(NamedTuple):
    """A model and its step graph in fp32."""

    model: "RecurrentLanguageModel"
    manifest: Manifest
    contents: dict[str, bytes]


class TranslatorGraphs(NamedTuple):
    """A translator and its graphs in fp32."""

    model: "EncoderDecoder"
    manifest: Manifest
    contents: dict[str, bytes]


MakeLetters = Callable[..., "LanguageModelSource"]
DraftLetters = Callable[[Cell, Lowering, int, int], LanguageModelGraphs]
DraftTranslator = Callable[..., TranslatorGraphs]


@pytest.fixture(scope="session")
def make_letters() -> MakeLetters:
    """An untrained language model over so many letters, with all weights and biases random."""

    def make(
        cell: Cell, layers: int = 1, letters: int = FEW, embedding: int = EMBEDDING, tied: bool = False
    ) -> "LanguageModelSource":
        import torch

        from rnn_edge_export.language_model.export import LanguageModelSource
        from rnn_edge_export.language_model.modules import RecurrentLanguageModel

        section = LanguageModelSection(cell=cell, embedding=embedding, hidden=HIDDEN, layers=layers, tie_weights=tied)
        recipe = LanguageModelRecipe(title="Letters", data=DataRecipe(title="letters", sha256="0" * 64), model=section)
        tokenizer = character_tokenizer("\n" + "".join(chr(ord("一") + index) for index in range(letters - 1)))
        model = RecurrentLanguageModel(section, tokenizer.vocabulary_size).requires_grad_(False).eval()
        generator = torch.Generator().manual_seed(11)
        for name, parameter in model.named_parameters():
            # Embeddings reach beyond the bound of the states.
            parameter.normal_(std=0.6 if name == "embedding.weight" else 0.15, generator=generator)
        return LanguageModelSource(model, tokenizer, recipe)

    return make


@pytest.fixture(scope="session")
def draft_letters(make_letters: MakeLetters) -> DraftLetters:
    """The fp32 step graph of one combination; each only once a session."""

    @functools.cache
    def draft(cell: Cell, lowering: Lowering, layers: int, letters: int) -> LanguageModelGraphs:
        source = make_letters(cell, layers, letters)
        return LanguageModelGraphs(source.model, *source.draft("letters", lowering))

    return draft


@pytest.fixture(scope="session")
def draft_translator(make_translator: "MakeSource") -> DraftTranslator:  # noqa: F811
    """The fp32 graphs of one combination with this embedding; each only once a session."""

    @functools.cache
    def draft(chosen: Combination, embedding: int, encoder_hidden: int = 36) -> TranslatorGraphs:
        source = make_translator(
            chosen.tokenizer,
            std=0.12,
            cell=chosen.cell,
            attention=chosen.attention,
            input_feeding=chosen.feeding,
            layers=chosen.layers,
            encoder_layers=chosen.layers,
            embedding=embedding,
            encoder_hidden=encoder_hidden,
            hidden=2 * encoder_hidden,
        )
        return TranslatorGraphs(source.model, *source.draft("translator", chosen.lowering))

    return draft
