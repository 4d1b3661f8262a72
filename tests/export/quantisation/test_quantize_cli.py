"""``rnn-edge quantize`` and ``rnn-edge export --precision``: from end to end, and what they refuse."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rnn_edge.bundle import read_bundle
from rnn_edge.cli import run
from rnn_edge_export.quantisation import products
from tests.device.tiny import DATA, LSTM, TRANSLATOR, WORDS, copy_bundle
from tests.export.conftest import contents, names

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError

CORPUS, PAIRS = DATA / "corpus.txt", DATA / "pairs.tsv"
MEASURES = ("loss", "loss increase", "top-1 agreement", "KL divergence", "largest logit difference", "size", "step")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model in int8."""
    path = tmp_path_factory.mktemp("quantised") / "small"
    assert run(["quantize", str(LSTM), "-o", str(path), "--data", str(CORPUS)]) == 0
    return path


@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_quantising_a_language_model(precision: str, tmp_path: Path, cli: Cli) -> None:
    output = tmp_path / "bundles" / "small"
    answer = cli("quantize", LSTM, "-o", output, "--precision", precision, "--data", CORPUS, "--max-loss-increase", 2)
    assert answer.code == 0, answer.err
    shown = answer.out + answer.err
    for words in (*MEASURES, "fp32", precision, "± ", "(95 %)", "5,952 tokens of corpus.txt; few", f"wrote {output}"):
        assert words in shown
    assert ("a CPU computes with fp16 weights in fp32" in answer.err) == (precision == "fp16")
    sizes = re.search(r"size +(\d+\.\d\d) +(\d+\.\d\d) +MB", shown)
    assert sizes is not None
    assert float(sizes[2]) < float(sizes[1])
    manifest = read_bundle(output).manifest
    assert (manifest.name, manifest.precision) == ("small", precision)
    answer = cli("verify", output, "--device", "cpu")
    assert answer.code == 0, answer.err
    answer = cli("generate", output, "-p", "The", "-n", 20, "-s", 1, "--quiet", "--device", "cpu")
    assert (answer.code, len(answer.out)) == (0, 23)


def test_without_data_the_model_writes_its_own(tmp_path: Path, cli: Cli) -> None:
    answer = cli("quantize", LSTM, "-o", tmp_path / "b", "--name", "other")
    assert answer.code == 0, answer.err
    assert "100,032 tokens of text that the original writes itself" in answer.err
    assert "few" not in answer.err
    manifest = read_bundle(tmp_path / "b").manifest
    assert (manifest.name, manifest.precision) == ("other", "int8")


