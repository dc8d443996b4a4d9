// What each op of a Program does, on one RunState: activation slots, KV, the step's routing and logits. The arithmetic is in
// kernels.ts; which op comes when is the Program's. Ops of both dies run one after the other, die 0 first.

/* oxlint-disable typescript/no-non-null-assertion -- indices are bounded by the shape and the checked batch */

import { DuetError } from "../../base/errors.ts";
import { assert, defined } from "../../base/assert.ts";
import { type Op, type Program, slotColumns, type TensorIndex } from "../../model/program.ts";
import { DIES, type DieIndex } from "../../weights/split.ts";
import { type Batch, KV_BLOCK_TOKENS } from "../batch.ts";
import type { KvType, StepStats } from "../device.ts";
import {
  attendHead,
  chooseExperts,
  copyRow,
  matrixTimesRow,
  quantiseRow,
  rmsNormRow,
  rotateHead,
  softmaxRow,
  swiglu,
} from "./kernels.ts";
import { type KvStore, storeHead } from "./kv-store.ts";
import type { DecodedMatrix, DecodedTensors, FeedForwardParts } from "./tensors.ts";

/** Everything that a step changes; allocated once per model. */
export interface RunState {
  readonly program: Program;
  readonly tensors: DecodedTensors;
  readonly kv: KvStore;
  readonly kvType: KvType;
  /** [slot][die]: [row][columns]. A shared slot has die 0's only. */
  readonly slots: readonly (readonly [Float32Array, Float32Array])[];
  /** [logitRow][vocabularySize] */
  readonly logits: Float32Array;
  readonly vocabularySize: number;
  /** [row][active], ids ascending, and their routing weights. */
  readonly expertIds: Int32Array;
  readonly routingWeights: Float32Array;
  readonly scratch: Scratch;
  readonly stats: StepStats;
}

/** Rows of activations inside an op. */
export interface Scratch {
  readonly input: Float64Array;
  readonly hiddenInput: Float64Array;
  readonly gate: Float32Array;
  readonly up: Float32Array;
  readonly hidden: Float32Array;
  readonly output: Float32Array;
  readonly routerLogits: Float32Array;
  readonly scores: Float64Array;
  readonly headSums: Float64Array;
  readonly kvSlots: Int32Array;
  readonly attnScores: Float64Array;
}

/** Runs one op over the Batch's rows. DuetError `device_fault` for a value that is not finite. */
export function runOp(state: RunState, op: Op, batch: Batch): void {
  switch (op.name) {
    case "embed":
      return embed(state, op, batch);
    case "rmsNorm":
      return rmsNorm(state, op, batch);
    case "matmul":
      return matmul(state, op, batch);
    case "ropeAndStore":
      return ropeAndStore(state, op, batch);
    case "attention":
      return attention(state, op, batch);
    case "exchangeAdd":
      return exchangeAdd(state, op, batch);
    case "route":
      return route(state, op, batch);
    case "ffn":
      return ffn(state, op, batch);
    case "expertFfn":
      return expertFfn(state, op, batch);
    case "logits":
      return logits(state, op, batch);
  }
}

function slotOf(state: RunState, slotIndex: number | null, die: DieIndex) {
  const slot = defined(state.program.slots[defined(slotIndex, "an op's slot")], "a Program's slot");
  const values = defined(state.slots[defined(slotIndex)])[slot.isPerDie ? die : 0];
  return { values, columns: slotColumns(slot, die) };
}

function notFinite(op: Op, row: number): never {
  throw new DuetError("device_fault", "a NaN or infinity reached a quantiser, the KV cache or the logits", {
    where: `op ${op.name} of layer ${op.layer}, batch row ${row}`,
    next: "check the container with `duet inspect --verify`",
  });
}

/** A row in front of a matrix: as it is, or through int8 when the matrix is q4 or q8. */
function prepareRow(
  op: Op,
  row: number,
  values: Float32Array,
  start: number,
  columns: number,
  isQuantised: boolean,
  out: Float64Array,
): void {
  if (!isQuantised) copyRow(values, start, columns, out);
  else if (!quantiseRow(values, start, columns, out)) notFinite(op, row);
}

function countMatrix(stats: StepStats, matrix: DecodedMatrix, rowCount: number): void {
  stats.weightBytes += matrix.bytes;
  if (matrix.isQuantised) stats.integerOps += 2 * rowCount * matrix.rows * matrix.columns;
}

