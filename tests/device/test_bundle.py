"""Finding, opening and checking bundles."""

import shutil
from pathlib import Path

import pytest

from rnn_edge.bundle import find_bundles, list_bundles, open_bundle, search_path
from rnn_edge.errors import BundleError
from tests.device.tiny import DATA, GRU, LSTM, copy_bundle


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RNN_EDGE_MODELS", raising=False)


def test_by_folder() -> None:
    bundle = open_bundle(LSTM)
    assert bundle.path == LSTM
    assert bundle.manifest.name == "tiny-lstm"
    assert bundle.read("step.onnx") == bundle.graph("step") == (LSTM / "step.onnx").read_bytes()
    assert bundle.size == sum((LSTM / name).stat().st_size for name in bundle.manifest.files)


def test_by_name_on_the_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_bundle(GRU, tmp_path / "one" / "lstm")
    copy_bundle(GRU, tmp_path / "two" / "other")
    monkeypatch.setenv("RNN_EDGE_MODELS", f"{tmp_path / 'one'}:{tmp_path / 'absent'}::{tmp_path / 'two'}:{DATA}")
    assert search_path()[:3] == [tmp_path / "one", tmp_path / "two", DATA]
    assert open_bundle("gru").path == GRU
    assert open_bundle("other").path == tmp_path / "two" / "other"
    # A name found earlier hides later ones.
    assert open_bundle("lstm").manifest.name == "tiny-gru"
    assert [path.name for path in find_bundles()][:3] == ["lstm", "other", "gru"]


@pytest.mark.parametrize("folder", ["bundles", "models"])
def test_by_name_in_the_folders_here(tmp_path: Path, folder: str) -> None:
    copy_bundle(GRU, tmp_path / folder / "mine")
    assert open_bundle("mine").manifest.name == "tiny-gru"


def test_missing_lists_those_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_EDGE_MODELS", str(DATA))
    with pytest.raises(BundleError) as caught:
        open_bundle("shakspere")
    assert caught.value.message == "there is no bundle shakspere"
    assert "one of: gru, lstm" in caught.value.hint


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(BundleError, match=r"cannot read x+: File name too long"):
        open_bundle("x" * 300)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="neither a bundle's folder nor an archive of one"):
        open_bundle(LSTM / "step.onnx")


def test_changed_file(tmp_path: Path) -> None:
    bundle = open_bundle(copy_bundle(LSTM, tmp_path / "b"))
    content = bytearray((tmp_path / "b" / "step.onnx").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b" / "step.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="its SHA-256 is not the manifest's"):
        bundle.read("step.onnx")


def test_truncated_file(tmp_path: Path) -> None:
    bundle = open_bundle(copy_bundle(LSTM, tmp_path / "b"))
    path = tmp_path / "b" / "step.onnx"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BundleError) as caught:
        bundle.read("step.onnx")
    assert caught.value.message == f"{path} has {size - 5:,} bytes, not {size:,}: truncated or changed"


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    bundle = open_bundle(copy_bundle(LSTM, tmp_path / "b"))
    (tmp_path / "b" / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match="is missing or not a plain file"):
        bundle.read("tokenizer.json")
    (tmp_path / "b" / "tokenizer.json").mkdir()
    with pytest.raises(BundleError, match="is missing or not a plain file"):
        bundle.read("tokenizer.json")


def test_a_link_is_refused_even_to_the_right_bytes(tmp_path: Path) -> None:
    bundle = open_bundle(copy_bundle(LSTM, tmp_path / "b"))
    path = tmp_path / "b" / "step.onnx"
    path.unlink()
    path.symlink_to(LSTM / "step.onnx")
    with pytest.raises(BundleError, match="not a plain file"):
        bundle.read("step.onnx")


def test_a_manifest_that_is_far_too_large(tmp_path: Path) -> None:
    copy_bundle(LSTM, tmp_path / "b")
    with (tmp_path / "b" / "manifest.json").open("ab") as file:
        file.truncate(16 * 2**20 + 1)
    with pytest.raises(BundleError, match="larger than 16 MB"):
        open_bundle(tmp_path / "b")


def test_list_names_those_that_do_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_EDGE_MODELS", str(tmp_path))
    copy_bundle(LSTM, tmp_path / "good")
    copy_bundle(LSTM, tmp_path / "bad", lambda manifest: manifest.clear())
    (tmp_path / "not-a-bundle").mkdir()
    good, bad = list_bundles()
    assert tmp_path / "good" in [bundle.path for bundle in good]
    assert [(path, type(error)) for path, error in bad] == [(tmp_path / "bad", BundleError)]
    shutil.rmtree(tmp_path / "bad")
    assert list_bundles()[1] == []
