// The page: starts the worker, builds the part that fits the model, and says what goes wrong.

import { element } from "./dom.js";
import { translating } from "./translating.js";
import { writer } from "./writer.js";

const PROMPTS = { shakespeare: "ROMEO:", sherlock: "“My dear Watson," };
const SOURCES = { en: "Where is the house? She bought three old books, and he lives near the sea." };

const main = document.querySelector("main");
const status = document.getElementById("status");
const alertBox = document.getElementById("alert");
let view = null;

function fail(problem) {
  alertBox.hidden = !problem;
  if (!problem) return;
  alertBox.replaceChildren(element("strong", {}, problem.message), element("span", {}, problem.hint ?? ""));
  alertBox.scrollIntoView({ block: "nearest" });
}

/** What a link to this text needs stands behind the address's #. */
function link(values) {
  history.replaceState(null, "", `#${new URLSearchParams(values)}`);
}

function themes() {
  const button = document.getElementById("theme");
  const media = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // a page without storage
    }
  };
  const apply = (theme) => {
    const dark = theme ? theme === "dark" : media.matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
    view?.redraw();
  };
  button.addEventListener("click", () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("theme", next);
    } catch {
      // It lasts until the page is closed.
    }
    apply(next);
  });
  media.addEventListener("change", () => apply(stored()));
  apply(stored());
}

/** Files that stand inside a page that is one file; null where they are fetched. */
function ownFiles() {
  const blocks = [...document.querySelectorAll("script[data-file]")];
  if (!blocks.length) return null;
  return Object.fromEntries(
    blocks.map((block) => {
      const text = block.textContent;
      block.remove();
      const bytes = Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
      return [block.dataset.file, bytes];
    }),
  );
}

function startWorker(files) {
  if (!files) return new Worker("worker.js", { type: "module" });
  const blob = new Blob([files["worker.js"]], { type: "text/javascript" });
  return new Worker(URL.createObjectURL(blob));
}

function facts({ manifest, checked }) {
  const { architecture: network, files, bundle } = manifest;
  const size = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
  const bytes = Object.values(files).reduce((sum, file) => sum + file.size, 0);
  const encoder = network.encoder ? ", attention" : "";
  document.getElementById("facts").textContent =
    `${network.cell.toUpperCase()} ${network.layers} × ${network.hidden}${encoder} · ${(network.parameters / 1e6).toFixed(1)} million parameters · ${manifest.precision} · ${size(bytes)}`;
  const { data_title: data, data_licence: licence } = manifest.provenance;
  const detail = (name, value) => (value ? [element("dt", {}, name), element("dd", {}, value)] : []);
  const proof = element("output", { className: "proof" });
  document.getElementById("about").replaceChildren(
    element("dl", {}, ...detail("Trained on", data), ...detail("Licence of the data", licence), ...detail("Weights", bundle?.digest.slice(0, 16)), ...detail("Hashes", checked ? "checked in this browser" : "not checked: this page came without TLS")),
    element("p", {}, element("button", { type: "button", className: "small", onclick: () => ((proof.textContent = "replaying …"), worker.postMessage({ kind: "verify" })) }, "Prove it"), " Does this browser compute what the exporting machine did? ", proof),
  );
  const { startTime } = performance.mark("ready"); // milliseconds since the page was asked for
  status.textContent = `ready in ${(startTime / 1000).toFixed(2)} s`;
  status.className = "status is-ready";
}

/** A translator that is named by its languages has their names as title. */
function title({ name, task }) {
  const pair = task === "translation" && /^([a-z]{2,3})-([a-z]{2,3})$/.exec(name);
  if (!pair || !Intl.DisplayNames) return name;
  const names = new Intl.DisplayNames(["en"], { type: "language" });
  return `${names.of(pair[1])} → ${names.of(pair[2])}`;
}

function example(manifest) {
  return manifest.task === "translation" ? (SOURCES[manifest.source.language] ?? "") : (PROMPTS[manifest.name] ?? "");
}

function prove(text) {
  document.querySelector(".proof").textContent = text;
}

const handlers = {
  stage: ({ text }) => (status.textContent = `${text} …`),
  ready(message) {
    const { manifest } = message;
    const build = manifest.task === "translation" ? translating : writer;
    view = build(main, message, (data) => worker.postMessage(data), { link, fail });
    document.querySelector("h1").textContent = document.title = title(manifest);
    facts(message);
    main.removeAttribute("aria-busy");
    const given = new URLSearchParams(location.hash.slice(1));
    view.restore({ prompt: given.get("prompt") ?? example(manifest), seed: given.get("seed") ?? undefined });
    document.documentElement.dataset.ready = "yes";
    view.start();
  },
  verified({ steps, explained, unexplained }) {
    if (steps === undefined) return prove(""); // a text came in between
    prove(unexplained
      ? `${unexplained} of ${steps} steps differ.`
      : `Yes: ${steps} steps, the same choices${explained ? `, ${explained} differ as their recorded margins allow` : ""}.`);
  },
  error(problem) {
    fail(problem);
    if (problem.of === "verify") prove("");
    if (problem.of === "load") {
      status.textContent = "cannot run here";
      status.className = "status is-failed";
      main.removeAttribute("aria-busy");
    }
    view?.error(problem);
  },
};

themes();
let worker;
try {
  const files = ownFiles();
  worker = startWorker(files);
  worker.onerror = (event) => handlers.error({ of: "load", message: event.message ?? "the page's worker cannot start", hint: "load the page again, from a web server if it was opened as a file" });
  worker.onmessage = ({ data }) => {
    if (handlers[data.kind]) handlers[data.kind](data);
    else if (view?.isCurrent(data)) view[data.kind]?.(data);
  };
  worker.postMessage({ kind: "load", files });
} catch (error) {
  handlers.error({ of: "load", message: `the page's worker cannot start: ${error.message}`, hint: "use a current browser" });
}
