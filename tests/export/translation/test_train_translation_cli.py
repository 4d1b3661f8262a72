"""``rnn-edge train translation``, and what comes after it: export, verify, translate, evaluate. Bad input, --resume."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from rnn_edge import Translator
from rnn_edge.bundle import read_bundle
from rnn_edge.cli import run
from rnn_edge.text_files import Pair
from rnn_edge_export.cli.screen import TrainingScreen
from rnn_edge_export.recipe import TranslationRecipe
from rnn_edge_export.run import read_metrics
from rnn_edge_export.training import Trainer
from rnn_edge_export.training_events import StepEvent, TrainingEvent
from rnn_edge_export.translation.data import load_pairs
from tests.export.conftest import contents, names
from tests.export.translation.conftest import PAIRS, Kind, write_pairs

if TYPE_CHECKING:
    from tests.export.conftest import Cli, CliError

# About 30 steps, validated three times.
_FLAGS = [
    *("--cell", "gru", "--attention", "dot", "--embedding", "8", "--encoder-hidden", "8", "--encoder-layers", "1"),
    *("--hidden", "16", "--layers", "1", "--vocabulary-size", "320", "--bpe-dropout", "0.1", "--batch-tokens", "400"),
    *("--validation-pairs", "16", "--learning-rate", "0.02", "--warmup-steps", "5", "--validation-interval", "10"),
    *("--epochs", "1.4", "--precision", "fp32", "--threads", "1", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    shutil.copyfile(PAIRS, folder / "pairs.tsv")
    (folder / "recipe.toml").write_text(
        'task = "translation"\ntitle = "Cats and kettles"\n[data]\ntitle = "Sentences"\nlicence = "CC0-1.0"\n'
        "[model]\nhidden = 12\ncell = 'lstm'\n",
        encoding="utf-8",
    )
    command = ["train", "translation", folder / "pairs.tsv", "-o", folder / "run", "--recipe", folder / "recipe.toml"]
    assert run([*map(str, command), *_FLAGS]) == 0
    return folder


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """A folder with ``pairs.tsv`` and a finished ``run`` over it; the test may change both."""
    return Path(shutil.copytree(_trained, tmp_path / "trained"))


@pytest.fixture(scope="module")
def bundle(_trained: Path) -> Path:
    """The run's bundle."""
    notes = _trained / "notes.md"
    notes.write_text("Tried twice: naïvely, then with care.\n", encoding="utf-8")
    path = _trained / "bundles" / "kettles"
    arguments = ["export", _trained / "run", "-o", path, "--lowering", "cell", "--notes", notes]
    assert run([*map(str, arguments)]) == 0
    return path


def _sides(folder: Path, name: str, pairs: Sequence[Pair], encoding: str = "utf-8") -> list[Path]:
    """Two aligned files."""
    paths = [folder / f"{name}.{side}" for side in ("en", "fr")]
    for side, path in enumerate(paths):
        path.write_bytes("".join(f"{pair[side]}\n" for pair in pairs).encode(encoding))
    return paths


def test_training_says_what_it_does(tmp_path: Path, cli: Cli) -> None:
    answer = cli("train", "translation", PAIRS, "-o", tmp_path / "run", *_FLAGS)
    assert (answer.code, answer.out) == (0, "")
    steps, batches = (int(re.findall(rf"(\d+) {what}", answer.err)[0]) for what in ("steps on cpu in fp32", "batches"))
    assert 20 < steps <= 30
    assert steps == round(1.4 * batches)
    for words in (
        "training on 160 of 160 pairs\n",
        "GRU encoder 1 × 2 × 8, decoder 1 × 16, dot attention, embedding 8, vocabulary 320\n",
        f"160 training pairs, {batches} batches; validation on 16 pairs of pairs.tsv, drawn with seed 1\n",
        f"finished at step {steps}; best weights from step ",
    ):
        assert words in answer.err
    assert len(re.findall(r"step \d+ .*validation \d\.\d+ nats .*BLEU \d+\.\d\d .*best so far", answer.err)) >= 1
    assert len(re.findall(r"^  .+ → .*$", answer.err, re.MULTILINE)) == 9  # three samples at each validation
    assert re.search(r"  loss \d\.\d{4} nats per token on 16 pairs of pairs\.tsv", answer.err)
    assert re.search(r"  BLEU \d+\.\d{4} .*greedy, PyTorch, nrefs:1", answer.err)
    assert names(tmp_path / "run") == [
        *("best.safetensors", "last.safetensors", "metrics.jsonl", "recipe.toml", "tokenizer.json")
    ]


