// Speed of a bound model without HTTP and scheduling: each planned step is run several times over random tokens, and described by
// its times and by what it read and computed. What share of the machine's limit that is, is roof-share.ts's.

import { ceilDiv } from "../base/units.ts";
import { createUniform } from "../base/prng.ts";
import { addRow, addSequence, clearBatch, createBatch, KV_BLOCK_TOKENS } from "../device/batch.ts";
import type { Batch } from "../device/batch.ts";
import type { DeviceModel, StepStats } from "../device/device.ts";
import type { EnginePlan, PlannedStep } from "./engine-plan.ts";
import { rounded } from "./statistics.ts";

export interface StepTimes {
  readonly step: PlannedStep;
  /** Milliseconds of every run. */
  readonly runsMs: readonly number[];
  /** Means over the runs: each has tokens of its own, and so experts of its own. */
  readonly weightBytes: number;
  readonly kvBytes: number;
  readonly integerOps: number;
  readonly distinctExperts: number;
  /** Layers with routed experts, over the chunks of a prefill: the divisor of distinctExperts. */
  readonly expertLayers: number;
}

export interface BenchRuns {
  /** Runs of a line at least; short steps get more, up to RUN_MAX, until `lineMs` have passed. */
  readonly repeatCount: number;
  readonly lineMs: number;
  readonly vocabularySize: number;
  readonly kvBlockBytes: number;
}

const RUN_MAX = 30;

const emptyStats = (): StepStats => ({ weightBytes: 0, integerOps: 0, distinctExperts: 0, expertLayers: 0 });

/** Rows [done, done + rows) of each sequence's new tokens. */
function fill(batch: Batch, step: PlannedStep, done: number, rows: number, drawToken: () => number): void {
  clearBatch(batch);
  const blocksEach = ceilDiv(step.contextTokens + step.rowsEach, KV_BLOCK_TOKENS);
  for (let sequence = 0; sequence < step.sequences; sequence++) {
    const first = sequence * blocksEach;
    addSequence(
      batch,
      Array.from({ length: blocksEach }, (_, block) => first + block),
    );
    for (let row = done; row < done + rows; row++) {
      const wantsLogits = step.kind !== "prefill" || row === step.rowsEach - 1;
      addRow(batch, drawToken(), step.contextTokens + row, wantsLogits);
    }
  }
}

/** KV bytes of a run: each chunk of each sequence reads or writes every row up to its own last once. */
export function stepKvBytes(step: PlannedStep, rowMax: number, kvBlockBytes: number): number {
  let rows = 0;
  for (let done = 0; done < step.rowsEach; done += rowMax) {
    rows += step.contextTokens + Math.min(done + rowMax, step.rowsEach);
  }
  return (step.sequences * rows * kvBlockBytes) / KV_BLOCK_TOKENS;
}

/**
 * Runs the plan line by line, handing each to `onLine` as it is measured. Tokens are drawn uniformly from a fixed seed. KV in front
 * of a step is not computed: a constant stands there, which changes no work.
 */
export async function runEngineBench(
  model: DeviceModel,
  plan: EnginePlan,
  runs: BenchRuns,
  onLine: (line: StepTimes) => void,
  nowMs: () => number = () => performance.now(),
): Promise<StepTimes[]> {
  const draw = createUniform(1);
  const drawToken = () => Math.floor(draw() * runs.vocabularySize);
  const { rowMax, kvBlockCount } = model.options;
  const { sequenceMax, blocksPerSequenceMax } = plan;
  const batch = createBatch({ rowMax, sequenceMax, blocksPerSequenceMax });
  const chunkStats = emptyStats();

  /** Milliseconds of one run; its stats are added to `sums`. */
  const runOnce = (step: PlannedStep, sums: StepStats): number => {
    let totalMs = 0;
    for (let done = 0; done < step.rowsEach; done += rowMax) {
      fill(batch, step, done, Math.min(rowMax, step.rowsEach - done), drawToken);
      const startMs = nowMs();
      model.run(batch, chunkStats);
      totalMs += nowMs() - startMs;
      sums.weightBytes += chunkStats.weightBytes;
      sums.integerOps += chunkStats.integerOps;
      sums.distinctExperts += chunkStats.distinctExperts;
      sums.expertLayers += chunkStats.expertLayers;
    }
    return totalMs;
  };

  if (plan.steps.length === 0) return [];
  model.fillKv?.(kvBlockCount);
  warmUp(rowMax, kvBlockCount, (step) => runOnce(step, emptyStats()));
  const lines: StepTimes[] = [];
  for (const step of plan.steps) {
    runOnce(step, emptyStats());
    const sums = emptyStats();
    const runsMs: number[] = [];
    let spentMs = 0;
    while (runsMs.length < runs.repeatCount || (spentMs < runs.lineMs && runsMs.length < RUN_MAX)) {
      const ms = runOnce(step, sums);
      runsMs.push(rounded(ms));
      spentMs += ms;
      await new Promise((resolve) => setImmediate(resolve));
    }
    const count = runsMs.length;
    const line: StepTimes = {
      step,
      runsMs,
      weightBytes: Math.round(sums.weightBytes / count),
      kvBytes: stepKvBytes(step, rowMax, runs.kvBlockBytes),
      integerOps: Math.round(sums.integerOps / count),
      distinctExperts: sums.distinctExperts / count,
      expertLayers: sums.expertLayers / count,
    };
    lines.push(line);
    onLine(line);
  }
  return lines;
}

/** Large steps of random tokens touch nearly every expert, so that no line pays for mapping a page. */
function warmUp(rowMax: number, kvBlockCount: number, run: (step: PlannedStep) => void): void {
  const rowsEach = Math.min(rowMax, kvBlockCount * KV_BLOCK_TOKENS);
  const step: PlannedStep = { id: "warm-up", kind: "prefill", sequences: 1, rowsEach, contextTokens: 0 };
  for (let count = 0; count < 2; count++) run(step);
}
