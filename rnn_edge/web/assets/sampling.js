// Choosing the next token: rnn_edge/sampling.py in JavaScript, so that equal logits give equal ids.
//
// After penalty, temperature, top-k, top-p and min-p the next id is argmax(logits / T + g) over the ids that remain.
// All sums are float32 (Math.fround rounds each), ties go to the lowest id.

import { RnnEdgeError } from "./errors.js";
import { Noise } from "./noise.js";

const GREEDY_BELOW = 1e-3; // colder, the quotients leave what float32 tells apart

export const SAMPLING_DEFAULTS = { temperature: 0.8, topK: 0, topP: 1, minP: 0, repeatPenalty: 1, repeatWindow: 64 };

/** Options with defaults, checked. Throws RnnEdgeError for a value out of its range. */
export function samplingOptions(given = {}) {
  const options = { ...SAMPLING_DEFAULTS };
  for (const name of Object.keys(options)) if (given[name] !== undefined && given[name] !== null) options[name] = given[name];
  const { temperature, topK, topP, minP, repeatPenalty, repeatWindow } = options;
  // Each test is written so that NaN fails it.
  require(temperature >= 0 && temperature <= 1000, "temperature", temperature, "use 0 for greedy, or a value up to 1000");
  require(Number.isInteger(topK) && topK >= 0, "top-k", topK, "use 0 for no limit, or a positive number");
  require(topP > 0 && topP <= 1, "top-p", topP, "use a value above 0 and at most 1");
  require(minP >= 0 && minP <= 1, "min-p", minP, "use a value from 0 to 1");
  require(repeatPenalty >= 0.01 && repeatPenalty <= 100, "repeat-penalty", repeatPenalty, "use 1 for none, or a value from 0.01 to 100");
  require(Number.isInteger(repeatWindow) && repeatWindow >= 0 && repeatWindow <= 1e6, "repeat-window", repeatWindow, "use a number of tokens from 0 to 1000000");
  options.greedy = temperature < GREEDY_BELOW;
  options.filters = topK > 0 || topP < 1 || minP > 0;
  options.plain = !options.filters && repeatPenalty === 1;
  return options;
}

function require(holds, name, value, hint) {
  if (!holds) throw new RnnEdgeError(`${name} is ${value}`, hint);
}

/** Chooses ids for one stream, step after step. `recent` are the last ids of its text; `barred` is never chosen. */
export class Sampler {
  constructor(options, size, { seed, stream = 0, step = 0, recent = [], barred = null }) {
    this.options = options;
    this.barred = barred;
    this.noise = new Noise(size, { seed, stream, step });
    this.penalty = options.repeatPenalty === 1 ? null : new RepeatPenalty(size, options, recent);
  }

  /** The next id for `logits` [vocabulary], which stay as they are. */
  choose(logits) {
    const values = Float32Array.from(logits);
    if (this.barred !== null) values[this.barred] = -Infinity;
    this.penalty?.weaken(values);
    if (!this.options.greedy) this.#draw(values);
    const chosen = argmax(values);
    this.penalty?.push(chosen);
    return chosen;
  }

  #draw(values) {
    const { temperature, topK, topP, minP, filters } = this.options;
    const divisor = Math.fround(temperature);
    for (let id = 0; id < values.length; id++) values[id] /= divisor;
    if (filters) keepLikely(values, topK, topP, minP);
    const noise = this.noise.take();
    for (let id = 0; id < values.length; id++) values[id] += noise[id];
  }
}

/** Divides positive logits of the last `window` ids by the penalty and multiplies negative ones, each id once. */
export class RepeatPenalty {
  constructor(size, { repeatPenalty, repeatWindow }, recent = []) {
    this.penalty = Math.fround(repeatPenalty);
    this.window = repeatWindow;
    this.recent = [];
    this.counts = new Map();
    for (const token of recent) this.push(token);
  }

  push(token) {
    this.recent.push(token);
    this.counts.set(token, (this.counts.get(token) ?? 0) + 1);
    if (this.recent.length <= this.window) return;
    const oldest = this.recent.shift();
    const left = this.counts.get(oldest) - 1;
    if (left) this.counts.set(oldest, left);
    else this.counts.delete(oldest);
  }

  weaken(logits) {
    for (const id of this.counts.keys()) logits[id] = logits[id] > 0 ? logits[id] / this.penalty : logits[id] * this.penalty;
  }
}

/**
 * Puts −∞ where a filter removes an id. `scaled` are logits divided by the temperature.
 *
 * Every filter is a threshold on the logits, so ids that tie with the last one kept remain too.
 */
export function keepLikely(scaled, topK, topP, minP) {
  const size = scaled.length;
  const ascending = Float32Array.from(scaled).sort();
  const largest = ascending[size - 1];
  let threshold = -Infinity;
  if (topK > 0 && topK < size) threshold = ascending[size - topK];
  if (topP < 1) {
    const mass = [];
    let sum = 0;
    for (let place = size - 1; place >= 0 && ascending[place] >= threshold; place--) {
      sum += Math.exp(ascending[place] - largest);
      mass.push(sum);
    }
    // The first place where the mass reaches the share; rounding may leave the last sum just below it.
    const reached = mass.findIndex((value) => value >= topP * sum);
    threshold = ascending[size - 1 - (reached < 0 ? mass.length - 1 : reached)];
  }
  if (minP > 0) threshold = Math.max(threshold, largest + Math.log(minP));
  threshold = Math.fround(threshold);
  for (let id = 0; id < size; id++) if (!(scaled[id] >= threshold)) scaled[id] = -Infinity;
  return scaled;
}

/** The place of the largest value, the first of equals. */
export function argmax(values) {
  let best = 0;
  for (let place = 1; place < values.length; place++) if (values[place] > values[best]) best = place;
  return best;
}

/** log Σ exp of a row of logits. */
export function logNormaliser(logits) {
  let largest = -Infinity;
  for (const value of logits) if (value > largest) largest = value;
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - largest);
  return largest + Math.log(sum);
}
