"""Bundles that load and then fail: made with onnx, judged by the device side."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rnn_edge.bundle import read_bundle
from rnn_edge.errors import BundleError
from rnn_edge.stepper import StepGraph
from rnn_edge.verification import verify

if TYPE_CHECKING:
    from tests.export.conftest import Export


def _replace_graph(folder: Path, graph: onnx.ModelProto) -> None:
    """Put another graph into a bundle, with a manifest that vouches for it."""
    content = graph.SerializeToString()
    (folder / "step.onnx").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["step.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture
def copy(exported: Export, tmp_path: Path) -> tuple[Path, onnx.ModelProto]:
    folder = tmp_path / "copy"
    shutil.copytree(exported("lstm", "operator", 1, False).bundle.path, folder)
    return folder, onnx.load(folder / "step.onnx")


def test_a_graph_that_fails_when_it_runs(copy: tuple[Path, onnx.ModelProto]) -> None:
    folder, graph = copy
    (embedding,) = (item for item in graph.graph.initializer if item.name == "embedding")
    embedding.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(embedding)[:2], "embedding"))
    _replace_graph(folder, graph)
    stepper = StepGraph(read_bundle(folder), device="cpu").stepper()
    with pytest.raises(BundleError, match="the graph fails"):
        stepper.step(5)
    *passed, last = verify(read_bundle(folder), device="cpu")
    assert all(finding.passed for finding in passed)
    assert not last.passed
    assert "the graph fails" in last.detail


def test_tensors_in_other_files_are_never_opened(copy: tuple[Path, onnx.ModelProto], tmp_path: Path) -> None:
    folder, graph = copy
    secret = np.zeros(10_000, np.float32).tobytes()
    (tmp_path / "secret").write_bytes(secret)
    (embedding,) = (item for item in graph.graph.initializer if item.name == "embedding")
    embedding.ClearField("raw_data")
    embedding.data_location = onnx.TensorProto.EXTERNAL
    embedding.external_data.add(key="location", value="../secret")
    _replace_graph(folder, graph)
    with pytest.raises(BundleError, match="keeps tensors in other files"):
        StepGraph(read_bundle(folder), device="cpu")
