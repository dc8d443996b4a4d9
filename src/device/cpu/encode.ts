// A Program and its container's tensor table as the kernel library takes them (native/kernels.h). Runs once per loaded model.

import { assert, defined } from "../../base/assert.ts";
import {
  CONSTANTS,
  KV_TYPE,
  MODEL_OPTIONS_STRUCT,
  OP_STRUCT,
  QUANT_TYPE,
  SHAPE_STRUCT,
  SLOT_STRUCT,
  TENSOR_STRUCT,
} from "../../native/binding.ts";
import { addressOf, StructArray } from "../../native/struct.ts";
import { OP_CODES, type Op, type Program, type ProgramShape } from "../../model/program.ts";
import type { TensorEntry } from "../../weights/tensor.ts";
import type { ModelOptions } from "../device.ts";

/** What duet_model_create takes. The caller keeps this object alive during the call: the structs borrow its arrays. */
export interface EncodedProgram {
  readonly shape: StructArray;
  readonly tensors: StructArray;
  readonly slots: StructArray;
  readonly ops: StructArray;
  readonly options: StructArray;
  readonly inverseFrequencies: Float64Array;
}

export function encodeProgram(
  program: Program,
  tensors: readonly TensorEntry[],
  options: ModelOptions,
): EncodedProgram {
  assert(
    program.slots.length > 0 && program.ops.length > 0 && tensors.length > 0,
    "a Program has slots, ops and tensors",
  );
  const inverseFrequencies = Float64Array.from(program.shape.inverseFrequencies);
  return {
    shape: encodeShape(program.shape, inverseFrequencies),
    tensors: encodeTensors(tensors),
    slots: encodeSlots(program),
    ops: encodeOps(program.ops),
    options: encodeOptions(options),
    inverseFrequencies,
  };
}

function encodeShape(shape: ProgramShape, inverseFrequencies: Float64Array): StructArray {
  assert(inverseFrequencies.length === shape.headDim / 2, "there is an inverse frequency for every rotated pair");
  const { fields } = SHAPE_STRUCT;
  const struct = new StructArray(SHAPE_STRUCT, 1);
  const scalars = [
    "hiddenDim",
    "headDim",
    "kvLayerCount",
    "contextMax",
    "expertDim",
    "expertGroupCount",
    "expertsPerGroup",
    "activePerGroup",
  ] as const;
  const pairs = ["queryHeads", "kvHeads", "vocabularyRows", "ffnColumns", "expertFirst", "expertCount"] as const;
  for (const name of scalars) struct.setU32(0, fields[name], shape[name]);
  for (const name of pairs) for (const die of [0, 1] as const) struct.setU32(0, fields[name], shape[name][die], die);
  struct.setF32(0, fields.rmsNormEps, shape.rmsNormEps);
  struct.setU64(0, fields.inverseFrequencies, addressOf(inverseFrequencies));
  return struct;
}

function encodeTensors(tensors: readonly TensorEntry[]): StructArray {
  const { fields } = TENSOR_STRUCT;
  const struct = new StructArray(TENSOR_STRUCT, tensors.length);
  for (const [index, tensor] of tensors.entries()) {
    struct.setU64(index, fields.offset, tensor.offset);
    struct.setU64(index, fields.bytes, tensor.bytes);
    struct.setU64(index, fields.downOffset, tensor.downOffset);
    struct.setU32(index, fields.quantType, QUANT_TYPE[tensor.quantType]);
    struct.setU32(index, fields.rows, tensor.rows);
    struct.setU32(index, fields.columns, tensor.columns);
    struct.setU32(index, fields.downQuantType, tensor.downOffset === 0 ? 0 : QUANT_TYPE[tensor.quantType]);
  }
  return struct;
}

function encodeSlots({ slots }: Program): StructArray {
  const { fields } = SLOT_STRUCT;
  const struct = new StructArray(SLOT_STRUCT, slots.length);
  for (const [index, slot] of slots.entries()) {
    for (const die of [0, 1] as const) struct.setU32(index, fields.columns, slot.columns[die], die);
    struct.setU32(index, fields.isPerDie, slot.isPerDie ? 1 : 0);
    struct.setU32(index, fields.isQuantised, slot.isQuantised ? 1 : 0);
  }
  return struct;
}

function encodeOps(ops: readonly Op[]): StructArray {
  const { fields } = OP_STRUCT;
  const struct = new StructArray(OP_STRUCT, ops.length);
  for (const [index, op] of ops.entries()) {
    struct.setU32(index, fields.code, OP_CODES[op.name]);
    struct.setU32(index, fields.flags, encodeFlags(op.flags));
    struct.setU32(index, fields.layer, op.layer);
    struct.setU32(index, fields.input, op.input ?? CONSTANTS.none);
    struct.setU32(index, fields.output, op.output ?? CONSTANTS.none);
    for (const name of ["weight", "weight2", "bias"] as const) {
      for (const die of [0, 1] as const) struct.setU32(index, fields[name], op[name][die] ?? CONSTANTS.none, die);
    }
  }
  return struct;
}

function encodeFlags({ logitRows, accumulate, renormalise }: Op["flags"]): number {
  return (
    (logitRows ? CONSTANTS.opFlagLogitRows : 0) |
    (accumulate ? CONSTANTS.opFlagAccumulate : 0) |
    (renormalise ? CONSTANTS.opFlagRenormalise : 0)
  );
}

function encodeOptions(options: ModelOptions): StructArray {
  const { fields } = MODEL_OPTIONS_STRUCT;
  const struct = new StructArray(MODEL_OPTIONS_STRUCT, 1);
  struct.setU32(0, fields.rowMax, options.rowMax);
  struct.setU32(0, fields.logitRowMax, options.logitRowMax);
  struct.setU32(0, fields.kvBlockCount, options.kvBlockCount);
  struct.setU32(0, fields.kvType, defined(KV_TYPE[options.kvType], "KV type"));
  return struct;
}
