// The exact bytes of every token, in one slab. Knows the two ways in which vocabularies spell bytes: byte-level (every
// byte is one printable character, as GPT-2 does it) and byte fallback (text, with `<0xNN>` for single bytes).

import { defined } from "../base/assert.ts";

/** How pieces spell bytes. `replacements` are applied to the text of byte-fallback pieces, e.g. U+2581 to a space. */
export type PieceSpelling =
  | { readonly kind: "byteLevel" }
  | { readonly kind: "byteFallback"; readonly replacements: readonly (readonly [from: string, to: string])[] };

/**
 * The character that stands for each byte in byte-level vocabularies (GPT-2's bytes_to_unicode): printable Latin-1 stands for
 * itself, the other 68 bytes for U+0100 onwards in ascending order.
 */
export const BYTE_CHARACTERS: readonly string[] = (() => {
  let shifted = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const isPrintable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCharCode(isPrintable ? byte : shifted++);
  });
})();

const BYTE_OF_CHARACTER = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));
const encoder = new TextEncoder();

/** The bytes that a piece of the model's vocabulary stands for. */
export function pieceBytes(piece: string, spelling: PieceSpelling): Uint8Array {
  if (spelling.kind === "byteLevel") {
    const bytes = new Uint8Array(piece.length);
    for (let i = 0; i < piece.length; i++) {
      const byte = BYTE_OF_CHARACTER.get(piece.charAt(i));
      // As the reference implementation does: a piece with a foreign character is plain text as a whole.
      if (byte === undefined) return encoder.encode(piece);
      bytes[i] = byte;
    }
    return bytes;
  }
  const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(piece)?.[1];
  if (byte !== undefined) return Uint8Array.of(Number.parseInt(byte, 16));
  let text = piece;
  for (const [from, to] of spelling.replacements) text = text.replaceAll(from, to);
  return encoder.encode(text);
}

/** Bytes by token id, stored one after another. */
export class TokenBytes {
  readonly #bytes: Uint8Array;
  readonly #offsets: Uint32Array;

  constructor(bytesById: readonly Uint8Array[]) {
    this.#offsets = new Uint32Array(bytesById.length + 1);
    for (const [id, bytes] of bytesById.entries()) {
      this.#offsets[id + 1] = defined(this.#offsets[id]) + bytes.length;
    }
    this.#bytes = new Uint8Array(defined(this.#offsets.at(-1)));
    for (const [id, bytes] of bytesById.entries()) this.#bytes.set(bytes, this.#offsets[id]);
  }

  /** A view of the token's bytes; not to be written to. `id` must be in range. */
  get(id: number): Uint8Array {
    return this.#bytes.subarray(this.#offsets[id], this.#offsets[id + 1]);
  }
}
