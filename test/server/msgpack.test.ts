import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { RequestError } from "../../src/base/errors.ts";
import { DEPTH_MAX } from "../../src/server/json-guard.ts";
import { decodeMsgpack, encodeMsgpack } from "../../src/server/msgpack.ts";
import { createFixture, json } from "./fixture.ts";

const bytes = (...values: (number | string)[]) =>
  Uint8Array.from(
    values.flatMap((value) => (typeof value === "number" ? [value] : [...new TextEncoder().encode(value)])),
  );

/** {"a":{"a":… */
const nestedMaps = (depth: number) => Uint8Array.from({ length: 3 * depth }, (_, i) => [0x81, 0xa1, 0x61][i % 3]!);

function refusal(input: Uint8Array): string {
  try {
    const value = decodeMsgpack(input);
    throw new Error(`expected a refusal, got ${JSON.stringify(value)}`);
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    expect(error.httpStatus).toBe(400);
    expect(error.message.length).toBeLessThan(250);
    return error.message;
  }
}

test("what is encoded is decoded the same", () => {
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 6 }), (value) => {
      // Both carry numbers as doubles; -0 has no JSON.
      expect(decodeMsgpack(encodeMsgpack(value))).toEqual(JSON.parse(JSON.stringify(value)));
    }),
  );
});

test.each<[string, Uint8Array, unknown]>([
  ["positive fixint", bytes(0x7f), 127],
  ["negative fixint", bytes(0xe0), -32],
  ["uint 8", bytes(0xcc, 0xff), 255],
  ["uint 16", bytes(0xcd, 1, 0), 256],
  ["uint 32", bytes(0xce, 0xff, 0xff, 0xff, 0xff), 2 ** 32 - 1],
  ["uint 64", bytes(0xcf, 0, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), 2 ** 53 - 1],
  ["int 8", bytes(0xd0, 0x80), -128],
  ["int 16", bytes(0xd1, 0x80, 0), -32768],
  ["int 32", bytes(0xd2, 0x80, 0, 0, 0), -(2 ** 31)],
  ["int 64", bytes(0xd3, 0xff, 0xe0, 0, 0, 0, 0, 0, 1), -(2 ** 53 - 1)],
  ["float 32", bytes(0xca, 0x3f, 0xc0, 0, 0), 1.5],
  ["float 64", bytes(0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0), 1.5],
  ["str 8", bytes(0xd9, 2, "hi"), "hi"],
  ["str 16", bytes(0xda, 0, 2, "hi"), "hi"],
  ["str 32", bytes(0xdb, 0, 0, 0, 2, "hi"), "hi"],
  ["array 16", bytes(0xdc, 0, 1, 0xc0), [null]],
  ["array 32", bytes(0xdd, 0, 0, 0, 1, 0xc2), [false]],
  ["map 16", bytes(0xde, 0, 1, 0xa1, "a", 0xc3), { a: true }],
  ["map 32", bytes(0xdf, 0, 0, 0, 1, 0xa1, "a", 1), { a: 1 }],
])("%s", (_name, input, value) => {
  expect(decodeMsgpack(input)).toEqual(value);
});

