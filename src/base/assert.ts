// Assertions: a failed one is a bug in Duet, never the caller's fault.

export class AssertionError extends Error {
  override readonly name = "AssertionError";
}

/** Throws AssertionError when `condition` is false. The message says what should have held. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}

/** The value, or AssertionError when it is undefined or null. For indexed access whose index is known to be valid. */
export function defined<T>(value: T | undefined | null, what = "value"): T {
  if (value === undefined || value === null) throw new AssertionError(`${what} is missing`);
  return value;
}

/** Marks a branch that the types rule out. */
export function unreachable(value: never, what = "case"): never {
  throw new AssertionError(`unexpected ${what}: ${String(value)}`);
}
