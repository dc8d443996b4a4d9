// Batch: the rows of one step as a structure of arrays (native/kernels.h, duet_batch). Allocated once at its largest size
// and refilled each step; rows are ordered by sequence, positions ascending and consecutive within a sequence.

import { assert } from "../base/assert.ts";

export interface Batch {
  rowCount: number;
  sequenceCount: number;
  logitRowCount: number;
  readonly blockTableStride: number;
  readonly tokenIds: Int32Array;
  readonly positions: Int32Array;
  /** kvBlock × 32 + token: where the row's K and V go. */
  readonly kvSlots: Int32Array;
  readonly sequenceIndex: Int32Array;
  /** [sequence][blockTableStride] */
  readonly blockTables: Int32Array;
  /** Ascending row indices whose logits are wanted. */
  readonly logitRows: Int32Array;
  /** One shared word: another thread makes it non-zero to end the step within a layer. */
  abortWord: Int32Array | null;
}

export interface BatchLimits {
  readonly rowMax: number;
  readonly sequenceMax: number;
  readonly blocksPerSequenceMax: number;
}

/** An empty Batch with room for `limits`. */
export function createBatch(limits: BatchLimits, abortWord: Int32Array | null = null): Batch {
  return {
    rowCount: 0,
    sequenceCount: 0,
    logitRowCount: 0,
    blockTableStride: limits.blocksPerSequenceMax,
    tokenIds: new Int32Array(limits.rowMax),
    positions: new Int32Array(limits.rowMax),
    kvSlots: new Int32Array(limits.rowMax),
    sequenceIndex: new Int32Array(limits.rowMax),
    blockTables: new Int32Array(limits.sequenceMax * limits.blocksPerSequenceMax),
    logitRows: new Int32Array(limits.rowMax),
    abortWord,
  };
}

export const KV_BLOCK_TOKENS = 32;

export function clearBatch(batch: Batch): void {
  batch.rowCount = 0;
  batch.sequenceCount = 0;
  batch.logitRowCount = 0;
}

/** Opens the next sequence with the first `blockCount` of its blocks; returns its index. Rows added next belong to it. */
export function addSequence(batch: Batch, blockTable: ArrayLike<number>, blockCount = blockTable.length): number {
  const index = batch.sequenceCount;
  const start = index * batch.blockTableStride;
  assert(start + batch.blockTableStride <= batch.blockTables.length, "batch has room for another sequence");
  assert(blockCount <= batch.blockTableStride, "block table fits the batch's stride");
  for (let i = 0; i < blockCount; i++) batch.blockTables[start + i] = blockTable[i] ?? 0;
  batch.sequenceCount++;
  return index;
}

/** Adds a row to the last opened sequence; the kvSlot follows from its block table. Returns the row's index. */
export function addRow(batch: Batch, tokenId: number, position: number, wantsLogits: boolean): number {
  const row = batch.rowCount;
  assert(row < batch.tokenIds.length, "batch has room for another row");
  const sequence = batch.sequenceCount - 1;
  const kvBlock = batch.blockTables[sequence * batch.blockTableStride + Math.floor(position / KV_BLOCK_TOKENS)] ?? 0;
  batch.tokenIds[row] = tokenId;
  batch.positions[row] = position;
  batch.kvSlots[row] = kvBlock * KV_BLOCK_TOKENS + (position % KV_BLOCK_TOKENS);
  batch.sequenceIndex[row] = sequence;
  if (wantsLogits) batch.logitRows[batch.logitRowCount++] = row;
  batch.rowCount++;
  return row;
}
