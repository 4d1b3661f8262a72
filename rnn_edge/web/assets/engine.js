// The engine: opens a bundle, or the model of a site, with any build of ONNX Runtime for JavaScript.
//
//   const model = await open(read, { ort, tokenizers: () => import("@huggingface/tokenizers") });
//   for await (const { texts } of model.generate({ prompt: "ROMEO:", seed: 7 })) show(texts.join(""));

import { Bundle } from "./bundle.js";
import { EncoderDecoder, openSession, Stepper } from "./graphs.js";
import { LanguageModel } from "./language-model.js";
import { Tokenizer } from "./tokenizer.js";
import { Translator } from "./translator.js";

export { RnnEdgeError } from "./errors.js";

/**
 * Open a bundle. `read(name)` gives the bytes of one of its files; `ort` is the runtime's module, `tokenizers` a
 * function that imports the tokenizer library, `session` further options of the runtime's sessions.
 */
export async function open(read, { ort, tokenizers, session = {}, where }) {
  const bundle = await Bundle.open(read, where);
  const { manifest } = bundle;
  const tokenizer = await Tokenizer.load(await bundle.json(manifest.tokenizer.file), tokenizers, manifest.tokenizer.file);
  if (manifest.task === "language-model") {
    const name = manifest.graphs.loop ?? manifest.graphs.step;
    const graph = await openSession(ort, await bundle.file(name), name, session);
    return new LanguageModel(bundle, new Stepper(ort, graph, manifest, "loop" in manifest.graphs), tokenizer);
  }
  const { file } = manifest.source.tokenizer;
  const source = file === manifest.tokenizer.file ? tokenizer : await Tokenizer.load(await bundle.json(file), tokenizers, file);
  const graphs = [];
  for (const name of [manifest.graphs.encoder, manifest.graphs.decoder]) {
    graphs.push(await openSession(ort, await bundle.file(name), name, session));
  }
  return new Translator(bundle, new EncoderDecoder(ort, ...graphs, manifest), source, tokenizer);
}
