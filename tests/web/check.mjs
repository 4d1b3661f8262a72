// node check.mjs ASSETS VECTORS [SITE MODELS]: prints what differs as JSON. With a site, whole texts are checked too, on
// its runtime, from MODELS/<bundle>/, whatever graphs these hold.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { gunzipSync } from "node:zlib";

import { checkRules, checkTexts } from "./vectors.mjs";

const [assets, path, site, models] = process.argv.slice(2);
const vectors = JSON.parse(await readFile(path, "utf8"));
const load = (name) => import(pathToFileURL(join(assets, name)));
const wrong = await checkRules(vectors, load);
if (site) {
  const ort = await import(pathToFileURL(join(site, "runtime", "ort.wasm.bundle.min.mjs")));
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: gunzipSync(await readFile(join(site, "runtime", "ort-wasm-simd-threaded.wasm.gz"))) });
  const tokenizers = () => import(pathToFileURL(join(site, "runtime", "tokenizers.min.mjs")));
  const read = (bundle) => async (name) => new Uint8Array(await readFile(join(models, bundle, name)));
  wrong.push(...(await checkTexts(vectors, load, read, { ort, tokenizers })));
}
process.stdout.write(JSON.stringify(wrong));
