// Which tensors a container of a given shape, split and recipe holds, in file order: the one source of truth for the packer
// (which gathers them) and the reader (which accepts nothing else). Lazy, so that a forged shape costs a reader no more
// than the tensor table that came with it.

import { assert } from "../base/assert.ts";
import { alignUp } from "../base/units.ts";
import { EXPERT_ALIGNMENT, type Recipe, TENSOR_ALIGNMENT } from "./header.ts";
import { type BlockNames, layerNames, mtpNames, tensorNames } from "./names.ts";
import type { ModelShape } from "./shape.ts";
import { DIES, type DieIndex, type DieSplit, dieRange } from "./split.ts";
import {
  gateUpRows,
  matrixBytes,
  type QuantType,
  type TensorClass,
  type TensorEntry,
  type TensorKind,
} from "./tensor.ts";

export type TensorRole =
  | "tokenEmbedding"
  | "attnNorm"
  | "attnQkv"
  | "attnQkvBias"
  | "attnOutput"
  | "attnOutputBias"
  | "ffnNorm"
  | "router"
  | "routerScale"
  | "ffnGateUp"
  | "ffnDown"
  | "expert"
  | "outputNorm"
  | "output"
  | "mtpEmbeddingNorm"
  | "mtpHiddenNorm"
  | "mtpProjection"
  | "mtpNorm";

/** A layer, an MTP module, or null for the tensors outside both. */
export type BlockRef = Readonly<{ kind: "layer" | "mtp"; index: number }> | null;

/** A tensor before it has a place in a file. `die` is 0 for tensors that are not split. */
export interface TensorSpec extends Omit<TensorEntry, "offset" | "checksum"> {
  readonly role: TensorRole;
  readonly block: BlockRef;
  readonly die: DieIndex;
  readonly expertIndex: number;
}

export const alignmentOf = (kind: TensorKind) => (kind === "expert" ? EXPERT_ALIGNMENT : TENSOR_ALIGNMENT);

/** Query heads, KV heads of a die, as [first, end) ranges. */
export function headRanges(shape: ModelShape, split: DieSplit, die: DieIndex) {
  const kv = dieRange(split.kvHeadBoundary, shape.kvHeadCount, die);
  const queriesPerKv = shape.queryHeadCount / shape.kvHeadCount;
  const query = { first: kv.first * queriesPerKv, end: kv.end * queriesPerKv, count: kv.count * queriesPerKv };
  return { query, kv };
}

/** Stored bytes of a gate-up matrix of two times `dim` rows. */
export function gateUpBytes(quantType: QuantType, dim: number, columns: number): number {
  return matrixBytes(quantType, gateUpRows(dim), columns);
}

