import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { createUniform } from "../../src/base/prng.ts";
import { alignUp } from "../../src/base/units.ts";
import { decodeGateUp, decodeMatrix, decodeRows, encodeRowTile } from "../../src/weights/quantise.ts";
import { QUANT_TYPES, type QuantType, rowTileBytes, TILE_ROWS } from "../../src/weights/tensor.ts";

/** values[rows][columns] as rowTiles, by the plain definition of docs/container.md's padding. */
function encode(quantType: QuantType, values: Float32Array, rows: number, columns: number): Uint8Array {
  const padded = alignUp(columns, 64);
  const tileBytes = rowTileBytes(quantType, columns);
  const tileCount = Math.ceil(rows / TILE_ROWS);
  const out = new Uint8Array(tileCount * tileBytes);
  for (let t = 0; t < tileCount; t++) {
    const tile = new Float32Array(TILE_ROWS * padded);
    for (let row = t * TILE_ROWS; row < Math.min(rows, (t + 1) * TILE_ROWS); row++) {
      tile.set(values.subarray(row * columns, (row + 1) * columns), (row % TILE_ROWS) * padded);
    }
    expect(encodeRowTile(quantType, tile, padded, out, t * tileBytes)).toBe(true);
  }
  return out;
}

function gaussian(seed: number, count: number): Float32Array {
  const uniform = createUniform(seed);
  return Float32Array.from({ length: count }, () => {
    let sum = -6;
    for (let i = 0; i < 12; i++) sum += uniform();
    return sum;
  });
}

function relativeRms(values: Float32Array, decoded: Float32Array): number {
  let error = 0;
  let square = 0;
  for (const [i, value] of values.entries()) {
    error += (value - (decoded[i] ?? NaN)) ** 2;
    square += value ** 2;
  }
  return Math.sqrt(error / square);
}

describe("bytes by hand", () => {
  test("q4: scale, nibble order, zero rows", () => {
    const tile = new Float32Array(16 * 64);
    // Row 0, first quantBlock: −4, −3.5 … 3.5, twice. The extreme −4 is −8 × 0.5, so that the grid holds every value.
    for (let k = 0; k < 32; k++) tile[k] = ((k % 16) - 8) * 0.5;
    // Row 2, second quantBlock: one extreme of +8; its scale is −1 and its code is −8.
    tile[2 * 64 + 32] = 8;
    const bytes = new Uint8Array(576);
    expect(encodeRowTile("q4", tile, 64, bytes, 0)).toBe(true);

    const scales = new Uint16Array(bytes.buffer, 0, 32);
    expect([...scales]).toEqual(Array.from({ length: 32 }, (_, i) => (i === 0 ? 0x3800 : i === 16 + 2 ? 0xbc00 : 0)));
    const row0 = (c: number) => [...bytes.subarray(64 + c * 64, 64 + c * 64 + 4)];
    expect(row0(0)).toEqual([0x40, 0x51, 0x62, 0x73]);
    expect(row0(1)).toEqual([0xc8, 0xd9, 0xea, 0xfb]);
    expect(row0(2)).toEqual([0x40, 0x51, 0x62, 0x73]);
    expect(row0(3)).toEqual([0xc8, 0xd9, 0xea, 0xfb]);
    expect(bytes[64 + 4]).toBe(0x88); // row 1: zeros
    expect([...bytes.subarray(64 + 256 + 8, 64 + 256 + 12)]).toEqual([0x80, 0x88, 0x88, 0x88]); // row 2
  });

  test("q8: scale, zero point, input order", () => {
    const tile = new Float32Array(16 * 64);
    // Row 1: (8k − 127) / 4; the largest magnitude 127 / 4 gives the scale 0.25.
    for (let k = 0; k < 32; k++) tile[64 + k] = (8 * k - 127) * 0.25;
    const bytes = new Uint8Array(1088);
    expect(encodeRowTile("q8", tile, 64, bytes, 0)).toBe(true);
    const scales = new Uint16Array(bytes.buffer, 0, 32);
    expect([...scales]).toEqual(Array.from({ length: 32 }, (_, i) => (i === 1 ? 0x3400 : 0)));
    for (let k = 0; k < 32; k++) expect(bytes[64 + (k >> 2) * 64 + 4 + (k & 3)]).toBe(8 * k - 127 + 128);
    expect(bytes[64]).toBe(128); // row 0: zeros
  });

  test("f16 and f32: [input][row]", () => {
    const tile = Float32Array.from({ length: 16 * 64 }, (_, i) => i);
    const half = new Uint8Array(2048);
    const full = new Uint8Array(4096);
    expect(encodeRowTile("f16", tile, 64, half, 0)).toBe(true);
    expect(encodeRowTile("f32", tile, 64, full, 0)).toBe(true);
    expect(new Float16Array(half.buffer)[5 * 16 + 3]).toBe(3 * 64 + 5);
    expect(new Float32Array(full.buffer)[5 * 16 + 3]).toBe(3 * 64 + 5);
  });

  test("halves round to even", () => {
    const tile = new Float32Array(16 * 64);
    tile.set([-8, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]);
    const bytes = new Uint8Array(1088);
    tile[0] = 127;
    encodeRowTile("q8", tile, 64, bytes, 0);
    const codes = [0, 1, 2, 3, 4, 5, 6].map((k) => (bytes[64 + (k >> 2) * 64 + (k & 3)] ?? 0) - 128);
    expect(codes).toEqual([127, 0, 2, 2, 0, -2, -2]);
  });
});

