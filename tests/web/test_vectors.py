"""The same noise, choices and texts in Python, Node and the browser: the vectors of tests/data/web."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rnn_edge.web.site import ASSETS
from tests.data.make_web_vectors import VECTORS, make
from tests.web.chromium import Chromium
from tests.web.conftest import ROOT, Serve

HERE = Path(__file__).parent
PAGE = """<!doctype html><script type="module">
import { checkRules, checkTexts } from "./vectors.mjs";
const load = (name) => import(`./${name}`);
const bytes = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());
const vectors = await (await fetch("vectors.json")).json();
const ort = await load("runtime/ort.wasm.bundle.min.mjs");
const packed = new Blob([await bytes("runtime/ort-wasm-simd-threaded.wasm.gz")]);
const wasm = packed.stream().pipeThrough(new DecompressionStream("gzip"));
Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: await new Response(wasm).arrayBuffer() });
const tokenizers = () => load("runtime/tokenizers.min.mjs");
const read = (bundle) => (name) => bytes(`bundles/${bundle}/${name}`);
const wrong = [...(await checkRules(vectors, load)), ...(await checkTexts(vectors, load, read, { ort, tokenizers }))];
window.wrong = JSON.stringify(wrong);
</script>"""


def run_node(node: str, *arguments: Path) -> list[str]:
    """What check.mjs says."""
    found = subprocess.run([node, HERE / "check.mjs", *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    wrong: list[str] = json.loads(found.stdout)
    return wrong


def test_python_makes_what_is_committed() -> None:
    assert json.loads(VECTORS.read_text(encoding="utf-8")) == json.loads(json.dumps(make()))


def test_node_draws_and_chooses_the_same(node: str) -> None:
    assert run_node(node, ASSETS, VECTORS) == []


def test_a_difference_would_be_seen(node: str, tmp_path: Path) -> None:
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    vectors["noise"][0]["values"][3] += 1e-3
    vectors["choices"][2]["ids"][-1] += 1
    (tmp_path / "vectors.json").write_text(json.dumps(vectors), encoding="utf-8")
    assert [line.partition(":")[0] for line in run_node(node, ASSETS, tmp_path / "vectors.json")] == [
        "noise of seed 0",
        'choices with {"temperature"',
    ]


@pytest.mark.parametrize("graphs", ["page", "bundle"])
def test_node_writes_the_same(node: str, sites: Callable[[str], Path], models: Path, graphs: str) -> None:
    """On the page's own graphs, and on the bundles as they are."""
    assert run_node(node, ASSETS, VECTORS, sites("tests/data/lstm"), models if graphs == "page" else ROOT) == []


def test_node_writes_the_same_natively(node: str, sites: Callable[[str], Path]) -> None:
    modules = os.environ.get("RNN_EDGE_NODE_MODULES")
    if not modules:
        pytest.skip("name the folder of a node_modules with onnxruntime-node with $RNN_EDGE_NODE_MODULES")
    assert run_node(node, ASSETS, VECTORS, sites("tests/data/lstm"), ROOT, Path(modules)) == []


def test_the_browser_writes_the_same(
    browser: str, sites: Callable[[str], Path], models: Path, serve: Serve, tmp_path: Path
) -> None:
    folder = tmp_path / "site"
    shutil.copytree(sites("tests/data/lstm"), folder)
    shutil.copytree(models, folder / "bundles")
    shutil.copy(VECTORS, folder)
    shutil.copy(HERE / "vectors.mjs", folder)
    (folder / "check.html").write_text(PAGE, encoding="utf-8")
    with Chromium() as page:
        page.open(f"{serve(folder)}check.html")
        assert json.loads(page.wait_for("window.wrong", 120)) == []
