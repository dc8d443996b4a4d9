// The chosen lengths against a search over all lengths.

import { expect, test } from "bun:test";
import * as fc from "fast-check";
import {
  chooseDraftLengths,
  createDraftLengthScratch,
  type DraftLengthProblem,
} from "../../src/speculative/draft-length.ts";

/** Σ_k Π_{i ≤ k} rate_i: expected accepted tokens of a draft. */
function expectedAccepted(rates: ArrayLike<number>, length: number): number {
  const reach = Array.from({ length }, (_, k) =>
    Array.from(rates)
      .slice(0, k + 1)
      .reduce((product, rate) => product * rate, 1),
  );
  return reach.reduce((sum, each) => sum + each, 0);
}

interface Case {
  readonly rates: readonly (readonly number[])[];
  readonly rowMs: number;
  readonly baseMs: number;
  readonly draftMs: number;
  readonly isCharged: boolean;
  readonly lengthMin: number;
  readonly startMs?: number;
  readonly margin?: number;
}

const STRIDE = 4;

function problemOf({
  rates,
  rowMs,
  baseMs,
  draftMs,
  isCharged,
  lengthMin,
  startMs = 0,
  margin = 0,
}: Case): DraftLengthProblem {
  return {
    sequenceCount: rates.length,
    lengthMin: new Int32Array(rates.length).fill(lengthMin),
    lengthMax: new Int32Array(rates.length).fill(STRIDE),
    isCharged: new Uint8Array(rates.length).fill(isCharged ? 1 : 0),
    startMs: new Float64Array(rates.length).fill(startMs),
    margin,
    rates: Float64Array.from(rates.flat()),
    rateStride: STRIDE,
    baseRows: rates.length,
    baseTokens: rates.length,
    stepMs: (rows) => baseMs + rowMs * rows,
    draftMs: (length) => draftMs * length,
  };
}

function speedOf(problem: DraftLengthProblem, each: Case, lengths: readonly number[]): number {
  const tokens = lengths.reduce((sum, length, s) => sum + 1 + expectedAccepted(each.rates[s]!, length), 0);
  const rows = lengths.reduce((sum, length) => sum + 1 + length, 0);
  const longest = Math.max(...lengths);
  return tokens / (problem.stepMs(rows) + (each.isCharged ? problem.draftMs(longest, 1) : 0));
}

function choose(each: Case): { lengths: number[]; speed: number; problem: DraftLengthProblem } {
  const problem = problemOf(each);
  const out = new Int32Array(each.rates.length);
  const speed = chooseDraftLengths(problem, createDraftLengthScratch(each.rates.length), out);
  return { lengths: [...out], speed, problem };
}

function allLengths(count: number, min: number): number[][] {
  if (count === 0) return [[]];
  const rest = allLengths(count - 1, min);
  return Array.from({ length: STRIDE - min + 1 }, (_, i) => i + min).flatMap((length) =>
    rest.map((tail) => [length, ...tail]),
  );
}

const rate = fc.double({ min: 0, max: 1, noNaN: true });
const row = fc.tuple(rate, rate, rate, rate);
const plain = fc.record({
  rates: fc.array(row, { minLength: 1, maxLength: 3 }),
  rowMs: fc.double({ min: 0.001, max: 3, noNaN: true }),
  baseMs: fc.double({ min: 0.001, max: 10, noNaN: true }),
  draftMs: fc.constant(0),
  isCharged: fc.constant(false),
  lengthMin: fc.constantFrom(0, 1),
});

test("no other lengths are faster when drafting is free", () => {
  fc.assert(
    fc.property(plain, (each) => {
      const { lengths, speed, problem } = choose(each);
      expect(speed).toBeCloseTo(speedOf(problem, each, lengths), 9);
      const best = Math.max(
        ...allLengths(each.rates.length, each.lengthMin).map((other) => speedOf(problem, each, other)),
      );
      expect(speed).toBeGreaterThanOrEqual(best * (1 - 1e-9));
    }),
  );
});

test("no other length is faster for one sequence with a draft model, and zero is a candidate", () => {
  const charged = fc.record({
    rates: fc.array(row, { minLength: 1, maxLength: 1 }),
    rowMs: fc.double({ min: 0.001, max: 3, noNaN: true }),
    baseMs: fc.double({ min: 0.001, max: 10, noNaN: true }),
    draftMs: fc.double({ min: 0, max: 5, noNaN: true }),
    isCharged: fc.constant(true),
    lengthMin: fc.constant(0),
  });
  fc.assert(
    fc.property(charged, (each) => {
      const { speed, problem } = choose(each);
      const best = Math.max(...allLengths(1, 0).map((other) => speedOf(problem, each, other)));
      expect(speed).toBeGreaterThanOrEqual(best * (1 - 1e-9));
    }),
  );
});

test("a row that costs as much as a step is never drafted; a free one always is", () => {
  const rates = [[0.9, 0.9, 0.9, 0.9]];
  const shared = { rates, draftMs: 0, isCharged: false, lengthMin: 0 };
  expect(choose({ ...shared, rowMs: 1, baseMs: 0.01 }).lengths).toEqual([0]);
  expect(choose({ ...shared, rowMs: 0.001, baseMs: 10 }).lengths).toEqual([4]);
});

test("missed tokens and the margin are weighed against the gain", () => {
  const good = { rates: [[0.9, 0.9, 0.9, 0.9]], rowMs: 0.1, baseMs: 10, draftMs: 0.1, isCharged: true, lengthMin: 0 };
  // 1 token in 10.1 ms against 4.1 in 10.9.
  expect(choose(good).lengths).toEqual([4]);
  expect(choose({ ...good, startMs: 20 }).lengths).toEqual([4]);
  expect(choose({ ...good, startMs: 40 }).lengths).toEqual([0]);
  expect(choose({ ...good, margin: 2.5 }).lengths).toEqual([4]);
  expect(choose({ ...good, margin: 3 }).lengths).toEqual([0]);
});