def test_flags_override_the_recipe_and_the_run_keeps_the_result(trained: Path) -> None:
    kept = TranslationRecipe.from_toml(trained / "run" / "recipe.toml")
    assert (kept.task, kept.title, kept.data.title) == ("translation", "Cats and kettles", "Sentences")
    assert (kept.model.cell, kept.model.hidden, kept.training.batch_tokens) == ("gru", 16, 400)
    corpus = load_pairs([trained / "pairs.tsv"], [], kept.training)
    assert (kept.data.sha256, kept.data.longest) == (corpus.sha256, corpus.longest)
    assert kept.data.longest > 10


def test_the_bundle(trained: Path, bundle: Path, cli: Cli) -> None:
    manifest = read_bundle(bundle).manifest
    assert (manifest.task, manifest.name, manifest.lowering) == ("translation", "kettles", "cell")
    lines = (trained / "run" / "metrics.jsonl").read_text(encoding="utf-8").strip().split("\n")
    loss, score = manifest.metrics
    assert [loss.value, score.value] == [item["value"] for item in json.loads(lines[-1])["scores"]]
    assert (loss.data, loss.split) == ("Sentences", "16 pairs of pairs.tsv, drawn with seed 1")
    recipe = (trained / "run" / "recipe.toml").read_text(encoding="utf-8")
    assert manifest.provenance.recipe == recipe
    assert manifest.source is not None
    assert manifest.source.longest == TranslationRecipe.from_toml(trained / "run" / "recipe.toml").data.longest
    card = (bundle / "README.md").read_text(encoding="utf-8")
    for words in ("# kettles", "Cats and kettles", "Tried twice: naïvely", "CC0-1.0", "dot attention", "| BLEU |"):
        assert words in card
    answer = cli("verify", bundle, "--device", "cpu")
    assert answer.code == 0, answer.err
    assert "golden translations (7)" in answer.out + answer.err


def test_translating_lines(bundle: Path, tmp_path: Path, cli: Cli, pairs: list[Pair]) -> None:
    sentences = [source for source, _ in pairs[:20]]
    (tmp_path / "text.txt").write_text("".join(f"{line}\n" for line in sentences), encoding="utf-8")
    translator = Translator.load(bundle, device="cpu")
    expected = [found.text for found in translator.translate(sentences)]
    assert any(expected)
    answer = cli("translate", bundle, "--file", tmp_path / "text.txt", "--device", "cpu", "--quiet")
    assert answer == (0, "".join(f"{line}\n" for line in expected), "")
    answer = cli("translate", bundle, sentences[3], "--device", "cpu", "--quiet")
    assert answer.code == 0
    assert answer.out.rstrip("\n") == expected[3].rstrip("\n")


def test_evaluating_finds_what_training_found(trained: Path, bundle: Path, tmp_path: Path, cli: Cli) -> None:
    """On the same pairs, by ONNX Runtime here and by PyTorch there."""
    recipe = TranslationRecipe.from_toml(trained / "run" / "recipe.toml")
    held = load_pairs([trained / "pairs.tsv"], [], recipe.training).valid
    path = write_pairs(tmp_path / "held.tsv", held)
    answer = cli("evaluate", bundle, path, "--json", "--device", "cpu", "--beam", 1)
    assert answer.code == 0, answer.err
    rows = {row["name"]: row["value"] for row in map(json.loads, answer.out.splitlines())}
    loss, score = read_bundle(bundle).manifest.metrics
    assert rows["loss"] == pytest.approx(loss.value, abs=1e-4)
    assert rows["BLEU"] == pytest.approx(score.value, abs=1e-6)
    assert 0 < rows["chrF"] < 100
    sides = _sides(tmp_path, "held", held)
    again = cli("evaluate", bundle, *sides, "--json", "--device", "cpu", "--beam", 1, "-o", tmp_path / "out.txt")
    assert {json.loads(line)["name"]: json.loads(line)["value"] for line in again.out.splitlines()}["loss"] == (
        rows["loss"]
    )
    assert len((tmp_path / "out.txt").read_text(encoding="utf-8").splitlines()) == len(held)


