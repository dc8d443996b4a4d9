import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { mannWhitneyP, quantile, spreadOf } from "../../src/bench/statistics.ts";

test("quantiles interpolate between order statistics", () => {
  expect(quantile([3, 1, 2], 0.5)).toBe(2);
  expect(quantile([4, 1, 3, 2], 0.5)).toBe(2.5);
  expect(quantile([10, 20], 0.25)).toBe(12.5);
  expect(quantile([7], 0.99)).toBe(7);
  expect(quantile([], 0.5)).toBeNaN();
});

test("quantiles lie within the sample, and rise with p", () => {
  fc.assert(
    fc.property(
      fc.array(fc.double({ min: -1e6, max: 1e6, noNaN: true }), { minLength: 1 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      (values, p, q) => {
        const [low, high] = [quantile(values, Math.min(p, q)), quantile(values, Math.max(p, q))];
        expect(low).toBeLessThanOrEqual(high + 1e-6);
        expect(low).toBeGreaterThanOrEqual(Math.min(...values));
        expect(high).toBeLessThanOrEqual(Math.max(...values));
      },
    ),
  );
});

test("a spread is a median between its extremes", () => {
  expect(spreadOf([5, 1, 9])).toEqual({ median: 5, low: 1, high: 9, count: 3 });
});

describe("Mann-Whitney", () => {
  test("exact values of small samples", () => {
    // All of one sample below the other: two of C(6, 3) = 20 and of C(10, 5) = 252 orders are as extreme.
    expect(mannWhitneyP([1, 2, 3], [4, 5, 6])).toBeCloseTo(2 / 20, 12);
    expect(mannWhitneyP([1, 2, 3, 4, 5], [6, 7, 8, 9, 10])).toBeCloseTo(2 / 252, 12);
    // U = 2 with n = m = 3: orders with U = 0, 1, 2 are 1, 1, 2 of 20.
    expect(mannWhitneyP([1, 2, 5], [3, 4, 6])).toBeCloseTo(8 / 20, 12);
  });

  test("the approximation meets the exact test where they change places", () => {
    const a = Array.from({ length: 20 }, (_, i) => i * 1.1);
    const b = Array.from({ length: 20 }, (_, i) => i * 1.1 + 5.05);
    const exact = mannWhitneyP(a, b);
    // A tie within one sample leaves U as it is, and the exact way is closed.
    const approximate = mannWhitneyP([0, 0, ...a.slice(2)], b);
    expect(exact).toBeLessThan(0.05);
    expect(Math.abs(exact - approximate)).toBeLessThan(0.002);
  });

  test("equal samples show nothing, nor do empty ones", () => {
    expect(mannWhitneyP([2, 2, 2], [2, 2, 2])).toBe(1);
    expect(mannWhitneyP([], [1])).toBe(1);
  });

  test("it is a probability, and the same both ways round", () => {
    const sample = fc.array(fc.integer({ min: 0, max: 30 }), { minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(sample, sample, (a, b) => {
        const p = mannWhitneyP(a, b);
        expect(p).toBeGreaterThan(0);
        expect(p).toBeLessThanOrEqual(1);
        expect(mannWhitneyP(b, a)).toBeCloseTo(p, 10);
      }),
    );
  });

  test("on equal distributions a small p is as rare as it says", () => {
    // Exact over all C(8, 4) = 70 ways to cut 0..7 in two: P(p <= 0.1) must not exceed 0.1.
    let small = 0;
    let count = 0;
    for (let bits = 0; bits < 256; bits++) {
      const a = [0, 1, 2, 3, 4, 5, 6, 7].filter((i) => (bits & (1 << i)) !== 0);
      if (a.length !== 4) continue;
      count++;
      if (
        mannWhitneyP(
          a,
          [0, 1, 2, 3, 4, 5, 6, 7].filter((i) => !a.includes(i)),
        ) <= 0.1
      )
        small++;
    }
    expect(count).toBe(70);
    expect(small / count).toBeLessThanOrEqual(0.1);
    expect(small).toBeGreaterThan(0);
  });
});
