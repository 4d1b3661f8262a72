"""``rnn-edge models``, ``show``, ``verify`` and the group itself."""

import json
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from rnn_edge.cli import COMMANDS
from tests.device.conftest import Cli
from tests.device.tiny import GRU, LSTM, copy_bundle


def test_models(cli: Cli, tmp_path: Path) -> None:
    copy_bundle(GRU, tmp_path / "bundles" / "mine")
    copy_bundle(GRU, tmp_path / "bundles" / "broken", lambda manifest: manifest.pop("state"))
    code, out, err = cli("models")
    assert code == 0
    for name, network in (("gru", "GRU 1 × 32"), ("lstm", "LSTM 2 × 32"), ("mine", "GRU 1 × 32")):
        (line,) = (line for line in out.splitlines() if line.split()[:1] == [name])
        assert network in line
    assert "broken" not in out
    assert err.splitlines() == ["bundles/broken does not open: bundles/broken/manifest.json: state is missing"]


def test_models_as_json(cli: Cli) -> None:
    code, out, _ = cli("models", "--json")
    assert code == 0
    found = {line["name"]: line for line in map(json.loads, out.splitlines())}
    size = sum((GRU / name).stat().st_size for name in ("step.onnx", "tokenizer.json", "README.md"))
    assert found["gru"] == {"name": "gru", "task": "language-model", "bytes": size, "path": str(GRU)}


def test_show(cli: Cli) -> None:
    code, out, err = cli("show", "lstm")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for part in (
        "tiny-lstm",
        "LSTM 2 × 32, embedding 16",
        "h0 → h0_next [batch, 32]",
        "512 bytes a stream",
        "vocabulary 70",
        "start 1",
        "nats per token",
        "lighthouse keeper",
        "sha256",
    ):
        assert part in text


def test_show_the_whole_manifest(cli: Cli) -> None:
    assert cli("show", str(LSTM), "--json") == (0, (LSTM / "manifest.json").read_text(encoding="utf-8"), "")


def test_show_the_recipe(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = cli("show", "gru", "--recipe")
    assert code == 0
    assert tomllib.loads(out)["model"]["cell"] == "gru"
    folder = copy_bundle(GRU, tmp_path / "sly", lambda value: value["provenance"].update(recipe="a\x1b]0;b\x07\n"))
    assert cli("show", str(folder), "--recipe")[1] == "a\x1b]0;b\x07\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli("show", str(folder), "--recipe")[1] == "a␛]0;b␇\n"


def test_verify(cli: Cli) -> None:
    code, out, err = cli("verify", "lstm", "--device", "cpu")
    assert code == 0
    assert err.startswith("all 8 checks passed · 0 explained differences · ")
    checks = (
        "files",
        "tokenizer",
        "graph",
        "golden greedy",
        "golden text",
        "state saved and loaded",
        "batches",
        "timing",
    )
    for check in checks:
        (line,) = (line for line in out.splitlines() if line.startswith(check + " "))
        assert "passed" in line


@pytest.mark.parametrize("option", [("-t", "0"), ("-t", "9999"), ("--device", "tpu")], ids=" ".join)
def test_verify_blames_no_bundle_for_its_options(cli: Cli, option: tuple[str, str]) -> None:
    code, out, err = cli("verify", "lstm", *option)
    assert (code, out) == (2, "")
    assert option[1] in err
    assert "FAILED" not in err


def test_verify_as_json_and_its_exit_code(cli: Cli, tmp_path: Path) -> None:
    def lie(manifest: dict[str, Any]) -> None:
        golden = manifest["golden"][0]
        step = golden["margins"].index(max(golden["margins"]))
        golden["best"][step] = (golden["best"][step] + 1) % 70

    code, out, _ = cli("verify", "gru", "--json")
    assert code == 0
    assert all(json.loads(line)["passed"] for line in out.splitlines())
    copy_bundle(GRU, tmp_path / "liar", lie)
    code, out, err = cli("verify", str(tmp_path / "liar"), "--json")
    assert (code, err) == (1, "")
    assert [line["name"] for line in map(json.loads, out.splitlines()) if not line["passed"]] == ["golden greedy"]
    code, out, err = cli("verify", str(tmp_path / "liar"))
    assert code == 1
    assert "FAILED" in out
    assert err.startswith("1 of 8 checks FAILED")


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"rnn-edge {version('rnn-edge')}\n", "")


def test_help_names_every_command(cli: Cli) -> None:
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    assert all(f"  {name}" in out for name in COMMANDS)
    assert cli("-h")[1] == out


def test_no_command_shows_the_help(cli: Cli) -> None:
    code, out, err = cli()
    assert "Usage: rnn-edge" in out + err
    assert code in (0, 2)