export function* expectedTensors(shape: ModelShape, split: DieSplit, recipe: Recipe): Generator<TensorSpec> {
  const { hiddenDim } = shape;

  const spec = (
    fields: Pick<TensorSpec, "name" | "kind" | "class" | "rows" | "columns" | "bytes" | "role" | "block"> &
      Partial<TensorSpec>,
  ): TensorSpec => ({ quantType: recipe.types[fields.class], downOffset: 0, die: 0, expertIndex: 0, ...fields });

  const vector = (name: string, role: TensorRole, block: BlockRef, columns: number, die: DieIndex = 0) =>
    spec({
      name,
      role,
      block,
      die,
      columns,
      kind: "vector",
      class: role === "routerScale" ? "router" : "norm",
      quantType: "f32",
      rows: 1,
      bytes: 4 * columns,
    });

  const matrix = (
    name: string,
    role: TensorRole,
    block: BlockRef,
    tensorClass: TensorClass,
    rows: number,
    columns: number,
    die: DieIndex = 0,
  ) => {
    const quantType = recipe.types[tensorClass];
    const bytes =
      role === "ffnGateUp" ? gateUpBytes(quantType, rows / 2, columns) : matrixBytes(quantType, rows, columns);
    return spec({ name, role, block, die, rows, columns, bytes, kind: "matrix", class: tensorClass });
  };

  function* attention(names: BlockNames, block: BlockRef, tensorClass: TensorClass): Generator<TensorSpec> {
    const heads = DIES.map((die) => ({ die, ...headRanges(shape, split, die) })).filter(({ kv }) => kv.count > 0);
    const qkvRows = (one: (typeof heads)[number]) => (one.query.count + 2 * one.kv.count) * shape.headDim;
    yield vector(names.attnNorm, "attnNorm", block, hiddenDim);
    for (const one of heads) {
      yield matrix(names.attnQkv(one.die), "attnQkv", block, tensorClass, qkvRows(one), hiddenDim, one.die);
    }
    if (shape.hasAttentionBias) {
      for (const one of heads) yield vector(names.attnQkvBias(one.die), "attnQkvBias", block, qkvRows(one), one.die);
    }
    for (const { die, query } of heads) {
      const columns = query.count * shape.headDim;
      yield matrix(names.attnOutput(die), "attnOutput", block, tensorClass, hiddenDim, columns, die);
    }
    if (shape.hasAttentionBias) yield vector(names.attnOutputBias, "attnOutputBias", block, hiddenDim);
  }

  function* ffn(
    names: BlockNames,
    block: BlockRef,
    tensorClass: TensorClass,
    boundary: number,
    dim: number,
  ): Generator<TensorSpec> {
    const parts = DIES.map((die) => ({ die, ...dieRange(boundary, dim, die) })).filter(({ count }) => count > 0);
    for (const { die, count } of parts) {
      yield matrix(names.ffnGateUp(die), "ffnGateUp", block, tensorClass, 2 * count, hiddenDim, die);
    }
    for (const { die, count } of parts) {
      yield matrix(names.ffnDown(die), "ffnDown", block, tensorClass, hiddenDim, count, die);
    }
  }

  function* experts(names: BlockNames, block: BlockRef): Generator<TensorSpec> {
    const quantType = recipe.types.experts;
    const downOffset = alignUp(gateUpBytes(quantType, shape.expertDim, hiddenDim), TENSOR_ALIGNMENT);
    const bytes = downOffset + matrixBytes(quantType, hiddenDim, shape.expertDim);
    for (let expertIndex = 0; expertIndex < shape.routedExpertCount; expertIndex++) {
      yield spec({
        name: names.expert(expertIndex),
        role: "expert",
        block,
        kind: "expert",
        class: "experts",
        rows: 2 * shape.expertDim,
        columns: hiddenDim,
        bytes,
        downOffset,
        expertIndex,
        die: expertIndex < split.expertBoundary ? 0 : 1,
      });
    }
  }

  assert(recipe.types.norm === "f32" && recipe.types.router === "f32", "norms and the router are f32 in every recipe");
  if (!shape.isEmbeddingTied) {
    yield matrix(tensorNames.tokenEmbedding, "tokenEmbedding", null, "embedding", shape.vocabularySize, hiddenDim);
  }
  for (let index = 0; index < shape.layerCount; index++) {
    const names = layerNames(index);
    const block: BlockRef = { kind: "layer", index };
    yield* attention(names, block, "attention");
    yield vector(names.ffnNorm, "ffnNorm", block, hiddenDim);
    if (shape.routedExpertCount > 0) {
      yield matrix(names.router, "router", block, "router", shape.routedExpertCount, hiddenDim);
      if (shape.hasRouterScale) yield vector(names.routerScale, "routerScale", block, shape.routedExpertCount);
    }
    yield* ffn(names, block, "shared", split.ffnBoundary, shape.ffnDim);
    yield* experts(names, block);
  }
  yield vector(tensorNames.outputNorm, "outputNorm", null, hiddenDim);
  for (const die of DIES) {
    const { count } = dieRange(split.vocabularyBoundary, shape.vocabularySize, die);
    if (count > 0) yield matrix(tensorNames.output(die), "output", null, "head", count, hiddenDim, die);
  }
  for (let index = 0; index < shape.mtpLayerCount; index++) {
    const names = mtpNames(index);
    const block: BlockRef = { kind: "mtp", index };
    yield vector(names.mtpEmbeddingNorm, "mtpEmbeddingNorm", block, hiddenDim);
    yield vector(names.mtpHiddenNorm, "mtpHiddenNorm", block, hiddenDim);
    yield matrix(names.mtpProjection, "mtpProjection", block, "mtp", hiddenDim, 2 * hiddenDim);
    yield* attention(names, block, "mtp");
    yield vector(names.ffnNorm, "ffnNorm", block, hiddenDim);
    yield* ffn(names, block, "mtp", split.mtpFfnBoundary, shape.mtpFfnDim);
    yield vector(names.mtpNorm, "mtpNorm", block, hiddenDim);
  }
}
