import { expect, test } from "bun:test";
import { AcceptanceEstimate } from "../../src/speculative/acceptance.ts";

test("a position counts only when all before it were accepted", () => {
  const estimate = new AcceptanceEstimate(4, 1);
  for (let i = 0; i < 1000; i++) estimate.observe(3, i % 2 === 0 ? 1 : 0);
  // Position 0: accepted every other time. Position 1: reached 500 times, never accepted. Position 2: never reached.
  expect(estimate.rate(0)).toBeCloseTo(0.5, 2);
  expect(estimate.rate(1)).toBeLessThan(0.01);
  expect(estimate.rate(2, 0.7)).toBeCloseTo(0.7);
});

test("old observations fade", () => {
  const estimate = new AcceptanceEstimate(1, 0.9);
  for (let i = 0; i < 100; i++) estimate.observe(1, 0);
  for (let i = 0; i < 50; i++) estimate.observe(1, 1);
  expect(estimate.rate(0)).toBeGreaterThan(0.85);
  estimate.reset();
  expect(estimate.rate(0, 0.25)).toBe(0.25);
});
