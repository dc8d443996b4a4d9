// The reference's KV cache: keys and values of every layer and die as float32, but only with values that the KV type can hold
// (docs/arithmetic.md, rule 5), so that what is read back is what a device with that type would read.

/* oxlint-disable typescript/no-non-null-assertion -- indices are bounded by the shape and the checked batch */

import type { KvType } from "../device.ts";
import { KV_BLOCK_TOKENS } from "../batch.ts";
import type { PerDie, ProgramShape } from "../../model/program.ts";
import type { DieIndex } from "../../weights/split.ts";
import { roundHalfEven } from "./kernels.ts";

/** Keys and values of one layer on one die: [kvSlot][kvHead][headDim]. */
export interface KvLayer {
  readonly keys: Float32Array;
  readonly values: Float32Array;
  /** Elements of one kvSlot. */
  readonly stride: number;
}

export interface KvStore {
  readonly bytes: number;
  readonly slotCount: number;
  layer(layerIndex: number, die: DieIndex): KvLayer;
}

export function createKvStore(shape: ProgramShape, kvBlockCount: number): KvStore {
  const slotCount = kvBlockCount * KV_BLOCK_TOKENS;
  const createLayer = (kvHeads: number): KvLayer => {
    const stride = kvHeads * shape.headDim;
    return { keys: new Float32Array(slotCount * stride), values: new Float32Array(slotCount * stride), stride };
  };
  const layers = Array.from({ length: shape.kvLayerCount }, (): PerDie<KvLayer> => [
    createLayer(shape.kvHeads[0]),
    createLayer(shape.kvHeads[1]),
  ]);
  const elements = layers.reduce((sum, [a, b]) => sum + a.keys.length + b.keys.length, 0);
  return {
    bytes: elements * 2 * Float32Array.BYTES_PER_ELEMENT,
    slotCount,
    layer(layerIndex, die) {
      const layer = layers[layerIndex]?.[die];
      if (layer === undefined) throw new RangeError(`there is no KV layer ${layerIndex}`);
      return layer;
    },
  };
}

/** Stores one head's keys or values as the KV type would. False when a value has no finite form in it. */
export function storeHead(
  kvType: KvType,
  from: Float32Array,
  fromStart: number,
  to: Float32Array,
  toStart: number,
  headDim: number,
): boolean {
  let isFinite = true;
  if (kvType === "int8") {
    let m = 0;
    for (let d = 0; d < headDim; d++) m = Math.max(m, Math.abs(from[fromStart + d]!));
    const r = Math.fround(127 / m);
    const scale = Math.fround(m / 127);
    const isZero = m === 0 || !Number.isFinite(r);
    for (let d = 0; d < headDim; d++) {
      const q = isZero ? 0 : roundHalfEven(Math.fround(from[fromStart + d]! * r));
      to[toStart + d] = Math.max(-127, Math.min(127, q)) * scale;
    }
    return Number.isFinite(m);
  }
  for (let d = 0; d < headDim; d++) {
    const value = kvType === "f16" ? Math.f16round(from[fromStart + d]!) : from[fromStart + d]!;
    if (!Number.isFinite(value)) isFinite = false;
    to[toStart + d] = value;
  }
  return isFinite;
}