def test_each_run_is_exported_by_its_task(trained: Path, finished: Path, tmp_path: Path, cli: Cli) -> None:
    answer = cli("export", finished / "run", "-o", tmp_path / "lm")
    assert answer.code == 0, answer.err
    assert "try: rnn-edge generate" in answer.err
    assert read_bundle(tmp_path / "lm").manifest.task == "language-model"
    options = ("--precision", "fp16", "--data", trained / "pairs.tsv")
    answer = cli("export", trained / "run", "-o", tmp_path / "half", *options)
    assert answer.code == 0, answer.err
    assert "try: rnn-edge translate" in answer.err
    manifest = read_bundle(tmp_path / "half").manifest
    assert (manifest.task, manifest.precision) == ("translation", "fp16")
    for words in ("largest difference", "encoder: memory", "decoder: state after 32 steps"):
        assert words in answer.out + answer.err


def test_a_run_whose_tokenizer_is_gone(trained: Path, tmp_path: Path, cli_error: CliError) -> None:
    (trained / "run" / "tokenizer.json").unlink()
    error, hint = cli_error("export", trained / "run", "-o", tmp_path / "b")
    assert "cannot read" in error
    assert "tokenizer.json" in error
    assert "train" in hint
    assert not (tmp_path / "b").exists()


