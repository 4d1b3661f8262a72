"""Fixtures of the workstation-side tests: a small text, tiny models, the command line, and bundles exported once."""

import functools
import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pytest

from rnn_edge.cli import run
from rnn_edge.manifest import Cell, Lowering
from rnn_edge.tokenizer import character_tokenizer
from rnn_edge_export.recipe import LanguageModelRecipe
from rnn_edge_export.recipe_sections import DataRecipe, LanguageModelSection, StreamSection

if TYPE_CHECKING:
    from rnn_edge.bundle import Bundle
    from rnn_edge_export.language_model.data import Window
    from rnn_edge_export.language_model.export import LanguageModelSource
    from rnn_edge_export.language_model.modules import RecurrentLanguageModel
    from rnn_edge_export.language_model.task import LanguageModelTask
    from rnn_edge_export.training import Trainer

    class LanguageModelTrainer(Trainer[Window, RecurrentLanguageModel]):
        """A trainer whose task is known."""

        task: LanguageModelTask


if find_spec("torch") is None:  # a device: nothing here applies
    collect_ignore_glob = ["test_*.py"]

ALPHABET = "\n abcdefghij"


class Answer(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


class Exported(NamedTuple):
    """A model and the bundle that it became."""

    model: "RecurrentLanguageModel"
    bundle: "Bundle"


Cli = Callable[..., Answer]
CliError = Callable[..., tuple[str, str]]
Export = Callable[[Cell, Lowering, int, bool], Exported]
MakeSource = Callable[..., "LanguageModelSource"]
MakeTrainer = Callable[..., "LanguageModelTrainer"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    """What stands in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def load_best(run: Path) -> "LanguageModelSource":
    """A run's best weights, as an export takes them."""
    from rnn_edge_export.language_model.export import load_source
    from rnn_edge_export.run import load_run

    content = load_run(run)
    assert isinstance(content.recipe, LanguageModelRecipe)
    return load_source(run, content, content.recipe)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text() -> str:
    """About 12,000 characters that a tiny model can learn something from."""
    source = random.Random(7)
    who = ("the lamp", "our kettle", "a grey moth", "the old pump", "my left boot")
    what = ("hums to", "waits for", "leans on", "counts", "forgets")
    whom = ("the rain", "seven spoons", "a quiet door", "the moon", "its own rust")
    lines = (f"{source.choice(who)} {source.choice(what)} {source.choice(whom)}.\n" for _ in range(420))
    return "".join(lines)


@pytest.fixture
def corpus_file(tmp_path: Path, text: str) -> Path:
    """The text in a file."""
    path = tmp_path / "corpus.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture
def cli_error(cli: Cli) -> CliError:
    """Run a command that must fail as every error does; returns what stands after ``error:`` and ``hint:``."""

    def call(*arguments: object, code: int = 1) -> tuple[str, str]:
        answer = cli(*arguments)
        assert answer.code == code, answer.err
        assert "Traceback" not in answer.err
        lines = answer.err.rstrip("\n").split("\n")
        assert [line.split(": ")[0] for line in lines[-2:]] == ["error", "hint"], answer.err
        assert sum(line.startswith("error:") for line in lines) == 1
        error, hint = (line.split(": ", 1)[1] for line in lines[-2:])
        assert error
        assert hint
        return error, hint

    return call


@pytest.fixture(scope="session")
def train_flags() -> tuple[str, ...]:
    """A run of 21 steps, validated three times."""
    flags = "--cell lstm --embedding 6 --hidden 8 --layers 1 --batch-size 8 --sequence-length 24 --epochs 0.34"
    return tuple(f"{flags} --validation-interval 10 --precision fp32 --threads 1 --device cpu".split())


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory, text: str, train_flags: tuple[str, ...]) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "corpus.txt").write_text(text, encoding="utf-8", newline="")
    assert run(["train", "lm", str(folder / "corpus.txt"), "-o", str(folder / "run"), *train_flags]) == 0
    return folder


@pytest.fixture
def finished(_finished: Path, tmp_path: Path) -> Path:
    """A folder with ``corpus.txt`` and a finished ``run`` over it; the test may change both."""
    return Path(shutil.copytree(_finished, tmp_path / "finished"))


@pytest.fixture
def make_trainer(tmp_path: Path, text: str) -> MakeTrainer:
    """A trainer in a folder of its own, with changes to a small recipe."""
    count = itertools.count()

    def make(
        name: str | None = None, *, resume: bool = False, corpus: str = text[:3000], model: Any = None, **changes: Any
    ) -> "LanguageModelTrainer":
        from rnn_edge_export.language_model.data import Texts, load_corpus
        from rnn_edge_export.language_model.task import LanguageModelTask
        from rnn_edge_export.training import Trainer

        directory = tmp_path / (name or f"run{next(count)}")
        path = tmp_path / "trainer-corpus.txt"
        path.write_text(corpus, encoding="utf-8", newline="")
        plan = LanguageModelRecipe(
            model=model or LanguageModelSection(embedding=6, hidden=12, layers=2),
            training=replace(SMALL_TRAINING, **changes),
        )
        task = LanguageModelTask(plan, load_corpus(Texts.survey([path]), plan.training))
        return cast("LanguageModelTrainer", Trainer(task, directory, "cpu", resume=resume))

    return make


SMALL_TRAINING = StreamSection(
    epochs=1.0, batch_size=4, sequence_length=16, validation_interval=20, warmup_steps=5, precision="fp32"
)


@pytest.fixture(scope="session")
def make_source() -> MakeSource:
    """An untrained model with all weights and biases random: zeros would hide mistakes."""

    def make(cell: Cell, layers: int, tied: bool, hidden: int = 8) -> "LanguageModelSource":
        import torch

        from rnn_edge_export.language_model.export import LanguageModelSource
        from rnn_edge_export.language_model.modules import RecurrentLanguageModel

        recipe = LanguageModelRecipe(
            data=DataRecipe(title="letters", sha256="0" * 64),
            model=LanguageModelSection(
                cell=cell, embedding=hidden if tied else 5, hidden=hidden, layers=layers, tie_weights=tied
            ),
        )
        tokenizer = character_tokenizer(ALPHABET)
        model = RecurrentLanguageModel(recipe.model, tokenizer.vocabulary_size).requires_grad_(False).eval()
        generator = torch.Generator().manual_seed(11)
        for parameter in model.parameters():
            parameter.normal_(std=0.4, generator=generator)
        return LanguageModelSource(model, tokenizer, recipe)

    return make


@pytest.fixture(scope="session")
def exported(make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export one combination; each only once a session."""

    @functools.cache
    def export(cell: Cell, lowering: Lowering, layers: int, tied: bool) -> Exported:
        from rnn_edge_export.onnx_export import export_bundle

        source = make_source(cell, layers, tied)
        output = tmp_path_factory.mktemp("bundles") / f"{cell}-{lowering}-{layers}-{tied}"
        bundle, _ = export_bundle(source, output, name="tiny", lowering=lowering)
        return Exported(source.model, bundle)

    return export
