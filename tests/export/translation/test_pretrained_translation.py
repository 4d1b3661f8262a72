"""Translators whose embeddings begin with pretrained vectors: sides, one table for both, freezing, projections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rnn_edge_export.checkpoint import Best, load_checkpoint
from rnn_edge_export.pretrained import load_vectors, token_texts
from rnn_edge_export.recipe import TranslationRecipe
from rnn_edge_export.translation.modules import EncoderDecoder
from rnn_edge_export.translation.steps import DecoderStep, EncoderGraph
from rnn_edge_export.translation.task import new_model, run_tokenizers
from tests.export.translation.conftest import PLAIN, write_pairs

if TYPE_CHECKING:
    from rnn_edge.text_files import Pair
    from tests.export.conftest import Cli, CliError

_FLAGS = [
    *("--embedding", "8", "--encoder-hidden", "6", "--encoder-layers", "1", "--hidden", "12", "--layers", "1"),
    *("--vocabulary-size", "300", "--batch-tokens", "400", "--validation-pairs", "16", "--epochs", "1.5"),
    *("--validation-interval", "5", "--precision", "fp32", "--threads", "1", "--device", "cpu"),
]


@pytest.fixture
def corpus(tmp_path: Path, numbers: list[Pair]) -> Path:
    """Numbers, word by word."""
    return write_pairs(tmp_path / "pairs.tsv", numbers)


def _vectors(folder: Path, name: str, words: str, width: int) -> Path:
    random = np.random.default_rng(len(words))
    lines = [" ".join([word, *map(str, random.normal(size=width))]) + "\n" for word in words.split()]
    path = folder / name
    path.write_text("".join(lines), encoding="utf-8", newline="")
    return path


def _recipe(run: Path) -> TranslationRecipe:
    return TranslationRecipe.from_toml(run / "recipe.toml")


def _first(run: Path) -> EncoderDecoder:
    """The network of a run as it is drawn, without vectors."""
    recipe = _recipe(run)
    torch.manual_seed(recipe.training.seed)
    return new_model(recipe, run_tokenizers(run))


def _rows(model: dict[str, Tensor], side: str) -> Tensor:
    return model[f"model.{side}_embedding.weight"]


def test_each_side_has_its_own_vectors(tmp_path: Path, corpus: Path, cli: Cli) -> None:
    source = _vectors(tmp_path, "en.vec", "one two three house", 8)
    target = _vectors(tmp_path, "fr.vec", "un Deux trois quatre", 5)
    run, flags = tmp_path / "run", [*_FLAGS, "--tokenizer", "word", "--freeze-embeddings"]
    flags += ["--source-embeddings", str(source), "--target-embeddings", str(target)]
    answer = cli("train", "translation", corpus, "-o", run, *flags)
    assert answer.code == 0, answer.err
    assert "en.vec: 4 words × 8; vectors for 3 of 7 tokens" in answer.err
    assert "fr.vec: 4 words × 5; vectors for 3 of 7 tokens" in answer.err
    recipe = _recipe(run)
    assert [(item.of, item.name) for item in recipe.data.vectors] == [("source", "en.vec"), ("target", "fr.vec")]
    assert (recipe.model.source_vector_width, recipe.model.target_vector_width) == (0, 5)
    first, tokenizers = _first(run), run_tokenizers(run)
    load_vectors(source, tokenizers[0]).write_into(first.source_embedding)
    load_vectors(target, tokenizers[1]).write_into(first.target_embedding)
    best, _ = load_checkpoint(run / "best.safetensors", Best)
    assert torch.equal(_rows(best, "source"), first.source_embedding.weight)
    assert torch.equal(_rows(best, "target"), first.target_embedding.weight)
    assert first.target_embedding.projection is not None
    moved = best["model.target_embedding.projection.weight"]
    assert not torch.equal(moved, first.target_embedding.projection.weight)
    answer = cli("export", run, "-o", tmp_path / "bundle")
    assert answer.code == 0, answer.err
    assert cli("translate", tmp_path / "bundle", "one two").code == 0


def test_one_side_alone(tmp_path: Path, corpus: Path, cli: Cli) -> None:
    """The other side's table is as ever, and learns."""
    path = _vectors(tmp_path, "en.vec", "one two three house", 8)
    run, flags = tmp_path / "run", [*_FLAGS, "--tokenizer", "word", "--freeze-embeddings"]
    assert cli("train", "translation", corpus, "-o", run, *flags, "--source-embeddings", path).code == 0
    first = _first(run)
    texts = token_texts(run_tokenizers(run)[0])
    best, _ = load_checkpoint(run / "best.safetensors", Best)
    same = (_rows(best, "source") == first.source_embedding.weight).all(dim=1).tolist()
    assert {text for text, kept in zip(texts, same, strict=True) if not kept} == {"one", "two", "three"}
    assert not (_rows(best, "target") == first.target_embedding.weight).any(dim=1).all()
    # And so it stays in a run from these weights.
    more = ("train", "translation", corpus, "-o", tmp_path / "more", "--init-from", run)
    assert cli(*more).code == 0
    again, _ = load_checkpoint(tmp_path / "more" / "best.safetensors", Best)
    assert torch.equal(_rows(again, "source"), _rows(best, "source"))
    assert not torch.equal(_rows(again, "target"), _rows(best, "target"))
    assert _recipe(tmp_path / "more").data.frozen == ("source",)


