// From the attention of tokens to that of words: rnn_edge/alignment.py in JavaScript.

const blank = (bytes) => bytes.every((byte) => byte === 0x20 || (byte >= 0x09 && byte <= 0x0d));

/** The words that tokens spell, `{text, tokens}`: the first begins one, and so does each with a space in front. */
export function words(pieces) {
  const groups = [];
  pieces.forEach((piece, index) => {
    if (!piece.length) return;
    const open = groups.at(-1);
    // What is blank so far waits for its word.
    if (!open || (blank(piece.subarray(0, 1)) && open.some((token) => !blank(pieces[token])))) groups.push([index]);
    else open.push(index);
  });
  return groups
    .map((tokens) => ({ text: new TextDecoder().decode(Uint8Array.from(tokens.flatMap((token) => [...pieces[token]]))).trim(), tokens }))
    .filter(({ text }) => text);
}

/**
 * Rows of attention [target tokens][source tokens] → [target words][source words]: the sum over the tokens of a source
 * word, since attention is shared out among them, and the mean over those of a target word, each of which attends anew.
 */
export function wordAttention(rows, sourceWords, targetWords) {
  return targetWords.map(({ tokens }) => {
    const present = tokens.filter((token) => rows[token]);
    return sourceWords.map((word) => {
      let sum = 0;
      for (const token of present) for (const source of word.tokens) sum += rows[token][source];
      return sum / Math.max(1, present.length);
    });
  });
}
