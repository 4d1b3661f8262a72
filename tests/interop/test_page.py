"""The programs of docs/other-runtimes.md: compiled and run, they write the text that ``rnn-edge generate`` writes."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rnn_edge.language_model import LanguageModel
from tests.device.tiny import DATA
from tests.web.conftest import node, runtime  # noqa: F401

ROOT = DATA.parent.parent
PAGE = (ROOT / "docs" / "other-runtimes.md").read_text(encoding="utf-8")
# fp32 of both lowerings: sums of 8-bit integers are exact on some processors only.
BUNDLES = pytest.mark.parametrize("bundle", [DATA / "lstm", DATA / "gru"], ids=lambda path: path.name)
HEADERS = Path("/usr/include/onnxruntime")  # Debian's; others are found through $CPATH

Compile = Callable[[str, str, list[str]], Path]


def program(language: str) -> str:
    """The page's only program in this language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert isinstance(found, str)
    return found


def expected(bundle: Path, prompt: str) -> str:
    """200 ids, each the likeliest."""
    model = LanguageModel.load(bundle, device="cpu")
    return "".join(event.text for event in model.generate(prompt, max_tokens=200, temperature=0))


def run(*command: str | Path) -> str:
    """What a program writes."""
    found = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert found.returncode == 0, found.stderr.decode(errors="replace")
    return found.stdout.decode()


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    """Compile with every warning an error, against the library inside the installed runtime."""

    def build(compiler: str, suffix: str, flags: list[str]) -> Path:
        runtime_package = pytest.importorskip("onnxruntime")
        libraries = sorted(Path(runtime_package.__file__).parent.glob("capi/libonnxruntime.so.*"))
        if not libraries:
            pytest.skip("the onnxruntime package has no library that a program can be linked with")
        path = shutil.which(compiler)
        if path is None:
            pytest.skip(f"there is no {compiler}")
        for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
            (tmp_path / name).symlink_to(libraries[0])
        source, headers = tmp_path / f"step{suffix}", tmp_path / f"headers{suffix}"
        source.write_text(program({".c": "c", ".cpp": "cpp"}[suffix]), encoding="utf-8")
        command = [path, *flags, f"-isystem{HEADERS}"]
        included = [line for line in source.read_text(encoding="utf-8").splitlines() if line.startswith("#include")]
        headers.write_text("\n".join([*included, ""]), encoding="utf-8")
        if subprocess.run([*command, "-fsyntax-only", headers], capture_output=True, check=False).returncode:
            pytest.skip("there are no headers of ONNX Runtime (or, for C++, of nlohmann-json)")
        warnings = ["-Wall", "-Wextra", "-Werror", "-O1"]
        links = [f"-L{tmp_path}", "-lonnxruntime", f"-Wl,-rpath,{tmp_path}"]
        run(*command, *warnings, source, *links, "-o", tmp_path / "step")
        return tmp_path / "step"

    return build


@BUNDLES
def test_c(bundle: Path, compiled: Compile, tmp_path: Path) -> None:
    binary = compiled("cc", ".c", ["-std=c11"])
    table = program("python").replace("BUNDLE", str(bundle)).replace("vocabulary.bin", str(tmp_path / "vocabulary.bin"))
    run(sys.executable, "-c", table)
    start = LanguageModel.load(bundle, device="cpu").bundle.manifest.special_ids.start
    assert run(binary, bundle / "step.onnx", tmp_path / "vocabulary.bin", str(start)) == expected(bundle, "")


@BUNDLES
def test_cpp(bundle: Path, compiled: Compile) -> None:
    binary = compiled("c++", ".cpp", ["-std=c++17"])
    assert run(binary, bundle, "The ") == expected(bundle, "The ")


@BUNDLES
def test_javascript(bundle: Path, node: str, runtime: Path, tmp_path: Path) -> None:  # noqa: F811
    """On the WebAssembly build under the other's name, since that is light and has the same interface."""
    package = tmp_path / "node_modules" / "onnxruntime-node"
    package.mkdir(parents=True)
    names = {path.name: path for path in runtime.rglob("ort*") if path.is_file()}
    module, binary = names["ort.wasm.bundle.min.mjs"], names["ort-wasm-simd-threaded.wasm"]
    (package / "package.json").write_text('{"type": "module", "exports": "./index.js"}', encoding="utf-8")
    lines = [
        'import { readFileSync } from "node:fs";',
        f'import * as ort from "{module.as_uri()}";',
        "ort.env.wasm.numThreads = 1;",
        f'ort.env.wasm.wasmBinary = readFileSync("{binary}");',
        "export default ort;",
    ]
    (package / "index.js").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "step.mjs").write_text(program("js"), encoding="utf-8")
    assert run(node, tmp_path / "step.mjs", bundle, "The ") == expected(bundle, "The ")
