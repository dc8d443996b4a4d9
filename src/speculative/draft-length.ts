// How many tokens to draft for each sequence of a step: the lengths that maximise the expected tokens per second of the whole
// batch. A pure function of estimates; where these come from is drafter.ts's business.

import { assert } from "../base/assert.ts";

/** What the choice is made from. Arrays are by sequence; only the first sequenceCount entries count. */
export interface DraftLengthProblem {
  sequenceCount: number;
  readonly lengthMin: Int32Array;
  readonly lengthMax: Int32Array;
  /** 1: drafting costs time (a draft model); 0: it is free (a lookup). */
  readonly isCharged: Uint8Array;
  /** Milliseconds that a draft costs once, whatever its length: running tokens that the proposer has missed. */
  readonly startMs: Float64Array;
  /** [sequence][rateStride]: chance that draft i is accepted when all before it were. */
  readonly rates: Float64Array;
  readonly rateStride: number;
  /** Rows of the step without any draft, and how many of them give a token. */
  baseRows: number;
  baseTokens: number;
  /** Longer drafts than the shortest must promise this share more speed: the estimates are not that good. */
  readonly margin: number;
  /** Milliseconds of a step of that many rows. */
  stepMs(rows: number): number;
  /** Milliseconds to draft `length` tokens for `sequences` sequences at once. */
  draftMs(length: number, sequences: number): number;
}

/** Working memory of chooseDraftLengths. */
export interface DraftLengthScratch {
  readonly lengths: Int32Array;
  readonly reach: Float64Array;
}

export function createDraftLengthScratch(sequenceMax: number): DraftLengthScratch {
  return { lengths: new Int32Array(sequenceMax), reach: new Float64Array(sequenceMax) };
}

/**
 * Writes the chosen lengths to `out` and returns the expected tokens per millisecond. Starts from the shortest drafts and
 * lengthens, one token at a time, the draft whose next token is likeliest to be kept; the best state on that path wins. Gains
 * fall along each draft, so for a cost that depends on the number of rows alone no other choice of as many rows is better.
 */
export function chooseDraftLengths(problem: DraftLengthProblem, scratch: DraftLengthScratch, out: Int32Array): number {
  const { sequenceCount, lengthMin, lengthMax, isCharged, startMs, rates, rateStride } = problem;
  const { lengths, reach } = scratch;
  let rows = problem.baseRows;
  let tokens = problem.baseTokens;
  let longest = 0;
  let charged = 0;
  let fixedMs = 0;
  for (let s = 0; s < sequenceCount; s++) {
    assert(lengthMin[s]! <= lengthMax[s]!, "a draft's shortest length is not above its longest");
    lengths[s] = lengthMin[s]!;
    reach[s] = 1;
    for (let i = 0; i < lengths[s]!; i++) {
      reach[s] = reach[s]! * rates[s * rateStride + i]!;
      tokens += reach[s]!;
    }
    rows += lengths[s]!;
    if (isCharged[s] === 1 && lengths[s]! > 0) {
      charged++;
      fixedMs += startMs[s]!;
      longest = Math.max(longest, lengths[s]!);
    }
    out[s] = lengths[s]!;
  }
  let best = tokens / (problem.stepMs(rows) + fixedMs + (charged > 0 ? problem.draftMs(longest, charged) : 0));
  const worthwhile = best * (1 + problem.margin);
  for (;;) {
    let chosen = -1;
    let gain = 0;
    for (let s = 0; s < sequenceCount; s++) {
      if (lengths[s]! >= lengthMax[s]!) continue;
      const next = reach[s]! * rates[s * rateStride + lengths[s]!]!;
      if (next > gain) {
        gain = next;
        chosen = s;
      }
    }
    if (chosen < 0) return best;
    if (isCharged[chosen] === 1) {
      if (lengths[chosen] === 0) {
        charged++;
        fixedMs += startMs[chosen]!;
      }
      longest = Math.max(longest, lengths[chosen]! + 1);
    }
    lengths[chosen] = lengths[chosen]! + 1;
    reach[chosen] = gain;
    rows++;
    tokens += gain;
    const draftMs = fixedMs + (charged > 0 ? problem.draftMs(longest, charged) : 0);
    const speed = tokens / (problem.stepMs(rows) + draftMs);
    if (speed > best && speed >= worthwhile) {
      best = speed;
      for (let s = 0; s < sequenceCount; s++) out[s] = lengths[s]!;
    }
  }
}
