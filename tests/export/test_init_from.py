"""``--init-from``: training that starts from the weights of another; and runs that changed before they are resumed."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from rnn_edge_export.checkpoint import Best, Progress, load_checkpoint, module_tensors, save_checkpoint
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.run import read_metrics
from rnn_edge_export.training import Trainer
from rnn_edge_export.training_events import TrainingEvent
from tests.export.conftest import contents, names

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError

_HERE = ("--threads", 1, "--device", "cpu")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights that trainers begin with, copied: ``model.*`` and ``average.*``."""
    found: list[dict[str, Tensor]] = []
    run = Trainer.run

    def spy(self: Trainer[Any, Any]) -> Iterator[TrainingEvent]:
        both = module_tensors("model", self.state.model) | module_tensors("average", self.state.average)
        found.append({name: tensor.detach().clone() for name, tensor in both.items()})
        return run(self)

    monkeypatch.setattr(Trainer, "run", spy)
    return found


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], prefix: str = "model") -> None:
    expected = {name.removeprefix(f"{prefix}."): tensor for name, tensor in expected.items() if name.startswith(prefix)}
    assert len(found) == 2 * len(expected) > 0
    for name, tensor in expected.items():
        assert torch.equal(found[f"model.{name}"], tensor)
        assert torch.equal(found[f"average.{name}"], tensor)


