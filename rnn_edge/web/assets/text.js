// Text out of tokens, piece by piece: rnn_edge/tokenizer.py's StreamDecoder and rnn_edge/text_stream.py's StopFilter.

/** Decodes bytes as they come: what is not UTF-8 is U+FFFD, and only an incomplete character is held back. */
export class StreamDecoder {
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  push(bytes) {
    return this.#decoder.decode(bytes, { stream: true });
  }

  flush() {
    return this.#decoder.decode();
  }
}

/** Finds stop texts across token borders, holding back only what may be the start of one. */
export class StopFilter {
  constructor(stops) {
    this.stops = stops;
    this.held = "";
  }

  /** Text that is certainly no part of a stop text, and whether one was found; nothing after it counts. */
  push(text) {
    const held = this.held + text;
    let end = Infinity;
    let start = 0;
    for (const stop of this.stops) {
      const place = held.indexOf(stop);
      // The one that ends first, then the longest: so it does not matter how the text was cut into pieces.
      if (place >= 0 && (place + stop.length < end || (place + stop.length === end && place < start))) {
        [start, end] = [place, place + stop.length];
      }
    }
    if (end < Infinity) {
      this.held = "";
      return [held.slice(0, start), true];
    }
    const keep = Math.max(...this.stops.map((stop) => overlap(held, stop)));
    this.held = held.slice(held.length - keep);
    return [held.slice(0, held.length - keep), false];
  }

  flush() {
    const { held } = this;
    this.held = "";
    return held;
  }
}

function overlap(text, stop) {
  for (let size = Math.min(text.length, stop.length - 1); size > 0; size--) {
    if (text.endsWith(stop.slice(0, size))) return size;
  }
  return 0;
}
