// DieSplit: where every split dimension is cut between die 0 and die 1. Die 0 holds [0, boundary), die 1 the rest. The
// packer stores it in the container's header; everything that needs to know what a die holds reads it from there.

import { z } from "zod";
import type { ModelShape } from "./shape.ts";

export const DIE_COUNT = 2;
export type DieIndex = 0 | 1;
export const DIES: readonly DieIndex[] = [0, 1];

export const dieSplitSchema = z.strictObject({
  kvHeadBoundary: z.int().min(0),
  /** In expert ids; a group is never cut unless there is only one. */
  expertBoundary: z.int().min(0),
  /** In intermediate columns of the shared experts or the dense FFN. */
  ffnBoundary: z.int().min(0),
  mtpFfnBoundary: z.int().min(0),
  /** In vocabulary rows: a multiple of 16. */
  vocabularyBoundary: z.int().min(0),
});

export type DieSplit = Readonly<z.infer<typeof dieSplitSchema>>;

/** The multiple of `multiple` nearest to half of `n`, ties upward, at most `n`. */
function nearestHalf(n: number, multiple: number): number {
  return Math.min(n, Math.floor(n / 2 / multiple + 0.5) * multiple);
}

/** The one split that Duet uses for a shape (DESIGN: KV heads by halves, a single one to die 0; expert groups by halves). */
export function splitForShape(shape: ModelShape): DieSplit {
  const groups = shape.expertGroupCount;
  const perGroup = groups === 0 ? 0 : shape.routedExpertCount / groups;
  const expertBoundary = groups > 1 ? Math.ceil(groups / 2) * perGroup : Math.ceil(shape.routedExpertCount / 2);
  return {
    kvHeadBoundary: Math.ceil(shape.kvHeadCount / 2),
    expertBoundary,
    ffnBoundary: nearestHalf(shape.ffnDim, 32),
    mtpFfnBoundary: nearestHalf(shape.mtpFfnDim, 32),
    vocabularyBoundary: nearestHalf(shape.vocabularySize, 16),
  };
}

/** [first, end) of a dimension of `total` elements on a die. */
export function dieRange(
  boundary: number,
  total: number,
  die: DieIndex,
): { first: number; end: number; count: number } {
  const first = die === 0 ? 0 : boundary;
  const end = die === 0 ? boundary : total;
  return { first, end, count: end - first };
}

/** Why a container's split does not fit its shape; null when it does. */
export function splitProblem(shape: ModelShape, split: DieSplit): string | null {
  const perGroup = shape.expertGroupCount > 1 ? shape.routedExpertCount / shape.expertGroupCount : 1;
  const rules: [keyof DieSplit, number, number][] = [
    ["kvHeadBoundary", shape.kvHeadCount, 1],
    ["expertBoundary", shape.routedExpertCount, perGroup],
    ["ffnBoundary", shape.ffnDim, 32],
    ["mtpFfnBoundary", shape.mtpFfnDim, 32],
    ["vocabularyBoundary", shape.vocabularySize, 16],
  ];
  for (const [field, total, multiple] of rules) {
    const boundary = split[field];
    if (boundary > total) return `${field} ${boundary} is beyond ${total}`;
    if (boundary % multiple !== 0 && boundary !== total) return `${field} ${boundary} is not a multiple of ${multiple}`;
  }
  return null;
}
