"""Checkpoints: what is written comes back, a failed write leaves the old one, nothing is unpickled."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import save_file

from rnn_edge.errors import RnnEdgeError, RunError
from rnn_edge_export.checkpoint import Best, Progress, load_checkpoint, module_tensors, restore_module, save_checkpoint
from rnn_edge_export.language_model.modules import RecurrentLanguageModel
from rnn_edge_export.recipe_sections import LanguageModelSection

_OLD, _NEW = {"a": torch.arange(6.0).view(2, 3)}, {"a": torch.zeros(2, 3)}
_MODEL = LanguageModelSection(embedding=4, hidden=4, layers=1)


def _saved(folder: Path) -> Path:
    path = folder / "last.safetensors"
    save_checkpoint(path, _OLD, Progress(step=7, best=1.25))
    return path


def test_tensors_and_description_come_back(tmp_path: Path) -> None:
    tensors = {"odd": torch.arange(6.0).view(2, 3).t(), "random": torch.get_rng_state(), "scalar": torch.tensor(3.0)}
    save_checkpoint(tmp_path / "x.safetensors", tensors, Progress(step=7, loss_sum=0.1, best=None))
    loaded, progress = load_checkpoint(tmp_path / "x.safetensors", Progress)
    assert progress == Progress(step=7, loss_sum=0.1, best=None)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no checkpoint last"):
        load_checkpoint(tmp_path / "last.safetensors", Progress)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    good = path.read_bytes()
    for content in (
        b"",
        b"\x00" * 64,
        good[:-1],
        good[:40],
        b"[" + good,
        good[:8] + b"x" + good[9:],
        b"\xff" * 16 + good,
    ):
        path.write_bytes(content)
        with pytest.raises(RunError, match="is not a checkpoint") as caught:
            load_checkpoint(path, Progress)
        assert str(path) in caught.value.message
    metadata: dict[str, str] | None
    for metadata in (
        None,
        {"format": "pt"},
        {"rnn-edge": "{"},
        {"rnn-edge": "[]"},
        {"rnn-edge": json.dumps({"step": "7"})},
        {"rnn-edge": json.dumps({"step": 7, "window": 3})},  # of another version: where it stands is not known
    ):
        save_file(_OLD, path, metadata)
        with pytest.raises(RunError, match="is not a checkpoint"):
            load_checkpoint(path, Progress)
    save_checkpoint(path, _OLD, Progress())
    with pytest.raises(RunError, match="is not a checkpoint"):  # a checkpoint of another kind
        load_checkpoint(path, Best)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path, trace = tmp_path / "last.safetensors", tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return os.symlink, ("nowhere", str(trace))

    torch.save({"model": Trap()}, path)
    for content in (path.read_bytes(), pickle.dumps(Trap())):
        path.write_bytes(content)
        with pytest.raises(RunError, match="is not a checkpoint"):
            load_checkpoint(path, Progress)
    assert not trace.is_symlink()
    pickle.loads(path.read_bytes())
    assert trace.is_symlink()  # the trap does work


@pytest.mark.parametrize(("place", "number"), [("fsync", errno.ENOSPC), ("fsync", errno.EIO), ("replace", errno.EROFS)])
def test_a_write_that_fails_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    path = _saved(tmp_path)

    def fail(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((os, "fsync", fail) if place == "fsync" else (Path, "replace", fail)))
    with pytest.raises(RnnEdgeError, match="cannot write") as caught:
        save_checkpoint(path, _NEW, Progress(step=8))
    monkeypatch.undo()
    assert ("disk is full" in caught.value.hint) == (number == errno.ENOSPC)
    tensors, progress = load_checkpoint(path, Progress)
    assert progress.step == 7
    assert torch.equal(tensors["a"], _OLD["a"])
    assert list(tmp_path.iterdir()) == [path]  # and no litter


def test_an_interrupt_while_writing_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(tmp_path)

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, _NEW, Progress(step=8))
    assert load_checkpoint(path, Progress)[1].step == 7
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        f"import os, pathlib, signal; from rnn_edge.files import write_bytes\n"
        f"{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_bytes(pathlib.Path({str(path)!r}), b'new' * 100000)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("change", [{"hidden": 5}, {"layers": 2}])
def test_weights_of_another_model_are_refused(change: dict[str, int]) -> None:
    tensors = module_tensors("model", RecurrentLanguageModel(_MODEL, 6))
    other = RecurrentLanguageModel(LanguageModelSection(**{"embedding": 4, "hidden": 4, "layers": 1, **change}), 6)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="the checkpoint's"):
        restore_module("model", other, tensors)


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    recipe = LanguageModelSection(embedding=4, hidden=4, layers=1, tie_weights=True)
    torch.manual_seed(1)
    model = RecurrentLanguageModel(recipe, 6)
    save_checkpoint(tmp_path / "x", module_tensors("model", model), Progress())
    tensors, _ = load_checkpoint(tmp_path / "x", Progress)
    assert sum("embedding" in name or name == "model.output.weight" for name in tensors) == 1
    torch.manual_seed(2)
    other = RecurrentLanguageModel(recipe, 6)
    restore_module("model", other, tensors)
    assert other.output.weight is other.embedding.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
