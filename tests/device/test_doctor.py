"""``rnn-edge doctor`` on machines that lack something: installed packages are folders of metadata, so we make some."""

import json
import os
import sys
from importlib import util
from pathlib import Path

import pytest

from rnn_edge import doctor, machine
from rnn_edge.doctor import examine, runtime_distributions
from tests.device.conftest import Cli
from tests.device.tiny import GRU, copy_bundle


def install(folder: Path, name: str, version: str, *files: str) -> None:
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (information / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_this_machine(cli: Cli) -> None:
    code, out, err = cli("doctor")
    assert code == 0, err
    for part in ("version", "processor", "features", "providers", "CPUExecutionProvider", "libcudnn", "TERM", "gru"):
        assert part in out
    code, out, _ = cli("doctor", "--json")
    facts = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {fact["group"] for fact in facts} == {"python", "machine", "runtime", "cuda", "terminal", "bundles"}


def test_both_runtimes_at_once(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", "onnxruntime-gpu", "1.21.0", "onnxruntime/__init__.py")
    install(tmp_path / "site", "onnxruntime-genai", "0.9", "onnxruntime_genai/__init__.py")
    install(tmp_path / "site", "onnxruntime_openvino", "1.22", "onnxruntime/__init__.py")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert {"onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"} == set(runtime_distributions())
    code, out, err = cli("doctor")
    assert code == 1
    assert "they write into the same folder" in out
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in err


def test_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "runtime_distributions", dict)
    facts = {fact.name: fact for fact in examine() if fact.group == "runtime"}
    assert list(facts) == ["packages"]
    assert "pip install 'rnn-edge[cpu]'" in facts["packages"].mend


def test_a_damaged_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (fact,) = (fact for fact in examine() if fact.name == "loaded")
    assert "damaged" in fact.value
    assert "pip uninstall" in fact.mend


def test_the_gpu_package_without_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "runtime_distributions", lambda: {"onnxruntime-gpu": "1.30"})
    monkeypatch.setattr(doctor, "_library", lambda name: "")
    mends = {fact.name: fact.mend for fact in examine() if fact.group == "cuda"}
    assert "driver" in mends["libcuda"]
    assert "rnn-edge[cuda]" in mends["libcudnn"]


def test_cuda_libraries_of_python_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    (fact,) = (fact for fact in examine() if fact.name == "libcudnn")
    assert fact.value == str(library)


def test_cuda_libraries_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ldconfig"
    program.write_text(
        "#!/bin/sh\necho '3 libs found in cache'\n"
        "echo '\tlibcudnn_graph.so.9 (libc6,x86-64) => /opt/libcudnn_graph.so.9'\n"
        "echo '\tlibcudnn.so.9 (libc6,x86-64) => /opt/libcudnn.so.9'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert doctor._library("cudnn") == "/opt/libcudnn.so.9"
    (tmp_path / "libcudnn.so.8").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert doctor._library("cudnn") == str(tmp_path / "libcudnn.so.8")


def test_a_bundle_that_does_not_open(cli: Cli, tmp_path: Path) -> None:
    copy_bundle(GRU, tmp_path / "bundles" / "broken", lambda manifest: manifest.pop("state"))
    code, out, err = cli("doctor")
    assert code == 1
    assert "does not open" in out
    assert "bundles, broken" in err


@pytest.mark.parametrize(
    ("line", "expected"), [("flags\t\t: fpu avx2 amx_int8", "amx_int8"), ("Features\t: fp asimd asimddp", "asimddp")]
)
def test_processor_features(line: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, value = line.partition(":")
    monkeypatch.setattr(machine, "_field", lambda path, key: value.strip() if key == name.strip() else "")
    assert expected in machine.cpu_flags()
