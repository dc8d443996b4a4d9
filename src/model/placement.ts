// Placement: what each of the two dies holds of a model, counted from its shape and the split that the container stores.
// It only counts; which tensors these are is bind.ts's business.

import { assert } from "../base/assert.ts";
import { formatBytes } from "../base/units.ts";
import type { Container } from "../weights/header.ts";
import { expertsPerGroup, type ModelShape } from "../weights/shape.ts";
import { dieRange, type DieIndex, type DieSplit } from "../weights/split.ts";
import type { PerDie } from "./program.ts";

/** Counts on die 0 and die 1. expertFirst is the lowest expert id of the die. */
export interface Placement {
  readonly queryHeads: PerDie<number>;
  readonly kvHeads: PerDie<number>;
  readonly vocabularyRows: PerDie<number>;
  readonly ffnColumns: PerDie<number>;
  readonly expertFirst: PerDie<number>;
  readonly expertCount: PerDie<number>;
}

export function placementOf(shape: ModelShape, split: DieSplit): Placement {
  const counts = (boundary: number, total: number): PerDie<number> => {
    assert(boundary >= 0 && boundary <= total, `a split boundary of ${boundary} lies within ${total}`);
    return [dieRange(boundary, total, 0).count, dieRange(boundary, total, 1).count];
  };
  const kvHeads = counts(split.kvHeadBoundary, shape.kvHeadCount);
  const queryHeadsPerKvHead = shape.queryHeadCount / shape.kvHeadCount;
  return {
    queryHeads: [kvHeads[0] * queryHeadsPerKvHead, kvHeads[1] * queryHeadsPerKvHead],
    kvHeads,
    vocabularyRows: counts(split.vocabularyBoundary, shape.vocabularySize),
    ffnColumns: counts(split.ffnBoundary, shape.ffnDim),
    expertFirst: [0, split.expertBoundary],
    expertCount: counts(split.expertBoundary, shape.routedExpertCount),
  };
}

/** Bytes of the tensors that each die reads for itself, and of those that both need (norms, router, embedding). */
export function placementBytes(container: Container): { dies: PerDie<number>; replicated: number } {
  const dies: [number, number] = [0, 0];
  let replicated = 0;
  for (const tensor of container.header.tensors) {
    const die = dieOfTensor(tensor.name, container.header.split);
    if (die === null) replicated += tensor.bytes;
    else dies[die] += tensor.bytes;
  }
  return { dies, replicated };
}

function dieOfTensor(name: string, split: DieSplit): DieIndex | null {
  if (name.endsWith(".die0")) return 0;
  if (name.endsWith(".die1")) return 1;
  const expert = /\.ffn_exps\.(\d+)$/.exec(name);
  if (expert === null) return null;
  return Number(expert[1]) < split.expertBoundary ? 0 : 1;
}

/** Which die holds what, one line a part, for `doctor` and the documentation. */
export function describePlacement(container: Container): string {
  const { shape, split } = container.header;
  const placement = placementOf(shape, split);
  const bytes = placementBytes(container);
  const perGroup = expertsPerGroup(shape);
  const die = (index: DieIndex): string => {
    const parts = [`${placement.queryHeads[index]} query heads over ${placement.kvHeads[index]} KV heads`];
    const count = placement.expertCount[index];
    if (count > 0) {
      const first = placement.expertFirst[index];
      const groups = shape.expertGroupCount > 1 ? ` in ${count / perGroup} expert groups` : "";
      parts.push(`routed experts ${first}..${first + count - 1}${groups}`);
    }
    const ffn = shape.routedExpertCount > 0 ? "shared-expert columns" : "FFN columns";
    if (placement.ffnColumns[index] > 0) parts.push(`${placement.ffnColumns[index]} ${ffn}`);
    parts.push(`${placement.vocabularyRows[index]} vocabulary rows`, formatBytes(bytes.dies[index]));
    return `die ${index}: ${parts.join(", ")}`;
  };
  return [die(0), die(1), `replicated: norms, biases, router, ${formatBytes(bytes.replicated)}`].join("\n");
}