def test_a_run_goes_on_from_the_best_of_another(
    finished: Path, cli: Cli, started: list[dict[str, Tensor]], train_flags: tuple[str, ...]
) -> None:
    run, corpus = finished / "run", finished / "corpus.txt"
    answer = cli("train", "lm", corpus, "-o", finished / "more", "--init-from", run, "--learning-rate", 0.001, *_HERE)
    assert answer.code == 0, answer.err
    assert "note" not in answer.err
    _assert_equal(started[0], load_checkpoint(run / "best.safetensors", Best)[0])
    first, more = (LanguageModelRecipe.from_toml(folder / "recipe.toml") for folder in (run, finished / "more"))
    sha256 = hashlib.sha256((run / "best.safetensors").read_bytes()).hexdigest()
    assert more == replace(
        first,
        data=replace(first.data, initial_sha256=sha256),
        training=replace(first.training, learning_rate=0.001),
    )
    assert (finished / "more" / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    before, after = read_metrics(run).validations, read_metrics(finished / "more").validations
    assert after[0].loss < before[-1].loss  # 10 steps more, not 10 steps
    # And from there on once more: each records where it began itself.
    assert cli("train", "lm", corpus, "-o", finished / "most", "--init-from", finished / "more", *_HERE).code == 0
    most = LanguageModelRecipe.from_toml(finished / "most" / "recipe.toml").data
    assert most.initial_sha256 == hashlib.sha256((finished / "more" / "best.safetensors").read_bytes()).hexdigest()


def test_another_text_by_the_same_tokenizer(finished: Path, cli: Cli, text: str) -> None:
    recipe = finished / "run" / "recipe.toml"
    named = recipe.read_text(encoding="utf-8").replace('licence = ""', 'licence = "CC0-1.0"')
    recipe.write_text('title = "Lamps"\n' + named.replace('title = ""\n', "", 1), encoding="utf-8")
    other = finished / "other.txt"
    other.write_text(text.replace("lamp", "moth").replace("pump", "moon"), encoding="utf-8", newline="")
    assert "p" in text
    answer = cli("train", "lm", other, "-o", finished / "more", "--init-from", finished / "run", *_HERE)
    assert answer.code == 0, answer.err
    assert "note" not in answer.err
    kept = LanguageModelRecipe.from_toml(finished / "more" / "recipe.toml")
    assert (kept.title, kept.data.title, kept.data.licence) == ("", "other.txt", "")
    assert kept.model == LanguageModelRecipe.from_toml(recipe).model
    assert "p" in json.loads((finished / "more" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]


def test_characters_that_the_vocabulary_lacks(finished: Path, cli_error: CliError, text: str) -> None:
    other = finished / "other.txt"
    other.write_text(text.replace("moth", "mößth"), encoding="utf-8", newline="")
    error, hint = cli_error("train", "lm", other, "-o", finished / "more", "--init-from", finished / "run", *_HERE)
    assert "'ß' 'ö'" in error
    assert "vocabulary of its own" in hint
    assert not (finished / "more").exists()


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_a_checkpoint_file(finished: Path, cli: Cli, started: list[dict[str, Tensor]], name: str) -> None:
    file = finished / "run" / name
    apart = finished / "apart"
    apart.mkdir()
    for part in (name, "recipe.toml", "tokenizer.json"):
        shutil.copy(finished / "run" / part, apart)
    answer = cli("train", "lm", finished / "corpus.txt", "-o", finished / "more", "--init-from", apart / name, *_HERE)
    assert answer.code == 0, answer.err
    tensors = load_checkpoint(file, Best if name == "best.safetensors" else Progress)[0]
    _assert_equal(started[0], tensors, "model" if name == "best.safetensors" else "average")
    recorded = LanguageModelRecipe.from_toml(finished / "more" / "recipe.toml").data.initial_sha256
    assert recorded == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_recipe_and_flags_over_it(finished: Path, cli: Cli, started: list[dict[str, Tensor]]) -> None:
    recipe = finished / "r.toml"
    recipe.write_text(
        '[data]\ntitle = "Lines"\n[model]\nhidden = 8\nembedding = 6\nlayers = 1\nlayer_dropout = 0.5\n'
        "[training]\nepochs = 0.1\nbatch_size = 4\nsequence_length = 8\n",
        encoding="utf-8",
    )
    arguments = ("-o", finished / "more", "--recipe", recipe, "--init-from", finished / "run", "--weight-drop", 0.1)
    answer = cli("train", "lm", finished / "corpus.txt", *arguments, *_HERE)
    assert answer.code == 0, answer.err
    assert "validated on what it was trained on" not in answer.err
    kept = LanguageModelRecipe.from_toml(finished / "more" / "recipe.toml")
    assert (kept.data.title, kept.training.batch_size) == ("Lines", 4)
    assert (kept.model.layer_dropout, kept.model.weight_drop) == (0.5, 0.1)  # which are no part of a network's shape
    _assert_equal(started[0], load_checkpoint(finished / "run" / "best.safetensors", Best)[0])
    answer = cli("train", "lm", finished / "corpus.txt", *arguments, *_HERE, "--force", "--validation-fraction", 0.2)
    assert "the same corpus is validated on what it was trained on before" in answer.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--hidden", 16, "--cell", "gru"), ("--cell is lstm there and gru here", "--hidden is 8 there and 16 here")),
        (("--layers", 2), ("--layers is 1 there and 2 here",)),
        (("--embedding", 8, "--tie-weights"), ("--embedding is 6 there and 8 here", "--tie-weights is False there")),
        (("--layer-norm",), ("--layer-norm is False there and True here",)),
        (("--tokenizer", "byte"), ("brings its tokenizer along", "--tokenizer is character there and byte here")),
        (("--minimum-count", 2), ("--minimum-count is 1 there and 2 here",)),
    ],
)
def test_another_network_or_tokenizer(
    finished: Path, cli_error: CliError, flags: tuple[object, ...], words: tuple[str, ...]
) -> None:
    arguments = ("-o", finished / "more", "--init-from", finished / "run", *flags, *_HERE)
    error, hint = cli_error("train", "lm", finished / "corpus.txt", *arguments)
    for word in words:
        assert word in error
    assert "--init-from" in hint
    assert not (finished / "more").exists()


def test_tensors_that_only_one_of_them_has(finished: Path, cli: Cli, cli_error: CliError) -> None:
    """Tied weights with equal widths have a tensor less, and would fit otherwise."""
    flags: list[object] = ["--embedding", 8, "--hidden", 8, "--layers", 1, "--batch-size", 8, "--epochs", 0.05]
    flags += ["--sequence-length", 24]
    assert cli("train", "lm", finished / "corpus.txt", "-o", finished / "wide", *flags, *_HERE).code == 0
    arguments = ("train", "lm", finished / "corpus.txt", "-o", finished / "more", "--init-from", finished / "wide")
    assert "--tie-weights is False there and True here" in cli_error(*arguments, "--tie-weights", *_HERE)[0]
    # A checkpoint that is not its recipe's: the tensors themselves are named.
    best = finished / "wide" / "best.safetensors"
    tensors, found = load_checkpoint(best, Best)
    save_checkpoint(best, {name: tensor for name, tensor in tensors.items() if "bias_ih" not in name}, found)
    error, _ = cli_error(*arguments, *_HERE)
    assert "layers.0.bias_ih_l0 is missing there and (32,) here" in error