def test_quantising_a_translator(tmp_path: Path, cli: Cli) -> None:
    answer = cli("quantize", TRANSLATOR, "-o", tmp_path / "one", "--data", PAIRS)
    assert answer.code == 0, answer.err
    assert "tokens of pairs.tsv; few" in answer.err
    assert cli("verify", tmp_path / "one", "--device", "cpu").code == 0
    answer = cli("translate", tmp_path / "one", "Marta sees a boat.", "--device", "cpu", "--quiet")
    assert answer.code == 0
    assert answer.out.strip()
    sides = [tmp_path / "pairs.en", tmp_path / "pairs.fr"]
    lines = [line.split("\t") for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    for side, path in enumerate(sides):
        path.write_bytes("".join(f"{line[side]}\n" for line in lines).encode("utf-16"))
    answer = cli(
        *("quantize", TRANSLATOR, "-o", tmp_path / "two", "--data", sides[0], "--data", sides[1]),
        *("--encoding", "utf-16"),
    )
    assert answer.code == 0, answer.err
    figures = [
        [metric.value for metric in read_bundle(tmp_path / name).manifest.metrics if metric.name == "loss increase"]
        for name in ("one", "two")
    ]
    assert figures[0] == figures[1]


def test_a_run_is_exported_in_eight_bits(
    finished: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "ROUNDED_FROM", 1)
    arguments = ("export", finished / "run", "-o", tmp_path / "b", "--precision", "int8")
    answer = cli(*arguments, "--data", finished / "corpus.txt")
    assert answer.code == 0, answer.err
    shown = answer.out + answer.err
    for words in ("logits after 256 steps", *MEASURES, "tokens of corpus.txt", "verified against PyTorch"):
        assert words in shown
    manifest = read_bundle(tmp_path / "b").manifest
    assert (manifest.name, manifest.precision, manifest.lowering) == ("b", "int8", "cell")
    assert [metric.name for metric in manifest.metrics].count("loss increase") == 1
    assert cli("verify", tmp_path / "b", "--device", "cpu").code == 0
    assert sorted(names(tmp_path)) == ["b", "finished"]


def test_what_of_the_data_is_not_in_the_vocabulary(finished: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli("export", finished / "run", "-o", tmp_path / "whole").code == 0
    text = (finished / "corpus.txt").read_text(encoding="utf-8")
    (tmp_path / "more.txt").write_text(f"{text}☃☃☃", encoding="utf-8")
    arguments = ("quantize", tmp_path / "whole", "--precision", "fp16")
    answer = cli(*arguments, "-o", tmp_path / "a", "--data", tmp_path / "more.txt")
    assert "tokens of more.txt; 3 of its characters are not in the vocabulary" in answer.err
    answer = cli(*arguments, "-o", tmp_path / "b", "--data", finished / "corpus.txt")
    assert "not in the vocabulary" not in answer.err


@pytest.mark.parametrize(
    ("options", "error", "hint", "code"),
    [
        (("--precision", "int2"), "--precision int2 is unknown", "fp16, int8, int4", 2),
        (("--precision", "fp32"), "--precision fp32 is unknown", "fp16, int8, int4", 2),
        (("--precision", "int4", "--block-size", "48"), "block size is 48", "16, 32, 64, 128, 256", 2),
        (("--max-loss-increase", "-1"), "--max-loss-increase", "", 2),
        (("--max-loss-increase", "nan"), "nan", "--max-loss-increase", 2),
        (("--data", "missing.txt"), "missing.txt", "path", 1),
        (("--data", CORPUS, "--data", CORPUS), "--data names 2 files", "one text", 2),
        (("--max-loss-increase", "0"), "int8 may raise the loss by", "--max-loss-increase", 1),
    ],
)
def test_what_is_refused(
    tmp_path: Path, cli_error: CliError, options: tuple[object, ...], error: str, hint: str, code: int
) -> None:
    data = () if "--data" in options else ("--data", CORPUS)
    found = cli_error("quantize", LSTM, "-o", tmp_path / "b", *data, *options, code=code)
    assert error in found[0]
    assert hint in found[1]
    assert names(tmp_path) == []


def test_translators_need_pairs(tmp_path: Path, cli_error: CliError) -> None:
    error, hint = cli_error("quantize", WORDS, "-o", tmp_path / "b")
    assert "measured on sentence pairs" in error
    assert "--data" in hint
    three = [word for _ in range(3) for word in ("--data", PAIRS)]
    error, hint = cli_error("quantize", WORDS, "-o", tmp_path / "b", *three, code=2)
    assert error == "--data names 3 files"
    assert "TSV" in hint
    assert "has no tab" in cli_error("quantize", WORDS, "-o", tmp_path / "b", "--data", CORPUS)[0]
    assert names(tmp_path) == []


def test_text_that_cannot_be_measured_on(tmp_path: Path, cli_error: CliError) -> None:
    (tmp_path / "odd.txt").write_text("你好世界\n" * 100, encoding="utf-8")
    (tmp_path / "short.txt").write_text("The lamp.", encoding="utf-8")
    (tmp_path / "none.txt").write_text("", encoding="utf-8")
    for name, words in (("odd", "odd.txt"), ("short", "short.txt has 9 tokens"), ("none", "none.txt is empty")):
        error, _ = cli_error("quantize", LSTM, "-o", tmp_path / "b", "--data", tmp_path / f"{name}.txt")
        assert words in error
    assert not (tmp_path / "b").exists()


def test_bundles_that_cannot_be_quantised(quantised: Path, tmp_path: Path, cli_error: CliError) -> None:
    error, hint = cli_error("quantize", quantised, "-o", tmp_path / "b", "--precision", "int4")
    assert "has int8 weights already" in error
    assert "make int4 from its fp32 bundle" in hint
    assert "nowhere" in cli_error("quantize", tmp_path / "nowhere", "-o", tmp_path / "b")[0]
    copy_bundle(LSTM, tmp_path / "damaged")
    (tmp_path / "damaged" / "step.onnx").write_bytes(b"nothing")
    cli_error("quantize", tmp_path / "damaged", "-o", tmp_path / "b", "--data", CORPUS)
    assert names(tmp_path) == ["damaged"]


def test_an_output_that_exists(quantised: Path, tmp_path: Path, cli: Cli, cli_error: CliError) -> None:
    shutil.copytree(quantised, tmp_path / "b")
    before = contents(tmp_path / "b")
    command = ("quantize", LSTM, "-o", tmp_path / "b", "--data", CORPUS, "--precision", "fp16")
    error, hint = cli_error(*command)
    assert "exists" in error
    assert "--force" in hint
    assert contents(tmp_path / "b") == before
    assert cli(*command, "--force").code == 0
    assert read_bundle(tmp_path / "b").manifest.precision == "fp16"
    copy_bundle(LSTM, tmp_path / "own")
    own = contents(tmp_path / "own")
    error, _ = cli_error(*("quantize", tmp_path / "own", "-o", tmp_path / "own", "--data", CORPUS, "--force"), code=2)
    assert "is the bundle itself" in error
    assert contents(tmp_path / "own") == own


def test_force_takes_one_that_loses_too_much(tmp_path: Path, cli: Cli, cli_error: CliError) -> None:
    command = (
        "quantize",
        LSTM,
        "-o",
        tmp_path / "b",
        "--data",
        CORPUS,
        "--precision",
        "int4",
        "--max-loss-increase",
        0,
    )
    error, hint = cli_error(*command)
    assert re.search(
        r"int4 may raise the loss by \d\.\d+ %, more than 0 % \(measured \d\.\d+ % on 5,952 tokens\)", error
    )
    assert "--force" in hint
    assert "--block-size below 128" in hint
    assert names(tmp_path) == []
    assert "block-size" not in cli_error(*command, "--block-size", 16)[1]
    assert cli(*command, "--force").code == 0
    assert cli("verify", tmp_path / "b", "--device", "cpu").code == 0


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        (("--precision", "int2"), "--precision int2 is unknown", 2),
        (("--precision", "int4", "--block-size", "48"), "block size is 48", 2),
        (("--precision", "int8", "--data", "missing.txt"), "missing.txt", 1),
        (("--precision", "int8", "--max-loss-increase", "-1"), "--max-loss-increase", 2),
    ],
)
def test_exports_that_are_refused(
    finished: Path, tmp_path: Path, cli_error: CliError, options: tuple[str, ...], error: str, code: int
) -> None:
    assert error in cli_error("export", finished / "run", "-o", tmp_path / "b", *options, code=code)[0]
    assert not (tmp_path / "b").exists()
