// The attention ops: rotate and store, then attend over the block table. K and V of a step are stored before any row attends.

/* oxlint-disable typescript/no-non-null-assertion -- indices are bounded by the shape and the checked batch */

import type { Op } from "../../model/program.ts";
import { DIES } from "../../weights/split.ts";
import { type Batch, KV_BLOCK_TOKENS } from "../batch.ts";
import { attendHead, rotateHead } from "./kernels.ts";
import { storeHead } from "./kv-store.ts";
import { notFinite, type RunState, slotOf } from "./run-state.ts";

export function ropeAndStore(state: RunState, op: Op, batch: Batch): void {
  const { headDim, queryHeads, kvHeads, inverseFrequencies } = state.program.shape;
  const qScale = Math.fround(1 / Math.sqrt(headDim));
  for (const die of DIES) {
    const { values, columns } = slotOf(state, op.input, die);
    const kv = state.kv.layer(op.layer, die);
    const rotated = queryHeads[die] + kvHeads[die];
    for (let row = 0; row < batch.rowCount; row++) {
      const start = row * columns;
      for (let head = 0; head < rotated; head++) {
        rotateHead(values, start + head * headDim, headDim, batch.positions[row]!, inverseFrequencies);
      }
      const queryEnd = start + queryHeads[die] * headDim;
      for (let i = start; i < queryEnd; i++) values[i] = values[i]! * qScale;
      const keyStart = queryEnd;
      const valueStart = keyStart + kv.stride;
      const slotStart = batch.kvSlots[row]! * kv.stride;
      for (let head = 0; head < kvHeads[die]; head++) {
        const at = head * headDim;
        const isKeyFinite = storeHead(state.kvType, values, keyStart + at, kv.keys, slotStart + at, headDim);
        const isValueFinite = storeHead(state.kvType, values, valueStart + at, kv.values, slotStart + at, headDim);
        if (!isKeyFinite || !isValueFinite) notFinite(op, row);
      }
    }
  }
}

export function attention(state: RunState, op: Op, batch: Batch): void {
  const { headDim, queryHeads, kvHeads } = state.program.shape;
  const { kvSlots, attnScores, headSums } = state.scratch;
  for (let row = 0; row < batch.rowCount; row++) {
    const count = batch.positions[row]! + 1;
    const tableStart = batch.sequenceIndex[row]! * batch.blockTableStride;
    for (let p = 0; p < count; p++) {
      const kvBlock = batch.blockTables[tableStart + Math.floor(p / KV_BLOCK_TOKENS)]!;
      kvSlots[p] = kvBlock * KV_BLOCK_TOKENS + (p % KV_BLOCK_TOKENS);
    }
    for (const die of DIES) {
      const input = slotOf(state, op.input, die);
      const output = slotOf(state, op.output, die);
      const kv = state.kv.layer(op.layer, die);
      const queryHeadsPerKvHead = queryHeads[die] / kvHeads[die];
      for (let head = 0; head < queryHeads[die]; head++) {
        const kvHeadStart = Math.floor(head / queryHeadsPerKvHead) * headDim;
        const qStart = row * input.columns + head * headDim;
        const outStart = row * output.columns + head * headDim;
        attendHead(
          input.values,
          qStart,
          headDim,
          kv.keys,
          kv.values,
          kv.stride,
          kvHeadStart,
          kvSlots,
          count,
          attnScores,
          headSums,
          output.values,
          outStart,
        );
      }
    }
  }
}
