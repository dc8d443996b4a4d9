import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { createUniform } from "../../src/base/prng.ts";
import { drawLengths, fitContext, NAMED_MIXES, parseMix, poissonArrivals } from "../../src/bench/load-schedule.ts";
import { median } from "../../src/bench/statistics.ts";

describe("Poisson arrivals", () => {
  test("gaps are exponential: their quantiles are those of 1 − exp(−rate × t)", () => {
    const arrivals = poissonArrivals(50, 400_000, createUniform(7));
    // 20,000 are expected, with a standard deviation of 141.
    expect(Math.abs(arrivals.length - 20_000)).toBeLessThan(5 * 141);
    const gaps = arrivals.slice(1).map((at, i) => at - arrivals[i]!);
    for (const quantileMs of [2, 10, 20, 50, 100]) {
      const share = gaps.filter((gap) => gap <= quantileMs).length / gaps.length;
      expect(Math.abs(share - (1 - Math.exp(-quantileMs / 20)))).toBeLessThan(0.02);
    }
  });

  test("counts of a second have a variance like their mean", () => {
    const counts = new Array<number>(2000).fill(0);
    for (const at of poissonArrivals(5, 2_000_000, createUniform(3))) counts[Math.floor(at / 1000)]! += 1;
    const mean = counts.reduce((sum, count) => sum + count, 0) / counts.length;
    const variance = counts.reduce((sum, count) => sum + (count - mean) ** 2, 0) / counts.length;
    expect(Math.abs(variance / mean - 1)).toBeLessThan(0.15);
  });

  test("they rise within the time, and a seed's arrivals at another rate are the same on a stretched axis", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 1e6 }), fc.double({ min: 0.1, max: 100, noNaN: true }), (seed, rate) => {
        const arrivals = poissonArrivals(rate, 5000, createUniform(seed));
        for (const [i, at] of arrivals.entries()) {
          expect(at).toBeGreaterThanOrEqual(arrivals[i - 1] ?? 0);
          expect(at).toBeLessThan(5000);
        }
        const twice = poissonArrivals(rate * 2, 2500, createUniform(seed));
        for (const [i, at] of twice.entries()) {
          if (arrivals[i] !== undefined) expect(at * 2).toBeCloseTo(arrivals[i], 6);
        }
        expect(Math.abs(twice.length - arrivals.length)).toBeLessThanOrEqual(1);
      }),
      { numRuns: 40 },
    );
  });
});

describe("mixes", () => {
  test("are named, or fixed", () => {
    for (const mix of NAMED_MIXES) expect(parseMix(mix.name)).toBe(mix);
    const fixed = parseMix("fixed:512/128")!;
    for (let seed = 0; seed < 5; seed++) {
      expect(drawLengths(fixed, createUniform(seed))).toEqual({ promptTokens: 512, outputTokens: 128 });
    }
    for (const text of [
      "",
      "fixed",
      "fixed:1",
      "fixed:0/4",
      "fixed:4/0",
      "fixed:-1/4",
      "fixed:1/2/3",
      "Chat",
      "fixed:1.5/2",
    ]) {
      expect(parseMix(text)).toBeNull();
    }
  });

  test("lengths spread around their median, within four times and a quarter of it", () => {
    for (const mix of NAMED_MIXES) {
      const uniform = createUniform(11);
      const drawn = Array.from({ length: 4000 }, () => drawLengths(mix, uniform));
      for (const [kind, spread] of [
        ["promptTokens", mix.prompt],
        ["outputTokens", mix.output],
      ] as const) {
        const values = drawn.map((lengths) => lengths[kind]);
        expect(Math.abs(median(values) / spread.medianTokens - 1)).toBeLessThan(0.06);
        expect(Math.min(...values)).toBeGreaterThanOrEqual(Math.round(spread.medianTokens / 4));
        expect(Math.max(...values)).toBeLessThanOrEqual(spread.medianTokens * 4);
        // A log-normal has 68 % within one sigma of its logarithm.
        const near = values.filter((value) => Math.abs(Math.log(value / spread.medianTokens)) <= spread.sigma);
        expect(Math.abs(near.length / values.length - 0.683)).toBeLessThan(0.05);
      }
    }
  });

  test("fit into the context, keep the output where they can, and change nothing that fits", () => {
    const tokens = fc.integer({ min: 1, max: 5000 });
    fc.assert(
      fc.property(tokens, tokens, fc.integer({ min: 2, max: 5000 }), (promptTokens, outputTokens, context) => {
        const fitted = fitContext({ promptTokens, outputTokens }, context);
        expect(fitted.promptTokens).toBeGreaterThanOrEqual(1);
        expect(fitted.outputTokens).toBe(Math.min(outputTokens, context - 1));
        expect(fitted.promptTokens + fitted.outputTokens).toBeLessThanOrEqual(context);
        if (promptTokens + outputTokens <= context) expect(fitted).toEqual({ promptTokens, outputTokens });
      }),
    );
    const far = { promptTokens: 9, outputTokens: 9 };
    expect(fitContext(far, Number.POSITIVE_INFINITY)).toEqual(far);
  });
});
