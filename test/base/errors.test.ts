import { expect, test } from "bun:test";
import { assert, AssertionError, defined } from "../../src/base/assert.ts";
import { DuetError, RequestError } from "../../src/base/errors.ts";

test("an operating failure says what, where, expected, got and what to do next, on one line", () => {
  const cause = new Error("EIO");
  const error = new DuetError(
    "container_truncated",
    "the container is truncated",
    {
      where: "x.duet",
      expected: "10 bytes",
      got: "9",
      next: "copy it again",
    },
    { cause },
  );
  expect(error.message).toBe(
    "the container is truncated; where: x.duet; expected: 10 bytes; got: 9; next: copy it again",
  );
  expect(error.code).toBe("container_truncated");
  expect(error.cause).toBe(cause);
});

test("a caller's fault carries its status and field", () => {
  expect(new RequestError(400, "n: expected 1 to 8, got 9", "n")).toMatchObject({
    httpStatus: 400,
    param: "n",
    code: null,
  });
});

test("assertions throw their message and nothing else", () => {
  expect(() => assert(false, "blocks add up")).toThrow(new AssertionError("blocks add up"));
  expect(() => assert(true, "never")).not.toThrow();
  expect(defined(0)).toBe(0);
  expect(() => defined(undefined, "the slot")).toThrow("the slot is missing");
});
