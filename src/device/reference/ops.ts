// What each op of a Program does to the RunState. The arithmetic is in kernels.ts; which op comes when is the Program's. Ops of
// both dies run one after the other, die 0 first.

/* oxlint-disable typescript/no-non-null-assertion -- indices are bounded by the shape and the checked batch */

import { assert, defined } from "../../base/assert.ts";
import type { Op } from "../../model/program.ts";
import { DIES } from "../../weights/split.ts";
import type { Batch } from "../batch.ts";
import { attention, ropeAndStore } from "./attention.ts";
import { expertFfn, ffn, route } from "./feed-forward.ts";
import { matrixTimesRow, rmsNormRow } from "./kernels.ts";
import { countMatrix, notFinite, prepareRow, type RunState, slotOf } from "./run-state.ts";

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

function exchangeAdd(state: RunState, op: Op, batch: Batch): void {
  const h = slotOf(state, op.output, 0);
  const p0 = slotOf(state, op.input, 0).values;
  const p1 = slotOf(state, op.input, 1).values;
  const count = batch.rowCount * h.columns;
  for (let i = 0; i < count; i++) h.values[i] = h.values[i]! + (p0[i]! + p1[i]!);
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
