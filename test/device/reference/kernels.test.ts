import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  attendHead,
  chooseExperts,
  matrixTimesRow,
  quantiseRow,
  rmsNormRow,
  rotateHead,
  roundHalfEven,
  softmaxRow,
  swiglu,
} from "../../../src/device/reference/kernels.ts";

const floats = (...values: number[]) => Float32Array.from(values);

test("roundHalfEven goes to the even neighbour", () => {
  expect([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 3.49].map(roundHalfEven)).toEqual([0, 2, 2, 0, -2, 126, 3]);
});

describe("quantiseRow", () => {
  test("the largest magnitude of a quantBlock becomes exactly 127 steps, each block by itself", () => {
    const x = new Float32Array(64);
    x.set([2, -1, 0.5]);
    x.set([-254, 3], 32);
    const out = new Float64Array(64);
    expect(quantiseRow(x, 0, 64, out)).toBe(true);
    const step = Math.fround(2 / 127);
    // 1 / step is 63.5, a tie: to the even 64; 0.5 / step is 31.75.
    expect(Array.from(out.subarray(0, 3))).toEqual([127 * step, -64 * step, 32 * step]);
    expect(Array.from(out.subarray(32, 34))).toEqual([-254, 4]);
  });

  test("no element is off by more than half a step, and zeros stay zero", () => {
    fc.assert(
      fc.property(fc.float32Array({ minLength: 1, maxLength: 80, noNaN: true, min: -1e6, max: 1e6 }), (x) => {
        const out = new Float64Array(x.length);
        expect(quantiseRow(x, 0, x.length, out)).toBe(true);
        for (let block = 0; block < x.length; block += 32) {
          const part = x.subarray(block, block + 32);
          const m = part.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
          const half = m < 127 / 3.4e38 ? m : (m / 127) * 0.50001;
          for (const [k, value] of part.entries()) {
            expect(Math.abs((out[block + k] ?? NaN) - value)).toBeLessThanOrEqual(half);
          }
        }
      }),
    );
  });

  test("a block whose reciprocal overflows counts as zero; NaN and infinity are reported", () => {
    const out = new Float64Array(2).fill(9);
    expect(quantiseRow(floats(1e-44, -1e-44), 0, 2, out)).toBe(true);
    expect(Array.from(out)).toEqual([0, 0]);
    expect(quantiseRow(floats(1, NaN), 0, 2, out)).toBe(false);
    expect(quantiseRow(floats(-Infinity, 1), 0, 2, out)).toBe(false);
  });
});

test("matrixTimesRow sums every column, whatever the remainder by 4", () => {
  for (const columns of [1, 3, 4, 7, 8, 13]) {
    const w = Float32Array.from({ length: 2 * columns }, (_, i) => i + 1);
    const x = Float64Array.from({ length: columns }, (_, i) => 2 - i);
    const dot = (row: number) => x.reduce((sum, value, k) => sum + value * (row * columns + k + 1), 0);
    const out = new Float32Array(4);
    matrixTimesRow(w, 2, columns, x, floats(0.5, -1), out, 1);
    expect(Array.from(out)).toEqual([0, Math.fround(dot(0) + 0.5), Math.fround(dot(1) - 1), 0]);
  }
});

test("rmsNormRow gives a root mean square of 1 before its weight", () => {
  const out = new Float32Array(3);
  rmsNormRow(floats(9, 3, -4), 1, floats(1, 2), 2, 0, out, 1);
  const scale = 1 / Math.sqrt((9 + 16) / 2);
  expect(Array.from(out)).toEqual([0, Math.fround(3 * scale), Math.fround(-4 * scale * 2)]);
});

test("rotateHead turns each pair (i, i + half) by position times its frequency", () => {
  const x = floats(1, 0, 0, 2);
  rotateHead(x, 0, 4, 3, [1, 0.1]);
  const want = [Math.cos(3), -2 * Math.sin(0.3), Math.sin(3), 2 * Math.cos(0.3)];
  for (const [i, value] of want.entries()) expect(x[i]).toBeCloseTo(value, 6);
  const still = floats(1, 2, 3, 4);
  rotateHead(still, 0, 4, 0, [1, 0.1]);
  expect(Array.from(still)).toEqual([1, 2, 3, 4]);
});

