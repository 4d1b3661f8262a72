// node check.mjs ASSETS VECTORS [SITE MODELS [MODULES]]: prints what differs as JSON. With a site, whole texts are checked
// too, on its runtime or the onnxruntime-node of the folder MODULES, from MODELS/<bundle>/, whatever graphs these hold.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { gunzipSync } from "node:zlib";

import { checkRules, checkTexts } from "./vectors.mjs";

const [assets, path, site, models, modules] = process.argv.slice(2);
const vectors = JSON.parse(await readFile(path, "utf8"));
const load = (name) => import(pathToFileURL(join(assets, name)));
const wrong = await checkRules(vectors, load);
if (site) {
  const ort = modules ? createRequire(join(modules, "check.mjs"))("onnxruntime-node") : await wasm(join(site, "runtime"));
  const tokenizers = () => import(pathToFileURL(join(site, "runtime", "tokenizers.min.mjs")));
  const read = (bundle) => async (name) => new Uint8Array(await readFile(join(models, bundle, name)));
  wrong.push(...(await checkTexts(vectors, load, read, { ort, tokenizers })));
}
process.stdout.write(JSON.stringify(wrong));

async function wasm(folder) {
  const ort = await import(pathToFileURL(join(folder, "ort.wasm.bundle.min.mjs")));
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: gunzipSync(await readFile(join(folder, "ort-wasm-simd-threaded.wasm.gz"))) });
  return ort;
}
