// Counters since start, and how a sequence appears in the status.

import { assert } from "../base/assert.ts";
import type { EngineStatus, EngineTotals } from "./messages.ts";
import type { Sequence } from "./sequence.ts";

/** The totals that the engine itself counts. */
export type Totals = { -readonly [K in keyof Omit<EngineTotals, "preemptionCount" | "proposers">]: number };

export function createTotals(): Totals {
  return {
    stepCount: 0,
    prefillTokenCount: 0,
    cachedTokenCount: 0,
    outputTokenCount: 0,
    draftedCount: 0,
    acceptedCount: 0,
    verifyCount: 0,
    cancelledCount: 0,
    finishedCount: 0,
    stepMs: 0,
    draftMs: 0,
    weightBytesRead: 0,
    distinctExperts: 0,
    expertLayers: 0,
  };
}

export function describeSequence(sequence: Sequence): EngineStatus["sequences"][number] {
  const { owner, choiceIndex, state, promptCount, outputCount, kvFrontier, blockTable } = sequence;
  assert(state !== "finished", "a finished sequence is in no list");
  return {
    requestId: owner.request.requestId,
    choiceIndex,
    state,
    promptTokenCount: promptCount,
    outputTokenCount: outputCount,
    kvFrontier,
    kvBlockCount: blockTable.blockCount,
  };
}
