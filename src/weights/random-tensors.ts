// Random tensors in the container's layouts, at the speed of a copy: random pairs of quantBlocks are made once per quant type
// and deviation (a pool), and every matrix is a run of them that begins where its name says. Draws codes and scales directly,
// so nothing is quantised. Knows no file layout; which deviation a tensor gets is random-model.ts's affair.

import { philox4x32 } from "../base/prng.ts";
import { alignUp, ceilDiv } from "../base/units.ts";
import { clearWeight } from "./quantise.ts";
import { COLUMN_MULTIPLE, QUANT_BLOCK, type QuantType, rowTileBytes, TILE_ROWS } from "./tensor.ts";

/**
 * Pairs in a pool. Primes: rowTile t of a run begins at pair start + t × (pairs per rowTile) modulo the pool, so that the
 * rowTiles of a matrix differ until there are as many as pairs, which is more than any vocabulary in use has.
 */
const POOL_PAIRS = [509, 2039, 4093, 16381];
/** Only routers are f32, and they are short. */
const F32_POOL_PAIRS = 4093;
const PAIR_WEIGHTS = TILE_ROWS * COLUMN_MULTIPLE;
const PAIR_SCALES = 2 * TILE_ROWS;
/** Root mean square of the codes −8..7, of −127..127, and of uniform numbers between −1 and 1. */
const CODE_RMS: Readonly<Record<QuantType, number>> = {
  q4: Math.sqrt(21.5),
  q8: Math.sqrt((255 ** 2 - 1) / 12),
  f16: Math.sqrt(1 / 3),
  f32: Math.sqrt(1 / 3),
};

/** Matrices and vectors of random values; the same seed, name and arguments give the same bytes. */
export class RandomTensors {
  readonly #random: Uint16Array;
  readonly #pools = new Map<string, Uint8Array>();
  readonly #pairCount: number;

  /** `pairsWanted`: more than the rowTiles of any matrix; a small model needs no large pools. */
  constructor(
    readonly seed: number,
    pairsWanted: number,
  ) {
    this.#pairCount = POOL_PAIRS.find((pairs) => pairs >= pairsWanted) ?? Math.max(...POOL_PAIRS);
    this.#random = randomWords(seed, this.#pairCount * PAIR_WEIGHTS);
  }

  /** A vector of uniform values around `mean`. */
  fillVector(name: string, mean: number, deviation: number, out: Float32Array): void {
    const random = this.#random;
    let at = this.#start(name, random.length);
    for (let i = 0; i < out.length; i++) {
      out[i] = mean + (((random[at] as number) - 32767.5) / 32768) * Math.sqrt(3) * deviation;
      if (++at === random.length) at = 0;
    }
  }

  /** Whole rowTiles of weights with the given standard deviation: `out` is a run of pairs. */
  fillTiles(name: string, quantType: QuantType, deviation: number, out: Uint8Array): void {
    const pool = this.#pool(quantType, deviation);
    const pairBytes = rowTileBytes(quantType, COLUMN_MULTIPLE);
    let from = this.#start(name, pool.byteLength / pairBytes) * pairBytes;
    for (let at = 0; at < out.byteLength;) {
      const bytes = Math.min(out.byteLength - at, pool.byteLength - from);
      out.set(pool.subarray(from, from + bytes), at);
      at += bytes;
      from = 0;
    }
  }

  #start(name: string, count: number): number {
    return Number(Bun.hash.xxHash64(name, BigInt(this.seed)) % BigInt(count));
  }

  #pool(quantType: QuantType, deviation: number): Uint8Array {
    const key = `${quantType} ${deviation}`;
    const known = this.#pools.get(key);
    if (known !== undefined) return known;
    const pairs = quantType === "f32" ? Math.min(this.#pairCount, F32_POOL_PAIRS) : this.#pairCount;
    const pool = makePool(quantType, deviation, this.#random, pairs);
    this.#pools.set(key, pool);
    return pool;
  }
}

function randomWords(seed: number, count: number): Uint16Array {
  const words = new Uint32Array(ceilDiv(count, 8) * 4);
  const block = new Uint32Array(4);
  const [low, high] = [seed >>> 0, Math.floor(seed / 2 ** 32)];
  for (let at = 0; at < words.length; at += 4) {
    philox4x32(low, high, at, 0, 0, 0, block);
    for (let i = 0; i < 4; i++) words[at + i] = block[i] as number;
  }
  return new Uint16Array(words.buffer, 0, count);
}

function makePool(quantType: QuantType, deviation: number, random: Uint16Array, pairs: number): Uint8Array {
  const pairBytes = rowTileBytes(quantType, COLUMN_MULTIPLE);
  const pool = new Uint8Array(pairs * pairBytes);
  const unit = deviation / CODE_RMS[quantType];
  if (quantType === "f16" || quantType === "f32") {
    const values = quantType === "f16" ? new Float16Array(pool.buffer) : new Float32Array(pool.buffer);
    for (let i = 0; i < values.length; i++) values[i] = (((random[i] as number) - 32767.5) / 32768) * unit;
    return pool;
  }
  const scales = new Float16Array(pool.buffer);
  const codes = new Uint8Array(random.buffer, 0, pairs * (pairBytes - 2 * PAIR_SCALES));
  const codeBytes = pairBytes - 2 * PAIR_SCALES;
  for (let pair = 0; pair < pairs; pair++) {
    for (let i = 0; i < PAIR_SCALES; i++) {
      // Magnitude from three quarters to five quarters; the sign takes away what the lopsided −8..7 would add to every row.
      const word = random[random.length - 1 - (pair * PAIR_SCALES + i)] as number;
      const sign = quantType === "q4" && (word & 1) === 1 ? -1 : 1;
      scales[(pair * pairBytes) / 2 + i] = sign * unit * (0.75 + (word >> 1) / 65536);
    }
    const at = pair * pairBytes + 2 * PAIR_SCALES;
    pool.set(codes.subarray(pair * codeBytes, (pair + 1) * codeBytes), at);
    // Stored 0 would be −128, which a q8 weight never is.
    if (quantType === "q8") for (let i = at; i < at + codeBytes; i++) if (pool[i] === 0) pool[i] = 128;
  }
  return pool;
}

/**
 * Makes the padding of a tiled matrix at the start of `bytes` zero weights: rows beyond `rows` and inputs beyond `columns`.
 * `matrixCount` matrices are interleaved, rowTile by rowTile (gate and up: 2).
 */
export function clearPadding(
  bytes: Uint8Array,
  quantType: QuantType,
  rows: number,
  columns: number,
  matrixCount: 1 | 2,
): void {
  const padded = alignUp(columns, COLUMN_MULTIPLE);
  const tileBytes = rowTileBytes(quantType, columns);
  for (let tile = 0; tile < ceilDiv(rows, TILE_ROWS) * matrixCount; tile++) {
    const rowEnd = rows - Math.floor(tile / matrixCount) * TILE_ROWS;
    for (let row = 0; row < TILE_ROWS; row++) {
      const first = row < rowEnd ? columns : 0;
      for (let column = first; column < padded; column++) {
        const blockStart = column - (column % QUANT_BLOCK);
        clearWeight(quantType, bytes, tile * tileBytes, row, column, blockStart >= first);
      }
    }
  }
}