def test_what_cannot_be_started_from(
    finished: Path, cli_error: CliError, train_flags: tuple[str, ...], tmp_path: Path
) -> None:
    run, apart = finished / "run", finished / "apart"
    apart.mkdir()
    shutil.copy(run / "best.safetensors", apart)
    translator = Path(shutil.copytree(run, finished / "translator"))
    (translator / "recipe.toml").write_text('task = "translation"\n', encoding="utf-8")
    begun = Path(shutil.copytree(run, finished / "begun"))
    (begun / "best.safetensors").unlink()
    nameless = Path(shutil.copytree(run, finished / "nameless"))
    (nameless / "tokenizer.json").unlink()
    (run / "weights.pt").write_bytes(pickle.dumps({"model": 1}))
    (run / "cut.safetensors").write_bytes((run / "best.safetensors").read_bytes()[:-5])
    before = contents(finished)
    cases: list[tuple[Path, str, str]] = [
        (finished / "no", "is not a training run", "rnn-edge train"),
        (finished, "is not a training run", "rnn-edge train"),
        (apart / "best.safetensors", "no recipe.toml", "give the run's folder"),
        (translator, "is for translation", "rnn-edge train translation"),
        (begun, "has no checkpoint best.safetensors", "another run or checkpoint"),
        (nameless, "tokenizer.json", ""),
        (run / "weights.pt", "is not a checkpoint", ".safetensors"),
        (run / "cut.safetensors", "is not a checkpoint", ".safetensors"),
    ]
    for path, words, mend in cases:
        arguments = ("train", "lm", finished / "corpus.txt", "-o", finished / "more", "--init-from", path, *_HERE)
        error, hint = cli_error(*arguments)
        assert words in error
        assert mend in hint
        assert contents(finished) == before
    resume = ("train", "lm", finished / "corpus.txt", "-o", run, "--resume", "--init-from", run)
    assert "takes no --init-from" in cli_error(*resume, code=2)[0]


def test_pretrained_vectors_come_along(finished: Path, cli: Cli, cli_error: CliError) -> None:
    """They are in the weights: their file is not wanted again, nor taken."""
    vectors = finished / "vectors.txt"
    vectors.write_text("".join(f"{character} 0.5 -1 {index}\n" for index, character in enumerate("abcdel")))
    first: list[object] = [
        "--embeddings",
        vectors,
        "--freeze-embeddings",
        "--embedding",
        5,
        "--hidden",
        8,
        "--batch-size",
        8,
    ]
    first += ["--sequence-length", 24, "--epochs", 0.05]
    corpus = finished / "corpus.txt"
    answer = cli("train", "lm", corpus, "-o", finished / "vectors", *first, *_HERE)
    assert answer.code == 0, answer.err
    begun = LanguageModelRecipe.from_toml(finished / "vectors" / "recipe.toml")
    assert (begun.data.vectors[0].name, begun.model.vector_width) == ("vectors.txt", 3)
    start = ("train", "lm", corpus, "-o", finished / "more", "--init-from", finished / "vectors")
    error, _ = cli_error(*start, "--embeddings", vectors, *_HERE, code=2)
    assert error == "--init-from brings its embeddings along and takes no --embeddings"
    vectors.unlink()
    answer = cli(*start, *_HERE)
    assert answer.code == 0, answer.err
    more = LanguageModelRecipe.from_toml(finished / "more" / "recipe.toml")
    assert (more.data.vectors, more.model) == ((), begun.model)
    tables = [
        load_checkpoint(finished / name / "best.safetensors", Best)[0]["model.embedding.weight"]
        for name in ("vectors", "more")
    ]
    assert torch.equal(*tables)  # frozen still