describe("refused", () => {
  test.each<[string, Uint8Array, string]>([
    ["nothing", bytes(), "ends at byte 0"],
    [
      "an array of 2^32 - 1 in 5 bytes",
      bytes(0xdd, 0xff, 0xff, 0xff, 0xff),
      "an array of 4294967295 items does not fit",
    ],
    ["a map of 2^32 - 1 in 5 bytes", bytes(0xdf, 0xff, 0xff, 0xff, 0xff), "a map of 4294967295 entries does not fit"],
    ["a map of one entry in one byte", bytes(0x81, 0xa0), "does not fit"],
    ["text of 4 GiB in 6 bytes", bytes(0xdb, 0xff, 0xff, 0xff, 0xff, "x"), "in the middle of a value"],
    ["text cut short", bytes(0xa5, "hell"), "in the middle of a value"],
    ["a number cut short", bytes(0xcb, 0, 0), "in the middle of a value"],
    ["depth 100,000", new Uint8Array(100_000).fill(0x91), `nested deeper than ${DEPTH_MAX}`],
    ["maps of depth 100,000", nestedMaps(100_000), "nested deeper"],
    ["a timestamp", bytes(0xd6, 0xff, 0, 0, 0, 0), "type byte 0xd6 (extension types"],
    ["a fixext", bytes(0xd4, 1, 0), "extension types"],
    ["an ext of 4 GiB", bytes(0xc9, 0xff, 0xff, 0xff, 0xff, 1), "extension types"],
    ["msgpackr's records", bytes(0xd4, 0x72, 0x40, 0x91, 0xa1, "a", 1), "extension types"],
    ["the reserved byte", bytes(0xc1), "type byte 0xc1"],
    ["a binary", bytes(0xc4, 1, 0), "binary values"],
    ["a number as key", bytes(0x81, 1, 1), "key that is not text"],
    ["an array as key", bytes(0x81, 0x90, 1), "key that is not text"],
    ["a field twice", bytes(0x82, 0xa1, "a", 1, 0xa1, "a", 2), 'the field "a" occurs twice'],
    ["bad UTF-8", bytes(0xa2, 0xc0, 0x80), "is not UTF-8"],
    ["a surrogate", bytes(0xa3, 0xed, 0xa0, 0x80), "is not UTF-8"],
    ["2^53", bytes(0xcf, 0, 0x20, 0, 0, 0, 0, 0, 0), "beyond 2^53 - 1"],
    ["-2^63", bytes(0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0), "beyond 2^53 - 1"],
    ["a second value", bytes(0xc0, 0xc0), "1 bytes follow the value"],
  ])("%s", (_name, input, message) => {
    expect(refusal(input)).toContain(message);
  });

  test("a body of nested maximal claims is refused at the first, without allocating for it", () => {
    const input = new Uint8Array(8 * 1024 * 1024).fill(0xdd);
    expect(refusal(input)).toContain("does not fit");
  });

  test("any bytes decode or are refused, nothing else", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (input) => {
        try {
          decodeMsgpack(input);
        } catch (error) {
          expect(error).toBeInstanceOf(RequestError);
        }
      }),
      { numRuns: 2000 },
    );
  });
});

test("__proto__ is a field like any other, and refused as unknown", async () => {
  const input = bytes(0x81, 0xa9, "__proto__", 0x81, 0xa1, "n", 3);
  expect(Object.keys(decodeMsgpack(input) as object)).toEqual(["__proto__"]);
  expect((decodeMsgpack(input) as { n?: number }).n).toBeUndefined();
  const body = bytes(0x82, 0xa6, "prompt", 0xa1, "x", 0xa9, "__proto__", 0x81, 0xa1, "n", 3);
  const response = await createFixture().post("/v1/completions", body, { "content-type": "application/msgpack" });
  expect((await json(response)).error.param).toBe("__proto__");
});

test("NaN and infinities reach the schema, which refuses them", async () => {
  for (const temperature of [NaN, Infinity, -Infinity]) {
    const body = encodeMsgpack({ prompt: "x", temperature });
    const response = await createFixture().post("/v1/completions", body, { "content-type": "application/msgpack" });
    const { error } = await json(response);
    expect([response.status, error.message]).toEqual([
      400,
      `temperature: expected a number from 0 to 100, got ${temperature}`,
    ]);
  }
});

test("a float that is whole counts as an integer", async () => {
  const { post, engine } = createFixture();
  const body = bytes(0x82, 0xa6, "prompt", 0xa1, "x", 0xaa, "max_tokens", 0xcb, 0x40, 0x14, 0, 0, 0, 0, 0, 0);
  expect((await post("/v1/completions", body, { "content-type": "application/msgpack" })).status).toBe(200);
  expect(engine.last.outputTokenMax).toBe(5);
});
