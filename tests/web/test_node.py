"""``node run.mjs``: text to stdout, the rest to stderr, errors in two lines."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rnn_edge.language_model import LanguageModel
from rnn_edge.translator import Translator
from rnn_edge.web.site import ASSETS
from tests.device.tiny import copy_bundle
from tests.web.conftest import ROOT

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(node: str, sites: Callable[[str], Path]) -> Run:
    """Run the runner of a site on its own WebAssembly."""
    script = sites("tests/data/lstm") / "run.mjs"

    def call(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [node, script, *arguments, "--runtime", "wasm"]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    return call


def test_text_goes_to_stdout(run: Run, sites: Callable[[str], Path]) -> None:
    model = LanguageModel.load(ROOT / "tests/data/lstm", device="cpu")
    options = {"seed": 2**40, "max_tokens": 80, "temperature": 0.9, "repeat_penalty": 1.2}
    expected = "The " + "".join(event.text for event in model.generate("The ", **options))  # type: ignore[arg-type]
    flags = ["--seed", str(2**40), "--max-tokens", "80", "--temperature", "0.9", "--repeat-penalty", "1.2"]
    for folder in (ROOT / "tests/data/lstm", sites("tests/data/lstm")):
        found = run(folder, "--prompt", "The ", *flags)
        assert (found.returncode, found.stdout) == (0, expected)
        assert "80 tokens," in found.stderr
        assert f"seed {2**40}" in found.stderr
    found = run(ROOT / "tests/data/lstm", *flags, "--quiet", "--no-display-prompt", text="The ")
    assert (found.stdout, found.stderr) == (expected.removeprefix("The "), "")


def test_lines_are_translated(run: Run) -> None:
    translator = Translator.load(ROOT / "models/en-fr", device="cpu")
    text = "Where is the house?\n\n  - Good morning.\nShe bought three old books.\n"
    for beam in (1, 4):
        expected = translator.translate(text, translator.options(beam=beam)).text
        assert run(ROOT / "models/en-fr", "--beam", str(beam), text=text).stdout == expected


def test_texts_between_sentences(node: str, tmp_path: Path) -> None:
    """No emoji is cut in two, and languages without spaces get some in those with them."""
    script = tmp_path / "try.mjs"
    script.write_text(
        f"import {{ gapAfter, splitLong }} from {json.dumps((ASSETS / 'sentences.js').as_uri())};\n"
        "const pieces = splitLong((text) => [...text].length, 'a' + '🌍'.repeat(20), 3);\n"
        "console.log(JSON.stringify([pieces.every((piece) => piece.isWellFormed()), pieces.join('')]));\n"
        "console.log(JSON.stringify([gapAfter('', '我爱你。', 'I love you.'), gapAfter('', '我爱你。', '愛してる。'),"
        " gapAfter('\\n', '我爱你。', 'I love you.'), gapAfter('', 'a.', 'b.')]));\n",
        encoding="utf-8",
    )
    done = subprocess.run([node, script], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines == [[True, "a" + "🌍" * 20], [" ", "", "\n", ""]]


def test_the_golden_transcripts_are_replayed(run: Run, tmp_path: Path) -> None:
    found = run(ROOT / "models/shakespeare", "--verify")
    assert found.returncode == 0
    assert found.stdout.count(", 0 unexplained") == 2
    folder = copy_bundle(ROOT / "tests/data/gru", tmp_path / "gru", lambda value: value["golden"][0]["best"].reverse())
    found = run(folder, "--verify")
    assert found.returncode == 1
    assert ", 0 unexplained" not in found.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["nowhere"], 1, "error: nowhere is no bundle: it has no manifest.json"),
        ([ROOT / "tests/data/lstm", "--temperature", "-1"], 1, "error: temperature is -1"),
        ([ROOT / "tests/data/lstm", "--temperature", "warm"], 1, "error: temperature is warm"),
        ([ROOT / "tests/data/lstm", "--seed", "1.5"], 1, "error: seed is 1.5"),
        ([ROOT / "tests/data/lstm", "--seed", str(2**64)], 1, f"error: seed is {2**64}"),
        ([ROOT / "tests/data/lstm", "--max-tokens", "0"], 1, "error: max-tokens is 0"),
        ([ROOT / "tests/data/lstm", "--nonsense"], 2, "error: Unknown option '--nonsense'"),
        ([ROOT / "tests/data/translator", "--beam", "65"], 1, "error: beam is 65"),
        ([ROOT / "models/shakespeare", "--prompt", "naïve"], 1, 'error: the model has never seen "ï"'),
        ([], 2, "usage: node run.mjs"),
    ],
)
def test_mistakes_are_two_lines(run: Run, arguments: list[str | Path], code: int, error: str) -> None:
    found = run(*arguments)
    assert (found.returncode, found.stdout) == (code, "")
    lines = found.stderr.splitlines()
    assert lines[0].startswith(error)
    if error.startswith("error"):
        assert len(lines) == 2
        assert lines[1].startswith("hint: ")


def test_a_changed_file_is_named(run: Run, tmp_path: Path) -> None:
    folder = copy_bundle(ROOT / "tests/data/lstm", tmp_path / "lstm")
    content = bytearray((folder / "step.onnx").read_bytes())
    content[1000] ^= 1
    (folder / "step.onnx").write_bytes(content)
    assert "step.onnx has changed: its SHA-256 is not the manifest's" in run(folder).stderr
    (folder / "step.onnx").unlink()
    (folder / "step.onnx").symlink_to(ROOT / "tests/data/lstm/step.onnx")
    assert "step.onnx is missing or not a plain file" in run(folder).stderr


def test_an_interrupt_ends_the_text(node: str, sites: Callable[[str], Path]) -> None:
    site = sites("tests/data/lstm")
    command = [node, str(site / "run.mjs"), str(site), "--max-tokens", "-1", "--runtime", "wasm"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(200)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130


def test_a_closed_pipe_is_no_failure(node: str, sites: Callable[[str], Path]) -> None:
    site = sites("tests/data/lstm")
    command = [node, str(site / "run.mjs"), str(site), "--max-tokens", "-1", "--runtime", "wasm"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(200)
        process.stdout.close()
        assert process.wait(20) == 0
