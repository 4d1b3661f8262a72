"""``rnn-edge generate``: text to stdout, everything else to stderr."""

import json
from pathlib import Path

from rnn_edge.language_model import LanguageModel
from tests.device.conftest import Cli
from tests.device.program import rnn_edge


def expected(model: LanguageModel, prompt: str, count: int, seed: int = 1) -> str:
    return "".join(event.text for event in model.generate(prompt, max_tokens=count, seed=seed))


def test_stdout_has_the_text_alone(cli: Cli, lstm: LanguageModel) -> None:
    code, out, err = cli("generate", "lstm", "-p", "MARTA: ", "-n", "50", "-s", "1")
    assert code == 0
    assert out == "MARTA: " + expected(lstm, "MARTA: ", 50)
    for part in ("load ", "prompt 7 tokens", "generated 50 tokens", "tokens/s", "first token after", "seed 1"):
        assert part in err


def test_quiet_and_no_display_prompt(cli: Cli, gru: LanguageModel) -> None:
    code, out, err = cli("generate", "gru", "-p", "The ", "-n", "30", "-s", "1", "--quiet", "--no-display-prompt")
    assert (code, out, err) == (0, expected(gru, "The ", 30), "")


def test_a_drawn_seed_is_named_and_gives_the_text_again(cli: Cli) -> None:
    _, out, err = cli("generate", "gru", "-p", "The ", "-n", "40")
    seed = err.split("seed ")[1].split()[0]
    assert cli("generate", "gru", "-p", "The ", "-n", "40", "-s", seed)[1] == out


def test_options_reach_the_sampler(cli: Cli, gru: LanguageModel) -> None:
    base = ["generate", "gru", "-p", "The ", "-n", "60", "-s", "3", "-q", "--no-display-prompt"]
    events = gru.generate(
        "The ",
        max_tokens=60,
        seed=3,
        temperature=1.5,
        top_k=9,
        top_p=0.9,
        min_p=0.02,
        repeat_penalty=1.2,
        repeat_window=5,
    )
    flags = [
        "--temperature",
        "1.5",
        "--top-k",
        "9",
        "--top-p",
        "0.9",
        "--min-p",
        "0.02",
        "--repeat-penalty",
        "1.2",
        "--repeat-window",
        "5",
    ]
    assert cli(*base, *flags)[1] == "".join(event.text for event in events)
    # Greedy text has no use for a seed.
    assert cli(*base, "--temperature", "0")[1] == cli(*base, "--temperature", "0", "-s", "4")[1]


def test_json(cli: Cli, lstm: LanguageModel) -> None:
    code, out, err = cli("generate", "lstm", "-p", "The ", "-n", "20", "-s", "1", "--json")
    assert code == 0
    assert "generated 20 tokens" in err
    *tokens, last = [json.loads(line) for line in out.splitlines()]
    assert "".join(event["text"] for event in tokens) == expected(lstm, "The ", 20)
    assert all(set(event) == {"text", "token", "log_probability"} for event in tokens)
    assert last["finish_reason"] == "length"
    assert last["timings"]["generated_tokens"] == 20


def test_file(cli: Cli, tmp_path: Path, gru: LanguageModel) -> None:
    (tmp_path / "prompt.txt").write_bytes("The café –\n\tTobias".encode())
    _, out, _ = cli("generate", "gru", "-f", "prompt.txt", "-n", "20", "-s", "1", "-q")
    assert out == "The café –\n\tTobias" + expected(gru, "The café –\n\tTobias", 20)


def test_piped_stdin(gru: LanguageModel) -> None:
    done = rnn_edge("generate", "gru", "-n", "20", "-s", "1", "-q", input_bytes="The café".encode())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "The café" + expected(gru, "The café", 20)


def test_an_option_wins_over_stdin(gru: LanguageModel) -> None:
    done = rnn_edge("generate", "gru", "-p", "Marta", "-n", "5", "-s", "1", "-q", input_bytes=b"not this")
    assert done.stdout == "Marta" + expected(gru, "Marta", 5)


def test_an_empty_prompt(gru: LanguageModel) -> None:
    done = rnn_edge("generate", "gru", "-n", "20", "-s", "1", "-q")
    assert done.stdout == expected(gru, "", 20)


def test_stop(cli: Cli, gru: LanguageModel) -> None:
    whole = expected(gru, "The ", 200)
    base = ["generate", "gru", "-p", "The ", "-n", "200", "-s", "1", "--no-display-prompt"]
    first, second = whole[60:64], whole[30:34]
    cut = min(whole.index(first), whole.index(second))
    code, out, err = cli(*base, "--stop", first, "--stop", second)
    assert (code, out) == (0, whole[:cut])
    assert f"generated {cut + 4} tokens" in err


def test_unknown_skip(cli: Cli, gru: LanguageModel) -> None:
    code, out, _ = cli(
        "generate", "gru", "-p", "Th€e ", "-n", "10", "-s", "1", "--unknown", "skip", "--no-display-prompt", "-q"
    )
    assert (code, out) == (0, expected(gru, "The ", 10))


def test_saved_state_goes_on_as_if_uninterrupted(cli: Cli, lstm: LanguageModel, tmp_path: Path) -> None:
    base = ["generate", "lstm", "-s", "1", "-q", "--no-display-prompt"]
    code, first, _ = cli(*base, "-p", "The ", "-n", "40", "--save-state", "a.state")
    assert code == 0
    code, second, _ = cli(*base, "-p", "", "-n", "60", "--load-state", "a.state", "--save-state", "b.state")
    assert code == 0
    third = cli(*base, "-p", "", "-n", "30", "--load-state", "b.state")[1]
    assert first + second + third == expected(lstm, "The ", 130)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.state", "b.state"]


def test_an_existing_state_file_needs_force(cli: Cli, tmp_path: Path) -> None:
    line = ["generate", "gru", "-p", "a", "-n", "5", "-q", "--save-state", "my.state"]
    (tmp_path / "my.state").write_bytes(b"precious")
    code, out, err = cli(*line)
    assert (code, out) == (1, "")
    assert err == "error: my.state exists already\nhint: choose another output path, or replace it with --force\n"
    assert (tmp_path / "my.state").read_bytes() == b"precious"
    assert cli(*line, "--force")[0] == 0
    assert (tmp_path / "my.state").read_bytes() != b"precious"


def test_a_state_brings_its_seed(cli: Cli, lstm: LanguageModel) -> None:
    base = ["generate", "lstm", "-q", "--no-display-prompt"]
    assert cli(*base, "-s", "1", "-p", "The ", "-n", "20", "--save-state", "a.state")[0] == 0
    rest = cli(*base, "-p", "", "-n", "20", "--load-state", "a.state")[1]
    assert rest == expected(lstm, "The ", 40)[20:]


def test_a_state_is_no_folder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    code, out, err = cli("generate", "gru", "-p", "a", "--save-state", "folder", "--force")
    assert (code, out) == (1, "")
    assert err.startswith("error: folder is not a plain file\n")
