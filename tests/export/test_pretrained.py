"""Embeddings that begin with pretrained vectors: matching, scale, projections, freezing; language models from flags."""

from __future__ import annotations

import gzip
import hashlib
import re
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from rnn_edge.bundle import read_bundle
from rnn_edge.errors import DataError
from rnn_edge.manifest import Lowering
from rnn_edge.tokenizer import Tokenizer, character_tokenizer
from rnn_edge_export.checkpoint import Best, Progress, load_checkpoint
from rnn_edge_export.cli.screen import TrainingScreen
from rnn_edge_export.embedding import Embedding
from rnn_edge_export.language_model.export import LanguageModelSource
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.language_model.steps import make_step
from rnn_edge_export.onnx_export import export_bundle
from rnn_edge_export.pretrained import PretrainedVectors, load_vectors, token_texts
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.recipe_sections import DataRecipe, LanguageModelSection, VectorFile
from rnn_edge_export.training_events import StepEvent, TrainingEvent
from rnn_edge_export.vocabularies import byte_tokenizer, train_subwords, train_words
from tests.export.conftest import ALPHABET

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError

_WORD = ("--tokenizer", "word", "--vocabulary-size", "40", "--epochs", "2", "--sequence-length", "16")


def _write(path: Path, words: dict[str, list[float]]) -> Path:
    lines = [" ".join([word, *map(repr, values)]) + "\n" for word, values in words.items()]
    path.write_text("".join(lines), encoding="utf-8", newline="")
    return path


def _vectors(folder: Path, width: int) -> Path:
    """For some words of the text that models of these tests learn, and for others; gzipped."""
    random = np.random.default_rng(width)
    words = ("the", "lamp", "rain", "moon", "Leans", "kettle", "zebra", ".", "spoons")
    path = _write(folder / "plain.txt", {word: random.normal(0.3, 0.2, width).tolist() for word in words})
    zipped = folder / f"vectors-{width}.txt.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    return zipped


def test_tokens_are_matched_by_the_text_that_they_stand_for() -> None:
    words = train_words(["The Élan, the\n"], 20)
    assert sorted(token_texts(words)) == ["", ",", "<unk>", "The", "the", "Élan"]
    spaces = train_words(["The ,\n"], 20, between_spaces=True)
    assert sorted(token_texts(spaces)) == ["", ",", "<unk>", "The"]
    subwords = train_subwords(["été été été été"], 300)
    assert "été" in token_texts(subwords)
    texts = token_texts(byte_tokenizer())
    assert texts[ord("a")] == "a"
    assert texts[ord(" ")] == texts[0xC3] == ""  # half a character is none


def test_exact_words_come_before_lower_case(tmp_path: Path) -> None:
    tokenizer = train_words(["The the Élan Paris rome Rain\n"], 20)
    path = _write(
        tmp_path / "words.vec",
        {"the": [1.0, 0.0], "The": [2.0, 0.0], "élan": [3.0, 0.0], "Rome": [4.0, 0.0], "rain": [5.0, 0.0]},
    )
    found = load_vectors(path, tokenizer)
    texts = token_texts(tokenizer)
    assert {texts[token]: row[0] for token, row in zip(found.ids, found.vectors, strict=True)} == {
        "The": 2.0, "the": 1.0, "Élan": 3.0, "Rain": 5.0,
    }  # fmt: skip
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    size = tokenizer.vocabulary_size
    assert (
        str(found)
        == f"words.vec: 5 words × 2; vectors for 4 of {size} tokens ({4 / size:.1%}), 2 of them by lower case"
    )