function embed(state: RunState, op: Op, batch: Batch): void {
  const { values, columns } = slotOf(state, op.output, 0);
  const first = state.tensors.matrix(defined(op.weight[0], "the embedding"));
  const second = op.weight[1] === null ? null : state.tensors.matrix(op.weight[1]);
  for (let row = 0; row < batch.rowCount; row++) {
    const tokenId = batch.tokenIds[row]!;
    const isFirst = tokenId < first.rows;
    const source = isFirst ? first : defined(second, "the second half of the embedding");
    const start = (isFirst ? tokenId : tokenId - first.rows) * columns;
    values.set(source.values.subarray(start, start + columns), row * columns);
  }
}

function rmsNorm(state: RunState, op: Op, batch: Batch): void {
  const input = slotOf(state, op.input, 0);
  const output = slotOf(state, op.output, 0);
  const weight = state.tensors.vector(defined(op.weight[0], "a norm's weight"));
  const { columns } = input;
  const isGathered = op.flags.logitRows === true;
  const count = isGathered ? batch.logitRowCount : batch.rowCount;
  for (let i = 0; i < count; i++) {
    const row = isGathered ? batch.logitRows[i]! : i;
    const { rmsNormEps } = state.program.shape;
    rmsNormRow(input.values, row * columns, weight, columns, rmsNormEps, output.values, i * columns);
  }
}

function matmul(state: RunState, op: Op, batch: Batch): void {
  for (const die of DIES) {
    const input = slotOf(state, op.input, die);
    const output = slotOf(state, op.output, die);
    const weight = op.weight[die];
    if (weight === null) {
      output.values.fill(0, 0, batch.rowCount * output.columns);
      continue;
    }
    const matrix = state.tensors.matrix(weight);
    const bias = op.bias[die] === null ? null : state.tensors.vector(op.bias[die]);
    countMatrix(state.stats, matrix, batch.rowCount);
    const x = state.scratch.input;
    for (let row = 0; row < batch.rowCount; row++) {
      prepareRow(op, row, input.values, row * input.columns, matrix.columns, matrix.isQuantised, x);
      matrixTimesRow(matrix.values, matrix.rows, matrix.columns, x, bias, output.values, row * output.columns);
    }
  }
}

