"""What training commands share: the folder, the recipe, signals, the screen."""

import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeVar

import typer

from rnn_edge.errors import DataError, InvalidValueError, RunError
from rnn_edge.providers import check_threads
from rnn_edge_export.cli.tensorboard import TensorBoardLog, check_tensorboard, remove_events
from rnn_edge_export.recipe import Recipe, flag_name
from rnn_edge_export.recipe_sections import DataRecipe, PairSection, StreamSection

R = TypeVar("R", bound=Recipe)
_SGD_DECAY = 1.2e-6  # of AWD-LSTM (Merity et al. 2017)

# Options that every training command has.
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.", show_default=False)]
Encoding = Annotated[str, typer.Option(help="Encoding of the text files.")]
RecipeFile = Annotated[Path | None, typer.Option(help="Recipe (TOML) to start from; flags override it.")]
InitFrom = Annotated[
    Path | None,
    typer.Option(help="Run or checkpoint whose weights, tokenizer and recipe to start from; flags override it."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing run.")]
Device = Annotated[str, typer.Option(help="Where to train.", metavar="auto|cpu|cuda")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. [default: every core]")]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Log for TensorBoard too, in the run's folder tensorboard.")
]


def plan_run(
    default: R,
    output: Path,
    *,
    recipe: Path | None,
    init_from: Path | None,
    resume: bool,
    force: bool,
    device: str,
    threads: int | None,
    tensorboard: bool,
    overrides: dict[str, Any],
) -> R:
    """The recipe of a run: the run's own when it is resumed, else, with flags over it, ``recipe``, that of the run that
    it starts from, or the default.

    Raises:
        RnnEdgeError: options exclude each other, the recipe cannot be used, or what an option needs is not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidValueError(f"--device {device} is unknown", "use auto, cpu or cuda")
    if threads is not None:
        check_threads(threads)
    if tensorboard:
        check_tensorboard()
    given = [flag_name(name) for name, value in overrides.items() if value is not None]
    more = {"--recipe": recipe, "--init-from": init_from, "--force": force}
    given += [name for name, value in more.items() if value] if resume else []
    if resume and given:
        raise InvalidValueError(f"--resume goes on as the run began and takes no {', '.join(given)}", "leave them out")
    if resume and not (output / "recipe.toml").is_file():
        raise RunError(f"{output} is not a training run", "leave --resume out to start one, or check the path")
    if init_from is None:
        start = output / "recipe.toml" if resume else recipe
        begun = type(default).from_toml(start) if start else default
        return begun.override(_with_decay(begun, overrides))
    from rnn_edge_export.initial import check_vocabulary, initial_folder

    initial = type(default).from_toml(initial_folder(init_from) / "recipe.toml")
    # What that run began from is not what this one does.
    begun = replace(initial, data=replace(initial.data, initial_sha256=""))
    base = type(default).from_toml(recipe) if recipe else begun
    plan = base.override(_with_decay(base, overrides))
    check_vocabulary(initial, plan)
    if _split(plan) != _split(initial):
        typer.echo("note: split otherwise, the same corpus is validated on what it was trained on before", err=True)
    frozen = tuple(file.of for file in initial.data.vectors) or initial.data.frozen
    return replace(plan, data=replace(plan.data, vectors=(), frozen=frozen if plan.model.freeze_embeddings else ()))


def _split(recipe: Recipe) -> tuple[float, ...]:
    """What decides which part of a corpus is validated on."""
    training = recipe.training
    if isinstance(training, PairSection):
        return training.seed, training.validation_pairs
    assert isinstance(training, StreamSection)
    return training.validation_fraction, training.test_fraction


def _with_decay(begun: Recipe, overrides: dict[str, Any]) -> dict[str, Any]:
    """``overrides``, with a weight decay for SGD where they turn to it: AdamW's would undo each of its large steps."""
    chosen, given = overrides.get("optimizer"), overrides.get("weight_decay")
    turns = chosen not in (None, "adamw") and begun.training.optimizer == "adamw"
    return {**overrides, "weight_decay": _SGD_DECAY} if turns and given is None else overrides


def claim_data(plan: R, hashes: dict[str, str], files: Sequence[Path], *, resume: bool, initial_sha256: str = "") -> R:
    """The recipe with the hashes of the data in it, by their fields, and a title; ``files`` are the training data.

    ``initial_sha256`` is that of the checkpoint that this run starts from.

    Raises:
        DataError: a resumed run began with other data.
    """
    corpus = " and ".join(map(str, files))
    data, names = plan.data, {"sha256": corpus, "valid_sha256": "the validation data", "test_sha256": "the test data"}
    differing = [names[field] for field, sha256 in hashes.items() if getattr(data, field) != sha256]
    if resume and differing:
        raise DataError(
            f"this run began with other data: the SHA-256 differs of {' and of '.join(differing)}",
            "give the same files as before",
        )
    if resume:
        return plan
    if data.initial_sha256 not in ("", initial_sha256):
        typer.echo("note: the recipe starts from other weights than this run (--init-from)", err=True)
    if data.sha256 not in ("", hashes["sha256"]):  # the recipe was made for other data
        if not initial_sha256:  # going on with another text is what weights to start from are for
            typer.echo(f"note: {corpus} is not the corpus that the recipe names ({data.title})", err=True)
        plan, data = replace(plan, title=""), DataRecipe()
    first, *others = [file.name for file in files]
    title = f"{first} and {len(others)} more files" if len(others) > 1 else " and ".join([first, *others])
    found: dict[str, Any] = {"title": data.title or title, "initial_sha256": initial_sha256, **hashes}
    return replace(plan, data=replace(data, **found))


def train(
    make_trainer: Callable[[], Any],
    *,
    threads: int | None,
    tensorboard: bool,
    resume_command: list[str],
    lower: str,
) -> int:
    """Run a trainer to its end on the screen; the exit code. ``lower`` names flags that save memory."""
    import torch

    from rnn_edge_export.cli.screen import TrainingScreen
    from rnn_edge_export.training_events import FinishedEvent

    if threads:
        torch.set_num_threads(threads)
    trainer = make_trainer()
    screen = TrainingScreen(trainer) if trainer.world.leads else None
    consumers: list[TrainingScreen | TensorBoardLog] = [screen] if screen else []
    if trainer.world.leads:
        if not trainer.state.progress.step:
            remove_events(trainer.directory)
        if tensorboard:
            consumers.append(TensorBoardLog(trainer.directory, trainer.state.progress.step))
    try:
        with _interrupts(trainer), ExitStack() as stack:
            for consumer in consumers:
                stack.enter_context(consumer)
            for event in trainer.run():
                for consumer in consumers:
                    consumer.show(event)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise RunError(f"there is not enough memory on {trainer.device.type}", f"lower {lower}") from error
    if isinstance(event, FinishedEvent) and event.reason == "interrupt":
        if screen:
            if trainer.world.size > 1:
                start = ["torchrun", "--nproc-per-node", str(trainer.world.size), "-m", "rnn_edge_export"]
                resume_command = start + resume_command[1:]
            screen.explain_resume(shlex.join(resume_command))
        return 130
    return 0


def common_options(encoding: str, device: str, threads: int | None, *, tensorboard: bool) -> list[str]:
    """Options of a command that resumes."""
    command = ["--encoding", encoding] if encoding != "utf-8" else []
    command += ["--device", device] if device != "auto" else []
    command += ["--threads", str(threads)] if threads else []
    return command + (["--tensorboard"] if tensorboard else [])


@contextmanager
def _interrupts(trainer: Any) -> Iterator[None]:
    """First Ctrl-C: finish the step, save and stop. Second: stop at once.

    Of several processes each gets a signal more than once, from the terminal and from what started it: any number of
    them, or of requests to terminate, is one interrupt.
    """
    together = trainer.world.size > 1
    signals = (signal.SIGINT, signal.SIGTERM) if together else (signal.SIGINT,)

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if trainer.scoring:
            raise KeyboardInterrupt
        trainer.interrupted = True
        if not together:
            signal.signal(signal.SIGINT, old[0])

    old = [signal.signal(item, handle) for item in signals]
    try:
        yield
    except BaseException:
        if together:  # what started the others ends this one, too, which has yet to say why
            old[1] = signal.SIG_IGN
        raise
    finally:
        for item, handler in zip(signals, old, strict=True):
            signal.signal(item, handler)
