// How pieces spell bytes.

import { expect, test } from "bun:test";
import * as fc from "fast-check";
import { BYTE_CHARACTERS, pieceBytes, TokenBytes } from "../../src/tokenizer/token-bytes.ts";

test("the byte characters are 256 different ones, with GPT-2's well-known spellings", () => {
  expect(new Set(BYTE_CHARACTERS).size).toBe(256);
  expect([0x20, 0x0a, 0x41, 0x00, 0xad, 0x7f].map((byte) => BYTE_CHARACTERS[byte])).toEqual([
    "Ġ",
    "Ċ",
    "A",
    "Ā",
    "Ń",
    "ġ",
  ]);
});

test("byte-level pieces are inverted exactly", () => {
  fc.assert(
    fc.property(fc.uint8Array(), (bytes) => {
      const piece = Array.from(bytes, (byte) => BYTE_CHARACTERS[byte]).join("");
      expect(pieceBytes(piece, { kind: "byteLevel" })).toEqual(bytes);
    }),
  );
  expect(pieceBytes("中Ġ", { kind: "byteLevel" })).toEqual(new TextEncoder().encode("中Ġ"));
});

test("byte-fallback pieces are single bytes or text", () => {
  const spelling = { kind: "byteFallback", replacements: [["▁", " "]] } as const;
  expect(pieceBytes("<0xE4>", spelling)).toEqual(Uint8Array.of(0xe4));
  expect(pieceBytes("▁fox▁é", spelling)).toEqual(new TextEncoder().encode(" fox é"));
  expect(pieceBytes("<0xE4", spelling)).toEqual(new TextEncoder().encode("<0xE4"));
});

test("the slab gives back what was put in, empty tokens included", () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 5 })), (tokens) => {
      const slab = new TokenBytes(tokens);
      for (const [id, bytes] of tokens.entries()) expect(slab.get(id)).toEqual(bytes);
    }),
  );
});
