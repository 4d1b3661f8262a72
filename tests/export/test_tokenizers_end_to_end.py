"""Language models of bytes, words and subwords, from a text file to text on a device."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from rnn_edge import LanguageModel
from rnn_edge.cli import run
from rnn_edge.tokenizer import character_tokenizer
from rnn_edge_export.checkpoint import Best, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from tests.export.conftest import Cli

_KINDS = {
    "byte": ["--tokenizer", "byte"],
    "word": ["--tokenizer", "word", "--vocabulary-size", "40"],
    "spaces": ["--tokenizer", "word", "--words", "spaces", "--minimum-count", "4"],
    "subword": ["--tokenizer", "subword", "--vocabulary-size", "300"],
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, text: str, train_flags: tuple[str, ...]) -> dict[str, Path]:
    """A bundle of each kind; the word models would like nothing better than to write ``<unk>``."""
    folder = tmp_path_factory.mktemp("kinds")
    corpus = folder / "corpus.txt"
    corpus.write_text(text, encoding="utf-8", newline="")
    for kind, flags in _KINDS.items():
        assert run(["train", "lm", str(corpus), "-o", str(folder / f"run-{kind}"), *train_flags, *flags]) == 0
        if kind in ("word", "spaces"):
            path = folder / f"run-{kind}" / "best.safetensors"
            tensors, best = load_checkpoint(path, Best)
            bias = torch.zeros_like(tensors["model.output.bias"])
            bias[0] = 100.0
            save_checkpoint(path, tensors | {"model.output.bias": bias}, best)
        assert run(["export", str(folder / f"run-{kind}"), "-o", str(folder / kind)]) == 0
    return {kind: folder / kind for kind in _KINDS}


@pytest.mark.parametrize("kind", _KINDS)
def test_the_manifest_knows_the_tokens(bundles: dict[str, Path], kind: str) -> None:
    model = LanguageModel.load(bundles[kind], device="cpu")
    manifest, tokenizer = model.manifest, model.tokenizer
    assert manifest.tokenizer.kind == ("word" if kind == "spaces" else kind)
    start = manifest.special_ids.start
    assert start is not None
    assert tokenizer.token_bytes[start] == b"\n"
    assert manifest.special_ids.unknown == (0 if kind in ("word", "spaces") else None)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {}, {"top_k": 1}, {"top_p": 0.5, "repeat_penalty": 1.2}], ids=str
)
def test_a_text_is_the_decoding_of_its_tokens_and_never_unknown(
    bundles: dict[str, Path], kind: str, options: dict[str, float]
) -> None:
    model = LanguageModel.load(bundles[kind], device="cpu")
    events = list(model.generate("the lamp", seed=3, max_tokens=60, **options))  # type: ignore[arg-type]
    tokens = [event.token for event in events if event.token is not None]
    assert "".join(event.text for event in events) == model.tokenizer.decode(tokens)
    assert len(tokens) == 60
    assert model.manifest.special_ids.unknown not in tokens
    batch = model.generate_samples("the lamp", 3, seed=3, max_tokens=60, **options)  # type: ignore[arg-type]
    rows: dict[int | None, list[int]] = {}
    for event in batch:
        rows.setdefault(event.index, []).extend([] if event.token is None else [event.token])
    assert rows[0] == tokens
    assert all(model.manifest.special_ids.unknown not in row for row in rows.values())


def test_word_models_write_words_of_their_vocabulary(bundles: dict[str, Path], text: str) -> None:
    model = LanguageModel.load(bundles["spaces"], device="cpu")
    written = "".join(event.text for event in model.generate("the", seed=1, temperature=2.0, max_tokens=80))
    assert set(written.split()) <= set(text.split())


@pytest.mark.parametrize("kind", _KINDS)
def test_a_state_continues_the_text(bundles: dict[str, Path], kind: str) -> None:
    model = LanguageModel.load(bundles[kind], device="cpu")
    whole = "".join(event.text for event in model.generate("the", seed=5, max_tokens=40))
    first = model.generate("the", seed=5, max_tokens=17)
    pieces = [event.text for event in first]
    pieces += [event.text for event in model.generate(state=first.state(), max_tokens=23)]
    assert "".join(pieces).replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_evaluation_compares_tokenizers_by_bits_per_character(
    bundles: dict[str, Path], text: str, tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / "some.txt"
    path.write_text(text[:600] + "zebra", encoding="utf-8", newline="")
    for kind, bundle in bundles.items():
        rows = [json.loads(line) for line in cli("evaluate", bundle, path, "--json").out.splitlines()]
        losses = {row["unit"]: row["value"] for row in rows if "carried" in row["method"]}
        tokenizer = LanguageModel.load(bundle, device="cpu").tokenizer
        ids = tokenizer.encode(path.read_text(encoding="utf-8"))
        expected = losses["bits per token"] * (len(ids) - 1) / (605 - len(tokenizer.decode(ids[:1])))
        assert losses["bits per character"] == pytest.approx(expected, rel=1e-6)
        unknown = [row["value"] for row in rows if row["name"] == "unknown"]
        assert unknown == ([100 * ids.count(0) / len(ids)] if kind in ("word", "spaces") else [])


def test_the_characters_of_a_table_are_the_librarys() -> None:
    text = "".join(map(chr, itertools.chain(range(0x20, 0x250), (0x2028, 0x1F600))))
    tokenizer = character_tokenizer(text)
    library = tokenizer._encoder.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == library
