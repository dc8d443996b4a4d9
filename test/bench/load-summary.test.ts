import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { feltOf, gapsOf, meetsSlo, percentilesOf, summarise } from "../../src/bench/load-summary.ts";
import { INTERRUPTED, type LoadRecord, UNFINISHED } from "../../src/bench/open-loop.ts";
import { failedAnswer, type StreamAnswer } from "../../src/bench/stream-answer.ts";

const NO_LIMITS = { ttftMs: null, tpotMs: null, endToEndMs: null };
let nextIndex = 0;

function record(arrivalMs: number, answer: Partial<StreamAnswer>, sentMs: number | null = arrivalMs): LoadRecord {
  const base = { promptTokens: 5, outputTokens: 5, index: nextIndex++, arrivalMs, sentMs };
  return { ...base, answer: { ...failedAnswer(""), failure: null, ...answer } };
}

/** First chunk after `ttftMs`, then one every `gapMs`. */
function steady(arrivalMs: number, ttftMs: number, gapMs: number, tokens: number): LoadRecord {
  const chunkMs = Array.from({ length: tokens }, (_, i) => arrivalMs + ttftMs + i * gapMs);
  return record(arrivalMs, {
    chunkMs,
    endMs: chunkMs.at(-1)!,
    outputTokens: tokens,
    promptTokens: 10,
    cachedTokens: 0,
  });
}

describe("what a user felt", () => {
  test("counts from the intended arrival, however late the request was sent", () => {
    const late = record(100, { chunkMs: [350, 450], endMs: 450, outputTokens: 6 }, 300);
    expect(feltOf(late)).toEqual({ ttftMs: 250, tpotMs: 20, endToEndMs: 350 });
  });

  test("one token has no time between tokens; without usage a chunk is a token", () => {
    expect(feltOf(record(0, { chunkMs: [5], endMs: 5, outputTokens: 1 }))?.tpotMs).toBeNull();
    expect(feltOf(record(0, { chunkMs: [5, 15, 25], endMs: 25 }))?.tpotMs).toBe(10);
  });

  test("nothing, of an answer that is not whole", () => {
    expect(feltOf(record(0, { chunkMs: [5], endMs: 5, failure: "HTTP 500" }))).toBeNull();
  });

  test("good is what meets every limit that there is", () => {
    const felt = { ttftMs: 500, tpotMs: 50, endToEndMs: 1000 };
    expect(meetsSlo(felt, NO_LIMITS)).toBe(true);
    expect(meetsSlo(felt, { ttftMs: 500, tpotMs: 50, endToEndMs: 1000 })).toBe(true);
    for (const tight of [{ ttftMs: 499 }, { tpotMs: 49 }, { endToEndMs: 999 }]) {
      expect(meetsSlo(felt, { ...NO_LIMITS, ...tight })).toBe(false);
    }
    expect(meetsSlo({ ...felt, tpotMs: null }, { ...NO_LIMITS, tpotMs: 1 })).toBe(true);
  });
});

test("percentiles of a known sample", () => {
  const values = Array.from({ length: 101 }, (_, i) => i);
  expect(percentilesOf(values)).toEqual({ p50: 50, p90: 90, p99: 99, max: 100, count: 101 });
  expect(percentilesOf([])).toBeNull();
  expect(gapsOf([1, 4, 9])).toEqual([3, 5]);
  expect(gapsOf([1])).toEqual([]);
});

