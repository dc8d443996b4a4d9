import { expect, test } from "bun:test";
import * as fc from "fast-check";
import { StepCost } from "../../src/speculative/step-cost.ts";

test("interpolates between what was measured, and reads beyond it as asked", () => {
  const cost = new StepCost();
  expect(cost.predict(4, "flat")).toBe(0);
  cost.observe(2, 10);
  expect([1, 2, 4].map((rows) => cost.predict(rows, "flat"))).toEqual([10, 10, 10]);
  expect([1, 2, 4].map((rows) => cost.predict(rows, "proportional"))).toEqual([10, 10, 20]);
  cost.observe(6, 30);
  expect([2, 3, 4, 6].map((rows) => cost.predict(rows, "flat"))).toEqual([10, 15, 20, 30]);
});

test("a pause of the machine counts as an outlier, a lasting change is followed", () => {
  const cost = new StepCost();
  for (let i = 0; i < 20; i++) cost.observe(1, 10);
  cost.observe(1, 10_000);
  expect(cost.predict(1, "flat")).toBeLessThan(13);
  for (let i = 0; i < 100; i++) cost.observe(1, 20);
  expect(cost.predict(1, "flat")).toBeCloseTo(20, 1);
});

test("rowsWithin is the largest number of rows that the estimate allows", () => {
  const cost = new StepCost();
  for (const rows of [1, 8, 64, 256]) cost.observe(rows, 2 + rows / 10);
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 8, max: 400 }), (ms, rowMax) => {
      const rows = cost.rowsWithin(ms, 8, rowMax);
      expect(rows).toBeGreaterThanOrEqual(8);
      expect(rows).toBeLessThanOrEqual(rowMax);
      if (rows > 8) expect(cost.predict(rows, "proportional")).toBeLessThanOrEqual(ms);
      if (rows < rowMax) expect(cost.predict(rows + 1, "proportional")).toBeGreaterThan(ms);
    }),
  );
});

test("a slow first step doesn't keep steps of its size from being tried again", () => {
  const cost = new StepCost();
  // 256 rows while the weights come into memory; from then on a step takes what it takes.
  cost.observe(256, 3000);
  for (let step = 0; step < 4; step++) {
    const rows = cost.rowsWithin(50, 8, 256);
    cost.observe(rows, 1 + 0.05 * rows);
  }
  expect(cost.rowsWithin(50, 8, 256)).toBe(256);
  expect(cost.predict(256, "proportional")).toBeCloseTo(13.8, 1);
});
