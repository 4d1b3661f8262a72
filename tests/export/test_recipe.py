"""Recipes: round trip, strictness, ranges, overrides, and the flags made from them."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rnn_edge.errors import InvalidValueError, RunError
from rnn_edge_export.recipe import LanguageModelRecipe, TranslationRecipe, flag_name, read_recipe
from rnn_edge_export.recipe_sections import DataRecipe, LanguageModelSection, StreamSection, VectorFile

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError


def _read(folder: Path, content: str) -> LanguageModelRecipe:
    path = folder / "some.toml"
    path.write_text(content, encoding="utf-8")
    return LanguageModelRecipe.from_toml(path)


def test_every_field_survives_the_round_trip(tmp_path: Path) -> None:
    vectors = VectorFile("input", "letters.vec", "12" * 32)
    recipe = LanguageModelRecipe(
        title="A title, with “quotes”, two\nlines and \\ a backslash",
        data=DataRecipe(
            *("Letters", "https://example.org/letters", "CC0-1.0", "ab" * 32, "cd" * 32, "ef" * 32, 9),
            (vectors,),
            "12" * 32,
            ("source",),
        ),
        model=LanguageModelSection(
            cell="gru",
            embedding=6,
            hidden=7,
            layers=3,
            last_hidden=5,
            tie_weights=True,
            residual=True,
            layer_norm=True,
            embedding_dropout=0.05,
            input_dropout=0.1,
            layer_dropout=0.15,
            output_dropout=0.3,
            locked_dropout=False,
            weight_drop=0.4,
            freeze_embeddings=True,
            vector_width=5,
        ),
        training=StreamSection(
            epochs=1.5,
            optimizer="nt-asgd",
            annealing=2.0,
            nonmonotone_interval=3,
            accumulation=2,
            random_lengths=True,
            label_smoothing=0.1,
            activation_regularisation=2.0,
            temporal_regularisation=1.0,
            learning_rate=0.003,
            final_learning_rate=0.1,
            warmup_steps=4,
            weight_decay=0.02,
            clip_norm=0.5,
            average_decay=0.9,
            validation_interval=12,
            patience=6,
            precision="bf16",
            seed=99,
            batch_size=3,
            sequence_length=9,
            tokenizer="word",
            vocabulary_size=500,
            minimum_count=2,
            words="spaces",
            reset_probability=0.05,
            validation_fraction=0.2,
            test_fraction=0.3,
        ),
    )
    default = LanguageModelRecipe()
    for section in ("data", "model", "training"):  # no field may be left at its default, or its loss goes unseen
        for item in dataclasses.fields(getattr(recipe, section)):
            assert getattr(getattr(recipe, section), item.name) != getattr(getattr(default, section), item.name)
    assert _read(tmp_path, recipe.to_toml()) == recipe
    assert read_recipe(tmp_path / "some.toml") == recipe


def test_an_empty_recipe_has_the_defaults(tmp_path: Path) -> None:
    assert _read(tmp_path, "") == LanguageModelRecipe()


def test_integers_do_for_numbers(tmp_path: Path) -> None:
    epochs = _read(tmp_path, "[training]\nepochs = 3\n").training.epochs
    assert (epochs, type(epochs)) == (3.0, float)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[model]\nhiden = 8\n", "model.hiden is not a known key; did you mean hidden?"),
        ("[trainning]\nepochs = 1\n", "trainning is not a known key; did you mean training?"),
        ("[training]\nzzz = 1\n", "training.zzz is not a known key"),
        ('[model]\nhidden = "8"\n', "model.hidden is a string, not an integer"),
        ("[model]\nhidden = 8.0\n", "model.hidden is a number, not an integer"),
        ("[model]\nlayers = true\n", "model.layers is true or false, not an integer"),
        ("[model]\ntie_weights = 1\n", "model.tie_weights is an integer, not true or false"),
        ('[model]\ncell = "lsmt"\n', "model.cell is 'lsmt', not one of lstm, gru, rnn"),
        ("[training]\nepochs = nan\n", "training.epochs is not a finite number"),
        ("[training]\nlearning_rate = inf\n", "training.learning_rate is not a finite number"),
        ("model = 3\n", "model is an integer, not a table"),
        ('task = "chess"\n', "task is 'chess', not one of language-model, translation"),
        ("task = 1\n", "task is 1, not one of"),
        ('task = ["translation"]\n', "task is ['translation'], not one of"),
        ("[task]\n", "task is {}, not one of"),
        ("[model\n", "recipe"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(RunError) as caught:
        _read(tmp_path, content)
    assert message in caught.value.message


def test_a_recipe_without_a_task_is_that_of_the_command(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[model]\nencoder_hidden = 7\n")
    assert TranslationRecipe.from_toml(path).model.encoder_hidden == 7
    with pytest.raises(RunError, match=r"model\.encoder_hidden is not a known key"):
        LanguageModelRecipe.from_toml(path)


def test_a_recipe_for_another_task_is_refused(tmp_path: Path) -> None:
    content = TranslationRecipe().to_toml()
    with pytest.raises(RunError, match=r"some\.toml is for translation") as caught:
        _read(tmp_path, content)
    assert "rnn-edge train translation" in caught.value.hint
    assert read_recipe(tmp_path / "some.toml") == TranslationRecipe()


def test_a_recipe_that_is_not_text_or_missing(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b'title = "\xff"\n')
    for path in (tmp_path / "bad.toml", tmp_path / "missing.toml", tmp_path):
        with pytest.raises(RunError, match=re.escape(str(path))):
            LanguageModelRecipe.from_toml(path)


_OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("hidden", 0),
    ("layers", -1),
    ("embedding", 0),
    ("epochs", 0.0),
    ("epochs", math.inf),
    ("epochs", math.nan),
    ("learning_rate", 0.0),
    ("learning_rate", math.nan),
    ("learning_rate", math.inf),
    ("learning_rate", -math.inf),
    ("input_dropout", 1.0),
    ("layer_dropout", -0.1),
    ("weight_drop", math.nan),
    ("validation_fraction", 1.0),
    ("average_decay", 1.0),
    ("clip_norm", 0.0),
    ("weight_decay", math.inf),
    ("final_learning_rate", -1.0),
    ("final_learning_rate", math.nan),
    ("batch_size", 0),
    ("sequence_length", 0),
    ("validation_interval", 0),
    ("patience", -1),
    ("seed", -1),
]


@pytest.mark.parametrize(("name", "value"), _OUT_OF_RANGE)
def test_values_out_of_range_name_the_flag(name: str, value: Any) -> None:
    with pytest.raises(InvalidValueError, match=f"^{flag_name(name)} is "):
        LanguageModelRecipe().override({name: value})


@pytest.mark.parametrize(("name", "value"), [("cell", "lsmt"), ("precision", "fp8")])
def test_unknown_choices_are_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{flag_name(name)} .*{value}"):
        LanguageModelRecipe().override({name: value})


def test_a_recipe_file_is_checked_for_ranges_too(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"recipe .*: --hidden is 0"):
        _read(tmp_path, "[model]\nhidden = 0\n")


def test_flags_override_and_none_leaves_alone() -> None:
    base = LanguageModelRecipe(title="kept", model=LanguageModelSection(hidden=32), training=StreamSection(seed=5))
    new = base.override({"layers": 3, "hidden": None, "epochs": 2.0, "seed": None, "tie_weights": False})
    assert new == dataclasses.replace(
        base, model=LanguageModelSection(hidden=32, layers=3), training=StreamSection(seed=5, epochs=2.0)
    )


def test_help_shows_a_flag_for_every_field(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    answer = cli("train", "lm", "--help")
    assert answer.code == 0
    for section in (LanguageModelSection, StreamSection):
        for item in dataclasses.fields(section):
            shown = re.search(rf"(?<![\w-]){flag_name(item.name)}(?![\w-])", answer.out)
            assert (shown is None) == (item.name == "vector_width"), item.name  # the command derives it from a file
            assert item.metadata.get("help", "") in " ".join(answer.out.split()), item.name


@pytest.mark.parametrize(
    "flags",
    [
        ("--hidden", "0"),
        ("--epochs", "nan"),
        ("--epochs", "inf"),
        ("--learning-rate", "-1"),
        ("--layer-dropout", "1"),
        ("--hidden", "wide"),
        ("--cell", "lsmt"),
        ("--precision", "fp8"),
        ("--threads", "-1"),
        ("--layers", "1", "--residual"),
    ],
)
def test_wrong_flags_exit_2_and_write_nothing(
    corpus_file: Path, tmp_path: Path, cli_error: CliError, flags: tuple[str, ...]
) -> None:
    error, _ = cli_error("train", "lm", corpus_file, "-o", tmp_path / "run", *flags, code=2)
    assert flags[0].removeprefix("--") in error
    assert not (tmp_path / "run").exists()
