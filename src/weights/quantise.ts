// Values to rowTiles and back, byte for byte as docs/container.md says. Pure arithmetic on caller's buffers: no files, no
// names. Leaf loops take primitives and typed arrays; the packer runs them over every weight of a model.

import { assert, unreachable } from "../base/assert.ts";
import { alignUp, ceilDiv } from "../base/units.ts";
import { COLUMN_MULTIPLE, matrixBytes, QUANT_BLOCK, type QuantType, rowTileBytes, TILE_ROWS } from "./tensor.ts";

const FP16_MAX = 65504;
const Q4_PAIR_BYTES = 576;
const Q8_PAIR_BYTES = 1088;
const PAIR_SCALE_BYTES = 64;
/** Adding and subtracting 1.5 × 2^52 rounds a float64 of magnitude under 2^51 to an integer, ties to even. */
const ROUND_MAGIC = 6755399441055744;

/**
 * Divisors of the signed extreme that are tried as q4 scales, before each is refined by least squares. −8 puts the extreme on
 * the grid's end exactly; the others trade it for the rest of the quantBlock.
 */
const Q4_DIVISORS = [-8, -7.6, -7.2, -8.5, -9.1, -6.6, 7] as const;

const scaleValue = new Float16Array(1);
const scaleBits = new Uint16Array(scaleValue.buffer);
const codes = new Float64Array(QUANT_BLOCK);
const bestCodes = new Float64Array(QUANT_BLOCK);

/** Codes −8..7 of a quantBlock for `scale` go to `codes`; returns the sum of squared errors, or stops above `limit`. */
function q4Codes(values: Float32Array, base: number, scale: number, limit: number): number {
  let error = 0;
  for (let k = 0; k < QUANT_BLOCK; k++) {
    const value = values[base + k] as number;
    let code = value / scale + ROUND_MAGIC - ROUND_MAGIC;
    if (code > 7) code = 7;
    else if (code < -8) code = -8;
    codes[k] = code;
    const miss = value - code * scale;
    error += miss * miss;
    if (error >= limit) return limit;
  }
  return error;
}

/** The fp16 scale that is best for the codes now in `codes`, in the sense of least squares; 0 when all codes are 0. */
function refinedScale(values: Float32Array, base: number): number {
  let dot = 0;
  let square = 0;
  for (let k = 0; k < QUANT_BLOCK; k++) {
    const code = codes[k] as number;
    dot += (values[base + k] as number) * code;
    square += code * code;
  }
  return square === 0 ? 0 : Math.f16round(dot / square);
}

/** Chooses a q4 quantBlock's fp16 scale, leaves its codes in `bestCodes`, returns the scale. NaN: not representable. */
function quantiseQ4Block(values: Float32Array, base: number): number {
  let extreme = 0;
  let magnitude = 0;
  for (let k = 0; k < QUANT_BLOCK; k++) {
    const value = values[base + k] as number;
    const size = Math.abs(value);
    if (!(size < Infinity)) return NaN;
    if (size > magnitude) {
      magnitude = size;
      extreme = value;
    }
  }
  bestCodes.fill(0);
  if (magnitude > FP16_MAX * 8) return NaN;
  let bestError = Infinity;
  let bestScale = 0;
  for (let i = 0; i < Q4_DIVISORS.length; i++) {
    let scale = Math.f16round(extreme / (Q4_DIVISORS[i] as number));
    // Once as it is, once more with the scale refined for the codes that it gave.
    for (let round = 0; round < 2; round++) {
      if (scale === 0 || !(Math.abs(scale) <= FP16_MAX)) break;
      // The refinement needs every code, so only its own result may stop early.
      const error = q4Codes(values, base, scale, round === 0 ? Infinity : bestError);
      if (error < bestError) {
        bestError = error;
        bestScale = scale;
        bestCodes.set(codes);
      }
      if (round === 0) scale = refinedScale(values, base);
    }
  }
  return bestScale;
}

function encodeQ4(values: Float32Array, columns: number, out: Uint8Array, offset: number): boolean {
  for (let pair = 0; pair * COLUMN_MULTIPLE < columns; pair++) {
    const pairOffset = offset + pair * Q4_PAIR_BYTES;
    for (let half = 0; half < 2; half++) {
      const blockOffset = pairOffset + PAIR_SCALE_BYTES + half * 256;
      for (let row = 0; row < TILE_ROWS; row++) {
        const scale = quantiseQ4Block(values, row * columns + pair * COLUMN_MULTIPLE + half * QUANT_BLOCK);
        if (Number.isNaN(scale)) return false;
        writeScale(scale, out, pairOffset + (half * TILE_ROWS + row) * 2);
        for (let c = 0; c < 4; c++) {
          for (let i = 0; i < 4; i++) {
            const low = (bestCodes[8 * c + i] as number) + 8;
            const high = (bestCodes[8 * c + 4 + i] as number) + 8;
            out[blockOffset + c * 64 + row * 4 + i] = low | (high << 4);
          }
        }
      }
    }
  }
  return true;
}

