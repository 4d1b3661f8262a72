// Translating, sentence by sentence and token by token: rnn_edge/translator.py in JavaScript.

import { beamSearch } from "./beam.js";
import { RnnEdgeError } from "./errors.js";
import { parseSeed } from "./noise.js";
import { argmax, logNormaliser, Sampler, samplingOptions } from "./sampling.js";
import { gapAfter, oneLine, splitLong, splitSentences } from "./sentences.js";
import { StreamDecoder } from "./text.js";

const encoder = new TextEncoder();

export class Translator {
  constructor(bundle, graphs, sourceTokenizer, tokenizer) {
    Object.assign(this, { bundle, graphs, sourceTokenizer, tokenizer, manifest: bundle.manifest });
  }

  /**
   * Translate a text. Options: beam, lengthPenalty, maxRatio (1.5), replaceUnknown, split (into sentences), and to draw
   * tokens instead: temperature with topK, topP, minP, repeatPenalty, repeatWindow and seed. `turn` is awaited between
   * the steps of a beam, so that a host whose runtime never waits can hear of other things.
   */
  translate(text, options = {}) {
    return new Translation(this, text, options);
  }

  /** Token ids of a sentence, the end token last. */
  source(sentence) {
    return [...this.sourceTokenizer.encode(sentence), this.manifest.source.end];
  }

  /** Replay a golden translation → how many steps answered as recorded, differ within the margin, and differ. */
  async replay({ source, tokens, best, margins, tolerance }) {
    const encoded = await this.graphs.encode(source);
    const result = { steps: tokens.length, explained: 0, unexplained: [] };
    for (let step = 0; step < tokens.length; step++) {
      const { logits } = await this.graphs.step(encoded, [tokens[step]]);
      if (argmax(logits) === best[step]) continue;
      if (margins[step] < tolerance) result.explained++;
      else result.unexplained.push(step);
    }
    return result;
  }
}

/**
 * A translation in the making: iterate for events, `cancel` to end it.
 *
 * Events: `{gap}` is white space between sentences; `{sentence, source, pieces}` begins a sentence with the bytes of its
 * tokens; `{sentence, token, piece, text, attention, logits}` is a token, `text` what became certain with it;
 * `{sentence, result}` ends a sentence, with `text`, `tokens`, `pieces`, `attention`, `logProbability` and `finished`.
 */
export class Translation {
  constructor(translator, text, options) {
    const { manifest } = translator;
    this.translator = translator;
    this.text = text;
    this.beam = options.beam ?? manifest.decoding?.beam ?? 1;
    if (!Number.isInteger(this.beam) || this.beam < 1 || this.beam > 64) throw new RnnEdgeError(`beam is ${this.beam}`, "use 1 to 64");
    this.lengthPenalty = options.lengthPenalty ?? manifest.decoding?.length_penalty ?? 1;
    this.maxRatio = options.maxRatio ?? 1.5;
    this.replaceUnknown = options.replaceUnknown ?? false;
    this.split = options.split ?? true;
    this.turn = options.turn ?? null;
    this.sampling = options.temperature === undefined || options.temperature === null ? null : samplingOptions(options);
    if (this.sampling && this.beam > 1) throw new RnnEdgeError("sampling and a beam exclude each other", "leave the temperature or the beam out");
    this.seed = parseSeed(options.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]);
    this.cancelled = false;
    this.count = 0; // tokens written
    this.seconds = 0; // in which they were
  }

  cancel() {
    this.cancelled = true;
  }

  async *[Symbol.asyncIterator]() {
    const { translator } = this;
    const { longest, language } = translator.manifest.source;
    const { sentences, gaps } = splitSentences(this.text, this.split ? language : null);
    const length = (text) => translator.sourceTokenizer.encode(text).length;
    const parts = sentences.flatMap((sentence, index) => {
      const found = splitLong(length, sentence, longest).map((part) => ({ text: part.trim(), gap: part.slice(part.trimEnd().length) }));
      found.at(-1).gap += gaps[index + 1];
      return found;
    });
    if (gaps[0]) yield { gap: gaps[0] };
    for (const [number, { text, gap }] of parts.entries()) {
      if (this.cancelled) return;
      const translation = yield* this.#sentence(text, number);
      if (this.cancelled) return;
      const behind = number < parts.length - 1 ? gapAfter(gap, text, translation) : gap;
      if (behind) yield { gap: behind };
    }
  }

  async *#sentence(text, number) {
    const { translator } = this;
    const { graphs, manifest, tokenizer } = translator;
    const { start, end } = manifest.special_ids;
    const source = translator.source(text);
    const pieces = [...translator.sourceTokenizer.pieces(text, source.slice(0, -1)), new Uint8Array()];
    yield { sentence: number, source: text, pieces };
    const limit = Math.floor(this.maxRatio * source.length) + 10;
    const result = { tokens: [], pieces: [], attention: [], logProbability: 0, finished: false };
    const add = (token, attention) => {
      const piece = token === end ? new Uint8Array() : this.#piece(token, attention, pieces);
      result.tokens.push(token);
      result.pieces.push(piece);
      result.attention.push(attention);
      this.count++;
      return piece;
    };
    let began = performance.now();
    if (this.beam > 1) {
      const { beam, lengthPenalty, turn } = this;
      const found = await beamSearch(graphs, source, { beam, limit, lengthPenalty, start, end, cancelled: () => this.cancelled, turn });
      this.seconds += (performance.now() - began) / 1000;
      if (!found || this.cancelled) return;
      found.tokens.forEach((token, place) => add(token, found.attention[place]));
      result.logProbability = found.logProbability;
      result.finished = found.finished;
    } else {
      const encoded = await graphs.encode(source);
      const sampler = this.sampling && new Sampler(this.sampling, tokenizer.size, { seed: this.seed, stream: number });
      const decoder = new StreamDecoder();
      let token = start;
      let shown = "";
      while (!result.finished && result.tokens.length < limit) {
        if (this.cancelled) return;
        const { logits, attention } = await graphs.step(encoded, [token]);
        token = sampler ? sampler.choose(logits) : argmax(logits);
        result.logProbability += logits[token] - logNormaliser(logits);
        result.finished = token === end;
        const piece = add(token, Float32Array.from(attention));
        const certain = oneLine(`${shown && "|"}${decoder.push(piece)}`).slice(shown ? 1 : 0);
        const fresh = shown ? certain : certain.trimStart(); // the first word's space
        shown += fresh;
        this.seconds += (performance.now() - began) / 1000;
        yield { sentence: number, token, piece, text: fresh, attention, logits };
        began = performance.now();
      }
    }
    result.text = oneLine(new TextDecoder("utf-8", { ignoreBOM: true }).decode(joined(result.pieces)).replace(/^ +/u, ""));
    yield { sentence: number, result };
    return result.text;
  }

  /** The bytes of a target token; of an unknown one, if asked for, those of the source word it looks at. */
  #piece(token, attention, source) {
    if (token !== (this.translator.manifest.special_ids.unknown ?? null)) return this.translator.tokenizer.tokenBytes[token];
    const words = source.length - 1;
    return this.replaceUnknown && words ? source[argmax(attention.subarray(0, words))] : encoder.encode(" <unk>");
  }
}

function joined(pieces) {
  return Uint8Array.from(pieces.flatMap((piece) => [...piece]));
}
