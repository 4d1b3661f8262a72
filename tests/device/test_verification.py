"""What a device proves by itself, and what it must not let pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnn_edge.bundle import Bundle, open_bundle
from rnn_edge.stepper import StepGraph
from rnn_edge.verification import Finding, replay, verify
from tests.device.tiny import GRU, LSTM, copy_bundle, replace_file


def findings(bundle: Bundle) -> dict[str, Finding]:
    return {finding.name: finding for finding in verify(bundle, device="cpu")}


def with_golden(bundle: Bundle, index: int, **changes: Any) -> Bundle:
    golden = list(bundle.manifest.golden)
    golden[index] = replace(golden[index], **changes)
    return replace(bundle, manifest=replace(bundle.manifest, golden=tuple(golden)))


def other_answer(bundle: Bundle, index: int, step: int) -> tuple[int, ...]:
    best = list(bundle.manifest.golden[index].best)
    best[step] = (best[step] + 1) % 70
    return tuple(best)


@pytest.mark.parametrize("path", [LSTM, GRU], ids=lambda path: path.name)
def test_tiny_bundles_pass(path: Path) -> None:
    found = findings(open_bundle(path))
    assert list(found) == [
        "files",
        "tokenizer",
        "graph",
        "golden greedy",
        "golden text",
        "state saved and loaded",
        "batches",
        "timing",
    ]
    assert all(finding.passed for finding in found.values())
    assert "128 steps, 0 explained differences, 0 unexplained" in found["golden greedy"].detail


def test_another_answer_with_a_large_margin_fails() -> None:
    bundle = open_bundle(LSTM)
    for index, name in enumerate(("golden greedy", "golden text")):
        margins = bundle.manifest.golden[index].margins
        step = margins.index(max(margins))
        found = findings(with_golden(bundle, index, best=other_answer(bundle, index, step)))
        assert [finding.name for finding in found.values() if not finding.passed] == [name]
        assert f"1 unexplained (first at step {step})" in found[name].detail


def test_another_answer_with_a_margin_below_the_tolerance_is_explained() -> None:
    bundle = open_bundle(LSTM)
    transcript = bundle.manifest.golden[1]
    step = 40
    best = other_answer(bundle, 1, step)
    for tolerance, passes in ((transcript.margins[step] + 1e-6, True), (transcript.margins[step], False)):
        found = findings(with_golden(bundle, 1, best=best, tolerance=tolerance))["golden text"]
        assert found.passed is passes
        assert found.explained == int(passes)


def test_replay_counts_every_step() -> None:
    bundle = open_bundle(GRU)
    graph = StepGraph(bundle, device="cpu")
    transcript = bundle.manifest.golden[1]
    wrong = tuple((token + 1) % 70 for token in transcript.best)
    result = replay(graph.stepper(), replace(transcript, best=wrong, tolerance=-1.0))
    assert (result.steps, result.explained) == (128, 0)
    assert result.unexplained == tuple(range(128))
    # A margin that is not below the tolerance explains nothing, however small both are.
    result = replay(graph.stepper(), replace(transcript, best=wrong, margins=(0.0,) * 128, tolerance=0.0))
    assert result.explained == 0


def test_other_weights_fail(tmp_path: Path) -> None:
    """Weights that changed together with their hash: only the transcript can tell."""
    path = copy_bundle(LSTM, tmp_path / "b")
    content = (path / "step.onnx").read_bytes()
    # Some 500 weights in a row, at whatever place of the file they begin: small numbers, as only weights are.
    for place in range(len(content) // 4, len(content)):
        weights = np.frombuffer(content[place : place + 2000], np.float32)
        if (np.abs(weights) < 10).all() and (np.abs(weights) > 1e-6).all():
            break
    content = content[:place] + (-weights).tobytes() + content[place + 2000 :]
    replace_file(path, "step.onnx", content)
    found = findings(open_bundle(path))
    assert found["files"].passed
    assert not found["golden text"].passed


def test_damaged_files_end_it(tmp_path: Path) -> None:
    path = copy_bundle(LSTM, tmp_path / "b")
    with (path / "step.onnx").open("ab") as file:
        file.write(b"x")
    found = findings(open_bundle(path))
    assert list(found) == ["bundle"]
    assert not found["bundle"].passed
    assert "truncated or changed" in found["bundle"].detail


def test_no_transcript_proves_nothing() -> None:
    bundle = open_bundle(LSTM)
    found = findings(replace(bundle, manifest=replace(bundle.manifest, golden=())))
    assert not found["golden transcript"].passed