test("the dot of two rotated heads depends on their distance only", () => {
  const score = (queryAt: number, keyAt: number) => {
    const q = floats(0.3, -1, 0.7, 0.2);
    const k = floats(1, 0.5, -0.4, 0.9);
    rotateHead(q, 0, 4, queryAt, [1, 0.01]);
    rotateHead(k, 0, 4, keyAt, [1, 0.01]);
    return q.reduce((sum, value, i) => sum + value * (k[i] ?? NaN), 0);
  };
  expect(score(12, 5)).toBeCloseTo(score(107, 100), 5);
});

test("swiglu is gate times its sigmoid times up", () => {
  const out = new Float32Array(3);
  swiglu(floats(0, 2, -100), floats(5, 3, 1), 3, out);
  expect(out[0]).toBe(0);
  expect(out[1]).toBeCloseTo((2 / (1 + Math.exp(-2))) * 3, 6);
  expect(Math.abs(out[2] ?? NaN)).toBeLessThan(1e-40);
});

test("attendHead weighs the values by the softmax of the scores, through the block table's order", () => {
  const headDim = 2;
  const keys = floats(9, 9, /* kvSlot 1 */ 0, 1, /* kvSlot 2 */ 1, 0);
  const values = floats(9, 9, 10, 20, 30, 40);
  const out = new Float32Array(2);
  const kvSlots = Int32Array.of(2, 1);
  attendHead(
    floats(2, 1),
    0,
    headDim,
    keys,
    values,
    2,
    0,
    kvSlots,
    2,
    new Float64Array(2),
    new Float64Array(2),
    out,
    0,
  );
  const first = 1 / (1 + Math.exp(-1));
  expect(out[0]).toBeCloseTo(30 * first + 10 * (1 - first), 5);
  expect(out[1]).toBeCloseTo(40 * first + 20 * (1 - first), 5);
});

test("softmaxRow sums to 1 and survives large logits", () => {
  const out = new Float64Array(3);
  softmaxRow(floats(1000, 1000, -1000), 3, out);
  expect(Array.from(out)).toEqual([0.5, 0.5, 0]);
});

describe("chooseExperts", () => {
  const choose = (logits: number[], perGroup: number, active: number) => {
    const out = new Int32Array(logits.length);
    const count = chooseExperts(floats(...logits), logits.length, perGroup, active, out, 0);
    return Array.from(out.subarray(0, count));
  };

  test("each group gives its best, even where another group's rest is better", () => {
    expect(choose([9, 8, 7, 0, -1, -2], 3, 1)).toEqual([0, 3]);
    expect(choose([1, 2, 3, 4], 4, 2)).toEqual([2, 3]);
  });

  test("a tie goes to the lower id", () => {
    expect(choose([5, 5, 5, 1, 7, 7], 3, 1)).toEqual([0, 4]);
    expect(choose([1, 5, 5, 5], 4, 2)).toEqual([1, 2]);
  });

  test("every group gives the same number, ids ascending, and none that was left is better", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -3, max: 3 }), { minLength: 12, maxLength: 12 }), (logits) => {
        const chosen = choose(logits, 4, 2);
        expect(chosen).toEqual([...chosen].sort((a, b) => a - b));
        for (const group of [0, 1, 2]) {
          const mine = chosen.filter((id) => Math.floor(id / 4) === group);
          expect(mine).toHaveLength(2);
          const worst = Math.min(...mine.map((id) => logits[id] ?? NaN));
          const left = [0, 1, 2, 3].map((i) => group * 4 + i).filter((id) => !mine.includes(id));
          for (const id of left) expect(logits[id]).toBeLessThanOrEqual(worst);
        }
      }),
    );
  });
});
