// Shares of the machine's limit on a machine of round numbers.
import { describe, expect, test } from "bun:test";
import { gopsAtRows, type RoofRates, roofRates, roofShare, type StepCost } from "../../src/bench/roof-share.ts";
import type { RoofLine } from "../../src/bench/roof.ts";

const points = [
  { rows: 1, gops: 100 },
  { rows: 4, gops: 300 },
];
const rates: RoofRates = {
  l3GBps: 100,
  dramGBps: 10,
  cacheBytes: { l2: 1e6, l3: 32e6 },
  int8PeakGops: 400,
  f32PeakGflops: 50,
  kernelGops: { q4: points, q8: points },
};
const types = { expert: "q4", dense: "q8" } as const;
const cost: StepCost = {
  bytes: 10e6,
  workingSetBytes: 100e6,
  expertOps: 0,
  denseOps: 0,
  attentionOps: 0,
  rows: 1,
  rowsPerExpert: 1,
};

describe("the kernel's rate at a number of rows", () => {
  test("is what was measured there, and the nearest beyond", () => {
    expect([0.5, 1, 4, 9].map((rows) => gopsAtRows(points, rows))).toEqual([100, 100, 300, 300]);
  });
  test("goes by the logarithm in between", () => {
    expect(gopsAtRows(points, 2)).toBeCloseTo(200, 9);
  });
  test("is unknown without measurements", () => {
    expect(gopsAtRows([], 2)).toBeNaN();
  });
});

describe("a step's share of the roof", () => {
  test("bytes from DRAM bind when little is computed", () => {
    // 10 MB at 10 GB/s is 1 ms.
    expect(roofShare(cost, rates, types, 2)).toEqual({ roofMs: 1, binding: "DRAM", share: 0.5, peakShare: 0 });
  });
  test("a working set that the cache holds is read at the cache's rate", () => {
    const share = roofShare({ ...cost, workingSetBytes: 32e6 }, rates, types, 0.2);
    expect(share.binding).toBe("L3");
    expect(share.roofMs).toBeCloseTo(0.1, 12);
    expect(share.share).toBeCloseTo(0.5, 12);
  });
  test("operations bind when there are enough of them, each part at its own rows", () => {
    // 0.3 Gop of experts at 100 GOPS is 3 ms, 0.6 Gop of the rest at 300 GOPS is 2 ms.
    const busy = { ...cost, expertOps: 0.3e9, denseOps: 0.6e9, rows: 4, rowsPerExpert: 1 };
    const share = roofShare(busy, rates, types, 10);
    expect(share.binding).toBe("int8");
    expect(share.roofMs).toBeCloseTo(5, 9);
    expect(share.share).toBeCloseTo(0.5, 9);
    expect(share.peakShare).toBeCloseTo(0.9e9 / (400e6 * 10), 9);
  });
  test("attention binds when keys are many", () => {
    // 0.1 Gop at 50 GFLOPS is 2 ms.
    const share = roofShare({ ...cost, attentionOps: 0.1e9 }, rates, types, 4);
    expect(share).toMatchObject({ binding: "f32", share: 0.5 });
    expect(roofShare({ ...cost, attentionOps: 0.1e9 }, { ...rates, f32PeakGflops: null }, types, 4).share).toBe(0.25);
  });
  test("without a peak there is no share of it", () => {
    expect(roofShare(cost, { ...rates, int8PeakGops: null }, types, 2).peakShare).toBeNull();
  });
});

test("rates come from the lines by id: memory by its median, arithmetic by its best run, several reports pooled", () => {
  const line = (id: string, unit: RoofLine["unit"], values: number[]): RoofLine => ({
    id,
    what: id,
    lanes: 2,
    isa: "avx2",
    unit,
    values,
    median: 0,
    readGBps: null,
    peakShare: null,
  });
  const lines = [
    line("read/dram/2", "GB/s", [10, 30]),
    line("read/dram/2", "GB/s", [20]),
    line("read/mapped/2", "GB/s", [25]),
    line("read/l3/2", "GB/s", [100]),
    line("read/l3/1", "GB/s", [1]),
    line("peak/int8/avx2/2", "GOPS", [400, 100, 100]),
    line("matmul/q4/l2/1", "GOPS", [90, 100, 80]),
  ];
  const found = roofRates(lines, 2, "avx2", rates.cacheBytes);
  expect(found.dramGBps).toBe(25);
  expect(found.l3GBps).toBe(100);
  expect(found.int8PeakGops).toBe(400);
  expect(found.kernelGops.q4[0]).toEqual({ rows: 1, gops: 100 });
  expect(roofRates(lines.slice(0, 2), 2, "plain", rates.cacheBytes)).toMatchObject({
    dramGBps: 20,
    int8PeakGops: null,
  });
});
