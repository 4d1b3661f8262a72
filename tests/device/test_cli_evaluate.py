"""``rnn-edge evaluate``: the figures of a model on given data."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from rnn_edge.evaluation import bleu, carried_loss, chrf, cold_block_loss
from rnn_edge.language_model import LanguageModel
from rnn_edge.translation import TranslationOptions
from rnn_edge.translator import Translator
from tests.device.conftest import Cli
from tests.device.test_cli_bad_input import two_lines
from tests.device.tiny import DATA

TEXT = (DATA / "corpus.txt").read_text(encoding="utf-8")[2000:2700]
SOURCES = ["The keeper sees a boat.", "Marta paints the lighthouse.", "She sells the old house, he said."]
REFERENCES = ["Le gardien voit un bateau.", "Marta répare le phare.", "Elle vend la vieille maison, dit-il."]


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> None:
    """A text and pairs, in the folder that commands run in."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    rows = [f"{a}\t{b}\tnotes\n" for a, b in zip(SOURCES, REFERENCES, strict=True)]
    (tmp_path / "pairs.tsv").write_text("".join(rows), encoding="utf-8")
    (tmp_path / "a.en").write_text("\n".join(SOURCES) + "\n", encoding="utf-8")
    (tmp_path / "a.fr").write_text("\n".join(REFERENCES), encoding="utf-8")


def failure(cli: Cli, code: int, *arguments: str) -> tuple[str, str]:
    found, out, err = cli("evaluate", *arguments)
    assert (found, out) == (code, "")
    return two_lines(err)


def measured(cli: Cli, *arguments: str) -> list[dict[str, Any]]:
    code, out, err = cli("evaluate", *arguments, "--json")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert all(set(row) == {"name", "value", "unit", "method"} for row in rows)
    return rows


# --- translators


def test_a_translator(cli: Cli, translator: Translator) -> None:
    rows = measured(cli, "translator", "pairs.tsv")
    assert [(row["name"], row["unit"]) for row in rows] == [
        ("BLEU", ""),
        ("chrF", ""),
        ("loss", "nats per token"),
        ("perplexity", ""),
        ("speed", "sentences/s"),
        ("speed", "words/s"),
    ]
    values = [row["value"] for row in rows]
    translations = [translator.translate(source).text for source in SOURCES]
    scores = [bleu(translations, REFERENCES), chrf(translations, REFERENCES)]
    assert values[:2] == [score.value for score in scores]
    assert [row["method"] for row in rows[:2]] == [f"greedy, {score.signature}" for score in scores]
    scored = translator.score(list(zip(SOURCES, REFERENCES, strict=True)))
    loss = -sum(value for value, _ in scored) / sum(count for _, count in scored)
    assert values[2] == pytest.approx(loss, rel=1e-5)
    assert values[3] == pytest.approx(math.exp(loss), rel=1e-4)
    assert values[4] > 0
    assert values[5] == pytest.approx(values[4] * sum(len(line.split()) for line in translations) / 3)


def test_options_reach_the_translator(cli: Cli, tmp_path: Path, translator: Translator) -> None:
    flags = ["-b", "3", "--length-penalty", "0", "--coverage-penalty", "0.5", "--max-ratio", "0.5"]
    rows = measured(cli, "translator", "pairs.tsv", *flags, "--tokenize", "none", "--batch-size", "2", "-o", "out")
    options = TranslationOptions(beam=3, length_penalty=0, coverage_penalty=0.5, maximum_ratio=0.5)
    expected = [translator.translate(source, options).text for source in SOURCES]
    assert (tmp_path / "out").read_text(encoding="utf-8") == "".join(line + "\n" for line in expected)
    assert rows[0]["value"] == bleu(expected, REFERENCES, "none").value
    assert rows[0]["method"].startswith("beam 3, nrefs:1")
    assert "tok:none" in rows[0]["method"]
    assert "batches of 2" in rows[4]["method"]


