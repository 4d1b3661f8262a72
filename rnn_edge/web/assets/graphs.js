// Step graphs with the state that they carry. Two kinds: a page's own graph, which loops over steps and chooses tokens
// inside, and the step graph of a bundle as it is, one step a call.

import { RnnEdgeError } from "./errors.js";
import { argmax } from "./sampling.js";

/** A session over a graph's bytes. */
export async function openSession(ort, content, name, options = {}) {
  try {
    return await ort.InferenceSession.create(content, { graphOptimizationLevel: "all", intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 4, ...options });
  } catch (error) {
    throw new RnnEdgeError(`ONNX Runtime cannot load ${name}: ${String(error.message ?? error).split("\n")[0]}`, "make the site again with rnn-edge web");
  }
}

const integers = (ort, values, shape) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
const floats = (ort, values, shape) => new ort.Tensor("float32", values, shape);

/** Steps of one stream, `size` ids wide; its state begins at zero. */
export class Stepper {
  constructor(ort, session, manifest, loops) {
    this.ort = ort;
    this.session = session;
    this.loops = loops;
    this.pairs = manifest.state;
    this.size = manifest.tokenizer.vocabulary_size;
    this.top = this.pairs.filter((pair) => pair.input.startsWith("h")).at(-1);
    this.reset();
  }

  reset() {
    const { ort } = this;
    this.state = Object.fromEntries(this.pairs.map(({ input, width }) => [input, floats(ort, new Float32Array(width), [1, width])]));
  }

  /**
   * Feed `token`, choose by argmax(logits / temperature + noise), feed that, and so on, `count` times.
   *
   * `noise` is [count × size]. Returns `tokens` [count], `logits` [count × size] and `hidden` [count × width].
   */
  async run(token, count, noise, temperature) {
    return this.loops ? this.#loop(token, count, noise, temperature) : this.#steps(token, count, noise, temperature);
  }

  async #loop(token, count, noise, temperature) {
    const { ort, size } = this;
    const found = await this.session.run({
      count: integers(ort, [count], []),
      token: integers(ort, [token], [1]),
      temperature: floats(ort, Float32Array.of(temperature), [1]),
      noise: floats(ort, noise, [count, size]),
      ...this.state,
    });
    this.#carry(found);
    return { tokens: Int32Array.from(found.tokens.data, Number), logits: found.all_logits.data, hidden: found.hidden.data };
  }

  async #steps(token, count, noise, temperature) {
    const { ort, size, top } = this;
    const tokens = new Int32Array(count);
    const logits = new Float32Array(count * size);
    const hidden = new Float32Array(count * top.width);
    const values = new Float32Array(size);
    const divisor = Math.fround(temperature);
    for (let step = 0; step < count; step++) {
      const found = await this.session.run({ token: integers(ort, [token], [1]), ...this.state });
      this.#carry(found);
      const row = found.logits.data;
      for (let id = 0; id < size; id++) values[id] = Math.fround(row[id] / divisor) + noise[step * size + id];
      tokens[step] = token = argmax(values);
      logits.set(row, step * size);
      hidden.set(found[top.output].data, step * top.width);
    }
    return { tokens, logits, hidden };
  }

  #carry(found) {
    for (const { input, output } of this.pairs) this.state[input] = found[output];
  }
}

/** A translator's two graphs: the encoder reads a source once, the decoder steps over what it left. */
export class EncoderDecoder {
  constructor(ort, encoder, decoder, manifest) {
    Object.assign(this, { ort, encoder, decoder, manifest });
  }

  /** Memory and first state of `width` equal rows for the ids of one source, the end token last. */
  async encode(source, width = 1) {
    const { ort, manifest } = this;
    const found = await this.encoder.run({
      source: integers(ort, source, [1, source.length]),
      source_lengths: integers(ort, [source.length], [1]),
    });
    const rows = Array(width).fill(0);
    const names = [...manifest.memory.map((item) => item.name), ...manifest.state.map((pair) => pair.input)];
    const tensors = Object.fromEntries(names.map((name) => [name, this.take(found[name], rows)]));
    const memory = { source_lengths: integers(ort, rows.fill(source.length), [width]) };
    for (const { name } of manifest.memory) memory[name] = tensors[name];
    const state = Object.fromEntries(manifest.state.map((pair) => [pair.input, tensors[pair.input]]));
    return { memory, state };
  }

  /** One step: `tokens` of all rows → `logits` [rows × vocabulary], `attention` [rows × source]; state moves on. */
  async step(encoded, tokens) {
    const found = await this.decoder.run({ token: integers(this.ort, tokens, [tokens.length]), ...encoded.memory, ...encoded.state });
    for (const { input, output } of this.manifest.state) encoded.state[input] = found[output];
    return { logits: found.logits.data, attention: found.attention.data };
  }

  /** Row i of the state goes on from row `parents[i]`. */
  reorder(encoded, parents) {
    if (parents.every((parent, row) => parent === row)) return;
    for (const name of Object.keys(encoded.state)) encoded.state[name] = this.take(encoded.state[name], parents);
  }

  /** These rows of a tensor, in this order. */
  take(tensor, rows) {
    const [, ...rest] = tensor.dims;
    const width = rest.reduce((product, size) => product * size, 1);
    const data = new Float32Array(rows.length * width);
    rows.forEach((row, place) => data.set(tensor.data.subarray(row * width, (row + 1) * width), place * width));
    return floats(this.ort, data, [rows.length, ...rest]);
  }
}
