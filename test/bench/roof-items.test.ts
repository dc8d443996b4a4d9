// What is measured: every line once, peaks in front of what is compared with them, shares of lanes that fit.
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { MIB } from "../../src/base/units.ts";
import {
  chooseDramBytes,
  laneCounts,
  roofItems,
  type RoofOptions,
  shortRoofItems,
} from "../../src/bench/roof-items.ts";

const options: RoofOptions = {
  laneCount: 6,
  isa: "avx2",
  isPinned: false,
  cacheBytes: { l2: MIB, l3: 32 * MIB },
  repeatCount: 3,
  runMs: 1,
  dramBytes: 100 * MIB + 1,
  mappedPath: "memory",
  mappedBytes: 50 * MIB,
};

test("lane counts double up to all", () => {
  expect([1, 2, 3, 8, 12].map(laneCounts)).toEqual([[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]);
});

describe("items", () => {
  const items = roofItems(options, ["plain", "avx2", "avx512"]);
  test("are there once, with their peaks in front", () => {
    const seen = new Set<string>();
    for (const item of [...items, ...shortRoofItems(options).map((one) => ({ ...one, id: `short ${one.id}` }))]) {
      expect(seen.has(item.id)).toBe(false);
      if (item.peakId !== null) expect(seen.has(item.peakId)).toBe(true);
      seen.add(item.id);
    }
  });
  test("cover memory on every lane count, and the peak of every instruction set but plain C", () => {
    const ids = items.map((item) => item.id);
    for (const lanes of laneCounts(6)) {
      for (const level of ["l2", "l3", "dram", "mapped"]) expect(ids).toContain(`read/${level}/${lanes}`);
    }
    expect(ids.filter((id) => id.startsWith("peak/int8/"))).toEqual([
      "peak/int8/avx2/1",
      "peak/int8/avx2/6",
      "peak/int8/avx512/6",
    ]);
  });
  test("without a mapped file or a peak leave those out", () => {
    const plain = roofItems({ ...options, isa: "plain", mappedPath: null }, ["plain"]);
    expect(plain.filter(({ id }) => id.includes("mapped") || id.startsWith("peak/"))).toEqual([]);
  });
  test("mapped reads stay within the file, all reads in whole pieces", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 64 }),
        fc.integer({ min: 64 * 512, max: 1e9 }),
        (laneCount, mappedBytes) => {
          for (const item of shortRoofItems({ ...options, laneCount, mappedBytes })) {
            if (item.task.kind !== "read") continue;
            const bytes = item.task.bytes ?? 0;
            expect(bytes % 512).toBe(0);
            expect(bytes).toBeGreaterThan(0);
            if (item.isMapped === true) expect(bytes * item.lanes).toBeLessThanOrEqual(mappedBytes);
          }
        },
      ),
    );
  });
});

test("DRAM is measured beyond every cache, within what is free", () => {
  const cacheBytes = { l2: MIB, l3: 32 * MIB };
  expect(chooseDramBytes(cacheBytes, 1e12, false)).toBe(512 * MIB);
  expect(chooseDramBytes(cacheBytes, 1e12, true)).toBe(128 * MIB);
  expect(chooseDramBytes({ l2: MIB, l3: 512 * MIB }, 1e12, false)).toBe(2048 * MIB);
  expect(chooseDramBytes(cacheBytes, 400 * MIB, false)).toBe(100 * MIB);
  expect(chooseDramBytes(cacheBytes, 0, false)).toBe(16 * MIB);
});
