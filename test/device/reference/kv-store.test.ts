import { expect, test } from "bun:test";
import fc from "fast-check";
import { storeHead } from "../../../src/device/reference/kv-store.ts";

function stored(kvType: "f16" | "int8" | "f32", values: Float32Array) {
  const out = new Float32Array(values.length + 1);
  const isFinite = storeHead(kvType, values, 0, out, 1, values.length);
  return { isFinite, values: out.subarray(1) };
}

test("float32 keeps values, float16 rounds them to nearest even", () => {
  const values = Float32Array.of(1 / 3, -2049, 2051, 0);
  expect(stored("f32", values).values).toEqual(values);
  expect(Array.from(stored("f16", values).values)).toEqual([0.333251953125, -2048, 2052, 0]);
});

test("a value beyond float16 is reported, one just below the rounding point is not", () => {
  expect(stored("f16", Float32Array.of(65520)).isFinite).toBe(false);
  expect(stored("f16", Float32Array.of(65519)).values[0]).toBe(65504);
  expect(stored("f32", Float32Array.of(NaN)).isFinite).toBe(false);
  expect(stored("int8", Float32Array.of(1, Infinity)).isFinite).toBe(false);
});

test("int8 has one scale a head: the largest magnitude is 127 steps, others within half a step", () => {
  fc.assert(
    fc.property(fc.float32Array({ minLength: 2, maxLength: 64, noNaN: true, min: -1000, max: 1000 }), (values) => {
      const m = values.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
      const { values: got } = stored("int8", values);
      const half = m < 1e-36 ? m : (m / 127) * 0.50001;
      for (const [i, value] of values.entries()) expect(Math.abs((got[i] ?? NaN) - value)).toBeLessThanOrEqual(half);
    }),
  );
  expect(Array.from(stored("int8", Float32Array.of(0, 0)).values)).toEqual([0, 0]);
});
