// From a step's times to a line of the report: what is divided by what, on a model and a machine of round numbers.
import { expect, test } from "bun:test";
import { stepKvBytes } from "../../src/bench/engine-bench.ts";
import { engineRow, stepLine } from "../../src/bench/report.ts";
import type { RoofRates } from "../../src/bench/roof-share.ts";
import { testMogeShape } from "../support/containers.ts";

const flat = [{ rows: 1, gops: 100 }];
const rates: RoofRates = {
  l3GBps: 100,
  dramGBps: 10,
  cacheBytes: { l2: 1e6, l3: 1e6 },
  int8PeakGops: 200,
  f32PeakGflops: 1e6,
  kernelGops: { q4: flat, q8: flat },
};
const shape = testMogeShape({ hiddenDim: 64, expertDim: 32, layerCount: 2, activeExpertCount: 4 });
const model = { shape, weightBytes: 5e6, expertType: "q4", denseType: "q8" };
const step = { id: "decode/8@0", kind: "decode", sequences: 8, rowsEach: 1, contextTokens: 0 } as const;
const times = {
  step,
  runsMs: [2, 1, 4],
  weightBytes: 9e6,
  kvBytes: 1e6,
  integerOps: 1e6,
  distinctExperts: 20,
  expertLayers: 2,
};

test("a line states rates per median step", () => {
  const line = stepLine(times, model, rates);
  expect(line).toMatchObject({ id: "decode/8@0", unit: "ms", values: [2, 1, 4], median: 2 });
  expect(line.step).toMatchObject({ tokensPerSecond: 4000, readGBps: 5, distinctExpertsPerLayer: 10 });
  // 10 MB at 10 GB/s is 1 ms of 2.
  expect(line.step?.roof).toMatchObject({ roofMs: 1, binding: "DRAM", share: 0.5, peakShare: 0.0025 });
  expect(engineRow(line)).toMatchObject({ batch: "8", context: "0", "of roof": "50 %", spread: "1.000–4.000" });
});

test("without rates there is no share", () => {
  const line = stepLine(times, model, null);
  expect(line.step?.roof).toBeNull();
  expect(engineRow(line)["of roof"]).toBe("");
});

test("experts' operations are taken at the experts' own rows", () => {
  // 8 rows x 4 experts x 2 layers = 64 pairs over 20 distinct experts: 3.2 rows each; the rest has 8.
  const steep = [
    { rows: 1, gops: 1e-3 },
    { rows: 3.2, gops: 1e-2 },
    { rows: 8, gops: 1 },
  ];
  const slow = { ...rates, kernelGops: { q4: steep, q8: steep } };
  const expertOps = 6 * 64 * 32 * 64;
  const roof = stepLine(times, model, slow).step?.roof;
  expect(roof?.binding).toBe("int8");
  expect(roof?.roofMs).toBeCloseTo(expertOps / 1e4 + (1e6 - expertOps) / 1e6, 2);
});

test("KV of a chunked prefill is read again by every chunk", () => {
  const prefill = { id: "p", kind: "prefill", sequences: 1, rowsEach: 5, contextTokens: 0 } as const;
  expect(stepKvBytes(prefill, 2, 32)).toBe(2 + 4 + 5);
  expect(stepKvBytes({ ...prefill, sequences: 3, rowsEach: 1, contextTokens: 7 }, 16, 64)).toBe(3 * 8 * 2);
});
