"""What ``rnn-edge web`` writes, and what it refuses; the runtime from folders, archives and a registry."""

import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from rnn_edge.bundle import open_bundle
from rnn_edge.errors import RnnEdgeError
from rnn_edge.web import runtime as module
from rnn_edge.web.modules import in_one
from rnn_edge.web.runtime import Package, registry, runtime_files
from rnn_edge.web.site import ASSETS, single_file, site_files
from tests.web.conftest import ROOT, Cli, Serve

SMALL = {
    "onnxruntime-web": {"dist/ort.wasm.bundle.min.mjs": b"export const ort = 1;", f"dist/{module.WASM}": b"\0asm" * 50},
    "@huggingface/tokenizers": {"dist/tokenizers.min.mjs": b"export const t = 1;", "LICENSE": b"Apache\n"},
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Packages of a few bytes in place of the real ones, as ``npm pack`` writes them; nothing is in the cache."""
    packages = []
    for name, files in SMALL.items():
        pinned = {path: (hashlib.sha256(content).hexdigest(), len(content)) for path, content in files.items()}
        packages.append(Package(name, "1.2.3", pinned))
        pack(tmp_path / "packs" / packages[-1].archive, files)
    monkeypatch.setattr(module, "locked", lambda: tuple(packages))
    monkeypatch.setattr("rnn_edge.web.site.locked", lambda: tuple(packages))
    monkeypatch.setenv("RNN_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "packs"


def pack(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {**files, "dist/other.js": b"x"}.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_the_folder_has_all_and_no_more(small: Path, cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("web", "lstm", "-o", "site", "--runtime", str(small))
    assert (code, out) == (0, "site\n"), err
    site = tmp_path / "site"
    files = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert files == {path.name for path in ASSETS.iterdir()} | {
        "LICENCES.txt",
        "model/loop.onnx",
        "model/manifest.json",
        "model/tokenizer.json",
        "runtime/ort-wasm-simd-threaded.wasm.gz",
        "runtime/ort.wasm.bundle.min.mjs",
        "runtime/tokenizers.min.mjs",
    }
    manifest = json.loads((site / "model/manifest.json").read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        content = (site / "model" / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["size"])
    assert manifest["graphs"] == {"loop": "loop.onnx"}
    wasm = (site / "runtime/ort-wasm-simd-threaded.wasm.gz").read_bytes()
    assert gzip.decompress(wasm) == SMALL["onnxruntime-web"][f"dist/{module.WASM}"]
    licences = (site / "LICENCES.txt").read_text(encoding="utf-8")
    assert "Microsoft" in licences
    assert "onnxruntime-web 1.2.3" in licences
    assert licences.endswith("Apache\n")
    assert "{{" not in licences + (site / "index.html").read_text(encoding="utf-8")
    assert cli("web", "lstm", "-o", "site", "--runtime", str(small)) == (
        1, "", "error: site exists already\nhint: choose another output path, or replace it with --force\n",
    )  # fmt: skip
    (tmp_path / "other").mkdir()
    assert cli("web", "lstm", "-o", "other", "--runtime", str(small), "--force")[0] == 0  # there was nothing in it
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("Dear", encoding="utf-8")
    code, _, err = cli("web", "lstm", "-o", "mine", "--runtime", str(small), "--force")
    assert (code, err.splitlines()[0]) == (1, "error: mine holds other things than a site")
    assert (tmp_path / "mine" / "letter").exists()
    code, out, _ = cli("web", "lstm", "-o", "site", "--runtime", str(small), "--force", "--json")
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert (code, json.loads(out)) == (0, {"output": "site", "files": len(files), "bytes": size})


def test_the_same_bytes_each_time(small: Path) -> None:
    bundle = open_bundle(ROOT / "tests/data/translator")
    once, again = (site_files(bundle, small, lambda _: None) for _ in range(2))
    assert once == again
    assert single_file(once) == single_file(again)


def test_no_inline_script_and_no_other_origin(small: Path) -> None:
    files = site_files(open_bundle(ROOT / "tests/data/lstm"), small, lambda _: None)
    page = files["index.html"].decode()
    assert re.findall(r"<script[^>]*>", page) == ['<script type="module" src="page.js">']
    assert "style=" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "script-src 'self' 'wasm-unsafe-eval';" in policy[1]
    assert policy[1].startswith("default-src 'none'")
    for name, content in files.items():
        if name.endswith((".js", ".css", ".html")):
            found = set(re.findall(r"https?://[^\s'\"`)]+", content.decode()))
            assert found <= {"http://www.w3.org/2000/svg"}, name


def test_one_file_names_what_it_runs(small: Path) -> None:
    """The policy has the hashes of style and script, and no block ends before it should."""
    import base64

    files = site_files(open_bundle(ROOT / "tests/data/lstm"), small, lambda _: None)
    page = single_file(files).decode()
    for tag in ('<script type="module">', "<style>"):
        start = page.index(tag) + len(tag)
        content = page[start : page.index(tag[:1] + "/" + re.findall(r"\w+", tag)[0], start)]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page
    blocks = dict(re.findall(r'data-file="([^"]+)">([^<]*)</script>', page))
    assert base64.b64decode(blocks["model/loop.onnx"]) == files["model/loop.onnx"]
    assert set(blocks) == {name for name in files if name.startswith(("model/", "runtime/"))} | {"worker.js"}


def test_scripts_put_into_one_still_parse(node: str, tmp_path: Path) -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in ASSETS.glob("*.js")}
    for entry in ("page.js", "worker.js"):
        (tmp_path / entry).write_text(in_one(entry, sources), encoding="utf-8")
        subprocess.run([node, "--check", tmp_path / entry], check=True)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ('import * as all from "./b.js";\n', "not known here"),
        ('import { one as two } from "./b.js";\n', "renames"),
        ("export default 3;\n", "not known here"),
        ('import { x } from "./c.js";\n', "imports c.js, which is not there"),
        ('import { x } from "./a.js";\n', "a circle"),
    ],
)
def test_forms_that_are_not_known_are_refused(source: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        in_one("a.js", {"a.js": source, "b.js": "export const one = 1;\n"})


def test_modules_run_in_order_and_once(node: str, tmp_path: Path) -> None:
    sources = {
        "a.js": 'import { two } from "./b.js";\nimport { one } from "./c.js";\nconsole.log(one, two);\n',
        "b.js": 'import { one } from "./c.js";\nexport { one } from "./c.js";\nexport const two = one + 1;\n',
        "c.js": 'console.log("c");\nexport const one = 1;\n',
    }
    (tmp_path / "a.js").write_text(in_one("a.js", sources), encoding="utf-8")
    assert subprocess.run([node, tmp_path / "a.js"], check=True, capture_output=True, text=True).stdout == "c\n1 2\n"


def test_a_node_modules_and_plain_files_do_too(small: Path, tmp_path: Path) -> None:
    expected = {f"{name}/{path}": content for name, files in SMALL.items() for path, content in files.items()}
    for base, name in ((tmp_path / "a" / "node_modules", "full"), (tmp_path / "b", "full"), (tmp_path / "c", "plain")):
        for path, content in expected.items():
            target = base / (path if name == "full" else Path(path).name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    assert runtime_files(small) == expected
    for folder in "abc":
        assert runtime_files(tmp_path / folder) == expected


def test_other_bytes_are_refused(small: Path, tmp_path: Path) -> None:
    archive = next(small.glob("onnx*"))
    name = f"dist/{module.WASM}"
    pack(archive, {**SMALL["onnxruntime-web"], name: b"evil" * 50})
    with pytest.raises(RnnEdgeError, match=rf"{name} is not that of onnxruntime-web 1\.2\.3"):
        runtime_files(small)
    pack(archive, {name: SMALL["onnxruntime-web"][name]})
    with pytest.raises(RnnEdgeError, match=r"has no dist/ort\.wasm\.bundle\.min\.mjs"):
        runtime_files(small)
    archive.write_bytes(b"no archive")
    with pytest.raises(RnnEdgeError, match="is not an npm package"):
        runtime_files(small)
    archive.unlink()
    with pytest.raises(RnnEdgeError, match=r"has no onnxruntime-web-1\.2\.3\.tgz") as caught:
        runtime_files(small)
    assert "npm pack onnxruntime-web@1.2.3" in caught.value.hint
    with pytest.raises(RnnEdgeError, match="there is no folder"):
        runtime_files(tmp_path / "nowhere")


def test_the_registry_is_asked_once(small: Path, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "registry"
    for package in module.locked():
        target = root / package.name / "-" / f"{package.name.rpartition('/')[2]}-1.2.3.tgz"
        target.parent.mkdir(parents=True)
        target.write_bytes((small / package.archive).read_bytes())
    monkeypatch.setenv("npm_config_registry", serve(root))
    notes: list[str] = []
    found = runtime_files(note=notes.append)
    assert len(notes) == 2
    assert runtime_files(note=notes.append) == found
    assert len(notes) == 2
    kept = next((tmp_path / "cache" / "web").rglob("tokenizers.min.mjs"))
    kept.write_bytes(b"damaged")
    assert runtime_files(note=notes.append) == found
    assert len(notes) == 3


def test_a_registry_that_cannot_be_reached_is_named(
    small: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    code, out, err = cli("web", "lstm", "-o", "site")
    assert (code, out) == (1, "")
    error = err.splitlines()[-2]
    assert error.startswith("error: cannot fetch http://127.0.0.1:9/onnxruntime-web/-/onnxruntime-web-1.2.3.tgz: ")
    assert "--runtime" in err.splitlines()[-1]
    assert not (tmp_path / "site").exists()


def test_npms_own_settings_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY", "npm_config_userconfig"):
        monkeypatch.delenv(name, raising=False)
    settings = tmp_path / "npmrc"
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(settings))
    assert registry("onnxruntime-web") == "https://registry.npmjs.org"
    settings.write_text(
        "; mine\nregistry = https://a.example/npm/\n@huggingface:registry=https://b.example\n", encoding="utf-8"
    )
    assert registry("onnxruntime-web") == "https://a.example/npm"
    assert registry("@huggingface/tokenizers") == "https://b.example"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://c.example/")
    assert registry("onnxruntime-web") == "https://c.example"
    assert registry("@huggingface/tokenizers") == "https://b.example"


def test_the_lock_and_the_package_agree() -> None:
    """Versions that Node is told to install are those that are pinned."""
    package = json.loads((ASSETS / "package.json").read_text(encoding="utf-8"))["dependencies"]
    pinned = {item.name: item.version for item in module.locked()}
    assert package["@huggingface/tokenizers"] == pinned["@huggingface/tokenizers"]
    assert package["onnxruntime-node"] == pinned["onnxruntime-web"]
    run = (ASSETS / "run.mjs").read_text(encoding="utf-8")
    for name, version in package.items():
        assert f"{name}@{version}" in run
