"""``rnn-edge train lm``: bad input, recipes and flags, --force."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch

from rnn_edge.cli import run as run_command
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.training import Trainer
from tests.export.conftest import contents, names

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"short", "training tokens; 8 streams of 24 steps need 193"),
        (b"caf\xe9 " * 100, "byte 3 is 0xe9"),
        (None, "is a folder"),
    ],
)
def test_a_corpus_that_cannot_be_used(
    tmp_path: Path, cli_error: CliError, train_flags: tuple[str, ...], content: bytes | None, words: str
) -> None:
    corpus = tmp_path / "corpus.txt"
    if content is None:
        corpus.mkdir()
    else:
        corpus.write_bytes(content)
    error, hint = cli_error("train", "lm", corpus, "-o", tmp_path / "run", *train_flags)
    assert words in error
    assert str(corpus) in error
    assert ("--encoding" in hint) == ("byte" in words)
    assert names(tmp_path) == ["corpus.txt"]


@pytest.mark.parametrize("flags", [("--valid", "--validation-fraction"), ("--test", "--test-fraction")])
def test_files_and_shares_exclude_each_other(tmp_path: Path, cli: Cli, flags: tuple[str, str]) -> None:
    answer = cli("train", "lm", "c.txt", "-o", tmp_path / "run", flags[0], "v.txt", flags[1], "0.2")
    assert answer.code == 2
    assert answer.err.splitlines()[0] == f"error: {flags[0]} and {flags[1]} exclude each other"
    assert names(tmp_path) == []


def test_names_of_several_files(tmp_path: Path, corpus_file: Path, cli: Cli, train_flags: tuple[str, ...]) -> None:
    (tmp_path / "more").mkdir()
    second = tmp_path / "more" / "second.txt"
    second.write_bytes(corpus_file.read_bytes())
    assert cli("train", "lm", corpus_file, second, "-o", tmp_path / "run", *train_flags).code == 0
    title = LanguageModelRecipe.from_toml(tmp_path / "run" / "recipe.toml").data.title
    assert title == f"{corpus_file.name} and second.txt"


def test_sgd_takes_a_weight_decay_of_its_own(
    tmp_path: Path, corpus_file: Path, cli: Cli, cli_error: CliError, train_flags: tuple[str, ...]
) -> None:
    arguments = ("train", "lm", corpus_file, "-o", tmp_path / "run", *train_flags, "--learning-rate", 20)
    assert cli(*arguments, "--optimizer", "sgd").code == 0
    training = LanguageModelRecipe.from_toml(tmp_path / "run" / "recipe.toml").training
    assert (training.optimizer, training.weight_decay) == ("sgd", 1.2e-6)
    error, hint = cli_error(*arguments, "--force", "--optimizer", "nt-asgd", "--weight-decay", 0.01, code=2)
    assert error == "--weight-decay 0.01 at --learning-rate 20 takes 20% of all weights in each step of nt-asgd"
    assert hint == "lower --weight-decay: AWD-LSTM has 1.2e-6"


def test_a_corpus_that_is_missing(tmp_path: Path, cli_error: CliError) -> None:
    assert "nowhere.txt" in cli_error("train", "lm", tmp_path / "nowhere.txt", "-o", tmp_path / "run")[0]


def test_an_encoding_that_is_named_works(tmp_path: Path, cli: Cli, text: str, train_flags: tuple[str, ...]) -> None:
    (tmp_path / "corpus.txt").write_bytes(text.replace("moth", "möth").encode("latin-1"))
    answer = cli("train", "lm", tmp_path / "corpus.txt", "-o", tmp_path / "run", *train_flags, "--encoding", "latin-1")
    assert answer.code == 0, answer.err
    assert "ö" in (tmp_path / "run" / "tokenizer.json").read_text(encoding="utf-8")


def test_validation_text_of_its_own_is_said(
    tmp_path: Path, corpus_file: Path, cli: Cli, train_flags: tuple[str, ...]
) -> None:
    held = tmp_path / "held.txt"
    held.write_text("the lamp hums to the moon.\n" * 12, encoding="utf-8")
    answer = cli("train", "lm", corpus_file, "-o", tmp_path / "run", "--valid", held, *train_flags)
    assert answer.code == 0, answer.err
    assert re.search(r"validation on held\.txt \(324 tokens\)", answer.err)
    assert answer.out == ""


def test_an_output_that_exists(finished: Path, cli_error: CliError, train_flags: tuple[str, ...]) -> None:
    before = contents(finished / "run")
    error, hint = cli_error("train", "lm", finished / "corpus.txt", "-o", finished / "run", *train_flags)
    assert "exists" in error
    assert "--force" in hint
    assert contents(finished / "run") == before


def test_force_and_a_bad_corpus_lose_nothing(finished: Path, cli_error: CliError, train_flags: tuple[str, ...]) -> None:
    before = contents(finished / "run")
    (finished / "empty.txt").touch()
    cli_error("train", "lm", finished / "empty.txt", "-o", finished / "run", *train_flags, "--force")
    cli_error("train", "lm", finished / "corpus.txt", "-o", finished / "run", "--force", "--hidden", "0", code=2)
    assert contents(finished / "run") == before


def test_force_leaves_no_checkpoint_of_the_old_run(
    finished: Path, cli_error: CliError, monkeypatch: pytest.MonkeyPatch, train_flags: tuple[str, ...]
) -> None:
    def die(_: Trainer[Any, Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", die)  # before the first checkpoint
    arguments = ["train", "lm", str(finished / "corpus.txt"), "-o", str(finished / "run"), *train_flags, "--force"]
    assert run_command(arguments) == 130
    monkeypatch.undo()
    error = cli_error("train", "lm", finished / "corpus.txt", "-o", finished / "run", "--resume")
    assert "no checkpoint last" in error[0]
    assert error[1] == "start it again with --force"
    assert "no checkpoint" in cli_error("export", finished / "run", "-o", finished / "bundle")[0]


def test_force_replaces_runs_alone(
    tmp_path: Path, corpus_file: Path, cli_error: CliError, train_flags: tuple[str, ...]
) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter.txt").write_text("dear", encoding="utf-8")
    error, _ = cli_error("train", "lm", corpus_file, "-o", tmp_path / "documents", *train_flags, "--force")
    assert "is not a training run" in error
    assert names(tmp_path / "documents") == ["letter.txt"]


def test_a_path_below_a_file(corpus_file: Path, cli_error: CliError) -> None:
    assert "is a file, not a folder" in cli_error("train", "lm", corpus_file, "-o", corpus_file / "run")[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_output(tmp_path: Path, corpus_file: Path, cli_error: CliError) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "read-only" in cli_error("train", "lm", corpus_file, "-o", tmp_path / "locked" / "run")[0]


def test_devices(tmp_path: Path, corpus_file: Path, cli_error: CliError) -> None:
    arguments = ("train", "lm", corpus_file, "-o", tmp_path / "run", "--device")
    assert "--device tpu" in cli_error(*arguments, "tpu", code=2)[0]
    if not torch.cuda.is_available():
        error, hint = cli_error(*arguments, "cuda")
        assert "CUDA" in error
        assert "--device cpu" in hint
    assert not (tmp_path / "run").exists()


def test_a_recipe_with_an_unknown_key(tmp_path: Path, corpus_file: Path, cli_error: CliError) -> None:
    (tmp_path / "r.toml").write_text("[model]\nhiden = 3\n", encoding="utf-8")
    error, _ = cli_error("train", "lm", corpus_file, "-o", tmp_path / "run", "--recipe", tmp_path / "r.toml")
    assert "model.hiden is not a known key; did you mean hidden?" in error
    assert (
        "no.toml" in cli_error("train", "lm", corpus_file, "-o", tmp_path / "run", "--recipe", tmp_path / "no.toml")[0]
    )


def test_flags_override_the_recipe_and_the_run_keeps_the_result(
    tmp_path: Path, corpus_file: Path, cli: Cli, train_flags: tuple[str, ...]
) -> None:
    plan = LanguageModelRecipe.from_toml(
        _write(tmp_path / "r.toml", '[data]\ntitle = "Lines"\n[model]\nlayers = 3\nhidden = 9\n')
    )
    assert (plan.model.layers, plan.model.hidden) == (3, 9)
    flags = [flag for flag in train_flags if flag != "--layers"]
    flags.remove("1")  # its value
    answer = cli("train", "lm", corpus_file, "-o", tmp_path / "run", "--recipe", tmp_path / "r.toml", *flags)
    assert answer.code == 0, answer.err
    kept = LanguageModelRecipe.from_toml(tmp_path / "run" / "recipe.toml")
    assert (kept.model.layers, kept.model.hidden, kept.training.batch_size) == (3, 8, 8)
    assert kept.data.title == "Lines"
    assert re.fullmatch("[0-9a-f]{64}", kept.data.sha256)


def test_a_recipe_for_another_text_is_noted(
    tmp_path: Path, corpus_file: Path, cli: Cli, train_flags: tuple[str, ...]
) -> None:
    content = f'[data]\ntitle = "Lines"\nlicence = "CC0-1.0"\nsha256 = "{"0" * 64}"\n'
    recipe = _write(tmp_path / "r.toml", content)
    answer = cli("train", "lm", corpus_file, "-o", tmp_path / "run", "--recipe", recipe, *train_flags)
    assert answer.code == 0, answer.err
    assert "note: " in answer.err
    kept = LanguageModelRecipe.from_toml(tmp_path / "run" / "recipe.toml").data
    assert (kept.title, kept.licence) == ("corpus.txt", "")  # what it said is not true of this text


def _write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_dropout_is_short_for_two(tmp_path: Path, corpus_file: Path, cli: Cli, train_flags: tuple[str, ...]) -> None:
    flags = ("--dropout", 0.3, "--output-dropout", 0.1)
    answer = cli("train", "lm", corpus_file, "-o", tmp_path / "run", *train_flags, *flags)
    assert answer.code == 0, answer.err
    model = LanguageModelRecipe.from_toml(tmp_path / "run" / "recipe.toml").model
    assert (model.layer_dropout, model.output_dropout, model.input_dropout) == (0.3, 0.1, 0.0)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory(
    tmp_path: Path,
    corpus_file: Path,
    cli_error: CliError,
    monkeypatch: pytest.MonkeyPatch,
    train_flags: tuple[str, ...],
    error: Exception,
) -> None:
    def run_out(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(Trainer, "_step", run_out)
    message, hint = cli_error("train", "lm", corpus_file, "-o", tmp_path / "run", *train_flags)
    assert "not enough memory on cpu" in message
    for flag in ("--batch-size", "--sequence-length", "--hidden"):
        assert flag in hint


def test_a_screen_that_goes_away_does_not_end_training(
    tmp_path: Path, corpus_file: Path, train_flags: tuple[str, ...]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [
        sys.executable,
        "-m",
        "rnn_edge",
        "train",
        "lm",
        str(corpus_file),
        "-o",
        str(tmp_path / "run"),
        *train_flags,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, check=False)
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, b"")
    last = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["kind"] == "finished"
