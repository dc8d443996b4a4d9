// How many kvBlocks an engine gets, and what they cost. Pure.

import { DuetError } from "../base/errors.ts";
import { formatBytes } from "../base/units.ts";
import { KV_BLOCK_TOKENS } from "../device/batch.ts";
import type { KvType } from "../device/device.ts";
import { blocksFor } from "../memory/block-table.ts";
import type { ProgramShape } from "../model/program.ts";

/** The KV cache takes at most this share of the memory that is free at start and that the weights leave. */
const FREE_MEMORY_SHARE = 0.5;
/** What the KV cache may count on where the weights want all memory and more: they can be read again, KV cannot. */
const BESIDE_WEIGHTS_SHARE = 0.125;
const ELEMENT_BYTES: Record<KvType, number> = { f16: 2, int8: 1, f32: 4 };
/** int8 keeps a float32 scale per token and KV head, for K and for V. */
const SCALE_BYTES: Record<KvType, number> = { f16: 0, int8: 4, f32: 0 };

/** Bytes of K and V of one kvBlock over all layers and both dies. */
export function kvBlockBytes(shape: ProgramShape, kvType: KvType): number {
  const headCount = shape.kvHeads[0] + shape.kvHeads[1];
  const headBytes = shape.headDim * ELEMENT_BYTES[kvType] + SCALE_BYTES[kvType];
  return shape.kvLayerCount * headCount * 2 * KV_BLOCK_TOKENS * headBytes;
}

export interface KvBudget {
  /** null: as many as sequenceMax full contexts need, as far as memory allows. */
  readonly kvBlockCount: number | null;
  readonly sequenceMax: number;
  readonly contextMax: number;
  /** Of all models that share the block ids. */
  readonly blockBytes: number;
  /** Memory that is free at start; the page cache, and in it the mapped weights, counts as free. */
  readonly freeBytes: number;
  /** Of all containers: they come into memory as they are used. */
  readonly weightBytes: number;
}

/** The number of kvBlocks. DuetError `out_of_memory` when not even one fits. */
export function chooseKvBlockCount(budget: KvBudget): number {
  const { kvBlockCount, sequenceMax, contextMax, blockBytes, freeBytes, weightBytes } = budget;
  const wanted = kvBlockCount ?? sequenceMax * blocksFor(contextMax);
  // What was asked for by number is taken at its word: the system may have more to give than it calls free.
  const leftBytes = Math.max(freeBytes - weightBytes, freeBytes * BESIDE_WEIGHTS_SHARE);
  const affordable = kvBlockCount ?? Math.floor((leftBytes * FREE_MEMORY_SHARE) / blockBytes);
  if (affordable < 1) {
    throw new DuetError("out_of_memory", "there is no memory for a KV cache", {
      expected: `at least ${formatBytes(blockBytes / FREE_MEMORY_SHARE)} that the weights leave free`,
      got: formatBytes(leftBytes),
      next: "free memory, or choose --kv int8",
    });
  }
  return Math.min(wanted, affordable);
}
