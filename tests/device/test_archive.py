"""Bundles as archives: what goes in comes out, and nothing else does."""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rnn_edge
from rnn_edge.archive import cached, pack, unpack
from rnn_edge.bundle import open_bundle, read_bundle
from rnn_edge.errors import BundleError, RnnEdgeError
from tests.device.conftest import Cli
from tests.device.tiny import GRU, TRANSLATOR, copy_bundle, replace_file

Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "gru.tar.gz"
    pack(read_bundle(GRU), path)
    return path


def members(path: Path) -> Members:
    with tarfile.open(path) as tar:
        found = []
        for member in tar:
            file = tar.extractfile(member)
            assert file
            found.append((member, file.read()))
        return found


def write(path: Path, found: Members, *, sums: bool = True, tail: bytes = b"") -> Path:
    """An archive of these members; with ``sums``, its first member lists what they are now."""
    if sums:
        lines = [
            f"{hashlib.sha256(data).hexdigest()}  {member.name.partition('/')[2] or member.name}\n"
            for member, data in found[1:]
            if member.isreg()
        ]
        found[0] = (found[0][0], "".join(dict.fromkeys(lines)).encode())
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in found:
            if member.isreg():
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    path.write_bytes(gzip.compress(out.getvalue() + tail))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("source", [GRU, TRANSLATOR])
def test_what_is_packed_comes_out(source: Path, tmp_path: Path) -> None:
    pack(read_bundle(source), tmp_path / "a.tar.gz")
    bundle = unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert contents(bundle.path) == contents(source)
    assert bundle.path == tmp_path / "out" / "models" / source.name
    listed = {path.relative_to(tmp_path / "out").parts[0] for path in (tmp_path / "out").rglob("*")}
    assert listed == {"SHA256SUMS", "models", "INSTALL.txt", "requirements.txt", "wheels"}


