"""Tokens in files: made once, in constant memory, by several processes, and never half."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from rnn_edge.errors import RnnEdgeError, UnknownTokenError
from rnn_edge.tokenizer import character_tokenizer
from rnn_edge_export.language_model import data, text_source, token_files
from rnn_edge_export.language_model.data import Texts, load_corpus
from rnn_edge_export.language_model.token_files import open_tokens, write_tokens
from rnn_edge_export.recipe_sections import StreamSection

_SMALL = StreamSection(batch_size=2, sequence_length=4, tokenizer="word")
_ABC = character_tokenizer("abc")


def _ignore(done: int, total: int) -> None:
    pass


def _write(path: Path, text: str = "abcab") -> Path:
    write_tokens(path, [text[:2], text[2:]], len(text), _ABC, _ignore)
    return path


def test_the_file_is_safetensors(tmp_path: Path) -> None:
    path = _write(tmp_path / "some.safetensors")
    with safe_open(path, "numpy") as file:
        assert file.get_tensor("tokens").tolist() == [0, 1, 2, 0, 1]
        assert file.metadata()["characters"] == "5"
    found = open_tokens(path)
    assert found is not None
    assert (found.tokens.tolist(), found.characters) == ([0, 1, 2, 0, 1], 5)
    assert isinstance(found.tokens, np.memmap)


def test_large_vocabularies_have_wider_ids(tmp_path: Path) -> None:
    letters = [chr(code) for code in range(0x20, 0xD800)] + [chr(code) for code in range(0xE000, 0x14000)]
    tokenizer = character_tokenizer("".join(letters))
    write_tokens(tmp_path / "wide", [letters[-1]], 1, tokenizer, _ignore)
    found = open_tokens(tmp_path / "wide")
    assert found is not None
    assert found.tokens.dtype == np.uint32
    assert found.tokens.tolist() == [len(letters) - 1]
    assert len(letters) > 2**16


def test_damage_is_seen(tmp_path: Path) -> None:
    path = _write(tmp_path / "some")
    whole = path.read_bytes()
    assert open_tokens(tmp_path / "missing") is None
    for damaged in (b"", whole[:-1], whole + b"x", whole[:-1] + b"\x07", b"\xff" * 8 + whole[8:], whole[:30]):
        path.write_bytes(damaged)
        assert open_tokens(path) is None


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownTokenError):
        write_tokens(tmp_path / "some", ["ab", "z"], 3, _ABC, _ignore)
    assert not list(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RnnEdgeError, match="No space left") as caught:
        _write(tmp_path / "some")
    assert f"make room in {tmp_path}" in caught.value.hint
    assert "RNN_EDGE_CACHE" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_grow_is_not_left(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs limits of file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
    try:
        with pytest.raises(RnnEdgeError, match="File too large"):
            write_tokens(tmp_path / "some", ["abc" * 1000] * 10, 30_000, _ABC, _ignore)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_has_left_goes_when_it_is_old(tmp_path: Path) -> None:
    old, new = tmp_path / ".a.safetensors.0123", tmp_path / ".b.safetensors.4567"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    _write(tmp_path / "some.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, "some.safetensors"]


def test_several_processes_write_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _write(tmp_path / "alone", "abcab" * 50)
    monkeypatch.setattr(token_files, "_ALONE", 10)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    text = "abcab" * 50
    chunks = [text[start : start + 9] for start in range(0, len(text), 9)]
    done: list[int] = []
    write_tokens(tmp_path / "many", chunks, len(text), _ABC, lambda count, _: done.append(count))
    assert (tmp_path / "many").read_bytes() == alone.read_bytes()
    assert done == [*range(9, len(text), 9), len(text)]
    with pytest.raises(UnknownTokenError):
        write_tokens(tmp_path / "bad", [*chunks, "z"], len(text) + 1, _ABC, _ignore)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "many"]


def test_memory_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_source, "_READ", 2**16)

    def peak(lines: int) -> int:
        path = tmp_path / f"{lines}.txt"
        path.write_text("some words and some more words\n" * lines, encoding="utf-8")
        tracemalloc.start()
        texts = Texts.survey([path])
        write_tokens(tmp_path / "tokens", texts.corpus.chunks(read=2**16), texts.corpus.characters, words, _ignore)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    words = character_tokenizer("some words and more words\n")
    small = peak(10_000)  # 310 kB
    assert peak(100_000) < 1.5 * small


def test_a_corpus_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_EDGE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("one two three\nfour five six\n" * 20, encoding="utf-8")
    first = load_corpus(Texts.survey([path]), _SMALL)
    tokens = first.train.tokens.tolist()
    with monkeypatch.context() as patch:
        patch.setattr(data, "write_tokens", None)
        patch.setattr(data, "train_tokenizer", None)
        again = load_corpus(Texts.survey([path]), _SMALL)
        known = load_corpus(Texts.survey([path]), _SMALL, tokenizer=first.tokenizer)
    for corpus in (again, known):
        assert corpus.tokenizer.content == first.tokenizer.content
        assert corpus.train.tokens.tolist() == tokens
    for entry in (tmp_path / "cache" / "tokens").glob("*.safetensors"):  # damaged: made again
        damaged = entry.read_bytes()[:-2]
        entry.unlink()
        entry.write_bytes(damaged)
    assert load_corpus(Texts.survey([path]), _SMALL).train.tokens.tolist() == tokens
    path.write_text("six five four\nthree two one\n" * 20, encoding="utf-8")
    other = load_corpus(Texts.survey([path]), _SMALL)
    assert other.tokenizer.decode(other.train.tokens.tolist()).startswith("six five four\n")
