// Beam search of one sentence: rnn_edge/beam_search.py in JavaScript. Beams are rows of one step.

import { logNormaliser } from "./sampling.js";

/**
 * The best-scored hypothesis: `{tokens, attention, logProbability, score, finished}`.
 *
 * In each step the best unfinished continuations go on; one by the end token is finished if it is among as many best of
 * all. The search ends as soon as no unfinished hypothesis can come before the best finished one.
 */
export async function beamSearch(graphs, source, { beam, limit, lengthPenalty, start, end, cancelled = () => false, turn = null }) {
  const encoded = await graphs.encode(source, beam);
  const normaliser = (length) => ((5 + length) / 6) ** lengthPenalty;
  let tokens = Array(beam).fill(start);
  let scores = Array.from(tokens, (_, row) => (row ? -Infinity : 0)); // at first all rows are the same
  let trails = tokens.map(() => null);
  let found = null;
  const keep = (value, trail, length, finished) => {
    const score = value / normaliser(length);
    if (!found || score > found.score) found = { trail, logProbability: value, score, finished };
  };
  for (let length = 1; length <= limit && !cancelled(); length++) {
    await turn?.(); // the host's: cancelling may come in there
    const { logits, attention } = await graphs.step(encoded, tokens);
    const size = logits.length / beam;
    const best = largest(logits, scores, size, 2 * beam);
    const going = [];
    best.forEach((item, rank) => {
      item.attention = attention.slice(item.parent * source.length, (item.parent + 1) * source.length);
      item.before = trails[item.parent];
      if (item.token !== end) going.push(item);
      else if (rank < beam && item.value > -Infinity) keep(item.value, item, length, true);
    });
    const kept = going.slice(0, beam);
    while (kept.length < beam) kept.push({ ...kept[0], value: -Infinity }); // where there are fewer than the beam is wide
    if (length === limit && !found) for (const item of kept) if (item.value > -Infinity) keep(item.value, item, length, false);
    // Log probabilities only fall, and the penalty divides by no more than that of the longest text allowed.
    if (found && kept[0].value / normaliser(limit) <= found.score) break;
    tokens = kept.map((item) => item.token);
    scores = kept.map((item) => item.value);
    graphs.reorder(encoded, kept.map((item) => item.parent));
    trails = kept;
  }
  if (!found) return null;
  const { trail, ...rest } = found;
  const path = [];
  for (let item = trail; item; item = item.before) path.unshift(item);
  return { ...rest, tokens: path.map((item) => item.token), attention: path.map((item) => item.attention) };
}

/** The `count` largest sums of a row's score and log probability, in falling order; of equal ones the first. */
function largest(logits, scores, size, count) {
  const best = [];
  scores.forEach((score, parent) => {
    if (score === -Infinity && best.length >= count) return;
    const row = logits.subarray(parent * size, (parent + 1) * size);
    const offset = Math.fround(score - logNormaliser(row));
    for (let token = 0; token < size; token++) {
      const value = Math.fround(row[token] + offset);
      if (best.length === count && !(value > best[count - 1].value)) continue;
      let place = best.length;
      while (place > 0 && value > best[place - 1].value) place--;
      best.splice(place, 0, { value, parent, token });
      if (best.length > count) best.pop();
    }
  });
  return best;
}