def test_it_resumes_as_any_other(finished: Path, cli: Cli) -> None:
    """Without --init-from, and to the same weights as without a break."""
    start = ("--init-from", finished / "run", *_HERE)
    assert cli("train", "lm", finished / "corpus.txt", "-o", finished / "straight", *start).code == 0
    recipe = (finished / "straight" / "recipe.toml").read_text(encoding="utf-8")
    run, validate = finished / "broken", Trainer._validate

    class Killed(BaseException):
        pass

    def kill(self: Trainer[Any, Any]) -> Any:
        if self.state.progress.step == 20:
            raise Killed
        return validate(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_validate", kill)
        cli("train", "lm", finished / "corpus.txt", "-o", run, *start)
    shutil.rmtree(finished / "run")  # nothing of it is needed any more
    answer = cli("train", "lm", finished / "corpus.txt", "-o", run, "--resume", *_HERE)
    assert answer.code == 0, answer.err
    assert "resuming at step 10" in answer.err
    assert (run / "recipe.toml").read_text(encoding="utf-8") == recipe
    assert (run / "best.safetensors").read_bytes() == (finished / "straight" / "best.safetensors").read_bytes()


def test_a_run_may_replace_what_it_starts_from(
    finished: Path, cli: Cli, cli_error: CliError, started: list[dict[str, Tensor]]
) -> None:
    run = finished / "run"
    best, before = load_checkpoint(run / "best.safetensors", Best)[0], names(run)
    arguments = ("train", "lm", finished / "corpus.txt", "-o", run, "--init-from", run, *_HERE)
    assert "exists" in cli_error(*arguments)[0]
    assert cli(*arguments, "--force").code == 0
    _assert_equal(started[0], best)
    assert names(run) == before


def test_a_recipe_that_began_from_weights_says_so(finished: Path, cli: Cli) -> None:
    recipe = finished / "run" / "recipe.toml"
    content = recipe.read_text(encoding="utf-8").replace('initial_sha256 = ""', f'initial_sha256 = "{"0" * 64}"')
    recipe.write_text(content, encoding="utf-8")
    answer = cli("train", "lm", finished / "corpus.txt", "-o", finished / "more", "--recipe", recipe, *_HERE)
    assert answer.code == 0, answer.err
    assert "note: the recipe starts from other weights" in answer.err
    assert LanguageModelRecipe.from_toml(finished / "more" / "recipe.toml").data.initial_sha256 == ""


# --- resuming what has changed


def test_resuming_another_architecture_says_what_differs(finished: Path, cli_error: CliError) -> None:
    recipe = finished / "run" / "recipe.toml"
    content = recipe.read_text(encoding="utf-8").replace("hidden = 8", "hidden = 9").replace('"lstm"', '"rnn"')
    recipe.write_text(content, encoding="utf-8")
    error, hint = cli_error("train", "lm", finished / "corpus.txt", "-o", finished / "run", "--resume", *_HERE)
    assert "has changed since its last checkpoint" in error
    assert "--cell is lstm there and rnn here, --hidden is 8 there and 9 here" in error
    assert "recipe.toml" in hint


def test_resuming_with_another_tokenizer_says_so(finished: Path, cli_error: CliError, text: str) -> None:
    """Also one of the same size, whose tensors fit."""
    tokenizer = finished / "run" / "tokenizer.json"
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["t"], vocabulary["e"] = vocabulary["e"], vocabulary["t"]
    tokenizer.write_text(json.dumps(content), encoding="utf-8")
    error, hint = cli_error("train", "lm", finished / "corpus.txt", "-o", finished / "run", "--resume", *_HERE)
    assert "tokenizer.json is" in error
    assert "--" not in error.split("checkpoint:")[1]
    assert "tokenizer" in hint


def test_checkpoints_from_before_say_less(finished: Path, cli: Cli, cli_error: CliError) -> None:
    last = finished / "run" / "last.safetensors"
    tensors, progress = load_checkpoint(last, Progress)
    assert progress.made_of["--hidden"] == "8"
    assert not any("dropout" in name for name in progress.made_of)
    save_checkpoint(last, tensors, replace(progress, made_of={}))
    arguments = ("train", "lm", finished / "corpus.txt", "-o", finished / "run", "--resume", *_HERE)
    assert cli(*arguments).code == 0
    recipe = finished / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("hidden = 8", "hidden = 9"), encoding="utf-8")
    assert "the recipe's is" in cli_error(*arguments)[0]
