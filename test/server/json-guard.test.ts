import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { RequestError } from "../../src/base/errors.ts";
import { DEPTH_MAX, guardJson } from "../../src/server/json-guard.ts";

function refusal(text: string, depthMax?: number): RequestError | null {
  try {
    guardJson(text, depthMax);
    return null;
  } catch (error) {
    if (error instanceof RequestError) return error;
    throw error;
  }
}

describe("depth", () => {
  test("the limit passes, one more does not, in arrays and objects", () => {
    expect(refusal("[".repeat(DEPTH_MAX) + "]".repeat(DEPTH_MAX))).toBeNull();
    expect(refusal("[".repeat(DEPTH_MAX + 1))?.httpStatus).toBe(400);
    expect(refusal('{"a":'.repeat(DEPTH_MAX) + "1" + "}".repeat(DEPTH_MAX))).toBeNull();
    expect(refusal('{"a":'.repeat(DEPTH_MAX + 1))?.message).toContain(`deeper than ${DEPTH_MAX}`);
  });

  test("brackets in strings do not count, siblings do not add up", () => {
    expect(refusal(`["${"[".repeat(1000)}","\\"${"{".repeat(1000)}"]`)).toBeNull();
    expect(refusal(`[${"[[]],".repeat(1000)}[]]`, 3)).toBeNull();
  });
});

describe("a field twice in one object", () => {
  test.each([
    ['{"a":1,"a":2}', "a"],
    ['{"a":1,"b":{"c":[],"c":0}}', "c"],
    ['[{"x":1},{"x":1,"y":2,"x":3}]', "x"],
    ['{"a":1,"\\u0061":2}', "a"],
    ['{"__proto__":1,"__proto__":2}', "__proto__"],
    ['{"":1,"":2}', ""],
    ['{ "a" : [ {"a":1} ] , "a" : 2 }', "a"],
  ])("%s", (text, param) => {
    expect(refusal(text)?.param).toBe(param);
  });

  test.each([
    '{"a":1,"b":2}',
    '{"a":{"a":{"a":1}}}',
    '[{"a":1},{"a":1}]',
    '{"a":"a","b":"a"}',
    '["a","a"]',
    '{"a":["a","a"],"b":1}',
    '"a"',
    "1",
  ])("not in %s", (text) => expect(refusal(text)).toBeNull());

  test("its name is not echoed whole", () => {
    const key = JSON.stringify("k".repeat(1_000_000));
    const error = refusal(`{${key}:1,${key}:2}`);
    expect([error?.message.length, error?.param?.length].every((length) => length! < 200)).toBe(true);
  });
});

test("any JSON that JSON.stringify writes passes", () => {
  fc.assert(fc.property(fc.json({ maxDepth: 8 }), (text) => refusal(text) === null));
});

test("an object with one of its fields repeated is refused, whatever else it holds", () => {
  const object = fc.dictionary(fc.string(), fc.jsonValue({ maxDepth: 3 }), { minKeys: 1 });
  fc.assert(
    fc.property(object, fc.nat(), (value, pick) => {
      const keys = Object.keys(value);
      const again = `${JSON.stringify(keys[pick % keys.length])}:0`;
      return refusal(`${JSON.stringify(value).slice(0, -1)},${again}}`)?.httpStatus === 400;
    }),
  );
});

test("malformed text is left to JSON.parse", () => {
  fc.assert(
    fc.property(fc.string({ unit: fc.constantFrom(...'{}[]",:\\a1 ') }), (text) => {
      const error = refusal(text);
      return error === null || error.message.includes("twice");
    }),
  );
});