def test_no_word_in_common(tmp_path: Path) -> None:
    path = _write(tmp_path / "words.vec", {"zebra": [1.0, 2.0], "THE": [1.0, 2.0]})
    with pytest.raises(DataError, match="has 2 words, and none of them is among the") as caught:
        load_vectors(path, train_words(["the lamp"], 20))
    assert "language" in caught.value.hint


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e30])
@pytest.mark.parametrize("width", [6, 4])
def test_found_rows_have_the_spread_of_the_random_ones(factor: float, width: int) -> None:
    tokens = np.array([3, 0, 700])
    vectors = (np.random.default_rng(0).normal(0.4, 1.0, (3, width)) * factor).astype(np.float32)
    pretrained = PretrainedVectors(tokens, vectors, 1000, 0, 3, "some", "")
    torch.manual_seed(5)
    plain, started = (_embedding(1000, 6, width) for _ in range(2))
    pretrained.write_into(started)
    rest = np.setdiff1d(np.arange(1000), tokens)
    assert torch.equal(started.weight[rest], plain.weight[rest])
    rows = started.weight.detach()[tokens]
    assert rows.square().mean().sqrt() == pytest.approx(plain.weight.square().mean().sqrt().item(), rel=1e-5)
    ratios = rows / torch.from_numpy(vectors)
    assert ratios == pytest.approx(ratios[0, 0].item(), rel=1e-4)  # one number for all
    again = _embedding(1000, 6, width)
    pretrained.write_into(again)
    assert torch.equal(again.weight, started.weight)


def _embedding(size: int, width: int, vector_width: int) -> Embedding:
    torch.manual_seed(5)
    made = Embedding(size, width, 0 if vector_width == width else vector_width)
    made.initialise(0.3)
    return made


def test_vectors_of_zeros_stay_zeros() -> None:
    embedding = _embedding(9, 4, 4)
    PretrainedVectors(np.array([2]), np.zeros((1, 4), np.float32), 9, 0, 1, "zeros", "").write_into(embedding)
    assert not embedding.weight[2].any()
    assert embedding.weight.isfinite().all()


