"""A bundle in a page: time until ready, tokens a second and size, in headless Chromium served from a loopback port.

    python -m benchmarks.web shakespeare

The page itself writes a text as for a visitor, once in each round, and its worker's engine writes others on the graphs
that a page could have: its own (exact sums in fp32, steps in a loop inside), at 16 steps a call and at one, and the
bundle's as it is (integer products, one step a call). All write the same text. Beside them the same on this machine
without a browser.
"""

import argparse
import gzip
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks.common import machine, table, verdict
from rnn_edge.bundle import Bundle, open_bundle
from rnn_edge.errors import RnnEdgeError
from rnn_edge.language_model import LanguageModel
from rnn_edge.web.site import make_site
from tests.web.chromium import Chromium, program
from tests.web.server import served

READY, RATE, SIZE = 2.0, 2000, 8_000_000  # seconds, tokens a second, bytes
IDLE = "document.documentElement.dataset.ready && !document.querySelector('.is-running')"
ENGINES = {
    "engine, page's graph, 16 steps a call": ("model", 16),
    "engine, page's graph, 1 step a call": ("model", 1),
    "engine, bundle's own graph": ("own", 1),
}
WORKER = """
import { open } from "./engine.js";
const bytes = async (path) => new Uint8Array(await (await fetch(path)).arrayBuffer());
const ort = await import("./runtime/ort.wasm.bundle.min.mjs");
const wasm = new Blob([await bytes("runtime/ort-wasm-simd-threaded.wasm.gz")]).stream();
const wasmBinary = await new Response(wasm.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary });
const tokenizers = () => import("./runtime/tokenizers.min.mjs");
const models = {};
self.onmessage = async ({ data: { folder, chunk, maxTokens, prompt } }) => {
  models[folder] ??= await open((name) => bytes(`${folder}/${name}`), { ort, tokenizers });
  const began = performance.now();
  let text = "";
  for await (const { texts } of models[folder].generate({ prompt, seed: 1, maxTokens, chunk })) text += texts.join("");
  self.postMessage({ seconds: (performance.now() - began) / 1000, text });
};
self.postMessage("begun");
"""
PAGE = """<!doctype html><script type="module">
const worker = new Worker("bench-worker.js", { type: "module" });
const answer = () => new Promise((done) => (worker.onmessage = ({ data }) => done(data)));
await answer();
window.write = (job) => (worker.postMessage(job), answer());
</script>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="name or folder of a language model's bundle")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--prompt", default="The ")
    options = parser.parse_args()
    if program() is None:
        raise SystemExit("there is no Chromium: install it, or name one with $CHROMIUM")
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        bundle = open_bundle(options.bundle)
        make_site(bundle, site, note=print)
        files = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
        size = sum(map(len, files.values()))
        squeezed = sum(min(len(content), len(gzip.compress(content))) for content in files.values())
        add_bench(site, bundle)
        with served(site) as address:
            ready = starts(address, options.rounds)
            rates = writes(address, bundle, options.rounds, options.tokens, options.prompt)
    network = bundle.manifest.architecture
    print(f"{bundle.manifest.name}: {network.cell} {network.layers} × {network.hidden}, {bundle.manifest.precision}")
    print(machine("onnxruntime"))
    print()
    median = statistics.median(ready)
    rows = [
        ("ready, s", f"{median:.2f} ({min(ready):.2f})", f"≤ {READY:.0f}", verdict(median <= READY)),
        ("folder, MB", f"{size / 1e6:.2f}", f"≤ {SIZE / 1e6:.0f}", verdict(size <= SIZE)),
        ("… where the server compresses", f"{squeezed / 1e6:.2f}", "", ""),
    ]
    for name, values in rates.items():
        rate = statistics.median(values)
        target = (f"≥ {RATE:,}", verdict(rate >= RATE)) if name in ("page", next(iter(ENGINES))) else ("", "")
        rows.append((f"{name}, tokens/s", f"{rate:,.0f} ({max(values):,.0f})", *target))
    print(table(("what", "median (best)", "target", "result"), rows))


def add_bench(site: Path, bundle: Bundle) -> None:
    """Beside the page one that only runs the engine, and the bundle as it is."""
    shutil.copytree(bundle.path, site / "own")
    (site / "bench-worker.js").write_text(WORKER, encoding="utf-8")
    (site / "bench.html").write_text(PAGE, encoding="utf-8")


def starts(address: str, rounds: int) -> list[float]:
    """Seconds from asking for the page until it is ready, of browsers that have seen nothing."""
    seconds = []
    for _ in range(rounds):
        with Chromium() as page:
            page.open(address)
            page.wait_for("document.documentElement.dataset.ready", 60)
            seconds.append(page.run("performance.getEntriesByName('ready')[0].startTime") / 1000)
    return seconds


def writes(address: str, bundle: Bundle, rounds: int, tokens: int, prompt: str) -> dict[str, list[float]]:
    """Tokens a second by contender, one after the other in each round; the first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ("page", *ENGINES, "native, Python")}
    model = LanguageModel.load(bundle.path, device="cpu", threads=1)
    texts: dict[str, str] = {}
    with Chromium() as page, Chromium() as bench:
        page.open(f"{address}#seed=1")
        page.wait_for(IDLE)
        set_values = f"document.querySelector('#prompt').value = {json.dumps(prompt)};"
        page.run(f"{set_values} document.querySelector('#knob-max-tokens').value = {tokens}")
        bench.open(f"{address}bench.html")
        bench.wait_for("Boolean(window.write)")
        for index in range(rounds + 1):
            taken: dict[str, float] = {}
            taken["page"] = page.run(WRITE)
            texts["page"] = page.run("document.querySelector('#text').textContent")[len(prompt) :]
            for name, (folder, chunk) in ENGINES.items():
                job = {"folder": folder, "chunk": chunk, "maxTokens": tokens, "prompt": prompt}
                answer = bench.run(f"write({json.dumps(job)})")
                taken[name], texts[name] = answer["seconds"], answer["text"]
            began = perf_counter()
            texts["native, Python"] = "".join(event.text for event in model.generate(prompt, seed=1, max_tokens=tokens))
            taken["native, Python"] = perf_counter() - began
            for name, seconds in taken.items():
                if index:
                    found[name].append(tokens / seconds)
    for name, text in texts.items():
        if text != texts["page"]:
            same = next(
                (place for place, pair in enumerate(zip(text, texts["page"], strict=False)) if len(set(pair)) > 1),
                len(text),
            )
            print(f"{name}: another text than the page's from character {same} on")
    return found


# From pressing the button until the page has shown the last token.
WRITE = """new Promise((done) => {
  const button = document.querySelector(".primary");
  const began = performance.now();
  new MutationObserver((_, observer) => {
    if (button.classList.contains("is-running")) return;
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => done((performance.now() - began) / 1000)));
  }).observe(button, { attributeFilter: ["class"] });
  button.click();
})"""


if __name__ == "__main__":
    try:
        main()
    except RnnEdgeError as error:
        raise SystemExit(f"error: {error.message}\nhint: {error.hint}") from error
