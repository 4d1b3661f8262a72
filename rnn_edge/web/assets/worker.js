// The page's worker: loads the runtime and the model, and makes texts, so that the page stays quick to answer.

import { open, RnnEdgeError } from "./engine.js";
import { logNormaliser } from "./sampling.js";
import { StreamDecoder } from "./text.js";

const ALTERNATIVES = 10; // likeliest tokens that are told to the page for each position
const WASM = "runtime/ort-wasm-simd-threaded.wasm.gz";
// The smallest module that uses a 128-bit vector.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

let files = null; // of a page that is one file: path → bytes
let model = null;
let making = null;

const turns = new MessageChannel();
const waiting = []; // what goes on after its turn, first come first served
turns.port1.onmessage = () => waiting.shift()();

/** Let messages in. A timer would wait four milliseconds. */
function turn() {
  return new Promise((done) => {
    waiting.push(done);
    turns.port2.postMessage(null);
  });
}

self.onmessage = async ({ data }) => {
  try {
    if (data.kind === "load") await load(data);
    else if (data.kind === "stop") making?.cancel();
    else if (data.kind === "generate") await generate(data);
    else if (data.kind === "translate") await translate(data);
    else if (data.kind === "verify") await verify();
  } catch (error) {
    const { message, hint } = error instanceof RnnEdgeError ? error : unexpected(error);
    self.postMessage({ kind: "error", message, hint, of: data.kind, run: data.run });
  }
};

function unexpected(error) {
  const text = String(error?.message ?? error).split("\n")[0];
  return { message: text, hint: /memory|allocation/i.test(text) ? "close other pages and load this one again" : "load the page again" };
}

async function load(data) {
  files = data.files;
  checkBrowser();
  const wasm = content(WASM).then(inflate);
  wasm.catch(() => {}); // told below
  const ort = await module("runtime/ort.wasm.bundle.min.mjs");
  Object.assign(ort.env.wasm, { numThreads: 1, proxy: false });
  ort.env.logLevel = "fatal";
  ort.env.wasm.wasmBinary = await wasm;
  self.postMessage({ kind: "stage", text: "Reading the model" });
  model = await open((name) => content(`model/${name}`), {
    ort,
    tokenizers: () => module("runtime/tokenizers.min.mjs"),
    where: "the model",
    session: { executionProviders: ["wasm"] },
  });
  const { manifest, bundle, tokenizer } = model;
  const decoder = new TextDecoder();
  const labels = tokenizer.tokenBytes.map((bytes) => decoder.decode(bytes));
  const { end = null, start = null, unknown = null } = manifest.special_ids;
  for (const [id, label] of [[start, "start"], [end, "end"], [unknown, "unknown"]]) if (id !== null && !labels[id]) labels[id] = label;
  self.postMessage({ kind: "ready", manifest, labels, checked: bundle.checked });
}

function checkBrowser() {
  const hint = "use a current Firefox, Chrome, Edge or Safari";
  if (typeof WebAssembly === "undefined") throw new RnnEdgeError("this browser has no WebAssembly, or it is switched off", hint);
  if (!WebAssembly.validate(Uint8Array.from(SIMD))) throw new RnnEdgeError("this browser has WebAssembly, but not its vector instructions (SIMD)", hint);
  if (typeof DecompressionStream === "undefined") throw new RnnEdgeError("this browser cannot unpack gzip (DecompressionStream)", hint);
}

async function content(path) {
  if (files) {
    if (!files[path]) throw new RnnEdgeError(`${path} is not in this page`, "make the page again with rnn-edge web");
    return files[path];
  }
  let answer;
  try {
    answer = await fetch(new URL(path, self.location.href));
  } catch {
    throw new RnnEdgeError(`${path} cannot be loaded`, "check the connection, then load the page again");
  }
  if (!answer.ok) throw new RnnEdgeError(`${path} cannot be loaded: the server answers ${answer.status}`, "copy the whole folder that rnn-edge web made");
  return new Uint8Array(await answer.arrayBuffer());
}

/** Unpacked, where the server or browser has not done so already. */
async function inflate(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  try {
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new RnnEdgeError(`${WASM} is damaged`, "copy the whole folder that rnn-edge web made");
  }
}

