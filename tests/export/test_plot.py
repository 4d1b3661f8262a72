"""``rnn-edge plot``: pictures of loss curves."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from rnn_edge.errors import RunError
from rnn_edge_export import plotting
from rnn_edge_export.run import Metrics, StepRecord, read_metrics
from rnn_edge_export.training_events import ValidationEvent
from tests.export.conftest import contents, names

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError

pytest.importorskip("matplotlib")
SVG = "{http://www.w3.org/2000/svg}"


def metrics(losses: Iterable[float], *, bleu: bool = False, every: int = 10) -> Metrics:
    """A run that logs at each tenth step and validates at each twentieth, half a nat better."""
    steps = [
        StepRecord(10 * place, 1000, place / 10, loss, 500.0, 10 * place * 64) for place, loss in enumerate(losses, 1)
    ]
    found = [
        ValidationEvent(step.step, step.loss - 0.5, index < 3, "text", 10.0 + index if bleu else None)
        for index, step in enumerate(steps[1::2])
    ]
    return Metrics(tuple(steps), tuple(found), None)


FALLING = [5 - 3 * (1 - 0.9**place) for place in range(20)]


def _words(svg: bytes) -> set[str]:
    """Texts of a picture: they are drawn as outlines, each after a comment that says it."""
    return set(re.findall(r"<!-- (.*?) -->", svg.decode()))


def test_a_picture_names_runs_and_their_best() -> None:
    svg = plotting.draw({"first": metrics(FALLING), "second": metrics(FALLING[:8])}, "svg", title="Two runs")
    ET.fromstring(svg)
    best = metrics(FALLING).validations[2]
    words = _words(svg)
    assert {"Two runs", "steps", "loss, nats per token", "training"} <= words
    assert f"first: ★ {best.loss:.4f} at step 60" in words
    assert b"#0072b2" in svg
    assert b"#d55e00" in svg
    assert b"#009e73" not in svg  # a colour for each run, and no more
    assert "BLEU of the validation" not in words


def test_the_same_metrics_are_the_same_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = {"a": metrics(FALLING, bleu=True)}
    first = plotting.draw(runs, "svg"), plotting.draw(runs, "png")
    assert b"<dc:date>" not in first[0]
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 30\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # where matplotlib looks for a user's own settings
    assert (plotting.draw(runs, "svg"), plotting.draw(runs, "png")) == first
    assert first[1].startswith(b"\x89PNG")


def test_drawing_changes_no_settings_of_matplotlib() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plotting.draw({"a": metrics(FALLING)}, "svg", log=True)
    assert dict(mpl.rcParams) == before


def test_units_and_axes() -> None:
    runs = {"a": metrics(FALLING, bleu=True)}
    best = metrics(FALLING).validations[2].loss
    bits = _words(plotting.draw(runs, "svg", loss="bits", over="epochs"))
    assert {"epochs", "loss, bits per token", "BLEU of the validation"} <= bits
    assert f"a: ★ {best / math.log(2):.4f}, BLEU 12.00 at step 60" in bits
    perplexity = _words(plotting.draw(runs, "svg", loss="perplexity", over="tokens", log=True))
    assert {"tokens", "perplexity", "20"} <= perplexity  # a power of ten is not the only number of its decade
    assert f"a: ★ {math.exp(best):.2f}, BLEU 12.00 at step 60" in perplexity


@pytest.mark.parametrize(("over", "place"), [("steps", 60.0), ("epochs", 0.6), ("tokens", 3840.0)])
def test_the_best_is_marked_where_it_is(monkeypatch: pytest.MonkeyPatch, over: Any, place: float) -> None:
    marked: list[tuple[float, float]] = []
    original = plotting._mark_best

    def spy(axes: Any, curve: Any, x: float, y: float) -> None:
        marked.append((x, y))
        original(axes, curve, x, y)

    monkeypatch.setattr(plotting, "_mark_best", spy)
    plotting.draw({"a": metrics(FALLING, bleu=True)}, "svg", over=over)
    best = metrics(FALLING).validations[2]
    assert [x for x, _ in marked] == pytest.approx([place, place])
    assert [y for _, y in marked] == [best.loss, 12.0]


def test_long_curves_are_means_of_neighbours() -> None:
    losses = [float(place % 2) for place in range(6000)]
    places, values = plotting._thin(range(6000), losses)
    assert len(places) == len(values) == 300
    assert (values == 0.5).all()
    assert places[0] == 9.5
    few = plotting._thin([10, 20, 30], [3.0, 2.0, 1.0])
    assert [list(part) for part in few] == [[10, 20, 30], [3.0, 2.0, 1.0]]


def test_lines_differ_where_colours_repeat() -> None:
    looks = {(plotting._COLOURS[index % 6], plotting._MARKERS[index % 7]) for index in range(42)}
    assert len(looks) == 42
    runs = {f"run {index}": metrics(FALLING) for index in range(9)}
    assert {f"run {index}" for index in range(9)} <= {word.split(":")[0] for word in _words(plotting.draw(runs, "svg"))}


@pytest.mark.parametrize("name", ["_hidden", "$x^2$", "a <b> & 'c'", "语言", "bell \a"])
def test_names_are_only_names(name: str) -> None:
    svg = plotting.draw({name: metrics(FALLING)}, "svg", title=name)
    ET.fromstring(svg)


def test_a_run_without_validation_or_without_movement() -> None:
    started = Metrics(metrics([3.0]).steps, (), None)
    assert "a: not validated yet" in _words(plotting.draw({"a": started}, "svg"))
    assert "a: ★ 2.5000 at step 20" in _words(plotting.draw({"a": metrics([3.0, 3.0])}, "svg"))


def test_tokens_that_were_not_counted() -> None:
    old = Metrics((StepRecord(10, 20, 0.5, 2.0, 9.0),), (), None)
    with pytest.raises(RunError, match="the metrics of old do not count tokens"):
        plotting.draw({"old": old}, "svg", over="tokens")


def test_the_command(finished: Path, cli: Cli) -> None:
    shutil.copytree(finished / "run", finished / "other" / "run")
    answer = cli("plot", finished / "run", finished / "other" / "run", "-o", finished / "new" / "loss.svg")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    svg = (finished / "new" / "loss.svg").read_bytes()
    found = read_metrics(finished / "run")
    assert found.best is not None
    assert f"other/run: ★ {found.best.loss:.4f} at step {found.best.step}" in _words(svg)
    assert names(finished / "new") == ["loss.svg"]
    answer = cli("plot", finished / "run", "-o", finished / "loss.PNG", "--over", "tokens", "--title", "Lines")
    assert answer.code == 0, answer.err
    assert (finished / "loss.PNG").read_bytes().startswith(b"\x89PNG")


def test_a_run_at_work_is_drawn_as_far_as_it_is(finished: Path, cli: Cli) -> None:
    path = finished / "run" / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:2]) + b"\n" + lines[2][:30])
    assert cli("plot", finished / "run", "-o", finished / "loss.svg").code == 0
    assert "at step 10" in str(_words((finished / "loss.svg").read_bytes()))
    begun = finished / "begun"
    shutil.copytree(finished / "run", begun)
    (begun / "metrics.jsonl").write_bytes(b"")
    answer = cli("plot", finished / "run", begun, "-o", finished / "loss.svg", "--force")
    assert answer.code == 0
    assert f"{begun} has recorded nothing yet" in answer.err


def test_bad_input(finished: Path, cli_error: CliError) -> None:
    run = finished / "run"
    before = contents(finished)
    cases: list[tuple[list[Any], str, str, int]] = [
        ([finished, "-o", finished / "a.svg"], "is not a training run", "rnn-edge train", 1),
        ([finished / "no", "-o", finished / "a.svg"], "is not a training run", "rnn-edge train", 1),
        ([run, "-o", finished / "a.gif"], "a.gif is neither an SVG nor a PNG", ".svg or .png", 2),
        ([run, "-o", finished / "a"], "is neither an SVG nor a PNG", ".svg or .png", 2),
        ([run, "-o", finished / "a.svg", "--over", "days"], "--over days is unknown", "steps, epochs, tokens", 2),
        ([run, "-o", finished / "a.svg", "--loss", "dB"], "--loss dB is unknown", "nats, bits, perplexity", 2),
        ([run, "-o", run / "recipe.toml" / "a.svg"], "recipe.toml is a file", "another output path", 1),
    ]
    for arguments, error, hint, code in cases:
        answer = cli_error("plot", *arguments, code=code)
        assert error in answer[0]
        assert hint in answer[1]
    assert contents(finished) == before
    (finished / "a.svg").write_text("mine", encoding="utf-8")
    assert "exists already" in cli_error("plot", run, "-o", finished / "a.svg")[0]
    assert (finished / "a.svg").read_text(encoding="utf-8") == "mine"


def test_a_picture_that_cannot_be_written(finished: Path, cli_error: CliError, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "replace", refuse)
    error, hint = cli_error("plot", finished / "run", "-o", finished / "a.svg")
    assert error == f"cannot write {finished / 'a.svg'}: Permission denied"
    assert "may write to" in hint
    assert names(finished) == ["corpus.txt", "run"]


def test_damaged_and_empty_metrics(finished: Path, cli_error: CliError) -> None:
    path = finished / "run" / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    for bad in (b"{", b"[]", b'{"kind": "train"}', b"\xff", json.dumps({"kind": []}).encode()):
        path.write_bytes(b"\n".join([lines[0], bad, *lines[2:]]))
        if bad == b'{"kind": []}':  # of a later version: passed over
            assert len(read_metrics(finished / "run").steps) == 3
            continue
        error, hint = cli_error("plot", finished / "run", "-o", finished / "a.svg")
        assert "is damaged in line 2" in error
        assert "--resume" in hint
    path.write_bytes(lines[0][:20])
    error, _ = cli_error("plot", finished / "run", "-o", finished / "a.svg")
    assert error == "there is nothing to draw"


def test_matplotlib_is_not_installed(finished: Path, cli_error: CliError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    error, hint = cli_error("plot", finished / "run", "-o", finished / "a.svg")
    assert error == "matplotlib is not installed; drawing loss curves needs it"
    assert hint == "run: pip install 'rnn-edge[plot]'"
