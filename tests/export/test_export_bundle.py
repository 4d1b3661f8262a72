"""From a finished run to a bundle that verifies and writes text; and exports that cannot be made."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from rnn_edge import LanguageModel
from rnn_edge.bundle import read_bundle
from rnn_edge.cli import run
from rnn_edge.errors import RnnEdgeError
from rnn_edge.verification import verify
from rnn_edge_export.language_model import export as language_model_export
from rnn_edge_export.onnx_export import Source, export_bundle
from tests.export.conftest import contents, names

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError, Export, MakeSource


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: str, train_flags: tuple[str, ...]) -> Path:
    """A finished run with a recipe that names its corpus."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "corpus.txt").write_text(text, encoding="utf-8", newline="")
    (folder / "recipe.toml").write_text(
        'title = "Moths and kettles"\n'
        '[data]\ntitle = "Lines"\nsource = "https://example.org/lines"\nlicence = "CC0-1.0"\n',
        encoding="utf-8",
    )
    command = ["train", "lm", folder / "corpus.txt", "-o", folder / "run", "--recipe", folder / "recipe.toml"]
    assert run([*map(str, command), *train_flags]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def bundle_of_run(trained: Path) -> Path:
    """The run's bundle."""
    path = trained.parent / "bundles" / "lines"
    notes = trained.parent / "notes.md"
    notes.write_text("Tried twice: naïvely, then with care.\n", encoding="utf-8")
    assert run(["export", str(trained), "-o", str(path), "--notes", str(notes)]) == 0
    return path


def test_the_export_prints_a_table_of_its_checks(trained: Path, tmp_path: Path, cli: Cli) -> None:
    answer = cli("export", trained, "-o", tmp_path / "b", "--lowering", "cell", "--name", "other")
    assert answer.code == 0
    shown = answer.out + answer.err
    for words in ("largest difference", "allowed", "logits after 256 steps", "state after 16 steps", "verified"):
        assert words in shown
    manifest = read_bundle(tmp_path / "b").manifest
    assert (manifest.name, manifest.lowering) == ("other", "cell")
    assert names(tmp_path) == ["b"]


def test_the_manifest_tells_where_the_model_comes_from(trained: Path, bundle_of_run: Path) -> None:
    manifest = read_bundle(bundle_of_run).manifest
    lines = (trained / "metrics.jsonl").read_text(encoding="utf-8").strip().split("\n")
    finished = json.loads(lines[-1])
    carried, cold = manifest.metrics
    assert [carried.value, cold.value] == [score["value"] for score in finished["scores"]]
    assert (carried.data, carried.split) == ("Lines", "the last 10% of corpus.txt")
    assert "carried" in carried.method
    assert "256" in cold.method
    provenance = manifest.provenance
    assert (provenance.data_title, provenance.data_licence) == ("Lines", "CC0-1.0")
    assert provenance.data_source == "https://example.org/lines"
    assert provenance.data_sha256 in provenance.recipe == (trained / "recipe.toml").read_text(encoding="utf-8")
    assert {"rnn-edge", "python", "torch", "onnx", "onnxruntime"} <= manifest.versions.keys()
    card = (bundle_of_run / "README.md").read_text(encoding="utf-8")
    for words in (
        "# lines",
        "Moths and kettles",
        "Tried twice: naïvely",
        "CC0-1.0",
        f"{carried.value:.4f}",
        "[training]",
    ):
        assert words in card
    assert names(bundle_of_run) == ["README.md", "manifest.json", "step.onnx", "tokenizer.json"]
    assert sorted(manifest.files) == ["README.md", "step.onnx", "tokenizer.json"]


def test_the_golden_transcripts(bundle_of_run: Path) -> None:
    greedy, varied = read_bundle(bundle_of_run).manifest.golden
    assert (greedy.kind, varied.kind) == ("greedy", "text")
    assert greedy.tokens[1:] == greedy.best[:-1]
    assert len(varied.tokens) == 128
    assert len(set(varied.tokens)) > 10
    assert all(margin >= 0 for margin in (*greedy.margins, *varied.margins))


def test_verify_and_generate(bundle_of_run: Path, cli: Cli, text: str) -> None:
    assert cli("verify", bundle_of_run, "--device", "cpu").code == 0
    model = LanguageModel.load(bundle_of_run, device="cpu")
    written = "".join(event.text for event in model.generate("the lamp", max_tokens=60, seed=3))
    assert len(written) == 60
    assert set(written) <= set(text)
    answer = cli("generate", bundle_of_run, "-p", "the lamp", "-n", 60, "-s", 3, "--quiet", "--device", "cpu")
    assert answer == (0, f"the lamp{written}", "")


def test_training_exporting_and_generating_in_processes_of_their_own(
    tmp_path: Path, text: str, train_flags: tuple[str, ...]
) -> None:
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8", newline="")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rnn_edge", *arguments], cwd=tmp_path, text=True, capture_output=True, timeout=300
        )

    trained = command("train", "lm", "corpus.txt", "-o", "runs/mine", *train_flags)
    assert (trained.returncode, trained.stdout) == (0, "")
    for words in ("nats", "bits", "perplexity", "validation on the last 10% of corpus.txt", "best so far", "finished"):
        assert words in trained.stderr
    exported = command("export", "runs/mine", "-o", "bundles/mine")
    assert exported.returncode == 0, exported.stderr
    assert "Warning" not in exported.stderr
    generated = command("generate", "mine", "-p", "our", "-n", "20", "-s", "1")  # by its name: ./bundles is searched
    assert generated.returncode == 0, generated.stderr
    assert len(generated.stdout) == 3 + 20


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_other_cells_verify_too(exported: Export, cell: str) -> None:
    for lowering in ("operator", "cell"):
        findings = list(verify(exported(cell, lowering, 3, False).bundle, device="cpu"))  # type: ignore[arg-type]
        assert all(finding.passed for finding in findings), findings
        assert len(findings) >= 6


