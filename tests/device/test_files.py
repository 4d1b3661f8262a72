"""Writing files: all or nothing, and nothing left behind."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rnn_edge.errors import RnnEdgeError
from rnn_edge.files import check_output, new_folder, raise_cannot_write, write_bytes, write_text


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_creates_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file"]
    write_text(path, "dé\n")
    assert path.read_bytes() == "dé\n".encode()


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RnnEdgeError) as caught:
        write_bytes(path, b"new")
    assert "No space left" in caught.value.message
    assert str(path) in caught.value.message
    assert "the disk is full" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_write_that_fails_half_way_loses_nothing(tmp_path: Path) -> None:
    """A real refusal by the system: the process may not write files above 4 kB."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import resource, sys, pathlib\n"
        "from rnn_edge.files import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    write_bytes(pathlib.Path(sys.argv[1]), b'x' * 1000000)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"RnnEdgeError cannot write {path}: ")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "file", b"new")
    assert names(tmp_path) == []


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RnnEdgeError, match="cannot write"):
        write_bytes(tmp_path / "file" / "inside", b"")


def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RnnEdgeError, match="cannot write"):
        write_bytes(tmp_path / "folder", b"x")
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "that you may write to"),
        (errno.EROFS, "that you may write to"),
        (errno.ENAMETOOLONG, "choose another output path"),
    ],
)
def test_each_refusal_has_its_mend(number: int, hint: str) -> None:
    with pytest.raises(RnnEdgeError) as caught:
        raise_cannot_write(Path("x"), OSError(number, os.strerror(number)))
    assert caught.value.message == f"cannot write x: {os.strerror(number)}"
    assert hint in caught.value.hint


def test_existing_output_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "file"
    check_output(path, force=False, folder=False)
    path.write_bytes(b"")
    with pytest.raises(RnnEdgeError) as caught:
        check_output(path, force=False, folder=False)
    assert caught.value.message == f"{path} exists already"
    assert "--force" in caught.value.hint
    check_output(path, force=True, folder=False)
    with pytest.raises(RnnEdgeError, match="is a file, not a folder"):
        check_output(path / "a" / "b", force=True, folder=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RnnEdgeError, match="is read-only"):
            check_output(tmp_path / "a" / "b", force=False, folder=False)
        with pytest.raises(RnnEdgeError, match="cannot write"):
            write_bytes(tmp_path / "a", b"")
    finally:
        tmp_path.chmod(0o700)


def test_new_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with new_folder(target, force=False) as folder:
        (folder / "file").write_bytes(b"x")
        assert not target.exists()
    assert names(target) == ["file"]
    assert names(target.parent) == ["bundle"]


def test_new_folder_leaves_what_another_made_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with pytest.raises(RnnEdgeError, match="cannot write"), new_folder(target, force=False) as folder:
        (folder / "a").write_text("ours", encoding="utf-8")
        with new_folder(target, force=False) as other:
            (other / "a").write_text("theirs", encoding="utf-8")
    assert (target / "a").read_text(encoding="utf-8") == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_new_folder_replaces_only_by_force(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"")
    with pytest.raises(RnnEdgeError, match="exists already"), new_folder(target, force=False):
        pytest.fail("the block must not run")
    with new_folder(target, force=True) as folder:
        (folder / "new").write_bytes(b"")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("no"), KeyboardInterrupt()]
)
def test_new_folder_that_fails_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"")
    expected = RnnEdgeError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), new_folder(target, force=True) as folder:
        (folder / "half").write_bytes(b"")
        raise error
    assert names(target) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_new_folder_that_cannot_be_moved_into_place_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"")
    rename = Path.rename

    def fail_for_new(self: Path, to: Path) -> Path:
        if self.name == "new":
            full_disk()
        return rename(self, to)

    with pytest.raises(RnnEdgeError, match="No space left"), new_folder(target, force=True) as folder:
        (folder / "new").write_bytes(b"")
        monkeypatch.setattr(Path, "rename", fail_for_new)
    assert names(target) == ["old"]
    assert names(tmp_path) == ["bundle"]
