import { describe, expect, test } from "bun:test";
import { z } from "zod";
import { RequestError } from "../../src/base/errors.ts";
import {
  echo,
  expected,
  flag,
  formatPath,
  integer,
  list,
  number,
  optional,
  parseFields,
  text,
  unsupported,
} from "../../src/server/fields.ts";

function refusal<T extends z.ZodType>(schema: T, value: unknown): RequestError {
  try {
    parseFields(schema, value);
  } catch (error) {
    if (error instanceof RequestError) return error;
    throw error;
  }
  throw new Error("expected a refusal");
}

test.each<[unknown, string]>([
  [undefined, "nothing"],
  [null, "null"],
  [[1, 2], "an array of 2"],
  [{ a: 1 }, "an object"],
  [1.5, "1.5"],
  [NaN, "NaN"],
  [false, "false"],
  ["a\nb", '"a\\nb"'],
  ["x".repeat(60), JSON.stringify("x".repeat(60))],
  ["x".repeat(61), `${JSON.stringify("x".repeat(60))}… (61 characters)`],
])("echo(%p)", (value, shown) => {
  expect(echo(value)).toBe(shown);
});

test("formatPath", () => {
  expect(formatPath([])).toBe("");
  expect(formatPath(["messages", 0, "content", 1, "text"])).toBe("messages[0].content[1].text");
});

describe("parseFields", () => {
  const schema = z.strictObject(
    { a: optional(integer(1, 3)), b: z.strictObject({ c: optional(flag) }).optional() },
    expected("an object"),
  );

  test("gives what the schema makes of the value", () => {
    expect(parseFields(schema, { a: 2, b: { c: null } })).toEqual({ a: 2, b: { c: undefined } });
    expect(parseFields(schema, { a: null })).toEqual({ a: undefined });
  });

  test("names the field, and unknown ones by their path", () => {
    expect(refusal(schema, { a: 4 })).toMatchObject({
      httpStatus: 400,
      param: "a",
      code: "invalid_value",
      message: "a: expected an integer from 1 to 3, got 4",
    });
    expect(refusal(schema, { b: { d: 1 } })).toMatchObject({
      param: "b.d",
      code: "unknown_field",
      message: 'unknown field "b.d"',
    });
    expect(refusal(schema, 5)).toMatchObject({ param: null, message: "the body: expected an object, got 5" });
  });
});

test("number and integer refuse what is not finite", () => {
  for (const value of [NaN, Infinity, -Infinity, "1", null, undefined, 2n]) {
    expect(refusal(number(0, 1), value).message).toContain("expected a number from 0 to 1");
    expect(refusal(integer(0, 1), value).message).toContain("expected an integer from 0 to 1");
  }
});

test("text is well-formed and as short as asked", () => {
  expect(parseFields(text(3), "a😀")).toBe("a😀");
  for (const value of ["\ud800", "\udc00a", "a\ud83d"])
    expect(refusal(text(), value).message).toContain("unpaired surrogate");
  expect(refusal(text(3), "abcd").message).toContain('expected a string of at most 3 characters, got "abcd"');
});

test("a list's length is checked before its items", () => {
  let itemCount = 0;
  const item = z.unknown().refine(() => (itemCount += 1) > 0);
  const schema = list(item, 1, 2, "things");
  expect(refusal(schema, new Array(1000).fill(0)).message).toContain(
    "expected an array of 1 to 2 things, got an array of 1000",
  );
  expect(refusal(schema, []).message).toContain("got an array of 0");
  expect(itemCount).toBe(0);
  expect(parseFields(schema, [1, 2])).toEqual([1, 2]);
  expect(itemCount).toBe(2);
});

test("unsupported fields pass when they ask for nothing", () => {
  const schema = z.strictObject({
    tools: unsupported("an empty array", (value) => Array.isArray(value) && value.length === 0),
  });
  for (const value of [{}, { tools: null }, { tools: [] }]) expect(() => parseFields(schema, value)).not.toThrow();
  expect(refusal(schema, { tools: [1] }).message).toBe(
    "tools: not supported by this server; expected an empty array, got an array of 1",
  );
});
