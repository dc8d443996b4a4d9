// Asserts on the code and text of a DuetError.

import { expect } from "bun:test";
import { DuetError, type DuetErrorCode } from "../../src/base/errors.ts";

/** `action` must throw a DuetError of this code whose message contains every text. */
export function expectDuetError(action: () => unknown, code: DuetErrorCode, ...texts: readonly string[]): void {
  let caught: unknown;
  try {
    action();
  } catch (error) {
    caught = error;
  }
  expect(caught).toBeInstanceOf(DuetError);
  const error = caught as DuetError;
  expect(error.code).toBe(code);
  for (const text of texts) expect(error.message).toContain(text);
}
