// Text to ids, and what bytes each id stands for: rnn_edge/tokenizer.py in JavaScript.

import { RnnEdgeError } from "./errors.js";

const encoder = new TextEncoder();
const EXPORT_AGAIN = "make the site again with rnn-edge web";

export class Tokenizer {
  /**
   * `content` is a parsed tokenizer.json; `library` gives @huggingface/tokenizers, and is only called where text must be
   * split by more than its characters.
   */
  static async load(content, library, where = "tokenizer.json") {
    try {
      const tokenizer = new Tokenizer(content);
      if (!tokenizer.characters) {
        // Special tokens are left out, so that a text which spells one is only a text; word vocabularies are looked up
        // here, since the library has no such model.
        const model = content.model.type === "BPE" ? content.model : { type: "BPE", vocab: { " ": 0 }, merges: [] };
        const { Tokenizer: Library } = await library();
        tokenizer.library = new Library(
          { ...content, model, added_tokens: [] },
          { clean_up_tokenization_spaces: false, unk_token: model.unk_token ?? undefined },
        );
      }
      return tokenizer;
    } catch (error) {
      if (error instanceof RnnEdgeError) throw error;
      throw new RnnEdgeError(`${where} is not a tokenizer that this page can load: ${error.message}`, EXPORT_AGAIN);
    }
  }

  constructor(content) {
    const { model } = content;
    if (!["BPE", "WordLevel"].includes(model?.type)) {
      throw new RnnEdgeError(`the tokenizer's model is ${model?.type}, which this page does not know`, "use a vocabulary of characters, words or BPE subwords");
    }
    this.vocabulary = new Map(Object.entries(model.vocab));
    for (const { content: text, id } of content.added_tokens ?? []) this.vocabulary.set(text, id);
    this.words = model.type === "WordLevel";
    this.unknown = this.words ? (this.vocabulary.get(model.unk_token) ?? null) : null;
    const split = content.pre_tokenizer;
    this.characters =
      this.words && this.unknown === null && !content.normalizer && split?.type === "Split" && split.pattern?.Regex === "[\\s\\S]";
    this.tokenBytes = tokenBytes(content, this.vocabulary);
    this.size = this.tokenBytes.length;
  }

  /** Token ids of a text. What the vocabulary lacks is an error, or left out where `unknown` is "skip". */
  encode(text, { unknown = "error" } = {}) {
    text = text.toWellFormed?.() ?? text;
    if (this.characters) return this.#lookUp([...text], unknown);
    const { library } = this;
    if (!this.words) return library.encode(text, { add_special_tokens: false }).ids;
    const normal = library.normalizer ? library.normalizer(text) : text;
    return this.#lookUp(library.pre_tokenizer ? library.pre_tokenizer(normal) : [normal], unknown);
  }

  /** What each id of `encode(text)` stands for; of words that the vocabulary lacks, what stands in the text. */
  pieces(text, ids) {
    if (!this.words || this.unknown === null || !ids.includes(this.unknown)) return ids.map((id) => this.tokenBytes[id]);
    const normal = this.library.normalizer ? this.library.normalizer(text) : text;
    const alphabet = new Map(byteLevelAlphabet().map((character, byte) => [character, byte]));
    return this.library.pre_tokenizer(normal).map((piece, place) => {
      if (ids[place] !== this.unknown) return this.tokenBytes[ids[place]];
      const characters = [...piece];
      const spelled = characters.every((character) => alphabet.has(character));
      return spelled ? Uint8Array.from(characters, (character) => alphabet.get(character)) : encoder.encode(` ${piece}`);
    });
  }

  /** The text of ids: their bytes read as UTF-8. */
  decode(ids) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return [...ids].map((id) => decoder.decode(this.tokenBytes[id], { stream: true })).join("") + decoder.decode();
  }

  #lookUp(pieces, unknown) {
    const found = pieces.map((piece) => this.vocabulary.get(piece) ?? this.unknown);
    const missing = [...new Set(pieces.filter((_, place) => found[place] === null))].sort();
    if (missing.length && unknown === "error") {
      const names = missing.slice(0, 12).map((piece) => JSON.stringify(piece)).join(" ");
      const more = missing.length > 12 ? ` and ${missing.length - 12} more` : "";
      throw new RnnEdgeError(`the model has never seen ${names}${more}`, "leave them out");
    }
    return found.filter((id) => id !== null);
  }
}

function tokenBytes(content, vocabulary) {
  const kind = content.decoder?.type ?? null;
  if (!["Fuse", "ByteLevel", null].includes(kind)) {
    throw new RnnEdgeError(`the tokenizer has a decoder of type ${kind}`, "use a decoder of type Fuse or ByteLevel, or none");
  }
  const special = new Set((content.added_tokens ?? []).filter((token) => token.special).map((token) => token.id));
  const alphabet = new Map(byteLevelAlphabet().map((character, byte) => [character, byte]));
  const table = new Array(vocabulary.size);
  for (const [token, id] of vocabulary) {
    const characters = [...token];
    if (special.has(id)) table[id] = new Uint8Array();
    else if (kind === null) table[id] = encoder.encode(token === "\n" ? "\n" : ` ${token}`);
    else if (kind === "ByteLevel" && characters.every((character) => alphabet.has(character))) {
      table[id] = Uint8Array.from(characters, (character) => alphabet.get(character));
    } else table[id] = encoder.encode(token);
  }
  for (let id = 0; id < table.length; id++) {
    if (!table[id]) throw new RnnEdgeError(`the tokenizer has no token with id ${id}`, EXPORT_AGAIN);
  }
  return table;
}

/** The printable character that stands for each byte in byte-level vocabularies (Radford et al. 2019, GPT-2). */
function byteLevelAlphabet() {
  let moved = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte < 0xad) || byte >= 0xae;
    return String.fromCodePoint(printable ? byte : moved++);
  });
}
