import { expect, test } from "bun:test";
import fc from "fast-check";
import { quantile, spreadOf } from "../../src/bench/statistics.ts";

test("quantiles interpolate between order statistics", () => {
  expect(quantile([3, 1, 2], 0.5)).toBe(2);
  expect(quantile([4, 1, 2, 3], 0.5)).toBe(2.5);
  expect(quantile([1, 2], 0.25)).toBe(1.25);
  expect(quantile([], 0.5)).toBeNaN();
});

test("a spread encloses every value, whatever the order", () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: -1e6, max: 1e6 }), { minLength: 1 }), (values) => {
      const { low, high, median, count } = spreadOf(values);
      expect(count).toBe(values.length);
      for (const value of values) expect(value >= low && value <= high).toBe(true);
      expect(values.filter((value) => value <= median).length * 2).toBeGreaterThanOrEqual(values.length);
    }),
  );
});
