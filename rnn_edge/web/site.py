"""The site of a bundle: a folder of plain files for any web server, or one HTML file that opens by itself."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnn_edge.errors import BundleError, RnnEdgeError
from rnn_edge.files import check_output, new_folder, write_bytes
from rnn_edge.onnx_file import summarise
from rnn_edge.onnx_model import read_model
from rnn_edge.tokenizer import load_tokenizer
from rnn_edge.web.blocks import with_wide_blocks
from rnn_edge.web.graph import exact, looped
from rnn_edge.web.modules import in_one
from rnn_edge.web.runtime import WASM, compressed, locked, runtime_files

if TYPE_CHECKING:
    from rnn_edge.bundle import Bundle
    from rnn_edge.web.runtime import Note

ASSETS = Path(__file__).with_name("assets")
_LICENCES = Path(__file__).with_name("licences.txt")
_PAGE, _WORKER = "page.js", "worker.js"
_STYLE_TAG, _SCRIPT_TAG = '<link rel="stylesheet" href="style.css">', '<script type="module" src="page.js"></script>'


def make_site(bundle: Bundle, output: Path, *, force: bool = False, runtime: Path | None = None, note: Note) -> None:
    """Write the folder ``output``.

    Raises:
        BundleError: the bundle is damaged, or has operators that the page's runtime lacks.
        RnnEdgeError: ``output`` exists and ``force`` is not given, or holds anything but a site; the runtime cannot be
            had.
    """
    check_output(output, force=force, folder=True)
    if output.exists() and any(output.iterdir()) and not (output / "model" / "manifest.json").is_file():
        raise RnnEdgeError(f"{output} holds other things than a site", "choose another output path, or empty it")
    files = site_files(bundle, runtime, note)
    with new_folder(output, force=force) as folder:
        for name, content in files.items():
            write_bytes(folder / name, content)


def make_single_file(
    bundle: Bundle, output: Path, *, force: bool = False, runtime: Path | None = None, note: Note
) -> None:
    """Write ``output``, one HTML file with everything inside.

    Raises:
        BundleError, RnnEdgeError: as ``make_site``.
    """
    check_output(output, force=force, folder=False)
    write_bytes(output, single_file(site_files(bundle, runtime, note)))


def site_files(bundle: Bundle, runtime: Path | None, note: Note) -> dict[str, bytes]:
    """Every file of the site by its path."""
    model = model_files(bundle)
    vendored = runtime_files(runtime, note)
    files = {path.name: path.read_bytes() for path in sorted(ASSETS.iterdir()) if path.is_file()}
    files["index.html"] = _fill(files["index.html"].decode(), bundle).encode()
    files |= {f"model/{name}": content for name, content in model.items()}
    for name, content in vendored.items():
        short = name.rpartition("/")[2]
        if short == WASM:
            files[f"runtime/{short}.gz"] = compressed(content)
        elif short != "LICENSE":
            files[f"runtime/{short}"] = content
    files["LICENCES.txt"] = _licences(vendored).encode()
    return files


def model_files(bundle: Bundle) -> dict[str, bytes]:
    """The bundle as a page has it: graphs for the page's runtime, and a manifest that says so.

    Raises:
        BundleError: other bytes than the manifest says, operators that the page's runtime lacks, which are named, or a
            tokenizer that the page cannot load.
    """
    manifest = bundle.manifest
    files = {spec.file: load_tokenizer(bundle, spec).content for spec in manifest.tokenizers.values()}
    for name, content in files.items():
        _check_tokenizer(content, str(bundle.path / name))
    graphs: dict[str, str] = {}
    for role, name in manifest.graphs.items():
        where = str(bundle.path / name)
        content = bundle.graph(role)
        if summarise(content, where).external_data:
            raise BundleError(f"{where} keeps tensors in other files", "export the bundle again, in one file")
        model = read_model(content, where)
        with_wide_blocks(model)
        if role == "step":
            role, name = "loop", "loop.onnx"
            content = looped(model, manifest.state, manifest.tokenizer.vocabulary_size)
        else:
            content = exact(model)
        _check_operators(content, where)
        graphs[role], files[name] = name, content
    value: dict[str, Any] = json.loads(manifest.to_json())
    value["graphs"] = graphs
    value["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} for name, content in files.items()
    }
    value["bundle"] = {"digest": manifest.digest, "bytes": bundle.size}
    return files | {"manifest.json": (json.dumps(value, ensure_ascii=False) + "\n").encode()}


def single_file(files: dict[str, bytes]) -> bytes:
    """The site in one HTML file.

    Scripts are joined, the rest stands inside as base64 in blocks that no browser executes. The content security policy
    names the hashes of the two things that count, style and script; the worker and the runtime come as blobs.
    """
    sources = {name: content.decode() for name, content in files.items() if name.endswith(".js")}
    # A closing tag inside a script would end it.
    script = in_one(_PAGE, sources).replace("</script", "<\\/script").replace("<!--", "<\\!--")
    style = files["style.css"].decode()
    inside = {name: content for name, content in files.items() if name.startswith(("model/", "runtime/"))}
    inside[_WORKER] = in_one(_WORKER, sources).encode()
    blocks = "".join(
        f'<script type="application/octet-stream" data-file="{html.escape(name)}">'
        f"{base64.b64encode(content).decode()}</script>\n"
        for name, content in inside.items()
    )
    policy = (
        f"default-src 'none'; script-src {_hash(script)} 'wasm-unsafe-eval' blob:; style-src {_hash(style)};"
        " worker-src blob:; img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = files["index.html"].decode()
    page = page.replace(_STYLE_TAG, f"<style>{style}</style>")
    page = page.replace(_SCRIPT_TAG, f'{blocks}<script type="module">{script}</script>')
    start = page.index('content="default-src')
    end = page.index('">', start)
    page = f'{page[:start]}content="{policy}{page[end:]}'
    licences = files["LICENCES.txt"].decode().replace("--", "- -")
    return f"{page}\n<!--\n{licences}-->\n".encode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _fill(page: str, bundle: Bundle) -> str:
    manifest = bundle.manifest
    what = "writes" if manifest.task == "language-model" else "translates"
    words = {
        "NAME": manifest.name,
        "DESCRIPTION": f"{manifest.name}: a recurrent network that {what} in this page. Nothing you type leaves it.",
    }
    for key, text in words.items():
        page = page.replace(f"{{{{{key}}}}}", html.escape(text))
    return page


def _check_operators(content: bytes, where: str) -> None:
    """The page's runtime has the standard domain; of other domains it has hardly anything."""
    lacking = sorted(name for name in summarise(content, where).operators if "::" in name)
    if lacking:
        raise BundleError(
            f"{where} has operators that the page's runtime lacks: {', '.join(lacking)}",
            "export the bundle as fp32, or quantise it to int8: rnn-edge quantize --precision int8",
        )


def _check_tokenizer(content: bytes, where: str) -> None:
    """What assets/tokenizer.js knows."""
    kind = json.loads(content)["model"].get("type")
    if kind not in ("BPE", "WordLevel"):
        raise BundleError(
            f"{where} has a model of type {kind}, which the page cannot load",
            "train with a vocabulary of characters, bytes, words or BPE subwords",
        )


def _licences(vendored: dict[str, bytes]) -> str:
    text = _LICENCES.read_text(encoding="utf-8")
    versions = {package.name: package.version for package in locked()}
    for name, version in versions.items():
        text = text.replace(f"{{{{{name}}}}}", version)
    return text + vendored["@huggingface/tokenizers/LICENSE"].decode()