function encodeQ8(values: Float32Array, columns: number, out: Uint8Array, offset: number): boolean {
  for (let pair = 0; pair * COLUMN_MULTIPLE < columns; pair++) {
    const pairOffset = offset + pair * Q8_PAIR_BYTES;
    for (let half = 0; half < 2; half++) {
      const blockOffset = pairOffset + PAIR_SCALE_BYTES + half * 512;
      for (let row = 0; row < TILE_ROWS; row++) {
        const base = row * columns + pair * COLUMN_MULTIPLE + half * QUANT_BLOCK;
        let magnitude = 0;
        for (let k = 0; k < QUANT_BLOCK; k++) {
          const size = Math.abs(values[base + k] as number);
          if (!(size < Infinity)) return false;
          if (size > magnitude) magnitude = size;
        }
        const scale = Math.f16round(magnitude / 127);
        if (scale > FP16_MAX) return false;
        writeScale(scale, out, pairOffset + (half * TILE_ROWS + row) * 2);
        for (let k = 0; k < QUANT_BLOCK; k++) {
          let code = scale === 0 ? 0 : (values[base + k] as number) / scale + ROUND_MAGIC - ROUND_MAGIC;
          if (code > 127) code = 127;
          else if (code < -127) code = -127;
          out[blockOffset + (k >> 2) * 64 + row * 4 + (k & 3)] = code + 128;
        }
      }
    }
  }
  return true;
}

function writeScale(scale: number, out: Uint8Array, at: number): void {
  scaleValue[0] = scale;
  const bits = scaleBits[0] as number;
  out[at] = bits & 255;
  out[at + 1] = bits >> 8;
}

function readScale(bytes: Uint8Array, at: number): number {
  scaleBits[0] = (bytes[at] as number) | ((bytes[at + 1] as number) << 8);
  return scaleValue[0] as number;
}

/** f16 and f32 tiles: [input][16 rows]. */
function encodeFloats(
  values: Float32Array,
  columns: number,
  out: Float16Array | Float32Array,
  largest: number,
): boolean {
  for (let row = 0; row < TILE_ROWS; row++) {
    for (let column = 0; column < columns; column++) {
      const value = values[row * columns + column] as number;
      out[column * TILE_ROWS + row] = value;
      if (!(Math.abs(out[column * TILE_ROWS + row] as number) <= largest)) return false;
    }
  }
  return true;
}

/**
 * Encodes one rowTile: values[16][columns], columns a multiple of 64, padding zero; out at `offset` (even; a multiple of 4
 * for f32) takes rowTileBytes. False when a value is not finite or too large for the quant type.
 */
export function encodeRowTile(
  quantType: QuantType,
  values: Float32Array,
  columns: number,
  out: Uint8Array,
  offset: number,
): boolean {
  assert(columns % COLUMN_MULTIPLE === 0, "a rowTile's columns must be padded");
  assert(values.length >= TILE_ROWS * columns, "a rowTile needs 16 rows of values");
  assert(offset + rowTileBytes(quantType, columns) <= out.byteLength, "the rowTile must fit its buffer");
  switch (quantType) {
    case "q4":
      return encodeQ4(values, columns, out, offset);
    case "q8":
      return encodeQ8(values, columns, out, offset);
    case "f16":
      return encodeFloats(
        values,
        columns,
        new Float16Array(out.buffer, out.byteOffset + offset, columns * TILE_ROWS),
        FP16_MAX,
      );
    case "f32":
      return encodeFloats(
        values,
        columns,
        new Float32Array(out.buffer, out.byteOffset + offset, columns * TILE_ROWS),
        Number.MAX_VALUE,
      );
    default:
      return unreachable(quantType, "quant type");
  }
}

/** Makes one weight of a rowTile zero; with `isWholeBlock`, its quantBlock's scale too. */
export function clearWeight(
  quantType: QuantType,
  bytes: Uint8Array,
  tileOffset: number,
  row: number,
  column: number,
  isWholeBlock: boolean,
): void {
  if (quantType === "f16" || quantType === "f32") {
    const size = quantType === "f16" ? 2 : 4;
    const at = tileOffset + (column * TILE_ROWS + row) * size;
    bytes.fill(0, at, at + size);
    return;
  }
  const half = (column >> 5) & 1;
  const k = column & 31;
  const pairOffset = tileOffset + (column >> 6) * (quantType === "q8" ? Q8_PAIR_BYTES : Q4_PAIR_BYTES);
  const codesOffset = pairOffset + PAIR_SCALE_BYTES;
  if (isWholeBlock) writeScale(0, bytes, pairOffset + (half * TILE_ROWS + row) * 2);
  if (quantType === "q8") {
    bytes[codesOffset + half * 512 + (k >> 2) * 64 + row * 4 + (k & 3)] = 128;
    return;
  }
  const at = codesOffset + half * 256 + (k >> 3) * 64 + row * 4 + (k & 3);
  const packed = bytes[at] as number;
  bytes[at] = (k & 4) === 0 ? (packed & 0xf0) | 8 : (packed & 0x0f) | 0x80;
}

