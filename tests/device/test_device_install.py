"""The wheel of the device side, and pinned requirements."""

import os
import subprocess
import sys
import zipfile
from importlib import metadata
from io import BytesIO
from pathlib import Path

import pytest

from rnn_edge.device_install import device_wheel, requirements
from rnn_edge.errors import MissingDependencyError
from tests.device.tiny import GRU


def test_requirements_are_the_installed_versions_of_all_that_is_imported() -> None:
    pins = dict(line.split("==") for line in requirements())
    for name in ("numpy", "tokenizers", "typer", "rich", "safetensors", "sentencex", "onnxruntime"):
        assert pins[name] == metadata.version(name)
    assert "markdown-it-py" in pins  # what rich needs
    assert not {"torch", "onnx", "pytest", "rnn-edge"} & set(pins)
    assert list(pins) == sorted(pins)


def test_where_only_the_runtime_for_gpus_is_installed_its_version_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    find = metadata.distribution

    def other(name: str) -> metadata.Distribution:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return find("onnxruntime" if name == "onnxruntime-gpu" else name)

    monkeypatch.setattr(metadata, "distribution", other)
    pins = dict(line.split("==") for line in requirements())
    assert pins["onnxruntime"] == find("onnxruntime").version
    assert "onnxruntime-gpu" not in pins


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["no-such>=1"])
    with pytest.raises(MissingDependencyError, match="no-such is not installed here"):
        requirements()


def test_another_device_may_need_others(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=2", 'rich; sys_platform == "win32"', 'no-such>=1,<2; python_version < "3.0"']
    requires = metadata.requires
    monkeypatch.setattr(metadata, "requires", lambda name: lines if name == "rnn-edge" else requires(name))
    here = requirements()
    assert not any(line.startswith(("rich", "no-such")) for line in here)
    there = set(requirements(device={"sys_platform": "win32", "python_version": "2.7"})) - set(here)
    assert {f"rich=={metadata.version('rich')}", f"pygments=={metadata.version('pygments')}"} <= there
    assert "no-such<2,>=1" in there  # nothing here says which version


def test_the_wheel_has_the_device_side_alone_and_is_reproducible() -> None:
    name, content = device_wheel()
    assert (name, content) == device_wheel()
    names = zipfile.ZipFile(BytesIO(content)).namelist()
    assert "rnn_edge/stepper.py" in names
    assert f"rnn_edge-{metadata.version('rnn-edge')}.dist-info/licenses/LICENSE" in names
    assert {part.split("/")[0] for part in names} == {"rnn_edge", f"rnn_edge-{metadata.version('rnn-edge')}.dist-info"}
    assert not any("models/" in part or "__pycache__" in part for part in names)


def test_pip_installs_the_wheel_and_it_runs(tmp_path: Path) -> None:
    name, content = device_wheel()
    (tmp_path / name).write_bytes(content)
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(tmp_path / name)], check=True, stdin=subprocess.DEVNULL)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    where = [sys.executable, "-c", "import rnn_edge; print(rnn_edge.__file__)"]
    found = subprocess.run(where, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(target)
    verify = [sys.executable, "-m", "rnn_edge", "verify", str(GRU), "--device", "cpu"]
    done = subprocess.run(verify, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "FAILED" in done.stdout) == (0, False), done.stderr
