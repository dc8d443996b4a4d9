// Pushing tokens one by one gives the text of all bytes at once, for any ids, and never half a character.

import { expect, test } from "bun:test";
import * as fc from "fast-check";
import { defined } from "../../src/base/assert.ts";
import { RequestError } from "../../src/base/errors.ts";
import { Detokenizer } from "../../src/tokenizer/detokenizer.ts";
import { fableTokenizer } from "./fixtures/fable.ts";

const tokenizer = fableTokenizer();
/** Tokens 4 to 259 are the single bytes in the order of their characters. */
const idOfByte = new Map(Array.from({ length: 256 }, (_, i) => [tokenizer.tokenBytes(4 + i)[0], 4 + i]));
const idOf = (byte: number) => defined(idOfByte.get(byte));

function pushAll(ids: readonly number[], keepSpecial = false): string[] {
  const detokenizer = new Detokenizer(tokenizer, { keepSpecial });
  return [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()];
}

test("text comes back in whole code points, with nothing left over", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (text) => {
      const pieces = pushAll(tokenizer.encode(text, { allowSpecial: false }));
      expect(pieces.join("")).toBe(text);
      expect(pieces.at(-1)).toBe("");
      for (const piece of pieces) expect(piece.isWellFormed()).toBe(true);
    }),
  );
});

test("arbitrary ids give what decoding all at once gives", () => {
  fc.assert(
    fc.property(fc.array(fc.nat({ max: 4095 })), fc.boolean(), (ids, keepSpecial) => {
      expect(pushAll(ids, keepSpecial).join("")).toBe(tokenizer.decode(ids, { skipSpecial: !keepSpecial }));
    }),
  );
});

test("arbitrary bytes are replaced as the Encoding Standard says, and shown as soon as they are decided", () => {
  const edges = fc.constantFrom(
    0x41,
    0x80,
    0x8f,
    0x90,
    0x9f,
    0xa0,
    0xbf,
    0xc0,
    0xc2,
    0xe0,
    0xe1,
    0xed,
    0xf0,
    0xf1,
    0xf4,
    0xf5,
  );
  fc.assert(
    fc.property(fc.array(edges, { maxLength: 12 }), (bytes) => {
      const pieces = pushAll(bytes.map(idOf));
      const whole = new TextDecoder("utf-8", { ignoreBOM: true });
      expect(pieces.join("")).toBe(whole.decode(Uint8Array.from(bytes)));
      const streaming = new TextDecoder("utf-8", { ignoreBOM: true });
      const streamed = bytes.map((byte) => streaming.decode(Uint8Array.of(byte), { stream: true }));
      expect(pieces).toEqual([...streamed, streaming.decode()]);
    }),
    { numRuns: 2000 },
  );
});

test("special tokens are skipped even inside a character, or kept", () => {
  const [first, second] = [idOf(0xc3), idOf(0xa9)];
  expect(pushAll([first, 1, second])).toEqual(["", "", "é", ""]);
  expect(pushAll([first, 1], true)).toEqual(["", "\uFFFD<|user|>", ""]);
  expect(pushAll([first])).toEqual(["", "\uFFFD"]);
});

test("an id out of range is refused", () => {
  expect(() => new Detokenizer(tokenizer).push(4096)).toThrow(RequestError);
});