/** Decodes one rowTile to out[16][columns]; `columns` is the padded count. */
export function decodeRowTile(
  quantType: QuantType,
  bytes: Uint8Array,
  offset: number,
  columns: number,
  out: Float32Array,
): void {
  assert(offset + rowTileBytes(quantType, columns) <= bytes.byteLength, "the rowTile must lie in its tensor");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let row = 0; row < TILE_ROWS; row++) {
    for (let column = 0; column < columns; column++) {
      const at = row * columns + column;
      const element = offset + (column * TILE_ROWS + row) * (quantType === "f16" ? 2 : 4);
      const pair = column >> 6;
      const half = (column >> 5) & 1;
      const k = column & 31;
      if (quantType === "f32") out[at] = view.getFloat32(element, true);
      else if (quantType === "f16") out[at] = view.getFloat16(element, true);
      else if (quantType === "q8") {
        const pairOffset = offset + pair * Q8_PAIR_BYTES;
        const code = bytes[pairOffset + PAIR_SCALE_BYTES + half * 512 + (k >> 2) * 64 + row * 4 + (k & 3)] as number;
        out[at] = (code - 128) * readScale(bytes, pairOffset + (half * TILE_ROWS + row) * 2);
      } else {
        const pairOffset = offset + pair * Q4_PAIR_BYTES;
        const packed = bytes[pairOffset + PAIR_SCALE_BYTES + half * 256 + (k >> 3) * 64 + row * 4 + (k & 3)] as number;
        const code = (k & 4) === 0 ? packed & 15 : packed >> 4;
        out[at] = (code - 8) * readScale(bytes, pairOffset + (half * TILE_ROWS + row) * 2);
      }
    }
  }
}

/** Rows [firstRow, firstRow + rowCount) of a tiled matrix, as float32 [rowCount][columns]. */
export function decodeRows(
  bytes: Uint8Array,
  quantType: QuantType,
  columns: number,
  firstRow: number,
  rowCount: number,
): Float32Array {
  return decodeTiles(bytes, quantType, columns, firstRow, rowCount, 0, 1);
}

/** A whole tiled matrix, as float32 [rows][columns] without padding. */
export function decodeMatrix(bytes: Uint8Array, quantType: QuantType, rows: number, columns: number): Float32Array {
  assert(bytes.byteLength >= matrixBytes(quantType, rows, columns), "the matrix must have all its bytes");
  return decodeTiles(bytes, quantType, columns, 0, rows, 0, 1);
}

/** Gate and up, float32 [dim][columns] each, of a gate-up matrix (interleaved rowTiles). */
export function decodeGateUp(
  bytes: Uint8Array,
  quantType: QuantType,
  dim: number,
  columns: number,
): { gate: Float32Array; up: Float32Array } {
  return {
    gate: decodeTiles(bytes, quantType, columns, 0, dim, 0, 2),
    up: decodeTiles(bytes, quantType, columns, 0, dim, 1, 2),
  };
}

/** Logical rowTile t is the stored rowTile firstTile + t × tileStride. */
function decodeTiles(
  bytes: Uint8Array,
  quantType: QuantType,
  columns: number,
  firstRow: number,
  rowCount: number,
  firstTile: number,
  tileStride: number,
): Float32Array {
  const padded = alignUp(columns, COLUMN_MULTIPLE);
  const tileBytes = rowTileBytes(quantType, columns);
  const tile = new Float32Array(TILE_ROWS * padded);
  const out = new Float32Array(rowCount * columns);
  const endTile = ceilDiv(firstRow + rowCount, TILE_ROWS);
  for (let t = Math.floor(firstRow / TILE_ROWS); t < endTile; t++) {
    decodeRowTile(quantType, bytes, (firstTile + t * tileStride) * tileBytes, padded, tile);
    const first = Math.max(firstRow, t * TILE_ROWS);
    const end = Math.min(firstRow + rowCount, (t + 1) * TILE_ROWS);
    for (let row = first; row < end; row++) {
      const from = (row - t * TILE_ROWS) * padded;
      out.set(tile.subarray(from, from + columns), (row - firstRow) * columns);
    }
  }
  return out;
}
