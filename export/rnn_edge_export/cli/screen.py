"""How training looks: one live line of progress, a line for each validation, samples between them. All on stderr."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from rnn_edge import render
from rnn_edge_export.training import Trainer
from rnn_edge_export.training_events import FinishedEvent, StepEvent, TrainingEvent, ValidationEvent

if TYPE_CHECKING:
    from types import TracebackType

_LINE_INTERVAL = 100  # steps between lines where there is no terminal to redraw
_WIDE = 110  # columns, in which the loss has room in every unit


class TrainingScreen:
    """Shows the events of a trainer. On a pipe or a dumb terminal it writes plain lines."""

    def __init__(self, trainer: Trainer[Any, Any], console: Console | None = None) -> None:
        self._console = console or render.console(stderr=True)
        self._trainer = trainer
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]:.1f}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # what the others leave
            TextColumn("{task.percentage:.0f}%"),
            _Figures(trainer),
            console=self._console,
            transient=True,
            expand=True,
            disable=not self._console.is_terminal or self._console.is_dumb_terminal,
        )
        self._task = self._bar.add_task("train", total=trainer.total_steps, epoch=0.0, figures="")

    def __enter__(self) -> TrainingScreen:
        trainer = self._trainer
        for line in trainer.task.describe():
            self._print(escape(line))
        self._print(f"{trainer.parameters:,} parameters")
        where = f"{trainer.device.type} in {trainer.precision}"
        self._print(f"{trainer.total_steps:,} steps on {where}; run in {escape(str(trainer.directory))}")
        if trainer.state.progress.step:
            self._print(f"resuming at step {trainer.state.progress.step:,}")
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, event: TrainingEvent) -> None:
        """Show one event."""
        if isinstance(event, StepEvent):
            self._show_step(event)
        elif isinstance(event, ValidationEvent):
            self._show_validation(event)
        else:
            self._show_end(event)

    def explain_resume(self, command: str) -> None:
        """Say how to go on after an interrupt."""
        self._print(f"saved; go on with: {escape(command)}")

    def _print(self, line: str) -> None:
        """One line. A screen that is gone is no reason to stop training: the metrics have everything."""
        try:
            self._console.print(line, soft_wrap=True)
        except OSError:
            self._console.quiet = True

    def _show_step(self, event: StepEvent) -> None:
        speed = f"{event.tokens_per_second:,.0f} tokens/s  {_duration(event.seconds_left)} left"
        narrow = not self._bar.disable and self._console.width < _WIDE
        figures = f"loss {f'{event.loss:.3f}' if narrow else _loss(event.loss, 3)}  {speed}"
        self._bar.update(self._task, completed=event.step, epoch=event.epoch, figures=figures)
        if self._bar.disable and event.step % _LINE_INTERVAL == 0:
            self._print(f"step {event.step:,}/{event.total_steps:,}  epoch {event.epoch:.2f}  {figures}")

    def _show_validation(self, event: ValidationEvent) -> None:
        mark = "best so far" if event.best else ""
        if not event.recorded:
            mark = "interrupted, not recorded"
        bleu = f"  BLEU {event.bleu:.2f}" if event.bleu is not None else ""
        self._print(f"[bold]step {event.step:,}[/]  validation {_loss(event.loss, 4)}{bleu}  [green]{mark}[/]")
        lines = [line for line in event.sample.splitlines() if line.strip()][:4]
        for line in lines:
            self._print(f"  [dim]{escape(render.visible(line))}[/]")

    def _show_end(self, event: FinishedEvent) -> None:
        if event.reason == "interrupt":
            return
        why = "stopped early" if event.reason == "early-stop" else "finished"
        self._print(f"{why} at step {event.step:,}; best weights from step {event.best_step:,}:")
        for score in event.scores:
            value = " ".join(filter(None, (score.name, f"{score.value:.4f}", score.unit)))
            self._print(escape(f"  {value} on {score.split}: {score.method}"))


class _Figures(ProgressColumn):
    """Those of the last step; after Ctrl-C what happens now, since a step may take long."""

    def __init__(self, trainer: Trainer[Any, Any]) -> None:
        super().__init__()
        self._trainer = trainer

    def render(self, task: Task) -> Text:
        return Text("ending after this step" if self._trainer.interrupted else task.fields["figures"], no_wrap=True)


def _loss(nats: float, digits: int) -> str:
    """A loss in nats and bits per token, and as perplexity."""
    perplexity = math.exp(min(nats, 50))
    return f"{nats:.{digits}f} nats {nats / math.log(2):.{digits}f} bits  perplexity {perplexity:.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