describe("a window", () => {
  test("has the requests that arrived within it, and the tokens that came within it", () => {
    const records = [
      // Warm-up, whose last two tokens and end fall into the window [1000, 3000).
      steady(900, 50, 50, 4),
      steady(1000, 100, 10, 11),
      steady(2000, 600, 10, 11),
      // Its tokens come after the window, it counts in TTFT all the same.
      steady(2900, 200, 10, 11),
      record(2500, { failure: "HTTP 429", failureMessage: "full" }),
      record(2600, { failure: "HTTP 429" }),
      record(2700, { failure: UNFINISHED }, null),
      record(2800, { failure: INTERRUPTED }),
      steady(3000, 100, 10, 11),
    ];
    const summary = summarise(records, 4, { fromMs: 1000, toMs: 3000 }, { ...NO_LIMITS, ttftMs: 500, tpotMs: 50 });
    expect(summary).toMatchObject({
      rate: 4,
      windowSeconds: 2,
      arrivedCount: 7,
      wholeCount: 3,
      withinSloCount: 2,
      interruptedCount: 1,
      failures: [
        { kind: "HTTP 429", count: 2, message: "full" },
        { kind: "unfinished", count: 1, message: null },
      ],
      // Ends at 1100, 1200 and 2700.
      requestsPerSecond: 1.5,
      goodputPerSecond: 1,
      outputTokensPerSecond: (3 + 11 + 11) / 2,
      tokensPerChunk: 1,
      promptTokensMean: 10,
      outputTokensMean: 11,
      cachedTokensMean: 0,
    });
    expect(summary.ttftMs).toMatchObject({ p50: 200, max: 600, count: 3 });
    expect(summary.tpotMs).toMatchObject({ p50: 10, p99: 10 });
    expect(summary.itlMs).toMatchObject({ p50: 10, count: 30 });
    expect(summary.sendDelayMs).toMatchObject({ max: 0, count: 6 });
  });

  test("of nothing is empty and not NaN", () => {
    const summary = summarise([], 1, { fromMs: 0, toMs: 1000 }, NO_LIMITS);
    expect(JSON.stringify(summary)).not.toContain("NaN");
    expect(summary).toMatchObject({ arrivedCount: 0, ttftMs: null, outputTokensPerSecond: 0, tokensPerChunk: null });
  });

  test("tokens of a chunk: an answer's own share, or the others' mean where usage is missing", () => {
    const known = record(0, { chunkMs: [10, 20], endMs: 20, outputTokens: 8 });
    const cut = record(0, { chunkMs: [30, 40, 50], endMs: 50, failure: UNFINISHED });
    const { outputTokensPerSecond } = summarise([known, cut], 1, { fromMs: 0, toMs: 1000 }, NO_LIMITS);
    expect(outputTokensPerSecond).toBe(8 + 3 * 4);
  });
});

test("goodput never exceeds what arrived, and every request is counted once", () => {
  const anyRecord = fc
    .record({
      arrivalMs: fc.integer({ min: 0, max: 2000 }),
      ttftMs: fc.integer({ min: 0, max: 1000 }),
      gapMs: fc.integer({ min: 0, max: 100 }),
      tokens: fc.integer({ min: 1, max: 20 }),
      failure: fc.constantFrom(null, null, "HTTP 500", UNFINISHED, INTERRUPTED),
    })
    .map(({ arrivalMs, ttftMs, gapMs, tokens, failure }) => {
      const whole = steady(arrivalMs, ttftMs, gapMs, tokens);
      return failure === null ? whole : { ...whole, answer: { ...whole.answer, failure } };
    });
  fc.assert(
    fc.property(fc.array(anyRecord, { maxLength: 40 }), fc.integer({ min: 1, max: 500 }), (records, limit) => {
      const window = { fromMs: 500, toMs: 1500 };
      const at = (ttftMs: number) => summarise(records, 1, window, { ...NO_LIMITS, ttftMs });
      const summary = at(limit);
      const failed = summary.failures.reduce((sum, { count }) => sum + count, 0);
      expect(summary.wholeCount + failed + summary.interruptedCount).toBe(summary.arrivedCount);
      expect(summary.withinSloCount).toBeLessThanOrEqual(summary.wholeCount);
      expect(at(limit * 2).withinSloCount).toBeGreaterThanOrEqual(summary.withinSloCount);
      if (summary.ttftMs !== null) {
        const { p50, p90, p99, max } = summary.ttftMs;
        expect([p50, p90, p99, max]).toEqual([p50, p90, p99, max].toSorted((a, b) => a - b));
      }
    }),
  );
});
