"""How deployments look: a live table on a terminal, plain lines elsewhere."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rnn_edge import render
from rnn_edge.deploy.deployment import STEPS, Report, Result

if TYPE_CHECKING:
    from rich.table import Table


@contextlib.contextmanager
def progress(hosts: Sequence[str], *, steps: bool, quiet: bool) -> Iterator[Report]:
    """Show each device's step while the block runs, on stderr; what it yields is called from many threads."""
    out = render.console(stderr=True)
    if quiet:
        yield lambda device, step, detail: None
        return
    lock = threading.Lock()
    if not out.is_terminal or out.is_dumb_terminal or not steps:

        def line(device: str, step: str, detail: str) -> None:
            if detail:
                with lock:
                    render.note(f"{device}: {step}: {detail}")

        yield line
        return
    from rich.live import Live

    state = dict.fromkeys(hosts, ("connect", ""))
    with Live(_screen(state), console=out, refresh_per_second=12, transient=True) as live:

        def update(device: str, step: str, detail: str) -> None:
            with lock:
                state[device] = (step, detail)
                live.update(_screen(state))

        yield update


def _screen(state: dict[str, tuple[str, str]]) -> "Table":
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for host, (step, detail) in state.items():
        done = STEPS.index(step) if step in STEPS else len(STEPS) if step == "done" else 0
        steps = Text()
        for index, name in enumerate(STEPS):
            mark = "✓" if index < done else "·"
            steps.append(f"{mark} {name}  ", style="green" if index < done else "bold" if name == step else "dim")
        finished = {"done": Text("✓", style="green"), "failed": Text("✗", style="red")}
        mark_of = finished.get(step) or Spinner("dots")
        table.add_row(
            mark_of, Text(render.visible(host), style="bold"), steps, Text(render.visible(detail), style="dim")
        )
    return table


def show(results: Sequence[Result]) -> None:
    """The table at the end, on stdout."""
    rows = []
    for result in results:
        since = f"{datetime.fromtimestamp(result.since):%Y-%m-%d %H:%M}" if result.since else ""
        speed = f"{result.tokens_per_second:,.0f}" if result.tokens_per_second else ""
        memory = f"{result.memory_mb:,.0f} MB" if result.memory_mb else ""
        text = result.result if result.ok else f"FAILED: {result.result}"
        if result.explained:
            text += f", {result.explained} explained differences"
        rows.append((result.device, result.bundle or "", since, speed, memory, text))
    titles = ("device", "bundle", "since", "tokens/s", "memory", "result")
    known = [index for index in range(len(titles)) if any(row[index] for row in rows)]
    render.show_table([titles[index] for index in known], [[row[index] for index in known] for row in rows])
    for result in results:
        if not result.ok:
            render.note(f"hint for {result.device}: {result.hint}")
