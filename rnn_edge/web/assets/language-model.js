// Streaming generation: rnn_edge/language_model.py in JavaScript. Yields chunks, shows nothing.

import { RnnEdgeError } from "./errors.js";
import { gumbelNoise, Noise, parseSeed } from "./noise.js";
import { argmax, Sampler, samplingOptions } from "./sampling.js";
import { StopFilter, StreamDecoder } from "./text.js";

const CHUNK = 16; // steps of one call at most: more bring little, and the text would come in lumps
const START_STREAM = 2 ** 32 - 1; // the noise stream that draws a start token where the vocabulary names none

export class LanguageModel {
  constructor(bundle, stepper, tokenizer) {
    Object.assign(this, { bundle, stepper, tokenizer, manifest: bundle.manifest });
  }

  /**
   * Continue a prompt. Options: prompt, maxTokens (400; -1 for no end), seed, temperature, topK, topP, minP,
   * repeatPenalty, repeatWindow, stop (texts), unknown ("error" or "skip"), stream, chunk (steps of one call).
   */
  generate(options = {}) {
    return new Generation(this, options);
  }

  /** Replay a golden transcript → how many steps answered as recorded, differ within the margin, and differ. */
  async replay({ tokens, best, margins, tolerance }) {
    const { stepper } = this;
    stepper.reset();
    const result = { steps: tokens.length, explained: 0, unexplained: [] };
    for (let first = 0; first < tokens.length; first += CHUNK) {
      const fed = tokens.slice(first, first + CHUNK);
      const { logits } = await stepper.run(fed[0], fed.length, forcing([...fed.slice(1), 0], stepper.size), 1);
      for (let row = 0; row < fed.length; row++) {
        const step = first + row;
        if (argmax(logits.subarray(row * stepper.size, (row + 1) * stepper.size)) === best[step]) continue;
        if (margins[step] < tolerance) result.explained++;
        else result.unexplained.push(step);
      }
    }
    return result;
  }
}

/** Noise that leaves no choice: a graph that chooses its tokens so reads a given text. */
function forcing(tokens, size) {
  const noise = new Float32Array(tokens.length * size);
  tokens.forEach((token, row) => (noise[row * size + token] = Infinity));
  return noise;
}

/**
 * One text in the making: iterate for chunks, `cancel` to end it.
 *
 * A chunk has `fed`, the tokens read, and for each of them a row of `logits` and of `hidden`; while the text is written
 * also `tokens`, chosen after each, and `texts`, what became certain with each. The last has only `texts`, the rest.
 */
export class Generation {
  constructor(model, options) {
    const { manifest, tokenizer } = model;
    const defaults = manifest.sampling ?? {};
    this.model = model;
    this.maxTokens = options.maxTokens ?? 400;
    if (!Number.isInteger(this.maxTokens) || this.maxTokens < -1 || this.maxTokens === 0) {
      throw new RnnEdgeError(`max-tokens is ${this.maxTokens}`, "use a positive number, or -1 for no end");
    }
    this.seed = parseSeed(options.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]);
    this.stream = options.stream ?? 0;
    this.sampling = samplingOptions({
      ...options,
      temperature: options.temperature ?? defaults.temperature,
      topK: options.topK ?? defaults.top_k,
      topP: options.topP ?? defaults.top_p,
      minP: options.minP ?? defaults.min_p,
    });
    this.stops = [].concat(options.stop ?? []);
    if (this.stops.some((text) => !text)) throw new RnnEdgeError("a stop text is empty", "give some text, or leave it out");
    this.chunk = options.chunk ?? CHUNK;
    this.prompt = tokenizer.encode(options.prompt ?? "", { unknown: options.unknown });
    this.count = 0; // tokens chosen
    this.seconds = 0; // in which they were
    this.readSeconds = 0; // in which the prompt was read
    this.finishReason = null;
    this.cancelled = false;
  }

  cancel() {
    this.cancelled = true;
  }

  async *[Symbol.asyncIterator]() {
    const { model, sampling, prompt } = this;
    const { stepper, tokenizer, manifest } = model;
    const { start = null, end = null, unknown: barred = null } = manifest.special_ids ?? {};
    const { size } = stepper;
    const ids = prompt.length ? prompt : [start ?? this.#randomStart(size)];
    const decoder = new StreamDecoder();
    const filter = this.stops.length ? new StopFilter(this.stops) : null;
    stepper.reset();
    let began = performance.now();
    for (let first = 0; first < ids.length - 1 && !this.cancelled; ) {
      const fed = ids.slice(first, Math.min(first + this.chunk, ids.length - 1));
      const { logits, hidden } = await stepper.run(fed[0], fed.length, forcing(ids.slice(first + 1, first + 1 + fed.length), size), 1);
      first += fed.length;
      yield { fed, logits, hidden, tokens: [], texts: [] };
    }
    this.readSeconds = (performance.now() - began) / 1000;
    const key = { seed: this.seed, stream: this.stream, barred };
    const noise = new Noise(size, key);
    const sampler = sampling.plain ? null : new Sampler(sampling, size, { ...key, recent: ids.slice(prompt.length ? 0 : 1) });
    const silence = new Float32Array(this.chunk * size);
    if (barred !== null) for (let row = 0; row < this.chunk; row++) silence[row * size + barred] = -Infinity;
    let pending = ids.at(-1);
    let steps = 1; // the first token comes alone
    while (!this.finishReason) {
      if (this.cancelled) {
        this.finishReason = "interrupt";
        break;
      }
      if (this.maxTokens > 0) steps = Math.min(steps, this.maxTokens - this.count);
      if (sampler) steps = 1;
      began = performance.now();
      const rows = sampler || sampling.greedy ? silence.subarray(0, steps * size) : noise.take(steps);
      const found = await stepper.run(pending, steps, rows, sampler || sampling.greedy ? 1 : sampling.temperature);
      const tokens = sampler ? [sampler.choose(found.logits)] : Array.from(found.tokens);
      this.seconds += (performance.now() - began) / 1000;
      const texts = [];
      for (const token of tokens) {
        this.count++;
        let text = token === end ? "" : decoder.push(tokenizer.tokenBytes[token]);
        if (token === end) this.finishReason = "end";
        else if (filter) {
          const [certain, stopped] = filter.push(text);
          text = certain;
          if (stopped) this.finishReason = "stop";
        }
        texts.push(text);
        if (!this.finishReason && this.count === this.maxTokens) this.finishReason = "length";
        if (this.finishReason) break;
      }
      const taken = texts.length;
      yield { fed: [pending, ...tokens.slice(0, taken - 1)], logits: found.logits, hidden: found.hidden, tokens: tokens.slice(0, taken), texts };
      pending = tokens[taken - 1];
      steps = Math.min(this.chunk, steps * 2);
    }
    if (this.finishReason === "stop") return;
    let rest = decoder.flush();
    if (filter) rest = filter.push(rest)[0] + filter.flush();
    if (rest) yield { fed: [], logits: new Float32Array(), hidden: new Float32Array(), tokens: [], texts: [rest] };
  }

  /** Of another stream another one: its number takes the place of the step. */
  #randomStart(size) {
    return argmax(gumbelNoise(new Float32Array(size), { seed: this.seed, stream: START_STREAM, step: this.stream, size }));
  }
}