@pytest.mark.parametrize("given", [("--source-embeddings",), ("--source-embeddings", "--target-embeddings")])
def test_one_table_for_both_sides(tmp_path: Path, corpus: Path, cli: Cli, given: tuple[str, ...]) -> None:
    path = _vectors(tmp_path, "all.vec", "un two trois t", 4)
    run = tmp_path / "run"
    files = [word for flag in given for word in (flag, str(path))]
    answer = cli("train", "translation", corpus, "-o", run, *_FLAGS, "--freeze-embeddings", *files)
    assert answer.code == 0, answer.err
    assert answer.err.count("all.vec: 4 words × 4; vectors for") == 1
    recipe, (tokenizer, _) = _recipe(run), run_tokenizers(run)
    assert [item.of for item in recipe.data.vectors] == ["both"]
    first = _first(run)
    load_vectors(path, tokenizer).write_into(first.target_embedding)
    best, _ = load_checkpoint(run / "best.safetensors", Best)
    assert torch.equal(_rows(best, "target"), first.target_embedding.weight)
    assert "model.source_embedding.weight" not in best
    assert cli("train", "translation", corpus, "-o", run, "--resume").code == 0  # finished, and needs no file
    assert cli("export", run, "-o", tmp_path / "bundle").code == 0


def test_flags_that_exclude_each_other(tmp_path: Path, corpus: Path, cli: Cli, cli_error: CliError) -> None:
    one, two = (_vectors(tmp_path, name, "un two", 8) for name in ("one.vec", "two.vec"))
    run = tmp_path / "run"
    arguments = ("train", "translation", corpus, "-o", run, *_FLAGS)
    files = ("--source-embeddings", one, "--target-embeddings", two)
    error, hint = cli_error(*arguments, *files, code=2)
    assert "two files" in error
    assert "--tokenizer word" in hint
    assert "--no-share-embeddings" in hint
    error, hint = cli_error(*arguments, "--freeze-embeddings", code=2)
    assert "--freeze-embeddings needs pretrained vectors" in error
    assert "--source-embeddings or --target-embeddings" in hint
    assert not run.exists()
    assert cli(*arguments, *files, "--no-share-embeddings").code == 0  # one vocabulary, two tables
    assert [item.name for item in _recipe(run).data.vectors] == ["one.vec", "two.vec"]
    error, _ = cli_error("train", "translation", corpus, "-o", run, "--resume", *files, code=2)
    assert "takes no --source-embeddings, --target-embeddings" in error


@pytest.mark.parametrize("changes", [{}, {"input_feeding": True}, {"share_embeddings": False}], ids=str)
@torch.no_grad()
def test_the_graphs_have_the_folded_tables(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    section = replace(PLAIN, source_vector_width=5, target_vector_width=13, **changes)
    model = EncoderDecoder(section, 11, 11, joint=True).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    source, lengths, tokens = torch.randint(11, (4, 3)), torch.tensor([4, 2, 3]), torch.randint(11, (5, 3))
    memory, state = model.encode(source, lengths)
    logits, _, _ = model.decode(tokens, state, memory)
    assert EncoderGraph(model).embedding.shape == (11, PLAIN.embedding)
    step = DecoderStep(model, "cell")
    assert step.embedding.shape == (11, PLAIN.embedding)
    for row, expected in zip(tokens, logits, strict=True):
        answer, _, *state = step(row, memory.values, memory.keys, lengths, *state)
        assert torch.allclose(answer, expected, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_reach_both_projections(frozen: bool) -> None:
    section = replace(PLAIN, source_vector_width=5, target_vector_width=13)
    model = EncoderDecoder(section, 11, 9, joint=False)
    for table in (model.source_embedding, model.target_embedding):
        table.weight.requires_grad_(not frozen)
    logits = model(torch.randint(11, (4, 3)), torch.tensor([4, 2, 3]), torch.randint(9, (5, 3)))
    logits.square().sum().backward()
    for table in (model.source_embedding, model.target_embedding):
        assert table.projection is not None
        gradient = table.projection.weight.grad
        assert gradient is not None
        assert gradient.abs().min() > 0
        assert (table.weight.grad is None) is frozen
