"""The documentation is what the code does: the command reference, the test vectors, and the README's commands."""

import gzip
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rnn_edge.noise import gumbel_noise, philox

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks in this language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


def test_command_reference_is_what_help_says() -> None:
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == module.page(), "run: make docs"


def test_sampling_vectors_in_the_format_are_what_the_code_draws() -> None:
    text = (ROOT / "docs" / "model-format.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([-\d.]+) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 5
    for row in rows:
        seed, stream, step, token = map(int, row[:4])
        counter = (token // 4, step & 0xFFFFFFFF, step >> 32, stream)
        word = philox(tuple(np.uint64(value) for value in counter), (seed & 0xFFFFFFFF, seed >> 32))[token % 4]
        assert (int(word) >> 8) + 0.5 == float(row[4])
        assert gumbel_noise(seed, stream, step, 1, token + 1)[0, token] == np.float32(float(row[5]))


def test_readme_lists_what_make_demo_does() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert blocks("bash")[0].strip() == "make demo"
    assert blocks("bash")[2].strip() == "make test"
    recipe = makefile.replace("$(BIN)", ".venv/bin").replace("$(VENV)", ".venv").replace("$(PYTHON)", "python3")
    recipe = recipe.replace("$(INSTALL)", ".venv/bin/python -m pip install --constraint constraints.txt --editable")
    for line in blocks("bash")[1].splitlines():
        assert f"\t{line}\n" in recipe, line


def test_readme_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    command = shlex.split(blocks("bash")[1].splitlines()[-1])[1:]
    result = run([sys.executable, "-m", "rnn_edge", *command], tmp_path)
    assert result.returncode == 0, result.stderr
    shown = blocks("text")[0]
    # Another machine's sums may flip a close choice sooner or later; the start is safe.
    assert result.stdout[:60] == shown[:60]
    assert len(result.stdout) >= 300


def test_readme_python_runs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = run([sys.executable, "-c", blocks("python")[0]], tmp_path)
    assert result.returncode == 0, result.stderr
    text, translation = result.stdout[:200], result.stdout[200:]
    assert len(text) == 200
    assert translation.count("\n") == 1


def run_console(block: str, folder: Path) -> None:
    """Run the lines of a console block, redirections included."""
    for line in block.splitlines():
        command = line.removeprefix("$ ").replace("rnn-edge ", f"{shlex.quote(sys.executable)} -m rnn_edge ", 1)
        assert command != line.removeprefix("$ "), line
        result = run(["bash", "-c", command], folder)
        assert result.returncode == 0, f"{line}\n{result.stderr}"


def test_readme_translates_to_the_letter(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "news.en").write_text("Good morning.\n\nHe is here.\n", encoding="utf-8")
    run_console(blocks("console")[0], tmp_path)
    assert (tmp_path / "news.fr").read_text(encoding="utf-8").count("\n") == 3


@pytest.mark.slow
def test_readme_commands_run_to_the_letter(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    corpus = (ROOT / "tests" / "data" / "corpus.txt").read_text(encoding="utf-8")
    (tmp_path / "corpus.txt").write_text(corpus * 4, encoding="utf-8")
    pairs = (ROOT / "tests" / "data" / "pairs.tsv").read_text(encoding="utf-8")
    for name in ("pairs.tsv", "test.tsv"):
        (tmp_path / name).write_text(pairs, encoding="utf-8")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "some.txt").write_text(corpus * 8, encoding="utf-8")
    keras = (ROOT / "tests" / "data" / "keras" / "sequential.keras.gz").read_bytes()
    (tmp_path / "model.keras").write_bytes(gzip.decompress(keras))
    (tmp_path / "words.json").write_text(json.dumps(["<pad>", "\n", "a", "b", "c", "d", "e"]), encoding="utf-8")
    run_console(blocks("console")[1], tmp_path)
    assert (tmp_path / "bundles" / "mine" / "step.onnx").is_file()
    assert (tmp_path / "bundles" / "de" / "decoder.onnx").is_file()
