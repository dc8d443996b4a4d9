// What a step of the reference device changes, and the access to it that all ops share. It owns no arithmetic and no order of ops.

import { defined } from "../../base/assert.ts";
import { DuetError } from "../../base/errors.ts";
import { type Op, type Program, slotColumns } from "../../model/program.ts";
import type { Container } from "../../weights/header.ts";
import type { DieIndex } from "../../weights/split.ts";
import type { KvType, ModelOptions, StepStats } from "../device.ts";
import { copyRow, quantiseRow } from "./kernels.ts";
import { createKvStore, type KvStore } from "./kv-store.ts";
import { createDecodedTensors, type DecodedMatrix, type DecodedTensors } from "./tensors.ts";

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

/** Allocates everything that steps need. Weights are read at first use. */
export function createRunState(container: Container, program: Program, options: ModelOptions): RunState {
  const { shape, slots } = program;
  const vocabularySize = shape.vocabularyRows[0] + shape.vocabularyRows[1];
  const expertTotal = shape.expertCount[0] + shape.expertCount[1];
  const active = shape.expertGroupCount * shape.activePerGroup;
  const widestSlot = Math.max(shape.hiddenDim, ...slots.flatMap((slot) => slot.columns));
  const widestHidden = Math.max(shape.expertDim, ...shape.ffnColumns);
  return {
    program,
    tensors: createDecodedTensors(container),
    kv: createKvStore(shape, options.kvBlockCount),
    kvType: options.kvType,
    slots: slots.map((slot) => {
      const first = new Float32Array(options.rowMax * slotColumns(slot, 0));
      return [first, slot.isPerDie ? new Float32Array(options.rowMax * slotColumns(slot, 1)) : first] as const;
    }),
    logits: new Float32Array(options.logitRowMax * vocabularySize),
    vocabularySize,
    expertIds: new Int32Array(options.rowMax * active),
    routingWeights: new Float32Array(options.rowMax * active),
    scratch: {
      input: new Float64Array(widestSlot),
      hiddenInput: new Float64Array(widestHidden),
      gate: new Float32Array(widestHidden),
      up: new Float32Array(widestHidden),
      hidden: new Float32Array(widestHidden),
      output: new Float32Array(shape.hiddenDim),
      routerLogits: new Float32Array(expertTotal),
      scores: new Float64Array(expertTotal),
      headSums: new Float64Array(shape.headDim),
      kvSlots: new Int32Array(shape.contextMax),
      attnScores: new Float64Array(shape.contextMax),
    },
    stats: { weightBytes: 0, integerOps: 0, distinctExperts: 0, expertLayers: 0 },
  };
}

/** A slot's values on a die and their columns. */
export function slotOf(state: RunState, slotIndex: number | null, die: DieIndex) {
  const slot = defined(state.program.slots[defined(slotIndex, "an op's slot")], "a Program's slot");
  const values = defined(state.slots[defined(slotIndex)])[slot.isPerDie ? die : 0];
  return { values, columns: slotColumns(slot, die) };
}

/** DuetError `device_fault`: the step's results are worthless. */
export function notFinite(op: Op, row: number): never {
  throw new DuetError("device_fault", "a NaN or infinity reached a quantiser, the KV cache or the logits", {
    where: `op ${op.name} of layer ${op.layer}, batch row ${row}`,
    next: "check the container with `duet inspect --verify`",
  });
}

/** A row in front of a matrix: as it is, or through int8 when the matrix is q4 or q8. */
export function prepareRow(
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

/** Adds a matrix that a step reads once for `rowCount` rows. */
export function countMatrix(stats: StepStats, matrix: DecodedMatrix, rowCount: number): void {
  stats.weightBytes += matrix.bytes;
  if (matrix.isQuantised) stats.integerOps += 2 * rowCount * matrix.rows * matrix.columns;
}