function ropeAndStore(state: RunState, op: Op, batch: Batch): void {
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

function attention(state: RunState, op: Op, batch: Batch): void {
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

function exchangeAdd(state: RunState, op: Op, batch: Batch): void {
  const h = slotOf(state, op.output, 0);
  const p0 = slotOf(state, op.input, 0).values;
  const p1 = slotOf(state, op.input, 1).values;
  const count = batch.rowCount * h.columns;
  for (let i = 0; i < count; i++) h.values[i] = h.values[i]! + (p0[i]! + p1[i]!);
}

function route(state: RunState, op: Op, batch: Batch): void {
  const { expertsPerGroup, activePerGroup, expertGroupCount } = state.program.shape;
  const input = slotOf(state, op.input, 0);
  const router = state.tensors.matrix(defined(op.weight[0], "the router"));
  const routerScale = op.weight2[0] === null ? null : state.tensors.vector(op.weight2[0]);
  const { input: x, routerLogits, scores } = state.scratch;
  const active = expertGroupCount * activePerGroup;
  countMatrix(state.stats, router, batch.rowCount);
  for (let row = 0; row < batch.rowCount; row++) {
    copyRow(input.values, row * input.columns, router.columns, x);
    matrixTimesRow(router.values, router.rows, router.columns, x, null, routerLogits, 0);
    softmaxRow(routerLogits, router.rows, scores);
    const start = row * active;
    chooseExperts(routerLogits, router.rows, expertsPerGroup, activePerGroup, state.expertIds, start);
    let kept = 0;
    for (let i = start; i < start + active; i++) kept += scores[state.expertIds[i]!]!;
    const divisor = op.flags.renormalise === true ? kept : 1;
    for (let i = start; i < start + active; i++) {
      const id = state.expertIds[i]!;
      state.routingWeights[i] = (scores[id]! / divisor) * (routerScale === null ? 1 : routerScale[id]!);
    }
  }
}

/** down(silu(gate x) × up x) of one prepared row, into scratch.output. */
function feedForward(state: RunState, op: Op, row: number, parts: FeedForwardParts, x: Float64Array): Float32Array {
  const { gate, up, down } = parts;
  const { scratch } = state;
  matrixTimesRow(gate.values, gate.rows, gate.columns, x, null, scratch.gate, 0);
  matrixTimesRow(up.values, up.rows, up.columns, x, null, scratch.up, 0);
  swiglu(scratch.gate, scratch.up, gate.rows, scratch.hidden);
  prepareRow(op, row, scratch.hidden, 0, down.columns, down.isQuantised, scratch.hiddenInput);
  matrixTimesRow(down.values, down.rows, down.columns, scratch.hiddenInput, null, scratch.output, 0);
  return scratch.output;
}

function countParts(stats: StepStats, parts: FeedForwardParts, rowCount: number): void {
  countMatrix(stats, parts.gate, rowCount);
  countMatrix(stats, parts.up, rowCount);
  countMatrix(stats, parts.down, rowCount);
}

function ffn(state: RunState, op: Op, batch: Batch): void {
  const input = slotOf(state, op.input, 0);
  for (const die of DIES) {
    const output = slotOf(state, op.output, die);
    const gateUp: TensorIndex | null = op.weight[die];
    if (gateUp === null) {
      output.values.fill(0, 0, batch.rowCount * output.columns);
      continue;
    }
    const parts = state.tensors.ffn(gateUp, defined(op.weight2[die], "an FFN's down"));
    countParts(state.stats, parts, batch.rowCount);
    const x = state.scratch.input;
    for (let row = 0; row < batch.rowCount; row++) {
      prepareRow(op, row, input.values, row * input.columns, parts.gate.columns, parts.gate.isQuantised, x);
      const result = feedForward(state, op, row, parts, x);
      output.values.set(result.subarray(0, parts.down.rows), row * output.columns);
    }
  }
}

function expertFfn(state: RunState, op: Op, batch: Batch): void {
  const { expertFirst, expertCount, expertGroupCount, activePerGroup } = state.program.shape;
  const firstTensor = defined(op.weight[0], "expert 0");
  const active = expertGroupCount * activePerGroup;
  const input = slotOf(state, op.input, 0);
  const rowsOfExpert = new Map<number, number>();
  for (const die of DIES) {
    const output = slotOf(state, op.output, die);
    const lastExpert = expertFirst[die] + expertCount[die];
    if (op.flags.accumulate !== true) output.values.fill(0, 0, batch.rowCount * output.columns);
    for (let row = 0; row < batch.rowCount; row++) {
      const outStart = row * output.columns;
      for (let i = row * active; i < (row + 1) * active; i++) {
        const id = state.expertIds[i]!;
        if (id < expertFirst[die] || id >= lastExpert) continue;
        const parts = state.tensors.expert(firstTensor + id);
        const x = state.scratch.input;
        prepareRow(op, row, input.values, row * input.columns, parts.gate.columns, parts.gate.isQuantised, x);
        const result = feedForward(state, op, row, parts, x);
        const weight = state.routingWeights[i]!;
        for (let k = 0; k < output.columns; k++) {
          output.values[outStart + k] = output.values[outStart + k]! + weight * result[k]!;
        }
        rowsOfExpert.set(id, (rowsOfExpert.get(id) ?? 0) + 1);
      }
    }
  }
  for (const [id, rowCount] of rowsOfExpert) countParts(state.stats, state.tensors.expert(firstTensor + id), rowCount);
  state.stats.distinctExperts += rowsOfExpert.size;
  state.stats.expertLayers++;
}

function logits(state: RunState, op: Op, batch: Batch): void {
  const input = slotOf(state, op.input, 0);
  const { vocabularySize, scratch } = state;
  let firstRow = 0;
  for (const die of DIES) {
    const weight = op.weight[die];
    if (weight === null) continue;
    const matrix = state.tensors.matrix(weight);
    countMatrix(state.stats, matrix, batch.logitRowCount);
    for (let row = 0; row < batch.logitRowCount; row++) {
      prepareRow(op, row, input.values, row * input.columns, matrix.columns, matrix.isQuantised, scratch.input);
      const start = row * vocabularySize + firstRow;
      matrixTimesRow(matrix.values, matrix.rows, matrix.columns, scratch.input, null, state.logits, start);
    }
    firstRow += matrix.rows;
  }
  assert(firstRow === vocabularySize, "the head covers the vocabulary");
  for (let i = 0; i < batch.logitRowCount * vocabularySize; i++) {
    if (!Number.isFinite(state.logits[i]!)) notFinite(op, Math.floor(i / vocabularySize));
  }
}
