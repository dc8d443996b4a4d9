import { expect, test } from "bun:test";
import { DuetError, RequestError } from "../../src/base/errors.ts";
import { describeFailure, errorBody } from "../../src/server/errors.ts";

test.each([
  [400, "invalid_request_error", null],
  [401, "authentication_error", null],
  [403, "permission_error", null],
  [404, "invalid_request_error", null],
  [413, "invalid_request_error", null],
  [429, "rate_limit_error", 1],
  [503, "server_error", 5],
])("a caller's fault keeps its status: %d", (httpStatus, type, retryAfterSeconds) => {
  expect(describeFailure(new RequestError(httpStatus, "why", "field", "code"))).toEqual({
    httpStatus,
    body: { error: { message: "why", type, param: "field", code: "code" } },
    retryAfterSeconds,
    isUnexpected: false,
  });
});

test("a queue that says how long it needs is believed, rounded up", () => {
  const error = Object.assign(new RequestError(429, "full"), { retryAfterSeconds: 2.1 });
  expect(describeFailure(error).retryAfterSeconds).toBe(3);
});

test("operating failures are ours: 503 when the engine is gone, else 500", () => {
  const lost = describeFailure(new DuetError("engine_unhealthy", "it hangs"));
  expect([lost.httpStatus, lost.retryAfterSeconds, lost.isUnexpected, lost.body.error.code]).toEqual([
    503,
    5,
    true,
    "engine_unhealthy",
  ]);
  const fault = describeFailure(new DuetError("device_fault", "a bit flipped"));
  expect([fault.httpStatus, fault.body.error.type, fault.isUnexpected]).toEqual([500, "server_error", true]);
});

test("a bug says nothing of itself", () => {
  for (const thrown of [
    new Error("secret"),
    new TypeError("secret"),
    "secret",
    null,
    undefined,
    { message: "secret" },
  ]) {
    const failure = describeFailure(thrown);
    expect([failure.httpStatus, failure.isUnexpected]).toEqual([500, true]);
    expect(failure.body.error.message).not.toContain("secret");
    expect(failure.body.error.message).toContain("x-request-id");
  }
});

test("errorBody has all of OpenAI's fields", () => {
  expect(errorBody(400, "m")).toEqual({
    error: { message: "m", type: "invalid_request_error", param: null, code: null },
  });
});
