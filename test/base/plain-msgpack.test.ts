import { expect, test } from "bun:test";
import fc from "fast-check";
import { Packr } from "msgpackr";
import { decodePlainMsgpack, MsgpackError } from "../../src/base/plain-msgpack.ts";

const packr = new Packr({ useRecords: false, variableMapSize: true });

/** JSON-like values; keys that are refused on purpose are left out. */
const plain = fc.letrec((tie) => ({
  value: fc.oneof(
    { maxDepth: 5 },
    fc.constantFrom(null, true, false),
    fc.string({ maxLength: 300 }),
    fc.maxSafeInteger(),
    fc.integer({ min: -70000, max: 70000 }),
    fc.double({ noNaN: true }),
    fc.array(tie("value"), { maxLength: 20 }),
    fc.dictionary(fc.string(), tie("value"), { maxKeys: 20 }),
  ),
})).value;

test("decodes what msgpackr encodes", () => {
  fc.assert(
    fc.property(plain, (value) => {
      expect(JSON.stringify(decodePlainMsgpack(packr.pack(value)))).toBe(JSON.stringify(value));
    }),
    { numRuns: 300 },
  );
  const long = { text: "x".repeat(70000), many: Array.from({ length: 70000 }, (_, i) => i) };
  expect(decodePlainMsgpack(packr.pack(long))).toEqual(long);
});

test("arbitrary bytes give a value or a MsgpackError", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
      try {
        decodePlainMsgpack(bytes);
      } catch (error) {
        expect(error).toBeInstanceOf(MsgpackError);
      }
    }),
    { numRuns: 2000 },
  );
});

const bytes = (...list: number[]) => Uint8Array.from(list);

test.each<[string, Uint8Array, string]>([
  ["nothing", bytes(), "in the middle of a value"],
  ["bytes left over", bytes(1, 2), "bytes follow the value"],
  ["an extension", bytes(0xd4, 0x65, 0), "type byte 0xd4"],
  ["binary", bytes(0xc4, 0), "binary values have no meaning"],
  ["an undefined code", bytes(0xc1), "type byte 0xc1"],
  ["a date", packr.pack(new Date(0)), "extension types are not accepted"],
  ["an array of 2^32 − 1", bytes(0xdd, 255, 255, 255, 255), "does not fit into what is left"],
  ["a map of 2^32 − 1", bytes(0xdf, 255, 255, 255, 255), "does not fit into what is left"],
  ["a string past the end", bytes(0xdb, 0, 0, 1, 0, 65), "in the middle of a value"],
  ["a string that is not UTF-8", bytes(0xa1, 0xff), "not UTF-8"],
  ["an integer beyond 2^53", bytes(0xcf, 0, 0x20, 0, 0, 0, 0, 0, 0), "beyond 2^53"],
  ["a key that is no string", bytes(0x81, 1, 1), "a key that is not text"],
  ["a repeated key", bytes(0x82, 0xa1, 65, 1, 0xa1, 65, 2), "occurs twice"],
  ["deep nesting", new Uint8Array(100).fill(0x91), "nested deeper than 16 levels"],
])("%s is refused", (_, input, message) => {
  expect(() => decodePlainMsgpack(input)).toThrow(MsgpackError);
  expect(() => decodePlainMsgpack(input)).toThrow(message);
});

test("names of Object.prototype are ordinary keys", () => {
  expect(Object.entries(decodePlainMsgpack(packr.pack({ constructor: 1, toString: 2 })) as object)).toEqual([
    ["constructor", 1],
    ["toString", 2],
  ]);
});
