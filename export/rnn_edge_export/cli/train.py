"""``rnn-edge train``."""

import shlex
import signal
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnn_edge.errors import DataError, InvalidValueError, RunError
from rnn_edge.providers import check_threads
from rnn_edge_export.cli import workstation
from rnn_edge_export.cli.options import recipe_options
from rnn_edge_export.recipe import DataRecipe, ModelRecipe, Recipe, TrainingRecipe, flag_name

if TYPE_CHECKING:
    from rnn_edge_export.data import Corpus

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, add_completion=False)


@app.callback()
def _train() -> None:
    """Train a model from text; resumable."""


@app.command("lm")
@recipe_options(ModelRecipe, TrainingRecipe)
def language_model(
    corpus: Annotated[Path, typer.Argument(help="Text file to learn from.", metavar="CORPUS")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.", show_default=False)],
    valid: Annotated[Path | None, typer.Option(help="Validation text; else the last part of the corpus.")] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the text files.")] = "utf-8",
    recipe: Annotated[Path | None, typer.Option(help="Recipe (TOML) to start from; flags override it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run.")] = False,
    device: Annotated[str, typer.Option(help="Where to train.", metavar="auto|cpu|cuda")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: every core]")] = None,
    dropout: Annotated[float | None, typer.Option(help="Sets --layer-dropout and --output-dropout.")] = None,
    **overrides: Any,
) -> None:
    """Train a character language model."""
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidValueError(f"--device {device} is unknown", "use auto, cpu or cuda")
    if threads is not None:
        check_threads(threads)
    for name in ("layer_dropout", "output_dropout"):
        overrides[name] = dropout if overrides[name] is None else overrides[name]
    given = [flag_name(name) for name, value in overrides.items() if value is not None]
    if resume and (given or recipe or force):
        names = [*given, *(["--recipe"] if recipe else []), *(["--force"] if force else [])]
        raise InvalidValueError(f"--resume goes on as the run began and takes no {', '.join(names)}", "leave it out")
    if resume and not (output / "recipe.toml").is_file():
        raise RunError(f"{output} is not a training run", "leave --resume out to start one, or check the path")
    start = output / "recipe.toml" if resume else recipe
    plan = (Recipe.from_toml(start) if start else Recipe()).override(overrides)

    with workstation():
        import torch

        from rnn_edge_export.cli.screen import TrainingScreen
        from rnn_edge_export.data import load_corpus
        from rnn_edge_export.run import start_run
        from rnn_edge_export.training import FinishedEvent, Trainer

        if not resume:
            start_run(output, force=force)
        if threads:
            torch.set_num_threads(threads)
        data = load_corpus(corpus, valid, plan.training, encoding)
        plan = _claim_corpus(plan, data, corpus, resume=resume)
        trainer = Trainer(plan, data, output, device, resume=resume)
        screen = TrainingScreen(trainer)
        try:
            with _interrupts(trainer), screen:
                for event in trainer.run():
                    screen.show(event)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise RunError(
                f"there is not enough memory on {trainer.device.type}",
                "lower --batch-size, --sequence-length or --hidden",
            ) from error
        if isinstance(event, FinishedEvent) and event.reason == "interrupt":
            screen.explain_resume(shlex.join(_resume_command(corpus, output, valid, encoding, device, threads)))
            raise typer.Exit(130)


def _resume_command(
    corpus: Path, output: Path, valid: Path | None, encoding: str, device: str, threads: int | None
) -> list[str]:
    command = ["rnn-edge", "train", "lm", str(corpus), "-o", str(output), "--resume"]
    command += ["--valid", str(valid)] if valid else []
    command += ["--encoding", encoding] if encoding != "utf-8" else []
    command += ["--device", device] if device != "auto" else []
    return command + (["--threads", str(threads)] if threads else [])


def _claim_corpus(plan: Recipe, found: "Corpus", path: Path, *, resume: bool) -> Recipe:
    """The recipe with this corpus's hashes in it. A resumed run must find the text that it began with."""
    data = plan.data
    hashes = {"sha256": found.sha256, "valid_sha256": found.valid_sha256}
    if resume and (data.sha256, data.valid_sha256) != tuple(hashes.values()):
        differing = path if data.sha256 != found.sha256 else "the validation text"
        raise DataError(
            f"{differing} is not what this run began with: its SHA-256 differs", "give the same files as before"
        )
    if data.sha256 not in ("", found.sha256):  # the recipe was made for another text
        typer.echo(f"note: {path} is not the corpus that the recipe names ({data.title})", err=True)
        plan, data = replace(plan, title=""), DataRecipe()
    return replace(plan, data=replace(data, title=data.title or path.name, **hashes))


class _interrupts:  # noqa: N801  # reads as a statement: with _interrupts(trainer)
    """First Ctrl-C: finish the step, save and stop. Second: stop at once."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def __enter__(self) -> None:
        self._old = signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._old)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self._trainer.scoring:
            raise KeyboardInterrupt
        self._trainer.interrupted = True
        signal.signal(signal.SIGINT, self._old)
