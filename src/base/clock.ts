// The clock as a value, so that tests can hand in their own.

/** Monotonic milliseconds, and wall-clock seconds since 1970. */
export interface Clock {
  nowMs(): number;
  wallSeconds(): number;
}

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  wallSeconds: () => Math.floor(Date.now() / 1000),
};
