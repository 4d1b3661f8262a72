// A bundle's files, checked against its manifest.

import { RnnEdgeError } from "./errors.js";

const AGAIN = "copy or export it again";

/** `read(name)` gives the bytes of a file of the bundle. */
export class Bundle {
  static async open(read, where = "the bundle") {
    let manifest;
    try {
      manifest = JSON.parse(new TextDecoder().decode(await read("manifest.json")));
    } catch (error) {
      throw error instanceof RnnEdgeError ? error : new RnnEdgeError(`${where}: manifest.json is not JSON: ${error.message}`, AGAIN);
    }
    if (manifest.format_version !== 1) {
      throw new RnnEdgeError(`${where} has format version ${manifest.format_version}; this engine reads version 1`, "use the engine that belongs to it");
    }
    return new Bundle(read, manifest, where);
  }

  constructor(read, manifest, where) {
    Object.assign(this, { read, manifest, where });
    this.checked = Boolean(globalThis.crypto?.subtle); // which browsers keep from pages that come without TLS
  }

  /** The bytes of a file that the manifest lists. Throws where they are not the ones that it names. */
  async file(name) {
    const entry = this.manifest.files?.[name];
    if (!entry) throw new RnnEdgeError(`the manifest of ${this.where} does not list ${name}`, AGAIN);
    const content = await this.read(name);
    if (content.length !== entry.size) {
      throw new RnnEdgeError(`${name} has ${content.length} bytes, not ${entry.size}: truncated or changed`, AGAIN);
    }
    if (this.checked) {
      const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
      const hexadecimal = Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
      if (hexadecimal !== entry.sha256) throw new RnnEdgeError(`${name} has changed: its SHA-256 is not the manifest's`, AGAIN);
    }
    return content;
  }

  async json(name) {
    return JSON.parse(new TextDecoder().decode(await this.file(name)));
  }
}