def test_an_existing_output_is_refused_without_force(bundle_of_run: Path, trained: Path, cli_error: CliError) -> None:
    before = contents(bundle_of_run)
    error, hint = cli_error("export", trained, "-o", bundle_of_run)
    assert "exists" in error
    assert "--force" in hint
    assert contents(bundle_of_run) == before


def test_force_replaces_a_bundle(trained: Path, bundle_of_run: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(bundle_of_run, tmp_path / "b")
    assert cli("export", trained, "-o", tmp_path / "b", "--force", "--lowering", "cell").code == 0
    assert read_bundle(tmp_path / "b").manifest.lowering == "cell"
    assert names(tmp_path) == ["b"]


def test_force_replaces_bundles_alone(trained: Path, tmp_path: Path, cli_error: CliError) -> None:
    """A slip of the hand must not delete somebody's documents, nor a training run."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter.txt").write_text("dear", encoding="utf-8")
    assert "is not a bundle" in cli_error("export", trained, "-o", tmp_path / "documents", "--force")[0]
    assert "is not a bundle" in cli_error("export", trained, "-o", trained, "--force")[0]
    assert (trained / "best.safetensors").exists()
    assert (tmp_path / "documents" / "letter.txt").read_text(encoding="utf-8") == "dear"


def test_runs_that_cannot_be_exported(trained: Path, tmp_path: Path, cli_error: CliError) -> None:
    output = tmp_path / "b"
    assert "is not a training run" in cli_error("export", tmp_path / "nowhere", "-o", output)[0]
    assert "is not a training run" in cli_error("export", tmp_path, "-o", output)[0]
    assert "is not a training run" in cli_error("export", trained / "recipe.toml", "-o", output)[0]
    shutil.copytree(trained, tmp_path / "run")
    best, tokenizer = tmp_path / "run" / "best.safetensors", tmp_path / "run" / "tokenizer.json"
    good = best.read_bytes()
    best.write_bytes(good[:-9])
    assert "is not a checkpoint" in cli_error("export", tmp_path / "run", "-o", output)[0]
    best.unlink()
    assert "has no checkpoint" in cli_error("export", tmp_path / "run", "-o", output)[0]
    best.write_bytes(good)
    tokenizer.write_text("{}", encoding="utf-8")
    assert "is not a tokenizer" in cli_error("export", tmp_path / "run", "-o", output)[0]
    tokenizer.unlink()
    assert "tokenizer.json" in cli_error("export", tmp_path / "run", "-o", output)[0]
    assert names(tmp_path) == ["run"]
    assert "--lowering fused" in cli_error("export", trained, "-o", output, "--lowering", "fused", code=2)[0]


def test_a_tokenizer_of_another_run_is_refused(trained: Path, tmp_path: Path, cli_error: CliError) -> None:
    from rnn_edge.tokenizer import character_tokenizer

    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_bytes(character_tokenizer("abc\n").content)
    cli_error("export", tmp_path / "run", "-o", tmp_path / "b")
    assert names(tmp_path) == ["run"]


def test_a_run_that_is_not_finished_exports_without_metrics(trained: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(trained, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    assert cli("export", tmp_path / "run", "-o", tmp_path / "b").code == 0
    assert read_bundle(tmp_path / "b").manifest.metrics == ()


def test_a_path_below_a_file(trained: Path, tmp_path: Path, cli_error: CliError) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "is a file, not a folder" in cli_error("export", trained, "-o", tmp_path / "file" / "b")[0]
    assert "exists" in cli_error("export", trained, "-o", tmp_path / "file")[0]


def test_notes_that_cannot_be_read(trained: Path, tmp_path: Path, cli_error: CliError) -> None:
    arguments = ("export", trained, "-o", tmp_path / "b", "--notes")
    assert "missing.md" in cli_error(*arguments, tmp_path / "missing.md")[0]
    (tmp_path / "notes.md").write_bytes(b"caf\xe9")
    assert "byte 3" in cli_error(*arguments, tmp_path / "notes.md")[0]
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_output(trained: Path, tmp_path: Path, cli_error: CliError) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    error, hint = cli_error("export", trained, "-o", tmp_path / "locked" / "b")
    assert "read-only" in error
    assert "write" in hint


@pytest.fixture
def small(exported: Export, make_source: MakeSource, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A source whose graph is already exported."""
    content = exported("rnn", "operator", 1, False).bundle.graph("step")
    monkeypatch.setattr(language_model_export, "step_graph", lambda *_: content)
    return make_source("rnn", 1, False)


@pytest.mark.parametrize("failing", ["fsync", "replace", "rename"])
def test_a_disk_that_is_full_leaves_the_old_bundle(
    small: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    export_bundle(small, tmp_path / "b", name="tiny")
    before = contents(tmp_path / "b")

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, full)
    for output in ("b", "new"):
        with pytest.raises(RnnEdgeError, match="cannot write") as caught:
            export_bundle(small, tmp_path / output, name="tiny", force=True)
        assert "disk is full" in caught.value.hint
    assert names(tmp_path) == ["b"]
    assert contents(tmp_path / "b") == before


def test_the_old_bundle_comes_back_when_the_last_move_fails(
    small: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_bundle(small, tmp_path / "b", name="tiny")
    rename = Path.rename

    def fail_second(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(RnnEdgeError, match="cannot write"):
        export_bundle(small, tmp_path / "b", name="tiny", force=True)
    assert read_bundle(tmp_path / "b").manifest.name == "tiny"