def test_the_table(cli: Cli) -> None:
    code, out, err = cli("evaluate", "translator", "pairs.tsv")
    assert (code, err) == (0, "")
    row = next(line for line in out.splitlines() if line.startswith("BLEU "))
    assert float(row.split()[1]) == pytest.approx(measured(cli, "translator", "pairs.tsv")[0]["value"], abs=1e-4)
    assert "version:" in row  # the signature is whole


def test_two_files_are_as_good_as_one(cli: Cli) -> None:
    one, two = measured(cli, "translator", "pairs.tsv"), measured(cli, "translator", "a.en", "a.fr")
    assert one[:4] == two[:4]


def test_translations_are_written_one_a_line(cli: Cli, tmp_path: Path, translator: Translator) -> None:
    (tmp_path / "two.tsv").write_text("The keeper. Marta?\tx\n\tempty\n", encoding="utf-8")
    assert cli("evaluate", "translator", "two.tsv", "-o", "out/put.txt")[0] == 0
    lines = (tmp_path / "out" / "put.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 3
    # A line of the data is one sentence, however many stand in it.
    assert lines[0] == translator.translate_sentences(["The keeper. Marta?"], TranslationOptions())[0].text
    # What is there is replaced only when asked to, and before any work.
    error, hint = failure(cli, 1, "translator", "absent.tsv", "-o", "out/put.txt")
    assert error == "out/put.txt exists already"
    assert "--force" in hint
    assert cli("evaluate", "translator", "pairs.tsv", "-o", "out/put.txt", "--force")[0] == 0
    assert len((tmp_path / "out" / "put.txt").read_text(encoding="utf-8").splitlines()) == 3


def test_sacrebleu_is_not_installed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    error, hint = failure(cli, 1, "translator", "pairs.tsv")
    assert error == "sacrebleu is not installed; scoring translations needs it"
    assert hint == "run: pip install 'rnn-edge[evaluate]'"
    assert cli("evaluate", "lstm", "text.txt")[0] == 0  # which needs none


def test_pairs_that_cannot_be_used(cli: Cli, tmp_path: Path) -> None:
    line = ["translator", "bad.tsv"]
    bad = tmp_path / "bad.tsv"
    assert failure(cli, 1, *line)[0] == "cannot read bad.tsv: No such file or directory"
    bad.write_bytes(b"")
    assert failure(cli, 1, *line)[0] == "bad.tsv is empty"
    bad.write_bytes(b"\n \n\n")
    assert failure(cli, 1, *line)[0] == "bad.tsv has no pairs"
    bad.write_bytes(b"a\tb\n\nno tab here\n")
    error, hint = failure(cli, 1, *line)
    assert error == "bad.tsv, line 3 has no tab: 'no tab here'"
    assert "two files" in hint
    bad.write_bytes(b"a\tcaf\xe9\n")
    error, hint = failure(cli, 1, *line)
    assert error == "bad.tsv is not utf-8: byte 5 is 0xe9"
    assert "--encoding" in hint
    assert cli("evaluate", *line, "--encoding", "latin-1")[0] == 0
    assert failure(cli, 2, *line, "--encoding", "martian")[0] == "--encoding martian is unknown"


def test_files_of_different_length(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.fr").write_text("\n".join(REFERENCES[1:]), encoding="utf-8")
    error, hint = failure(cli, 1, "translator", "a.en", "a.fr")
    assert error == "a.en has 3 lines, a.fr has 2; the first suspicious line is 3"
    assert hint == "give files whose lines belong together"


def test_three_files(cli: Cli) -> None:
    error, hint = failure(cli, 2, "translator", "a.en", "a.fr", "pairs.tsv")
    assert error == "DATA names 3 files"
    assert hint == "give one TSV file, or a source and a target file"


# --- language models


def test_a_language_model(cli: Cli, lstm: LanguageModel) -> None:
    rows = measured(cli, "lstm", "text.txt", "--block", "100")
    ids = lstm.tokenizer.encode(TEXT)
    carried = carried_loss(lstm, ids, len(TEXT) - 1, lambda done, total: None)
    cold = cold_block_loss(lstm, ids, len(TEXT) - 1, 100, lambda done, total: None)
    names = [("loss", "nats per token"), ("loss", "bits per token"), ("loss", "bits per character")]
    assert [(row["name"], row["unit"]) for row in rows] == [*names, ("perplexity", ""), ("speed", "tokens/s")] * 2
    for some, loss in ((rows[:5], carried), (rows[5:], cold)):
        values = [loss.nats, loss.bits, loss.bits_per_character, loss.perplexity]
        assert [row["value"] for row in some[:4]] == pytest.approx(values, rel=1e-6)
        assert {row["method"] for row in some} == {loss.method}
        assert some[4]["value"] > 0
    assert rows[5]["method"] == "consecutive blocks of 100 from a zero state"


def test_characters_that_are_skipped_count_for_nothing(cli: Cli) -> None:
    """A character a token, so as many bits for each; the first is not predicted."""
    Path("known.txt").write_text(TEXT, encoding="utf-8")
    Path("more.txt").write_text("☃" * 100 + TEXT + "☃" * 300, encoding="utf-8")
    known = measured(cli, "lstm", "known.txt", "--unknown", "skip")
    skipped, *rows = measured(cli, "lstm", "more.txt", "--unknown", "skip")
    assert (skipped["name"], skipped["unit"]) == ("skipped", "% of characters")
    assert skipped["value"] == pytest.approx(100 * 400 / (len(TEXT) + 400))
    for found in (known, rows):
        values = {row["unit"]: row["value"] for row in found if row["method"].startswith("state carried")}
        assert values["bits per character"] == pytest.approx(values["bits per token"])
        assert values["nats per token"] == pytest.approx(known[0]["value"])


def test_a_text_shorter_than_a_block_has_no_cold_blocks(cli: Cli) -> None:
    code, out, err = cli("evaluate", "gru", "text.txt", "--block", "700")
    assert (code, err) == (0, "")
    assert "state carried" in out
    assert "blocks" not in out
    assert "consecutive blocks of 699" in cli("evaluate", "gru", "text.txt", "--block", "699")[1]


def test_texts_that_cannot_be_used(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a")
    error, hint = failure(cli, 1, "gru", "short.txt")
    assert (error, hint) == ("short.txt has 1 tokens", "give at least two")
    (tmp_path / "short.txt").write_text("Marta§ €")
    error, hint = failure(cli, 1, "gru", "short.txt")
    assert error == "the model has never seen '§' '€'"
    assert "--unknown skip" in hint
    assert cli("evaluate", "gru", "short.txt", "--unknown", "skip")[0] == 0
    assert failure(cli, 1, "gru", ".")[0] == ". is a folder"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["lstm", "text.txt", "a.en"], "DATA names 2 files"),
        (["lstm", "text.txt", "-o", "out"], "--output is for translations, and this is a language model"),
        (["lstm", "text.txt", "--block", "0"], "block is 0"),
        (["lstm", "text.txt", "--unknown", "maybe"], "unknown is 'maybe'"),
        (["translator", "pairs.tsv", "--tokenize", "moses"], "--tokenize moses is unknown"),
        (["translator", "pairs.tsv", "-b", "0"], "beam is 0"),
        (["translator", "pairs.tsv", "--beam", "65"], "beam is 65"),
        (["translator", "pairs.tsv", "--length-penalty", "nan"], "length-penalty is nan"),
        (["translator", "pairs.tsv", "--batch-size", "0"], "batch-size is 0"),
        (["translator", "pairs.tsv", "-t", "0"], "threads is 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_out_of_range_exit_2(cli: Cli, arguments: list[str], error: str) -> None:
    assert failure(cli, 2, *arguments)[0] == error


def test_no_data_is_a_usage_error(cli: Cli) -> None:
    error, hint = failure(cli, 2, "lstm")
    assert "DATA" in error
    assert hint == "see rnn-edge evaluate --help"


def test_a_missing_bundle(cli: Cli) -> None:
    assert failure(cli, 1, "absent", "pairs.tsv")[0] == "there is no bundle absent"
