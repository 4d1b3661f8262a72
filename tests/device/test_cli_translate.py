"""``rnn-edge translate``: as many lines out as in, texts that stream, and one clear line for every mistake."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rnn_edge.sampling import SamplingOptions
from rnn_edge.translation import TranslationOptions
from rnn_edge.translator import Translator
from tests.device.conftest import Cli
from tests.device.program import command, environment, rnn_edge
from tests.device.test_cli_bad_input import two_lines
from tests.device.test_cli_signals import on_terminal, start
from tests.device.tiny import TRANSLATOR, copy_bundle

KNOWN = "The keeper sees a boat."
FRENCH = "Le gardien voit un bateau."
TWO = "The keeper sees a boat. Marta paints the lighthouse!"
File = Callable[[str | bytes], str]


@pytest.fixture
def file(tmp_path: Path) -> File:
    """Write a text → the name of its file, in the folder that commands run in."""

    def write(content: str | bytes) -> str:
        (tmp_path / "text.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return "text.txt"

    return write


def failure(cli: Cli, code: int, *arguments: str) -> tuple[str, str]:
    found, out, err = cli("translate", *arguments)
    assert (found, out) == (code, "")
    return two_lines(err)


# --- lines


@pytest.mark.parametrize(
    "content",
    [
        f"{KNOWN}\n",
        KNOWN,  # no line break at the end
        f"{KNOWN}\n\n\n{TWO}\n",
        f"\n\n{KNOWN}\r\n\r\n{TWO}",
        f"  - {KNOWN}  \n\t1. {TWO}\n42\n---\n",
        f"Marta\rpaints\u2028the\x85lighthouse\n{KNOWN}\n",  # none of these ends a line
        "\x00\x1b[31m\x07 Marta \x7f\n\x1b]0;title\x07\n",
        "\n",
        "",
        "日本。世界。\nŻółw 😀\n",
    ],
)
def test_as_many_lines_come_out_as_go_in(cli: Cli, file: File, translator: Translator, content: str) -> None:
    code, out, err = cli("translate", "translator", "-f", file(content), "--quiet")
    assert (code, err) == (0, "")
    lines = content.split("\n")
    assert out == "\n".join(translator.translate(line).text for line in lines)
    assert [line.endswith("\r") for line in out.split("\n")] == [line.endswith("\r") for line in lines]


def test_piped_lines(words: Translator) -> None:
    done = rnn_edge("translate", "translator-word", input_bytes=f"{KNOWN}\n\n{TWO}".encode())
    assert done.returncode == 0
    assert done.stdout == f"{FRENCH}\n\n{words.translate(TWO).text}"
    assert done.stderr.startswith("3 lines, 3 sentences in ")
    for part in (" s on cpu: ", " sentences/s, ", " words/s\n"):
        assert part in done.stderr
    done = rnn_edge("translate", "translator-word", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_more_lines_than_go_through_at_once(cli: Cli, file: File) -> None:
    lines = [KNOWN, "", "Marta sees a boat."] * 20
    _, out, _ = cli("translate", "translator", "-f", file("\n".join(lines) + "\n"), "-q", "--batch-size", "2")
    assert out.splitlines() == [FRENCH, "", "Marta voit un bateau."] * 20


def test_options_reach_the_translator(cli: Cli, file: File, words: Translator) -> None:
    text = "Tobias paints the old house.\nThe keeper sees a boat, he said.\n"

    def lines(*flags: str) -> list[str]:
        code, out, err = cli("translate", "translator-word", "-f", file(text), "-q", *flags)
        assert (code, err) == (0, "")
        return out.splitlines()

    def expected(options: TranslationOptions) -> list[str]:
        return [found.text for found in words.translate(text.splitlines(), options)]

    drawn = SamplingOptions(temperature=2, top_k=9, top_p=0.9, min_p=0.02)
    flags = ["--temperature", "2", "--top-k", "9", "--top-p", "0.9", "--min-p", "0.02", "--seed", "4"]
    assert lines(*flags) == expected(TranslationOptions(sampling=drawn, seed=4))
    cool, plain = (
        expected(TranslationOptions(sampling=SamplingOptions(temperature=heat, top_k=30), seed=2)) for heat in (0.8, 1)
    )
    assert lines("--top-k", "30", "-s", "2") == plain != cool
    options = TranslationOptions(beam=3, length_penalty=0, coverage_penalty=2)
    assert lines("-b", "3", "--length-penalty", "0", "--coverage-penalty", "2") == expected(options)
    assert lines("--max-ratio", "0", "--prefix", "Marta") == expected(
        TranslationOptions(maximum_ratio=0, prefix="Marta")
    )
    assert "<unk>" in lines()[0]
    assert "<unk>" not in lines("--replace-unknown")[0]
    assert lines("--replace-unknown") == expected(TranslationOptions(replace_unknown=True))


def test_n_best_lists(cli: Cli, file: File, translator: Translator) -> None:
    code, out, _ = cli("translate", "translator", "-f", file(f"{KNOWN}\n\n 42\r\n{TWO}"), "-b", "4", "--n-best", "3")
    assert code == 0
    rows = [line.split(" ||| ") for line in out.splitlines()]
    assert [row[0] for row in rows] == ["1"] * 3 + ["2", "3"] + ["4"] * 3
    options = TranslationOptions(beam=4, n_best=3)
    one, two = translator.translate(KNOWN, options), translator.translate(TWO, options)
    assert [row[1:] for row in rows[:3]] == [
        [candidate.text, f"{candidate.score:.4f}"] for candidate in one.sentences[0].candidates
    ]
    assert [row[1:] for row in rows[3:5]] == [["", "0.0000"], ["42", "0.0000"]]
    # Of a line with two sentences the best of each, then the second of each, …
    for row, pair in zip(rows[5:], zip(*(item.candidates for item in two.sentences), strict=True), strict=True):
        assert row[1:] == [f"{pair[0].text} {pair[1].text}", f"{pair[0].score + pair[1].score:.4f}"]


def test_a_list_has_a_line_for_each_candidate_whatever_is_in_it(cli: Cli, file: File) -> None:
    flags = ["-b", "3", "-n", "3", "--prefix", "Le\n\rgardien\n", "-q"]
    out = cli("translate", "translator", "-f", file(f"{KNOWN}\n"), *flags)[1]
    assert len(out.splitlines()) == 3
    assert all(line.startswith("1 ||| Le  gardien") for line in out.splitlines())
    assert len(cli("translate", "translator", KNOWN, *flags)[1].splitlines()) == 3


def test_alignments(cli: Cli, file: File, words: Translator) -> None:
    code, out, _ = cli("translate", "translator-word", "-f", file(f"{KNOWN}\n\n{TWO}"), "--alignments", "-q")
    assert code == 0
    one, empty, two = out.split("\n")
    assert empty == "\t"
    for line, text in ((one, KNOWN), (two, TWO)):
        translation, pairs = line.split("\t")
        assert translation == words.translate(text).text
        found = [tuple(map(int, pair.split("-"))) for pair in pairs.split()]
        assert sorted(found) == found
        # Each word of the translation, over all sentences of the line, stands beside one of the text.
        assert sorted(target for _, target in found) == list(range(len(translation.split())))
        assert all(0 <= source < len(text.split()) for source, _ in found)
    later = {source for source, target in found if target >= len(FRENCH.split())}
    assert later <= set(range(len(KNOWN.split()), len(TWO.split())))


def test_lines_as_json(cli: Cli, file: File, translator: Translator) -> None:
    content = f"{KNOWN}\n\n{TWO}\r\n42"
    code, out, err = cli("translate", "translator", "-f", file(content), "--json", "-b", "3", "-n", "2")
    assert code == 0
    assert err.startswith("4 lines, 3 sentences in ")
    records = [json.loads(line) for line in out.splitlines()]
    options = TranslationOptions(beam=3, n_best=2)
    assert [record["line"] for record in records] == [1, 2, 3, 4]
    assert [record["translation"] for record in records] == [
        translator.translate(line, options).text for line in content.split("\n")
    ]
    assert [len(record["sentences"]) for record in records] == [1, 0, 2, 0]
    (sentence,) = records[0]["sentences"]
    assert sentence["source"] == KNOWN
    assert "".join(sentence["pieces"]).strip() == KNOWN
    expected = translator.translate(KNOWN, options).sentences[0]
    assert len(sentence["candidates"]) == 2
    for candidate, other in zip(sentence["candidates"], expected.candidates, strict=True):
        assert candidate["text"] == other.text
        assert (candidate["score"], candidate["log_probability"]) == pytest.approx(
            (other.score, other.log_probability), abs=1e-4
        )
        assert candidate["finished"] is True
        assert [len(candidate["attention"]), len(candidate["attention"][0])] == list(other.attention.shape)
        assert candidate["alignment"].count("-") == len(other.text.split())


def test_unwrapped_files(cli: Cli, file: File) -> None:
    text = "The keeper\nsees a boat.\n\nMarta sees\na boat.\n"
    code, out, _ = cli("translate", "translator", "-f", file(text), "--unwrap", "-q")
    assert (code, out) == (0, f"{FRENCH}\n\nMarta voit un bateau.\n")


def test_ten_thousand_words_in_a_line(cli: Cli, file: File) -> None:
    text = "The keeper sees two red books near the sea and " * 1000
    code, out, err = cli("translate", "translator-word", "-f", file(text + "\n"), "--max-ratio", "0")
    assert code == 0
    assert out.count("\n") == 1
    assert len(out.split()) > 2000
    warning, summary = err.splitlines()
    assert warning == (
        "warning: 1 sentence is longer than any the model was trained on (10 tokens), and translated in parts"
    )
    assert summary.startswith("1 line, ")


# --- a text


def test_a_text_streams_and_is_alone_on_stdout(cli: Cli, translator: Translator) -> None:
    code, out, err = cli("translate", "translator", TWO)
    assert (code, out) == (0, translator.translate(TWO).text)
    for part in ("load ", " ms on cpu", "source ", " tokens, read in ", "translation ", " tokens/s", "first after "):
        assert part in err
    assert "seed" not in err
    assert len(err.splitlines()) == 1
    assert cli("translate", "translator", TWO, "-q") == (0, out, "")
    assert cli("translate", str(TRANSLATOR), TWO, "-q", "--beam", "3")[1] == (
        translator.translate(TWO, TranslationOptions(beam=3)).text
    )


def test_layout_and_control_characters_of_a_text_stay(cli: Cli, translator: Translator) -> None:
    for text in ("", "\n", "  42\n", f"\n- {KNOWN}\r\n\n\tMarta\x1b[31m\n"):
        code, out, err = cli("translate", "translator", text, "-q")
        assert (code, out, err) == (0, translator.translate(text).text, "")
        assert out.count("\n") == text.count("\n")


def test_a_drawn_seed_is_named_and_gives_the_text_again(cli: Cli) -> None:
    _, out, err = cli("translate", "translator", TWO, "--temperature", "1.5")
    seed = err.split("seed ")[1].split()[0]
    assert cli("translate", "translator", TWO, "--temperature", "1.5", "--seed", seed)[1] == out


def test_a_seed_fixes_what_is_drawn_however_a_file_is_cut(cli: Cli, file: File) -> None:
    """Lines come in chunks of sixteen batches; their sentences are counted through."""
    drawn = ("-f", file(f"{KNOWN}\n" * 40), "--temperature", "1.5", "--seed", "5", "-q")
    found = [cli("translate", "translator", *drawn, "--batch-size", size)[1] for size in ("1", "2", "32")]
    assert found[1:] == found[:1] * 2
    first, later = found[0].splitlines()[:16], found[0].splitlines()[16:32]
    assert len(set(first)) > 1
    assert first != later


def test_a_text_with_candidates_and_alignments(cli: Cli, translator: Translator) -> None:
    _, out, _ = cli("translate", "translator", TWO, "-b", "3", "-n", "2", "--alignments", "-q")
    rows = [line.split("\t") for line in out.splitlines()]
    found = translator.translate(TWO, TranslationOptions(beam=3, n_best=2))
    expected = [candidate for sentence in found.sentences for candidate in sentence.candidates]
    assert [row[:2] for row in rows] == [[f"{item.score:.4f}", item.text] for item in expected]
    for row, item in zip(rows, expected, strict=True):
        assert len(row[2].split()) == len(item.text.split())


def test_a_text_as_json(cli: Cli, translator: Translator) -> None:
    code, out, err = cli("translate", "translator", TWO, "--json", "-q")
    assert (code, err) == (0, "")
    records = [json.loads(line) for line in out.splitlines()]
    whole = translator.translate(TWO)
    assert "".join(record["text"] for record in records) == whole.text
    tokens = [record for record in records if "token" in record]
    fields = {"text", "sentence", "token", "piece", "log_probability", "attention"}
    assert all(set(record) == fields for record in tokens)
    assert all(sum(record["attention"]) == pytest.approx(1, abs=0.01) for record in tokens)
    assert [record["sentence"] for record in records if "source" in record] == [0, 1]
    results = [record["result"] for record in records if "result" in record]
    assert [result["candidates"][0]["text"] for result in results] == [item.text for item in whole.sentences]
    assert records[-1]["finish_reason"] == "stop"
    assert records[-1]["timings"]["generated_tokens"] == len(tokens)


def test_a_long_text_warns_first(cli: Cli) -> None:
    text = f"{KNOWN} " + "The keeper sees two red books and " * 8
    code, out, err = cli("translate", "translator", text)
    assert code == 0
    assert out.startswith(f"{FRENCH} ")
    assert err.startswith("warning: 1 sentence is longer than any the model was trained on (32 tokens), and translated")


# --- attention


def test_attention_in_the_terminal_goes_to_stderr(cli: Cli, words: Translator) -> None:
    code, out, err = cli("translate", "translator-word", TWO, "--attention", "-q")
    assert (code, out) == (0, words.translate(TWO).text)
    for word in out.split():
        assert any(line.split()[:1] == [word] for line in err.splitlines()), word
    beamed = cli("translate", "translator-word", KNOWN, "--attention", "-q", "-b", "3")
    assert beamed[:2] == (0, FRENCH)
    assert all(any(line.split()[:1] == [word] for line in beamed[2].splitlines()) for word in FRENCH.split())


@pytest.mark.parametrize("form", [["--attention", "map.svg"], ["--attention=map.svg"]], ids=" ".join)
def test_attention_as_a_picture(cli: Cli, tmp_path: Path, form: list[str]) -> None:
    line = ["translate", "translator-word", *form, KNOWN]
    code, out, err = cli(*line)
    assert (code, out) == (0, FRENCH)
    assert err.splitlines()[0] == "attention drawn in map.svg"
    picture = (tmp_path / "map.svg").read_text(encoding="utf-8")
    assert all(f">{word}<" in picture for word in [*KNOWN.split(), *FRENCH.split()])
    # What is there is replaced only when asked to.
    (tmp_path / "map.svg").write_text("precious")
    assert failure(cli, 1, *line[1:])[0] == "map.svg exists already"
    assert (tmp_path / "map.svg").read_text() == "precious"
    assert cli(*line, "--force")[0] == 0
    assert (tmp_path / "map.svg").read_text(encoding="utf-8") == picture


def test_a_picture_for_each_sentence(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("translate", "translator", TWO, "--attention", "map.png")
    assert code == 0
    assert [line for line in err.splitlines() if "drawn" in line] == [
        "attention drawn in map.png",
        "attention drawn in map-2.png",
    ]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("map.png", "map-2.png"))


@pytest.mark.parametrize("name", ["map.jpg", "map.gif", "map.svgz"])
def test_a_picture_of_another_kind_is_refused_before_any_work(cli: Cli, name: str) -> None:
    error, hint = failure(cli, 2, "absent-bundle", "--attention", name, KNOWN)
    assert error == f"{name} is neither an SVG nor a PNG picture"
    assert ".svg or .png" in hint


def test_a_picture_where_nothing_can_be_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    assert failure(cli, 1, "translator", "--attention", "plain/map.svg", KNOWN)[0] == "plain is a file, not a folder"


# --- mistakes


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["-b", "0"], "beam is 0"),
        (["--beam", "65"], "beam is 65"),
        (["-n", "0"], "n-best is 0"),
        (["-n", "2"], "n-best is 2, more than the beam of 1"),
        (["-b", "3", "-n", "4"], "n-best is 4, more than the beam of 3"),
        (["--temperature", "1", "-n", "4"], "n-best is 4, more than the beam of 1"),
        (["--length-penalty", "nan"], "length-penalty is nan"),
        (["--length-penalty", "11"], "length-penalty is 11.0"),
        (["--coverage-penalty", "-1"], "coverage-penalty is -1.0"),
        (["--max-ratio", "inf"], "max-ratio is inf"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--top-p", "0"], "top-p is 0.0"),
        (["--temperature", "1", "-b", "2"], "sampling and a beam exclude each other"),
        (["--seed", "-1"], "seed is -1"),
        (["--batch-size", "0"], "batch-size is 0"),
        (["-t", "0"], "threads is 0"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["-f", "text.txt"], "a text and --file exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_out_of_range_exit_2(cli: Cli, flags: list[str], error: str) -> None:
    assert failure(cli, 2, "translator", KNOWN, *flags)[0] == error


def test_the_bundle_s_beam_is_the_default(cli: Cli, tmp_path: Path, translator: Translator) -> None:
    path = copy_bundle(TRANSLATOR, tmp_path / "b", lambda manifest: manifest["decoding"].update(beam=3))
    assert failure(cli, 2, str(path), KNOWN, "-n", "4")[0] == "n-best is 4, more than the beam of 3"
    assert len(cli("translate", str(path), KNOWN, "-n", "3", "-q")[1].splitlines()) == 3
    drawn = TranslationOptions(sampling=SamplingOptions(temperature=1.5), seed=3)
    flags = ["--temperature", "1.5", "--seed", "3", "-q"]  # draws are made without a beam
    assert cli("translate", str(path), KNOWN, *flags) == (0, translator.translate(KNOWN, drawn).text, "")


def test_the_other_task_s_command(cli: Cli) -> None:
    error, hint = failure(cli, 1, "lstm", KNOWN)
    assert error.endswith("lstm is a language model, not a translator")
    assert hint.startswith("use rnn-edge generate ")
    code, out, err = cli("generate", "translator", "-p", "a")
    assert (code, out) == (1, "")
    error, hint = two_lines(err)
    assert error.endswith("translator is a translator, not a language model")
    assert hint.startswith("use rnn-edge translate ")


def test_files_that_cannot_be_read(cli: Cli, file: File) -> None:
    error, hint = failure(cli, 1, "translator", "-f", "absent.txt")
    assert error == "cannot read absent.txt: No such file or directory"
    assert hint == "check the path"
    assert failure(cli, 1, "translator", "-f", ".")[0] == "cannot read .: Is a directory"
    code, out, err = cli("translate", "translator", "-q", "-f", file(b"one\ntwo\ncaf\xe9\nfour\n"))
    assert code == 1
    assert out.count("\n") == 2  # what stands before it is not lost
    error, hint = two_lines(err)
    assert error == "text.txt, line 3 is not UTF-8: byte 3 of it"
    assert "UTF-8" in hint
    # The same for what has to be read as a whole.
    assert failure(cli, 1, "translator", "-f", file(b"caf\xe9"), "--attention", "a.svg")[0].endswith("byte 3")


def test_input_that_is_not_utf8() -> None:
    done = rnn_edge("translate", "translator", input_bytes=b"one\n\xff\n")
    assert (done.returncode, done.stdout.count("\n")) == (1, 1)
    assert two_lines(done.stderr)[0] == "standard input, line 2 is not UTF-8: byte 0 of it"
    for text in (b"ab\xff", b"\xff\xfe"):
        done = rnn_edge("translate", "translator", text)
        assert (done.returncode, done.stdout) == (1, "")
        assert two_lines(done.stderr)[0] == f"the text is not UTF-8: byte {text.index(0xFF)}"


# --- pipes, Ctrl-C, terminals


@pytest.mark.parametrize("flags", [[], ["--json"], ["-b", "3", "-n", "3"], ["--attention"]], ids=" ".join)
def test_a_pipe_that_nobody_reads(flags: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("translate", "translator", KNOWN, "-q", *flags, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"Traceback" not in err
    assert err == b"" or flags == ["--attention"]


def test_a_reader_that_leaves_early(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(f"{KNOWN}\n" * 20_000, encoding="utf-8")
    process = start("translate", "translator", "-f", "text.txt", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == FRENCH.encode() + b"\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 0


def test_ctrl_c_in_a_text_ends_it_with_a_summary() -> None:
    process = start("translate", "translator", f"{KNOWN} " * 5000, "--json")
    assert process.stdout is not None
    begun = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b" tokens/s" in err
    records = [json.loads(line) for line in [*begun, *rest.splitlines()]]
    assert records[-1]["finish_reason"] == "interrupt"
    assert ("".join(record["text"] for record in records)).startswith(FRENCH[:5])


def test_ctrl_c_between_lines() -> None:
    process = subprocess.Popen(
        command("translate", "translator"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{KNOWN}\n".encode())
    line = b""
    while not line.endswith(b"\n"):  # it comes before the next line is written
        line += process.stdout.read(1)
    assert line.decode() == f"{FRENCH}\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_typed_lines() -> None:
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        command("translate", "translator", "-q"),
        stdin=secondary,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    os.close(secondary)
    os.write(primary, f"{KNOWN}\n42\n".encode() + b"\x04")
    out, err = process.communicate(timeout=60)
    os.close(primary)
    assert process.returncode == 0
    assert out.decode() == f"{FRENCH}\n42\n"
    assert err.decode() == "type a text and press Enter; Ctrl-D ends\n"


def test_no_translation_commands_a_terminal() -> None:
    shown = on_terminal(
        "translate", "translator", "\x1b[31mMarta", "-q", "--prefix", "\x1b[31m\x07", TERM="xterm-256color"
    )
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "␛[31m␇" in shown