describe("round trip", () => {
  test("any matrix comes back within the type's error, without padding", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...QUANT_TYPES),
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 1, max: 140 }),
        fc.integer({ min: 0, max: 1e6 }),
        fc.constantFrom(1e-3, 1, 300),
        (quantType, rows, columns, seed, magnitude) => {
          const values = gaussian(seed, rows * columns).map((value) => value * magnitude);
          const decoded = decodeMatrix(encode(quantType, values, rows, columns), quantType, rows, columns);
          expect(decoded.length).toBe(values.length);
          for (let row = 0; row < rows; row++) {
            for (let first = 0; first < columns; first += 32) {
              const end = Math.min(columns, first + 32);
              const block = values.subarray(row * columns + first, row * columns + end);
              const largest = block.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
              // Half a step of a scale that fp16 may have rounded (2^-11; 2^-25 where it is subnormal).
              const slack = largest * 2 ** -10 + 128 * 2 ** -25;
              const bound = { f32: 0, f16: largest * 2 ** -11 + 2 ** -25, q8: largest / 254 + slack, q4: largest }[
                quantType
              ];
              for (const [i, value] of block.entries()) {
                const got = decoded[row * columns + first + i] ?? NaN;
                if (!(Math.abs(got - value) <= bound)) throw new Error(`${quantType}: ${value} became ${got}`);
              }
            }
          }
        },
      ),
      { numRuns: 150 },
    );
  });

  test("relative RMS error on normal values: q8 under 0.7 %, q4 below that of the extreme ÷ −8 alone", () => {
    const rows = 64;
    const columns = 512;
    const values = gaussian(7, rows * columns);
    const q8 = relativeRms(values, decodeMatrix(encode("q8", values, rows, columns), "q8", rows, columns));
    const q4 = relativeRms(values, decodeMatrix(encode("q4", values, rows, columns), "q4", rows, columns));
    const simple = values.slice();
    for (let at = 0; at < values.length; at += 32) {
      const block = values.subarray(at, at + 32);
      const extreme = block.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
      const scale = Math.f16round(extreme / -8);
      for (const [i, value] of block.entries()) simple[at + i] = Math.min(7, Math.round(value / scale)) * scale;
    }
    expect(q8).toBeLessThan(0.007);
    expect(q4).toBeLessThan(0.96 * relativeRms(values, simple));
    expect(q4).toBeGreaterThan(0.05); // four bits cannot do better
  });

  test("no q4 quantBlock is worse than with the extreme ÷ −8", () => {
    fc.assert(
      fc.property(
        fc.array(fc.float({ noNaN: true, min: -100, max: 100 }), { minLength: 32, maxLength: 32 }),
        (list) => {
          const values = Float32Array.from(list);
          const decoded = decodeMatrix(encode("q4", values, 1, 32), "q4", 1, 32);
          const extreme = values.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
          const scale = Math.f16round(extreme / -8);
          const error = (to: (value: number, i: number) => number) =>
            values.reduce((sum, value, i) => sum + (value - to(value, i)) ** 2, 0);
          const simple = error((value) =>
            scale === 0 ? 0 : Math.max(-8, Math.min(7, Math.round(value / scale))) * scale,
          );
          expect(error((_, i) => decoded[i] ?? NaN)).toBeLessThanOrEqual(simple * (1 + 1e-6));
        },
      ),
    );
  });

  test("rows and gate-up of a matrix are those of the whole", () => {
    const [rows, columns] = [37, 70];
    const values = gaussian(3, rows * columns);
    const bytes = encode("q8", values, rows, columns);
    const whole = decodeMatrix(bytes, "q8", rows, columns);
    for (const [first, count] of [
      [0, 37],
      [15, 2],
      [16, 1],
      [36, 1],
    ] as const) {
      expect(decodeRows(bytes, "q8", columns, first, count)).toEqual(
        whole.slice(first * columns, (first + count) * columns),
      );
    }
    const tileBytes = rowTileBytes("q8", columns);
    const interleaved = new Uint8Array(6 * tileBytes);
    for (let t = 0; t < 3; t++) {
      const tile = bytes.subarray(t * tileBytes, (t + 1) * tileBytes);
      interleaved.set(tile, 2 * t * tileBytes);
      interleaved.set(tile, (2 * t + 1) * tileBytes);
    }
    const { gate, up } = decodeGateUp(interleaved, "q8", rows, columns);
    expect(gate).toEqual(whole);
    expect(up).toEqual(whole);
  });
});

describe("values that no quant type may hide", () => {
  const encodes = (quantType: QuantType, value: number) => {
    const tile = new Float32Array(16 * 64);
    tile[77] = value;
    return encodeRowTile(quantType, tile, 64, new Uint8Array(rowTileBytes(quantType, 64)), 0);
  };

  test.each([...QUANT_TYPES])("%s refuses NaN and infinity", (quantType) => {
    expect(encodes(quantType, NaN)).toBe(false);
    expect(encodes(quantType, -Infinity)).toBe(false);
    expect(encodes(quantType, 1e4)).toBe(true);
  });

  test("what fp16 cannot hold is refused", () => {
    expect(encodes("f16", 70000)).toBe(false);
    expect(encodes("q4", 65504 * 8)).toBe(true);
    expect(encodes("q4", 65504 * 9)).toBe(false);
    expect(encodes("q8", 65504 * 127)).toBe(true);
    expect(encodes("q8", 65504 * 128)).toBe(false);
    expect(encodes("f32", 3e38)).toBe(true);
  });

  test("values too small for an fp16 scale become zeros", () => {
    const tile = new Float32Array(16 * 64).fill(1e-12);
    for (const quantType of ["q4", "q8"] as const) {
      const bytes = new Uint8Array(rowTileBytes(quantType, 64));
      expect(encodeRowTile(quantType, tile, 64, bytes, 0)).toBe(true);
      expect(decodeMatrix(bytes, quantType, 16, 64).every((value) => value === 0)).toBe(true);
    }
  });
});
