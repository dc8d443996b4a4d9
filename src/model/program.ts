// The forward pass as data: a Program is a flat list of ops over activation slots and tensors, built once from a container.
// Devices execute it; nothing here computes. Op codes and fields are the same as in native/kernels.h.
//
// | op            | input                  | weights                                | output                                        |
// |---------------|------------------------|----------------------------------------|-----------------------------------------------|
// | embed         | token ids              | weight[0], weight[1]: embedding rows   | h [row][hidden], shared                        |
// | rmsNorm       | h                      | weight[0]: vector                      | x, shared; logitRows: only the wanted rows     |
// | matmul        | x or per-die slot      | weight[d] [out_d][in], bias[d]         | per-die slot [row][out_d]                      |
// | ropeAndStore  | qkv per die (in place) | –                                      | q rotated and scaled by 1/sqrt(headDim); K, V into kvSlots |
// | attention     | qkv per die            | –                                      | attn per die [row][queryHeads_d × headDim]     |
// | exchangeAdd   | partial per die        | –                                      | h = h + (p0 + p1), shared                      |
// | route         | x                      | weight[0]: router f32, weight2[0]: router_scale | the step's expert ids and routing weights (not a slot) |
// | ffn           | x                      | weight[d]: gate-up, weight2[d]: down   | partial per die                                |
// | expertFfn     | x and the routing      | weight[0]: expert 0 of the layer       | partial per die (accumulate: added to it)      |
// | logits        | normed logit rows      | weight[d] [vocabulary rows_d][hidden]  | logits (not a slot)                            |

import type { DieIndex } from "../weights/split.ts";

export const OP_CODES = {
  embed: 0,
  rmsNorm: 1,
  matmul: 2,
  ropeAndStore: 3,
  attention: 4,
  exchangeAdd: 5,
  route: 6,
  ffn: 7,
  expertFfn: 8,
  logits: 9,
} as const;

export type OpName = keyof typeof OP_CODES;

/** Index into Program.slots. */
export type SlotIndex = number;
/** Index into the container's tensor table. */
export type TensorIndex = number;
export type PerDie<T> = readonly [T, T];

/** An activation slot: float32 [rows][columns]. `isQuantised`: some reader has q4 or q8 weights (arithmetic rule 2). */
export interface Slot {
  readonly name: string;
  readonly columns: PerDie<number>;
  readonly isPerDie: boolean;
  readonly isQuantised: boolean;
}

export interface Op {
  readonly name: OpName;
  readonly flags: { readonly logitRows?: true; readonly accumulate?: true; readonly renormalise?: true };
  /** The transformer layer; for ropeAndStore and attention the KV layer. */
  readonly layer: number;
  readonly input: SlotIndex | null;
  readonly output: SlotIndex | null;
  readonly weight: PerDie<TensorIndex | null>;
  readonly weight2: PerDie<TensorIndex | null>;
  readonly bias: PerDie<TensorIndex | null>;
}

/** The per-die numbers that ops need and that no tensor's dims give. Counts on die 0 and die 1. */
export interface ProgramShape {
  readonly hiddenDim: number;
  readonly headDim: number;
  readonly kvLayerCount: number;
  readonly contextMax: number;
  readonly queryHeads: PerDie<number>;
  readonly kvHeads: PerDie<number>;
  readonly vocabularyRows: PerDie<number>;
  readonly ffnColumns: PerDie<number>;
  readonly expertFirst: PerDie<number>;
  readonly expertCount: PerDie<number>;
  readonly expertDim: number;
  readonly expertGroupCount: number;
  readonly expertsPerGroup: number;
  readonly activePerGroup: number;
  readonly rmsNormEps: number;
  readonly inverseFrequencies: readonly number[];
}

export interface Program {
  readonly shape: ProgramShape;
  readonly slots: readonly Slot[];
  readonly ops: readonly Op[];
}

export const NO_TENSORS: PerDie<null> = [null, null];

/** Columns of a slot on a die (die 0's for a shared slot). */
export function slotColumns(slot: Slot, die: DieIndex): number {
  return slot.isPerDie ? slot.columns[die] : slot.columns[0];
}