def _interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C when the screen shows the losses of a step."""
    show = TrainingScreen.show

    def press(self: TrainingScreen, event: TrainingEvent) -> None:
        if isinstance(event, StepEvent) and event.step == step:
            signal.raise_signal(signal.SIGINT)
        show(self, event)

    monkeypatch.setattr(TrainingScreen, "show", press)


@pytest.mark.parametrize("tokenizer", ["subword", "word"])
def test_the_command_printed_after_ctrl_c_goes_on(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, pairs: list[Pair], tokenizer: Kind
) -> None:
    """Two files for each, in an encoding of their own, with spaces in the paths."""
    (tmp_path / "my data").mkdir()
    fitting = [pair for pair in pairs if not set("œ€") & set("".join(pair))]
    train = _sides(tmp_path / "my data", "train", fitting[:-20], "latin-1")
    held = _sides(tmp_path / "my data", "held", fitting[-20:], "latin-1")
    arguments = ["--valid", held[0], "--valid", held[1], "--encoding", "latin-1", "--tokenizer", tokenizer, *_FLAGS]
    arguments += ["--epochs", "3.4"] if tokenizer == "word" else []
    assert cli("train", "translation", *train, "-o", tmp_path / "straight", *arguments).code == 0

    _interrupt_at(monkeypatch, 10)
    path = tmp_path / "my run"
    answer = cli("train", "translation", *train, "-o", path, *arguments)
    monkeypatch.undo()
    assert answer.code == 130
    assert "validation on held.en and held.fr" in answer.err
    assert "not recorded" in answer.err
    (command,) = re.findall(r"go on with: rnn-edge (.*)", answer.err)
    again = shlex.split(command)
    assert again.count("--valid") == 2
    answer = cli(*again)
    assert answer.code == 0, answer.err
    assert "resuming at step 10" in answer.err
    assert (path / "best.safetensors").read_bytes() == (tmp_path / "straight" / "best.safetensors").read_bytes()
    assert (path / "recipe.toml").read_bytes() == (tmp_path / "straight" / "recipe.toml").read_bytes()


def test_resuming_a_finished_run_changes_nothing(trained: Path, cli: Cli) -> None:
    before = contents(trained / "run")
    answer = cli("train", "translation", trained / "pairs.tsv", "-o", trained / "run", "--resume", "--device", "cpu")
    assert answer.code == 0, answer.err
    after = contents(trained / "run")
    assert {name for name in before if before[name] != after[name]} <= {"last.safetensors"}


def test_resume_needs_the_same_pairs_and_takes_no_flags(trained: Path, cli_error: CliError, pairs: list[Pair]) -> None:
    before = contents(trained / "run")
    other = write_pairs(trained / "other.tsv", [*pairs[:-1], ("Never.", "Jamais.")])
    resume = ("-o", trained / "run", "--resume")
    error, hint = cli_error("train", "translation", other, *resume)
    assert "SHA-256 differs of" in error
    assert error.endswith("other.tsv")
    assert "same files" in hint
    error, _ = cli_error("train", "translation", trained / "pairs.tsv", *resume, "--valid", other)
    assert error.endswith("SHA-256 differs of the validation data")
    for flags in (("--hidden", 16), ("--tokenizer", "word"), ("--dropout", 0.1), ("--force",)):
        error, _ = cli_error("train", "translation", trained / "pairs.tsv", *resume, *flags, code=2)
        assert (flags[0] if flags[0] != "--dropout" else "--input-dropout") in error
    assert contents(trained / "run") == before


def test_runs_of_another_task(trained: Path, finished: Path, tmp_path: Path, cli_error: CliError) -> None:
    error, hint = cli_error("train", "translation", PAIRS, "-o", finished / "run", "--resume")
    assert "is for language-model" in error
    assert hint == "use rnn-edge train lm"
    error, hint = cli_error("train", "lm", finished / "corpus.txt", "-o", trained / "run", "--resume")
    assert "is for translation" in error
    assert hint == "use rnn-edge train translation"
    arguments = ("-o", tmp_path / "new", "--recipe", finished / "run" / "recipe.toml")
    assert "is for language-model" in cli_error("train", "translation", PAIRS, *arguments)[0]
    assert not (tmp_path / "new").exists()


def test_files_that_are_too_many(tmp_path: Path, cli_error: CliError) -> None:
    output = ("-o", tmp_path / "run")
    error, hint = cli_error("train", "translation", PAIRS, PAIRS, PAIRS, *output, code=2)
    assert error == "PAIRS names 3 files"
    assert "one TSV file, or two aligned files" in hint
    valid = [word for _ in range(3) for word in ("--valid", PAIRS)]
    assert cli_error("train", "translation", PAIRS, *valid, *output, code=2)[0] == "--valid names 3 files"
    assert "missing argument" in cli_error("train", "translation", *output, code=2)[0]
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "words", "mend"),
    [
        ("one\tun\ntwo deux\n", "bad.tsv, line 2 has no tab: 'two deux'", "give two files"),
        ("", "bad.tsv is empty", "some text"),
        ("one\tun\n", "bad.tsv has 1 pairs: too few", "--valid"),
        ("a\t\n\tb\n", "bad.tsv has 0 pairs: too few", "--valid"),
        (None, "is a folder", "one text file"),
        ("missing", "cannot read", "path"),
        ("\xe9", "is not utf-8", "--encoding"),
        ("a b\ta b\nb c\tb c\nd e\td e\n", "no pair of bad.tsv is left: 2 too long", "--maximum-length"),
    ],
)
def test_pairs_that_cannot_be_used(
    tmp_path: Path, cli_error: CliError, content: str | None, words: str, mend: str
) -> None:
    path = tmp_path / "bad.tsv"
    if content is None:
        path.mkdir()
    elif content != "missing":
        path.write_bytes(content.encode("latin-1"))
    flags = ("--validation-pairs", 1, "--maximum-length", 1, "--device", "cpu")
    error, hint = cli_error("train", "translation", path, "-o", tmp_path / "run", *flags)
    assert words in error
    assert mend in hint
    assert not (tmp_path / "run").exists()


def test_files_that_do_not_belong_together(tmp_path: Path, cli_error: CliError, pairs: list[Pair]) -> None:
    source, target = _sides(tmp_path, "train", pairs)
    target.write_text("".join(f"{text}\n" for _, text in pairs[:-1]), encoding="utf-8")
    error, hint = cli_error("train", "translation", source, target, "-o", tmp_path / "run")
    assert "train.en has 176 lines" in error
    assert "train.fr has 175" in error
    assert error.endswith("the first suspicious line is 176")
    assert "belong together" in hint


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--attention", "dot"), "--hidden 512 and --encoder-hidden 200"),
        (("--vocabulary-size", 259), "--vocabulary-size is 259"),
        (("--attention", "luong"), "--attention is 'luong'"),
        (("--cell", "rnn"), "--cell is 'rnn'"),
        (("--tokenizer", "character"), "--tokenizer is 'character'"),
        (("--bpe-dropout", 1), "--bpe-dropout is 1.0"),
        (("--maximum-ratio", "nan"), "--maximum-ratio is nan"),
        (("--device", "tpu"), "--device tpu"),
        (("--batch-size", 3), "no such option: --batch-size"),
    ],
)
def test_flags_out_of_range(tmp_path: Path, cli_error: CliError, flags: tuple[object, ...], words: str) -> None:
    command = ("train", "translation", PAIRS, "-o", tmp_path / "run", "--encoder-hidden", 200)
    error, _ = cli_error(*command, *flags, code=2)
    assert words in error
    assert names(tmp_path) == []


def test_what_stands_there_before_the_first_step(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, pairs: list[Pair]
) -> None:
    def stop(_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", stop)
    train = write_pairs(tmp_path / "pairs.tsv", [*pairs, *pairs[:2], ("", "vide"), ("a long side " * 60, "un mot")])
    held = [pairs[0], (pairs[1][0], "neuf"), ("new", "neuf")]
    valid = write_pairs(tmp_path / "held.tsv", held)
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'task = "translation"\n[data]\ntitle = "Others"\nlicence = "CC0-1.0"\nsha256 = "{"0" * 64}"\n',
        encoding="utf-8",
    )
    flags = ["--valid", valid, "--recipe", recipe, *_FLAGS, "--dropout", 0.4, "--layer-dropout", 0.1]
    answer = cli("train", "translation", train, "-o", tmp_path / "run", *flags)
    assert answer.code == 130
    assert re.search(r"training on 176 of 180 pairs; left out: 1 .*empty.*, 2 seen before, 1 too long\n", answer.err)
    assert "note: 2 validation pairs have a side that training has too" in answer.err
    assert re.search(r"note: .*pairs\.tsv is not the corpus that the recipe names \(Others\)", answer.err)
    kept = TranslationRecipe.from_toml(tmp_path / "run" / "recipe.toml")
    model = kept.model
    assert (model.input_dropout, model.layer_dropout, model.output_dropout) == (0.4, 0.1, 0.4)
    assert (kept.data.title, kept.data.licence) == ("pairs.tsv", "")  # what the recipe said is not true of these


def test_too_little_memory(tmp_path: Path, cli_error: CliError, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(Trainer, "_step", run_out)
    message, hint = cli_error("train", "translation", PAIRS, "-o", tmp_path / "run", *_FLAGS)
    assert "not enough memory on cpu" in message
    for flag in ("--batch-tokens", "--hidden", "--vocabulary-size"):
        assert flag in hint


def test_an_output_that_exists(trained: Path, cli: Cli, cli_error: CliError) -> None:
    before = contents(trained / "run")
    arguments = ("train", "translation", trained / "pairs.tsv", "-o", trained / "run", *_FLAGS)
    error, hint = cli_error(*arguments)
    assert "exists" in error
    assert "--force" in hint
    cli_error("train", "translation", trained / "nowhere.tsv", "-o", trained / "run", *_FLAGS, "--force")
    assert contents(trained / "run") == before
    answer = cli(*arguments, "--force", "--epochs", 0.1, "--tokenizer", "word")
    assert answer.code == 0, answer.err
    assert "source_tokenizer.json" in names(trained / "run")


def test_another_corpus_from_the_weights_of_a_run(
    trained: Path, cli: Cli, cli_error: CliError, pairs: list[Pair]
) -> None:
    other = write_pairs(trained / "other.tsv", [*pairs[20:], ("Never.", "Jamais.")])
    start = ("--init-from", trained / "run", "--threads", 1, "--device", "cpu")
    answer = cli("train", "translation", other, "-o", trained / "more", *start, "--epochs", 0.5)
    assert answer.code == 0, answer.err
    first, more = (TranslationRecipe.from_toml(trained / name / "recipe.toml") for name in ("run", "more"))
    assert more.model == first.model
    assert (more.training.vocabulary_size, more.training.epochs) == (320, 0.5)
    assert more.data.title == "other.tsv"
    assert re.fullmatch("[0-9a-f]{64}", more.data.initial_sha256)
    assert (trained / "more" / "tokenizer.json").read_bytes() == (trained / "run" / "tokenizer.json").read_bytes()
    losses = [read_metrics(trained / name).steps[0].loss for name in ("run", "more")]
    assert losses[1] < losses[0] - 0.1
    for flags, words in (
        (("--hidden", 12, "--attention", "general"), "--attention is dot there and general here"),
        (("--tokenizer", "word"), "--tokenizer is subword there and word here"),
        (("--lowercase",), "--lowercase is False there and True here"),
    ):
        assert words in cli_error("train", "translation", other, "-o", trained / "no", *start, *flags)[0]
    assert not (trained / "no").exists()
    assert (
        "takes no --init-from"
        in cli_error("train", "translation", other, "-o", trained / "run", "--resume", *start, code=2)[0]
    )
