"""A run's metrics: one event a line, as JSON."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path

from rnn_edge.files import raise_cannot_write, write_bytes
from rnn_edge_export.training_events import FinishedEvent, TrainingEvent


class Metrics:
    """The file ``metrics.jsonl``, which grows at its end; a resumed run cuts off what its checkpoint does not know."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, length: int) -> None:
        """Keep the first ``length`` bytes; the file is made where there is none."""
        write_bytes(self.path, self.path.read_bytes()[:length] if length and self.path.is_file() else b"")

    def append(self, kind: str, event: TrainingEvent) -> int:
        """Write one line → the length of the file."""
        fields = {"kind": kind, **asdict(event)}
        if not isinstance(event, FinishedEvent):
            fields |= {"bits": event.loss / math.log(2), "perplexity": math.exp(min(event.loss, 700))}
        line = json.dumps(fields, ensure_ascii=False) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                return file.tell()
        except OSError as error:
            raise_cannot_write(self.path, error)

    def sync(self) -> None:
        """Wait until the disk has all of it."""
        try:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise_cannot_write(self.path, error)
