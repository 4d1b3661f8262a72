// Gumbel noise that is a function of (seed, stream, step, id) and nothing else: rnn_edge/noise.py, bit for bit.
//
//   key = (seed mod 2³², seed div 2³²), counter = (id div 4, step mod 2³², step div 2³², stream)
//   u = (output[id mod 4] div 2⁸ + ½) · 2⁻²⁴        of Philox4x32-10
//   g = float32(−log(−log u))                       logarithms in float64

import { RnnEdgeError } from "./errors.js";

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;
const TWO_32 = 2 ** 32;
const out = new Uint32Array(4);

/** A seed from a number, a BigInt or decimal digits, as a BigInt of 64 bits. */
export function parseSeed(seed) {
  const text = String(seed).trim();
  if (!/^\d{1,20}$/.test(text) || BigInt(text) >= 1n << 64n) {
    throw new RnnEdgeError(`seed is ${text || "empty"}`, "use a whole number from 0 to 2^64 - 1");
  }
  return BigInt(text);
}

/** Fill `target` with the noise of `steps` steps from `step` on, each `size` ids wide. */
export function gumbelNoise(target, { seed, stream = 0, step = 0, steps = 1, size }) {
  const k0 = Number(seed & 0xffffffffn);
  const k1 = Number(seed >> 32n);
  for (let row = 0, place = 0; row < steps; row++) {
    const now = step + row;
    const low = now % TWO_32;
    const high = Math.floor(now / TWO_32);
    for (let group = 0; group * 4 < size; group++) {
      philox(group, low, high, stream, k0, k1);
      const end = Math.min(4, size - group * 4);
      for (let word = 0; word < end; word++) {
        target[place++] = -Math.log(-Math.log(((out[word] >>> 8) + 0.5) * 2 ** -24));
      }
    }
  }
  return target;
}

/** Philox4x32-10 (Salmon et al. 2011) of one counter → `out`. */
export function philox(c0, c1, c2, c3, k0, k1) {
  for (let round = 0; round < 10; round++) {
    const high0 = multiplyHigh(M0, c0);
    const low0 = Math.imul(M0, c0);
    const high1 = multiplyHigh(M1, c2);
    const low1 = Math.imul(M1, c2);
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1 >>> 0;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0 >>> 0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
  return out;
}

/** The upper 32 bits of a product of two unsigned 32-bit numbers. */
function multiplyHigh(a, b) {
  const a0 = a & 0xffff;
  const a1 = a >>> 16;
  const b0 = b & 0xffff;
  const b1 = b >>> 16;
  const first = a1 * b0 + ((a0 * b0) >>> 16);
  const second = a0 * b1 + (first & 0xffff);
  return (a1 * b1 + (first >>> 16) + (second >>> 16)) >>> 0;
}

/** The noise of one stream, step after step. The id `barred` has −∞, so that it is never chosen. */
export class Noise {
  constructor(size, { seed, stream = 0, step = 0, barred = null }) {
    Object.assign(this, { size, seed, stream, step, barred });
  }

  /** Noise [steps × size] of the next steps. */
  take(steps = 1) {
    const { seed, stream, step, size } = this;
    const rows = gumbelNoise(new Float32Array(steps * size), { seed, stream, step, steps, size });
    this.step += steps;
    if (this.barred !== null) for (let row = 0; row < steps; row++) rows[row * size + this.barred] = -Infinity;
    return rows;
  }
}
