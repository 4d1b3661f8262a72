"""Training for TensorBoard: the events of a trainer as scalars and text, in the folder ``tensorboard`` of the run."""

import textwrap
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from rnn_edge.errors import MissingDependencyError
from rnn_edge.files import raise_cannot_write
from rnn_edge_export.training_events import FinishedEvent, StepEvent, TrainingEvent, ValidationEvent

_FLUSH_INTERVAL = 10.0  # seconds
_NEVER = 10**9  # seconds: the writer's own thread would flush where nobody sees its errors


def check_tensorboard() -> None:
    """Raises MissingDependencyError where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise MissingDependencyError(
            "tensorboard is not installed; --tensorboard needs it", "run: pip install 'rnn-edge[tensorboard]'"
        )


def remove_events(run: Path) -> None:
    """Remove what a run that is replaced has written."""
    for path in (run / "tensorboard").glob("events.out.tfevents.*"):
        path.unlink()


class TensorBoardLog:
    """Writes the events of a trainer, a consumer of them like the screen."""

    def __init__(self, run: Path, step: int) -> None:
        """``step`` is where the run stands: what was written after it, before a resumed run fell back, is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run / "tensorboard"
        self._flushed = time.monotonic()
        try:
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1, flush_secs=_NEVER)
        except OSError as error:
            raise_cannot_write(self._folder, error)

    def __enter__(self) -> "TensorBoardLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
        except OSError as failure:
            if error is None:  # else that one says more
                raise_cannot_write(self._folder, failure)

    def show(self, event: TrainingEvent) -> None:
        """Write one event; what an interrupt finds is not recorded here either.

        Raises:
            RnnEdgeError: it cannot be written.
        """
        try:
            self._write(event)
            if isinstance(event, FinishedEvent) or time.monotonic() - self._flushed > _FLUSH_INTERVAL:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            raise_cannot_write(self._folder, error)

    def _write(self, event: TrainingEvent) -> None:
        scalars: dict[str, float] = {}
        if isinstance(event, StepEvent):
            scalars = {
                "loss/training": event.loss,
                "optimiser/learning rate": event.learning_rate,
                "optimiser/gradient norm": event.gradient_norm,
                "speed/tokens per second": event.tokens_per_second,
            }
        elif isinstance(event, ValidationEvent) and event.recorded:
            scalars = {"loss/validation": event.loss}
            if event.bleu is not None:
                scalars["BLEU/validation"] = event.bleu
            # Indented, so that TensorBoard's Markdown leaves it as it is.
            self._writer.add_text("sample", textwrap.indent(event.sample, "    ", lambda _: True), event.step)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, event.step)