function module(path) {
  if (!files) return import(new URL(path, self.location.href));
  return import(URL.createObjectURL(new Blob([files[path]], { type: "text/javascript" })));
}

async function generate({ run, options, pace }) {
  making?.cancel();
  const mine = (making = model.generate({ ...options, chunk: pace && pace < 200 ? 1 : undefined }));
  const { stepper, tokenizer } = model;
  const decoder = new StreamDecoder();
  const prompt = mine.prompt.map((id) => ({ id, text: decoder.push(tokenizer.tokenBytes[id]) }));
  self.postMessage({ kind: "begin", run, prompt, seed: String(mine.seed), sampling: mine.sampling });
  const started = performance.now();
  for await (const { fed, logits, hidden, tokens, texts } of mine) {
    const { ids, probabilities } = likeliest(logits, fed, tokens, stepper.size);
    const units = new Int8Array(fed.length * stepper.top.width);
    for (let at = 0; at < units.length; at++) units[at] = Math.max(-1, Math.min(1, hidden[at])) * 127;
    const chunk = { kind: "chunk", run, fed, tokens, texts, ids, probabilities, units, width: stepper.top.width, count: mine.count, seconds: mine.seconds };
    self.postMessage(chunk, [ids.buffer, probabilities.buffer, units.buffer]);
    const wait = pace ? (mine.count / pace) * 1000 - (performance.now() - started) : 0;
    await (wait > 4 ? new Promise((done) => setTimeout(done, wait)) : turn());
    if (making !== mine) break; // for another text, or to prove something
  }
  self.postMessage({ kind: "done", run, reason: making === mine ? mine.finishReason : "interrupt", count: mine.count, seconds: mine.seconds, readSeconds: mine.readSeconds });
}

/**
 * For each row of logits the likeliest ids with the model's own probabilities, and last the token that came next with
 * its own: [rows × (ALTERNATIVES + 1)].
 */
function likeliest(logits, fed, tokens, size) {
  const width = ALTERNATIVES + 1;
  const ids = new Int32Array(fed.length * width).fill(-1);
  const probabilities = new Float32Array(fed.length * width);
  for (let row = 0; row < fed.length; row++) {
    const values = logits.subarray(row * size, (row + 1) * size);
    const total = logNormaliser(values);
    const best = [];
    for (let id = 0; id < size; id++) {
      if (best.length === ALTERNATIVES && values[id] <= values[best[best.length - 1]]) continue;
      let place = best.length;
      while (place > 0 && values[id] > values[best[place - 1]]) place--;
      best.splice(place, 0, id);
      if (best.length > ALTERNATIVES) best.pop();
    }
    const next = tokens[row] ?? fed[row + 1] ?? -1;
    [...best, next].forEach((id, place) => {
      const at = row * width + (place < best.length ? place : ALTERNATIVES);
      ids[at] = id;
      probabilities[at] = id < 0 ? 0 : Math.exp(values[id] - total);
    });
  }
  return { ids, probabilities };
}

async function translate({ run, text, options }) {
  making?.cancel();
  const mine = (making = model.translate(text, { ...options, turn }));
  self.postMessage({ kind: "begin", run, seed: String(mine.seed), beam: mine.beam });
  for await (const event of mine) {
    const { logits, ...told } = event;
    if (logits) Object.assign(told, likeliest(logits, [0], [event.token], logits.length));
    self.postMessage({ kind: "event", run, event: told, count: mine.count, seconds: mine.seconds });
    await turn();
    if (making !== mine) break;
  }
  self.postMessage({ kind: "done", run, reason: mine.cancelled ? "interrupt" : "end", count: mine.count, seconds: mine.seconds });
}

async function verify() {
  making?.cancel();
  const mine = (making = { cancel() {} });
  const { golden = [], golden_translations: translations = [] } = model.manifest;
  const total = { steps: 0, explained: 0, unexplained: 0 };
  for (const transcript of [...golden, ...translations]) {
    const { steps, explained, unexplained } = await model.replay(transcript);
    total.steps += steps;
    total.explained += explained;
    total.unexplained += unexplained.length;
    await turn();
    if (making !== mine) return self.postMessage({ kind: "verified" }); // a text needs the model
  }
  self.postMessage({ kind: "verified", ...total });
}