@pytest.mark.parametrize("vector_width", [0, 3, 40])
def test_a_table_behind_a_projection_is_one_table(vector_width: int) -> None:
    embedding = _embedding(500, 16, vector_width or 16)
    tokens = torch.tensor([[3, 499], [0, 3]])
    table = embedding.folded()
    assert table.shape == (500, 16)
    assert torch.allclose(embedding(tokens), table[tokens], atol=1e-6)
    assert table.std().item() == pytest.approx(0.3, rel=0.1)  # as wide as without a projection
    x = torch.randn(2, 5, 16)
    assert torch.allclose(embedding.back(x) @ embedding.weight.t(), x @ table.t(), atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_reach_table_and_projection(tied: bool, frozen: bool) -> None:
    section = LanguageModelSection(embedding=8, hidden=8, layers=1, tie_weights=tied, vector_width=5)
    model = RecurrentLanguageModel(section, 11)
    model.embedding.weight.requires_grad_(not frozen)
    projection = model.embedding.projection
    assert projection is not None
    logits, _ = model(torch.tensor([[1, 2]]), model.zero_state(2))
    logits.square().sum().backward()
    assert projection.weight.grad is not None
    assert projection.weight.grad.abs().min() > 0
    if frozen:
        assert model.embedding.weight.grad is None
    else:
        assert model.embedding.weight.grad is not None
        moved = model.embedding.weight.grad.any(dim=1)
        assert moved.tolist() == [tied or token in (1, 2) for token in range(11)]


@pytest.mark.parametrize("tied", [False, True])
def test_the_step_is_that_of_a_model_with_the_folded_table(tied: bool) -> None:
    section = LanguageModelSection(embedding=8, hidden=8, layers=1, tie_weights=tied, vector_width=5)
    model = RecurrentLanguageModel(section, 11).requires_grad_(False).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    tokens, state = torch.tensor([[3, 9], [0, 4]]), model.zero_state(2)
    logits, _ = model(tokens, state)
    step, flat = make_step(model, "cell"), [tensor for layer in state for tensor in layer]
    for row, expected in zip(tokens, logits, strict=True):
        answer, *flat = step(row, *flat)
        assert torch.allclose(answer, expected, atol=1e-5)


@pytest.mark.parametrize(("lowering", "tied"), [("operator", True), ("cell", False)])
def test_the_graph_does_not_change(tmp_path: Path, lowering: Lowering, tied: bool) -> None:
    """The same operators and shapes as without a projection, and the checks of an export pass."""
    graphs = []
    for vector_width in (0, 5):
        section = LanguageModelSection(embedding=8, hidden=8, layers=1, tie_weights=tied, vector_width=vector_width)
        recipe = LanguageModelRecipe(data=DataRecipe(title="letters", sha256="0" * 64), model=section)
        tokenizer = character_tokenizer(ALPHABET)
        model = RecurrentLanguageModel(section, tokenizer.vocabulary_size).requires_grad_(False).eval()
        source = LanguageModelSource(model, tokenizer, recipe)
        content = source.draft("tiny", lowering)[1]["step.onnx"]
        if vector_width:
            content = export_bundle(source, tmp_path / "bundle", name="tiny", lowering=lowering)[0].graph("step")
        graph = onnx.load_model_from_string(content).graph
        graphs.append(([node.op_type for node in graph.node], sorted(tuple(item.dims) for item in graph.initializer)))
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("width", [6, 4])
@pytest.mark.parametrize("frozen", [False, True])
def test_train_lm_with_vectors(
    tmp_path: Path, corpus_file: Path, cli: Cli, train_flags: tuple[str, ...], width: int, frozen: bool
) -> None:
    path, run = _vectors(tmp_path, width), tmp_path / "run"
    flags = [*train_flags, *_WORD, *["--freeze-embeddings"] * frozen]
    answer = cli("train", "lm", corpus_file, "-o", run, *flags, "--embeddings", path)
    assert answer.code == 0, answer.err
    assert f"{path.name}: 9 words × {width}; vectors for 8 of " in answer.err
    recipe = LanguageModelRecipe.from_toml(run / "recipe.toml")
    assert recipe.data.vectors == (VectorFile("input", path.name, hashlib.sha256(path.read_bytes()).hexdigest()),)
    assert recipe.model.vector_width == (0 if width == 6 else width)
    assert str(tmp_path) not in (run / "recipe.toml").read_text(encoding="utf-8")

    # What it began with, made again by hand.
    tokenizer = Tokenizer((run / "tokenizer.json").read_bytes())
    torch.manual_seed(recipe.training.seed)
    first = RecurrentLanguageModel(recipe.model, tokenizer.vocabulary_size)
    load_vectors(path, tokenizer).write_into(first.embedding)
    last, _ = load_checkpoint(run / "last.safetensors", Progress)
    best, _ = load_checkpoint(run / "best.safetensors", Best)
    for tensors, name in ((last, "model"), (last, "average"), (best, "model")):
        assert torch.equal(tensors[f"{name}.embedding.weight"], first.embedding.weight) is frozen
        assert not torch.equal(tensors[f"{name}.output.weight"], first.output.weight)
        if first.embedding.projection is not None:
            assert not torch.equal(tensors[f"{name}.embedding.projection.weight"], first.embedding.projection.weight)
    answer = cli("export", run, "-o", tmp_path / "bundle")
    assert answer.code == 0, answer.err
    assert read_bundle(tmp_path / "bundle").manifest.architecture.embedding == 6


def test_resuming_needs_no_vectors(
    tmp_path: Path, corpus_file: Path, cli: Cli, train_flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _vectors(tmp_path, 4)
    arguments = [*train_flags, *_WORD, "--freeze-embeddings", "--embeddings", path]
    assert cli("train", "lm", corpus_file, "-o", tmp_path / "straight", *arguments).code == 0

    show = TrainingScreen.show

    def press(self: TrainingScreen, event: TrainingEvent) -> None:
        if isinstance(event, StepEvent) and event.step == 10:
            signal.raise_signal(signal.SIGINT)
        show(self, event)

    monkeypatch.setattr(TrainingScreen, "show", press)
    answer = cli("train", "lm", corpus_file, "-o", tmp_path / "run", *arguments)
    assert answer.code == 130, answer.err
    monkeypatch.undo()
    path.unlink()
    (command,) = re.findall(r"go on with: rnn-edge (.*)", answer.err)
    assert path.name not in command
    answer = cli(*shlex.split(command))
    assert answer.code == 0, answer.err
    assert "resuming at step 10" in answer.err
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == (
        tmp_path / "straight" / "best.safetensors"
    ).read_bytes()


def test_flags_that_exclude_each_other(
    tmp_path: Path, corpus_file: Path, cli_error: CliError, train_flags: tuple[str, ...]
) -> None:
    run, path = tmp_path / "run", _vectors(tmp_path, 4)
    arguments = ("train", "lm", corpus_file, "-o", run)
    flags: tuple[object, ...]
    assert "--freeze-embeddings needs pretrained vectors" in cli_error(*arguments, "--freeze-embeddings", code=2)[0]
    flags = ("--embeddings-encoding", "latin-1")
    assert "--embeddings-encoding needs pretrained vectors" in cli_error(*arguments, *flags, code=2)[0]
    flags = ("--embeddings", path, "--embeddings-encoding", "klingon")
    assert "klingon is unknown" in cli_error(*arguments, *train_flags, *flags, code=2)[0]
    assert "No such file" in cli_error(*arguments, "--embeddings", tmp_path / "missing.vec")[0]
    assert "is a folder" in cli_error(*arguments, "--embeddings", tmp_path)[0]
    other = _write(tmp_path / "other.vec", {"zebra": [1.0, 2.0]})
    assert "none of them is among" in cli_error(*arguments, *train_flags, *_WORD, "--embeddings", other)[0]
    assert not run.exists()


def test_a_resumed_run_takes_no_vectors(finished: Path, tmp_path: Path, cli_error: CliError) -> None:
    arguments = ("train", "lm", finished / "corpus.txt", "-o", finished / "run", "--resume")
    error, _ = cli_error(*arguments, "--embeddings", _vectors(tmp_path, 4), "--embeddings-encoding", "latin-1", code=2)
    assert "takes no --embeddings, --embeddings-encoding" in error


def test_a_recipe_that_names_vectors_needs_them(
    tmp_path: Path, corpus_file: Path, cli: Cli, cli_error: CliError, train_flags: tuple[str, ...]
) -> None:
    path = _vectors(tmp_path, 4)
    first = ("train", "lm", corpus_file, "-o", tmp_path / "first", *train_flags, *_WORD, "--embeddings", path)
    assert cli(*first).code == 0
    again = ("train", "lm", corpus_file, "-o", tmp_path / "again", "--recipe", tmp_path / "first" / "recipe.toml")
    error, hint = cli_error(*again, code=2)
    assert path.name in error
    assert "--embeddings" in hint
    answer = cli(*again, "--threads", 1, "--device", "cpu", "--embeddings", path)
    assert (answer.code, "note:" in answer.err) == (0, False), answer.err
    best = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("first", "again")]
    assert best[0] == best[1]
    # Of another width: the network follows the file, and it is said that this is not the recipe's.
    answer = cli(*again, "--force", "--threads", 1, "--device", "cpu", "--embeddings", _vectors(tmp_path, 6))
    assert "is not the file that the recipe names (vectors-4.txt.gz)" in answer.err
    assert LanguageModelRecipe.from_toml(tmp_path / "again" / "recipe.toml").model.vector_width == 0


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("binary", [False, True])
def test_files_of_gensim_are_read_to_its_own_vectors(tmp_path: Path, text: str, binary: bool) -> None:
    word2vec = pytest.importorskip("gensim.models.word2vec")
    sentences = [line.split() for line in text.splitlines()]
    model = word2vec.Word2Vec(sentences, vector_size=7, min_count=1, epochs=1, workers=1, seed=1)
    for suffix in ("", ".gz"):
        path = tmp_path / f"words{suffix}"
        model.wv.save_word2vec_format(str(path), binary=binary)
        tokenizer = train_words([text.replace(".", " .")], 1000, between_spaces=True)
        found = load_vectors(path, tokenizer)
        texts = token_texts(tokenizer)
        expected = model.wv[[texts[token] for token in found.ids]]
        assert len(found.ids) > 15
        assert np.array_equal(found.vectors, expected)
        assert found.words == len(model.wv)
