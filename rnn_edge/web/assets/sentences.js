// Text to sentences and back. Where a sentence ends is told by the host's Intl.Segmenter, and may be told otherwise in
// Python; a line that is one sentence is one sentence everywhere.

const START = /^[\s\ufeff]*(?:[-–—*+•◦‣▪>#]+\s+)*/u;
const CLAUSE_END = /[;:,؛،]["'”’»)\]]*\s+|[；：，、]\s*/gu;
const SPACE = /\s+/gu;
// Chinese and Japanese, which put no space between sentences.
const UNSPACED = /[\u3000-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff9f\u{20000}-\u{3ffff}]/u;

/** The sentences of a text, and the gaps before, between and after them; laid in turns they are the text. */
export function splitSentences(text, language) {
  const sentences = [];
  const gaps = [""];
  const parts = text.split(/(?<=\r\n|[\n\v\f\x1c-\x1e\x85\u2028\u2029]|\r(?!\n))/u).flatMap((line) => {
    const start = START.exec(line)[0];
    return [start, ...segments(line.slice(start.length), language)];
  });
  for (const part of parts) {
    if (!/\p{L}/u.test(part)) {
      gaps[gaps.length - 1] += part;
      continue;
    }
    const sentence = part.trim();
    const start = part.indexOf(sentence);
    gaps[gaps.length - 1] += part.slice(0, start);
    sentences.push(sentence);
    gaps.push(part.slice(start + sentence.length));
  }
  return { sentences, gaps };
}

/** What stands behind a sentence that is not the last one, where its translation is this: `gap`, or a space. */
export function gapAfter(gap, sentence, translation) {
  const [before, after] = [sentence, translation].map((text) => UNSPACED.test([...text].at(-1) ?? ""));
  return gap || !before || after ? gap : " "; // from a language without spaces to one with them
}

function segments(line, language) {
  if (!line || !globalThis.Intl?.Segmenter) return [line];
  let segmenter;
  try {
    segmenter = new Intl.Segmenter(language || "en", { granularity: "sentence" });
  } catch {
    segmenter = new Intl.Segmenter("en", { granularity: "sentence" });
  }
  return Array.from(segmenter.segment(line), (item) => item.segment);
}

/** Cut a sentence into pieces of at most `longest` ids, as rnn_edge/sentences.py does. */
export function splitLong(length, sentence, longest) {
  const start = sentence.length - sentence.trimStart().length;
  const end = sentence.trimEnd().length;
  if (end - start < 2 || length(sentence.slice(start, end)) <= longest) return [sentence];
  const quarter = (end - start) >> 2;
  const place =
    nearest(CLAUSE_END, sentence, start, end, start + quarter, end - quarter) ??
    nearest(SPACE, sentence, start, end, start, end) ??
    between(sentence, (start + end) >> 1);
  return [...splitLong(length, sentence.slice(0, place), longest), ...splitLong(length, sentence.slice(place), longest)];
}

/** A place that parts no pair of surrogates. */
function between(text, place) {
  return /[\ud800-\udbff]/.test(text[place - 1]) && /[\udc00-\udfff]/.test(text[place]) ? place - 1 : place;
}

function nearest(pattern, text, start, end, low, high) {
  let best;
  for (const match of text.slice(0, end).matchAll(pattern)) {
    const place = match.index + match[0].length;
    if (match.index < start || place >= end || place < low || place > high) continue;
    if (best === undefined || Math.abs(2 * place - start - end) < Math.abs(2 * best - start - end)) best = place;
  }
  return best;
}

/** A text with spaces for its line breaks, and none for one at its end. */
export function oneLine(text) {
  const breaks = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/gu;
  return text.replace(/(?:\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])$/u, "").replace(breaks, " ");
}
