// The feed-forward ops: the router's choice, shared experts (or a dense FFN), and the chosen experts in ascending id.

/* oxlint-disable typescript/no-non-null-assertion -- indices are bounded by the shape and the checked batch */

import { defined } from "../../base/assert.ts";
import type { Op } from "../../model/program.ts";
import { DIES } from "../../weights/split.ts";
import type { Batch } from "../batch.ts";
import type { StepStats } from "../device.ts";
import { chooseExperts, copyRow, matrixTimesRow, softmaxRow, swiglu } from "./kernels.ts";
import { countMatrix, prepareRow, type RunState, slotOf } from "./run-state.ts";
import type { FeedForwardParts } from "./tensors.ts";

export function route(state: RunState, op: Op, batch: Batch): void {
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

export function ffn(state: RunState, op: Op, batch: Batch): void {
  const input = slotOf(state, op.input, 0);
  for (const die of DIES) {
    const output = slotOf(state, op.output, die);
    const gateUp = op.weight[die];
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

export function expertFfn(state: RunState, op: Op, batch: Batch): void {
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