def test_the_same_bundle_gives_the_same_bytes(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever its files were written, whoever may read them, and wherever and as what it is packed."""
    copy = copy_bundle(GRU, tmp_path / "elsewhere" / "gru")
    for path in copy.iterdir():
        os.utime(path, (1e9, 1e9))
        path.chmod(0o600)
    monkeypatch.chdir(copy)
    umask = os.umask(0o077)
    try:
        packed = pack(read_bundle(Path()), tmp_path / "b.tar.gz")
    finally:
        os.umask(umask)
    assert archive.read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    assert packed.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="there is no sha256sum")
def test_the_checksums_are_those_of_sha256sum(archive: Path, tmp_path: Path) -> None:
    unpack(archive, tmp_path / "out")
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=tmp_path / "out", check=True)


def test_a_changed_bundle_is_not_packed(tmp_path: Path) -> None:
    broken = copy_bundle(GRU, tmp_path / "broken")
    (broken / "step.onnx").write_bytes(b"something else")
    with pytest.raises(BundleError, match="truncated or changed"):
        pack(read_bundle(broken), tmp_path / "b.tar.gz")
    assert not (tmp_path / "b.tar.gz").exists()


def test_archives_open_like_folders(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv("RNN_EDGE_CACHE", str(tmp_path / "cache"))
    model = rnn_edge.load(str(archive), device="cpu")
    assert model.bundle.path.is_relative_to(tmp_path / "cache")
    assert open_bundle(archive).path == model.bundle.path
    assert cli("verify", str(archive), "--device", "cpu")[0] == 0
    one = cli("generate", str(archive), "-n", "20", "--seed", "1", "--device", "cpu", "-q")
    assert one == cli("generate", "gru", "-n", "20", "--seed", "1", "--device", "cpu", "-q")


def test_many_open_an_archive_at_once(archive: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cached(archive, tmp_path), range(16)))
    assert len(set(found)) == 1
    assert [path.name for path in (tmp_path / "archives").iterdir()] == [
        hashlib.sha256(archive.read_bytes()).hexdigest()
    ]


@pytest.mark.parametrize("damage", ["nothing below", "a file beside", "a folder beside"])
def test_a_cache_that_is_not_as_it_was_left(archive: Path, tmp_path: Path, damage: str) -> None:
    folder = cached(archive, tmp_path)
    if damage == "nothing below":
        shutil.rmtree(folder.parent)
    elif damage == "a file beside":
        (folder.parent / ".DS_Store").touch()
    else:
        (folder.parent / "a").mkdir()
    assert cached(archive, tmp_path) == folder
    assert read_bundle(folder).manifest.task == "language-model"


def renamed(name: str) -> Callable[[Members], None]:
    def change(found: Members) -> None:
        member = tarfile.TarInfo(name)
        member.size = 4
        found.append((member, b"evil"))

    return change


def special(kind: bytes, name: str = "gru/models/gru/link", target: str = "/etc/passwd") -> Callable[[Members], None]:
    def change(found: Members) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        found.insert(2, (member, b""))

    return change


def twice(found: Members) -> None:
    found.append(found[3])


def larger(found: Members) -> None:
    """A graph of ten megabytes of zeros: some kilobytes in the archive."""
    index = next(i for i, (member, _) in enumerate(found) if member.name.endswith(".onnx"))
    found[index] = (found[index][0], bytes(10_000_000))


def without_graph(found: Members) -> None:
    found[:] = [(member, data) for member, data in found if not member.name.endswith(".onnx")]


def graph_first(found: Members) -> None:
    index = next(i for i, (member, _) in enumerate(found) if member.name.endswith(".onnx"))
    found.insert(1, found.pop(index))


def foreign(found: Members) -> None:
    del found[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("/etc/cron.d/evil"), "not a name inside its folder"),
        (renamed("gru/../../evil"), "not a name inside its folder"),
        (renamed("../evil"), "not a name inside its folder"),
        (renamed("evil"), "not a name inside its folder"),
        (renamed("gru/models/gru/.hidden"), "not a name inside its folder"),
        (renamed("gru/a\\b"), "not a name inside its folder"),
        (renamed("other/evil"), "holds other/evil"),
        (renamed("gru/models/gru/extra.bin"), "more than it may have"),
        (renamed("gru/models/other/evil"), "more than it may have"),
        (special(tarfile.SYMTYPE), "not a plain file"),
        (special(tarfile.LNKTYPE), "not a plain file"),
        (special(tarfile.CHRTYPE), "not a plain file"),
        (special(tarfile.FIFOTYPE), "not a plain file"),
        (special(tarfile.DIRTYPE), "not a plain file"),
        (special(tarfile.XHDTYPE), "not a plain file"),
        (special(tarfile.GNUTYPE_LONGNAME), "not a plain file"),
        (twice, "twice"),
        (larger, "more than it may have"),
        (without_graph, "ends early: it lacks models/gru/step.onnx"),
        (graph_first, "more than it may have"),
        (foreign, "does not begin with SHA256SUMS"),
    ],
)
def test_hostile_archives_leave_nothing_behind(
    archive: Path, tmp_path: Path, change: Callable[[Members], None], message: str
) -> None:
    found = members(archive)
    change(found)
    folder = tmp_path / "here"
    folder.mkdir()
    bad = write(tmp_path / "bad.tar.gz", found, sums=change is not foreign)
    with pytest.raises(BundleError, match=message):
        unpack(bad, folder / "out")
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_a_member_of_another_content_than_listed(archive: Path, tmp_path: Path) -> None:
    found = members(archive)
    found[2] = (found[2][0], b"X" + found[2][1][1:])
    with pytest.raises(BundleError, match="not what the archive's checksums say"):
        unpack(write(tmp_path / "bad.tar.gz", found, sums=False), tmp_path / "out")


def test_a_stream_that_never_ends(archive: Path, tmp_path: Path) -> None:
    """Zeros behind the end, and a million empty files, are read no further than a little."""
    bad = write(tmp_path / "bad.tar.gz", members(archive), tail=bytes(50_000_000))
    with pytest.raises(BundleError, match="goes on behind its end"):
        unpack(bad, tmp_path / "out")
    found = members(archive)
    for index in range(1200):
        found.append((tarfile.TarInfo(f"gru/empty{index}"), b""))
    with pytest.raises(BundleError, match="more than 1,000 files"):
        unpack(write(tmp_path / "many.tar.gz", found), tmp_path / "out")


def test_a_bomb_whose_manifest_is_honest(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnn_edge.archive._GROWTH_ALLOWED", 0)
    assert unpack(archive, tmp_path / "good")
    bomb = copy_bundle(GRU, tmp_path / "gru")
    replace_file(bomb, "step.onnx", bytes(20_000_000))
    pack(read_bundle(bomb), tmp_path / "bomb.tar.gz")
    with pytest.raises(BundleError, match="more than 50 times its size"):
        unpack(tmp_path / "bomb.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("junk", [b"junk", gzip.compress(b"junk", mtime=0), bytes(100) + b"junk"])
def test_junk_behind_the_end(archive: Path, tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "x.tar.gz").write_bytes(archive.read_bytes() + junk)
    with pytest.raises(BundleError, match=r"damaged|goes on behind its end"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_truncated(archive: Path, tmp_path: Path, share: float) -> None:
    content = archive.read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BundleError, match=r"truncated|ends early"):
        unpack(tmp_path / "cut.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_changed_byte_is_never_taken(archive: Path, tmp_path: Path, position: float, value: int) -> None:
    """Either the archive is refused, or the byte was one that means nothing (of gzip's header)."""
    content = bytearray(archive.read_bytes())
    content[int(position * len(content))] ^= value
    (tmp_path / "x.tar.gz").write_bytes(content)
    try:
        bundle = unpack(tmp_path / "x.tar.gz", tmp_path / "out", force=True)
    except BundleError:
        return
    assert contents(bundle.path) == contents(GRU)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=2000), packed=st.booleans())
def test_anything_is_refused_with_a_message(tmp_path: Path, content: bytes, packed: bool) -> None:
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(BundleError):
        unpack(tmp_path / "x.tar.gz", tmp_path / "out")


def test_commands(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("pack", "gru", "-o", "gru.tar.gz")
    assert (code, out) == (0, "")
    digest = hashlib.sha256((tmp_path / "gru.tar.gz").read_bytes()).hexdigest()
    assert digest in err
    code, _, err = cli("pack", "gru", "-o", "gru.tar.gz")
    assert (code, err.splitlines()[0]) == (1, "error: gru.tar.gz exists already")
    assert cli("pack", "gru", "-o", "gru.tar.gz", "--force")[0] == 0
    assert cli("pack", "gru", "-o", "gru.zip")[0] == 2
    code, out, err = cli("unpack", "gru.tar.gz", "-o", "there")
    assert (code, out) == (0, "")
    assert "there/models/gru" in err
    assert cli("unpack", "gru.tar.gz", "-o", "there")[0] == 1
    assert cli("unpack", "gru.tar.gz", "-o", "there", "--force")[0] == 0
    code, _, err = cli("unpack", "missing.tar.gz", "-o", "there2")
    assert (code, err.splitlines()[0]) == (1, "error: cannot read missing.tar.gz: No such file or directory")
    code, _, err = cli("verify", "there/requirements.txt")
    assert (code, err.splitlines()[0]) == (
        1,
        "error: there/requirements.txt is neither a bundle's folder nor an archive of one",
    )


def test_an_output_that_cannot_be_written(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RnnEdgeError, match="not a folder"):
        unpack(archive, tmp_path / "file" / "out")
