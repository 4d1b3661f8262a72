"""What users import, and what importing and running must never pull in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rnn_edge
from rnn_edge.cli import COMMANDS
from tests.device.program import environment, rnn_edge_without
from tests.device.tiny import LSTM

FORBIDDEN = ("torch", "onnx", "onnxscript")
DEVICE_COMMANDS = [name for name, module in COMMANDS.items() if module.startswith("rnn_edge.")]
WORKSTATION_COMMANDS = [["train", "lm"], ["export"]]
PACKAGE = Path(rnn_edge.__file__).parent


def test_all_names_are_importable() -> None:
    assert sorted(rnn_edge.__all__) == list(rnn_edge.__all__)
    for name in rnn_edge.__all__:
        assert callable(getattr(rnn_edge, name))
    namespace: dict[str, object] = {}
    exec("from rnn_edge import *", namespace)
    assert set(rnn_edge.__all__) <= set(namespace)


def test_the_promised_names_are_there() -> None:
    promised = {"LanguageModel", "load", "Event", "RnnEdgeError", "State", "save_state", "load_state", "list_bundles"}
    assert promised <= set(rnn_edge.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rnn_edge.nonsense


def test_the_example_of_the_documentation() -> None:
    model = rnn_edge.LanguageModel.load(LSTM)
    pieces = [event.text for event in model.generate("Marta", max_tokens=20, temperature=0.8, seed=1)]
    assert len("".join(pieces)) == 20
    same = rnn_edge.load(str(LSTM))
    assert isinstance(same, rnn_edge.LanguageModel)
    again = same.generate("Marta", max_tokens=20, temperature=0.8, seed=1)
    assert [event.text for event in again] == pieces


def test_names_are_completed() -> None:
    assert dir(rnn_edge) == sorted(rnn_edge.__all__)


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_importing_every_module_imports_nothing_of_the_workstation() -> None:
    modules = [
        ".".join(("rnn_edge", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
        if path.name != "__main__.py" and "models" not in path.relative_to(PACKAGE).parts[:-1]
    ]
    assert "rnn_edge.cli.generate" in modules
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(tops & {'torch', 'onnx', 'onnxscript', 'rnn_edge_export'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *modules], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == "[]\n"


def test_importing_the_package_is_nearly_free() -> None:
    program = (
        "import sys, rnn_edge; print(sorted(name for name in sys.modules if name in ('numpy', 'tokenizers', 'typer')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_module_names_the_workstation_in_an_import() -> None:
    """Imports within functions too, which no run may happen to reach."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.partition(".")[0] for name in names}
            assert not tops & {*FORBIDDEN, "rnn_edge_export"}, path


@pytest.mark.parametrize("name", DEVICE_COMMANDS)
def test_help_of_device_commands(name: str) -> None:
    done = rnn_edge_without((*FORBIDDEN, "onnxruntime", "rnn_edge_export"), name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: rnn-edge {name}" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "lstm", "-p", "Marta", "-n", "5"],
        ["models"],
        ["show", "lstm"],
        ["verify", "gru"],
        ["--version"],
        ["--help"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_device_commands_run_without_the_workstation(arguments: list[str], tmp_path: Path) -> None:
    done = rnn_edge_without(FORBIDDEN, *arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert "WANTED" not in done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("words", [*WORKSTATION_COMMANDS, ["import"], ["plot"], ["runs"]], ids=" ".join)
def test_help_of_workstation_commands_needs_no_torch(words: list[str]) -> None:
    done = rnn_edge_without((*FORBIDDEN, "onnxruntime"), *words, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: rnn-edge {' '.join(words)}" in done.stdout


@pytest.mark.parametrize("words", WORKSTATION_COMMANDS, ids=" ".join)
def test_workstation_commands_name_the_line_to_install(words: list[str], tmp_path: Path) -> None:
    corpus = tmp_path / "text.txt"
    corpus.write_text("some text\n" * 1000, encoding="utf-8")
    done = rnn_edge_without(FORBIDDEN, *words, str(corpus), "-o", str(tmp_path / "out"))
    error, hint, wanted = done.stderr.splitlines()
    assert done.returncode == 1
    assert error.startswith("error: ")
    assert "not installed" in error
    assert hint == "hint: run: pip install 'rnn-edge[export,cpu]'"
    assert wanted.startswith("WANTED ")
    assert not (tmp_path / "out").exists()
