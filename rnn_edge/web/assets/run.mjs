#!/usr/bin/env node
// Run a bundle, or the model of a site, under Node: node run.mjs BUNDLE --prompt "ROMEO:"
//
// With onnxruntime-node (npm install onnxruntime-node) native kernels run; without it, the WebAssembly of a site.

import { existsSync } from "node:fs";
import { readFile, realpath } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import process from "node:process";
import { fileURLToPath, pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { gunzipSync } from "node:zlib";

import { open, RnnEdgeError } from "./engine.js";

const HERE = dirname(fileURLToPath(import.meta.url));
const USAGE = `usage: node run.mjs BUNDLE [--prompt TEXT | --text TEXT] [options]

BUNDLE is the folder of a bundle, or of a site that rnn-edge web made. Text comes from standard input where
neither --prompt nor --text is given and it is no terminal; a translator takes its lines one by one.

  --seed N            same seed, same text           --max-tokens N     400; -1 for no end
  --temperature X     0 is greedy                    --top-k N  --top-p X  --min-p X
  --repeat-penalty X  --repeat-window N              --stop TEXT        may be given several times
  --unknown skip      leave out what the model has never seen
  --no-display-prompt only what is new               --quiet            no closing line
  --beam N  --length-penalty X                       of translators
  --runtime native|wasm                              which build of ONNX Runtime
  --verify            replay the golden transcripts instead
`;
const NUMBERS = ["max-tokens", "temperature", "top-k", "top-p", "min-p", "repeat-penalty", "repeat-window", "beam", "length-penalty"];

try {
  await main();
} catch (error) {
  if (error.code === "EPIPE") process.exit(0);
  const usage = String(error.code ?? "").startsWith("ERR_PARSE_ARGS");
  if (!(error instanceof RnnEdgeError) && !usage) throw error;
  process.stderr.write(`error: ${error.message}\nhint: ${error.hint ?? "see node run.mjs --help"}\n`);
  process.exitCode = usage ? 2 : 1;
}

async function main() {
  const string = (name, multiple = false) => [name, { type: "string", multiple }];
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    allowNegative: true,
    args: process.argv.slice(2).map((item, place, all) => (/^-\d/.test(item) && all[place - 1]?.startsWith("--") ? `\0${item}` : item)).reduce(joinNegative, []),
    options: {
      ...Object.fromEntries([...NUMBERS, "prompt", "text", "seed", "unknown", "runtime"].map((name) => string(name))),
      stop: { type: "string", multiple: true },
      "display-prompt": { type: "boolean", default: true },
      quiet: { type: "boolean", short: "q" },
      verify: { type: "boolean" },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help || positionals.length !== 1) {
    (values.help ? process.stdout : process.stderr).write(USAGE);
    process.exitCode = values.help ? 0 : 2;
    return;
  }
  process.stdout.on("error", (error) => process.exit(error.code === "EPIPE" ? 0 : 1));
  const options = readOptions(values);
  const [runtime, ort] = await loadRuntime(values.runtime);
  const began = performance.now();
  const model = await open(await reader(positionals[0]), { ort, tokenizers: loadTokenizers, where: positionals[0] });
  const ready = performance.now() - began;
  if (values.verify) return verify(model);
  const run = model.manifest.task === "translation" ? translate : generate;
  const made = await run(model, values, options);
  if (made && !values.quiet) {
    const rate = made.seconds > 0 ? Math.round(made.count / made.seconds).toLocaleString("en") : "0";
    process.stderr.write(`${made.count} tokens, ${rate} tokens/s, ready in ${Math.round(ready)} ms, ${runtime}, seed ${made.seed}\n`);
  }
}

/** A negative number after an option is its value. */
function joinNegative(found, item) {
  if (item.startsWith("\0")) found[found.length - 1] += `=${item.slice(1)}`;
  else found.push(item);
  return found;
}

function readOptions(values) {
  const options = { seed: values.seed, stop: values.stop, unknown: values.unknown };
  for (const name of NUMBERS) {
    if (values[name] === undefined) continue;
    const number = values[name].trim() === "" ? NaN : Number(values[name]);
    if (Number.isNaN(number)) throw new RnnEdgeError(`${name} is ${values[name]}`, "use a number");
    options[name.replace(/-(\w)/g, (_, letter) => letter.toUpperCase())] = number;
  }
  return options;
}

async function generate(model, values, options) {
  const prompt = values.prompt ?? values.text ?? (await piped()) ?? "";
  const making = model.generate({ ...options, prompt });
  const interrupted = onInterrupt(making);
  if (values["display-prompt"]) process.stdout.write(prompt);
  for await (const { texts } of making) await write(texts.join(""));
  if (process.stdout.isTTY) process.stdout.write("\n");
  if (interrupted()) process.exitCode = 130;
  return making;
}

async function translate(model, values, options) {
  const text = values.text ?? values.prompt ?? (await piped()) ?? "";
  const making = model.translate(text, { ...options, turn: () => new Promise(setImmediate) });
  const interrupted = onInterrupt(making);
  for await (const event of making) {
    if (event.gap) await write(event.gap);
    else if (making.beam > 1) await write(event.result?.text ?? "");
    else await write(event.text ?? "");
  }
  if (!text.endsWith("\n")) process.stdout.write("\n");
  if (interrupted()) process.exitCode = 130;
  return making;
}

async function verify(model) {
  const { manifest } = model;
  let failed = false;
  for (const golden of [...(manifest.golden ?? []), ...(manifest.golden_translations ?? [])]) {
    const { steps, explained, unexplained } = await model.replay(golden);
    const name = golden.kind ? `golden ${golden.kind}` : `golden translation ${JSON.stringify(golden.text)}`;
    process.stdout.write(`${name}: ${steps} steps, ${explained} explained differences, ${unexplained.length} unexplained\n`);
    failed ||= unexplained.length > 0;
  }
  process.exitCode = failed ? 1 : 0;
}

/** The first Ctrl-C ends the text, a second one the program. */
function onInterrupt(making) {
  process.once("SIGINT", () => making.cancel());
  return () => making.cancelled;
}

/** Also lets the event loop turn: WebAssembly never waits for it, and Ctrl-C and closed pipes arrive there. */
async function write(text) {
  if (!process.stdout.write(text)) await new Promise((done) => process.stdout.once("drain", done));
  await new Promise(setImmediate);
}

async function piped() {
  if (process.stdin.isTTY) return null;
  const parts = [];
  for await (const part of process.stdin) parts.push(part);
  return Buffer.concat(parts).toString("utf8");
}

/** Reads files of a bundle, or of the folder model/ of a site; links are not followed out of it. */
async function reader(path) {
  const folder = [path, join(path, "model")].find((item) => existsSync(join(item, "manifest.json")));
  if (!folder) throw new RnnEdgeError(`${path} is no bundle: it has no manifest.json`, "give the folder of a bundle, or of a site");
  const root = await realpath(folder);
  return async (name) => {
    const file = join(root, name);
    if (!/^[\w-][\w.-]*$/.test(name) || !existsSync(file) || (await realpath(file)) !== file) {
      throw new RnnEdgeError(`${join(path, name)} is missing or not a plain file`, "copy or export the bundle again");
    }
    return new Uint8Array(await readFile(file));
  };
}

/** A module of npm, from beside this file or from the folder where the command runs. */
function find(name) {
  for (const folder of [HERE, process.cwd()]) {
    try {
      return createRequire(join(folder, "run.mjs")).resolve(name);
    } catch {
      continue;
    }
  }
  return null;
}

async function loadRuntime(wanted) {
  if (wanted && !["native", "wasm"].includes(wanted)) throw new RnnEdgeError(`runtime is ${wanted}`, "use native or wasm");
  const native = wanted === "wasm" ? null : find("onnxruntime-node");
  if (native) {
    const module = await import(pathToFileURL(native));
    return ["native", module.default ?? module];
  }
  const wasm = join(HERE, "runtime", "ort-wasm-simd-threaded.wasm.gz");
  if (wanted === "native" || !existsSync(wasm)) {
    throw new RnnEdgeError("there is no ONNX Runtime for Node here", "run: ONNXRUNTIME_NODE_INSTALL=skip npm install onnxruntime-node@1.30.0 @huggingface/tokenizers@0.2.0");
  }
  const ort = await import(pathToFileURL(join(HERE, "runtime", "ort.wasm.bundle.min.mjs")));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = gunzipSync(await readFile(wasm));
  return ["wasm", ort];
}

async function loadTokenizers() {
  const own = join(HERE, "runtime", "tokenizers.min.mjs");
  const path = existsSync(own) ? own : find("@huggingface/tokenizers");
  if (!path) throw new RnnEdgeError("the tokenizer library is missing", "run: npm install @huggingface/tokenizers@0.2.0");
  const module = await import(pathToFileURL(resolve(path)));
  return module.Tokenizer ? module : module.default;
}
