// Speed of a bound model without HTTP and scheduling: prefill, decode by batch, verify steps by rows. Each line is the median of
// several runs with its spread and what the step read.

import { ceilDiv } from "../base/units.ts";
import { createUniform } from "../base/prng.ts";
import { addRow, addSequence, clearBatch, createBatch, KV_BLOCK_TOKENS } from "../device/batch.ts";
import type { Batch } from "../device/batch.ts";
import type { DeviceModel, StepStats } from "../device/device.ts";
import { spreadOf } from "./statistics.ts";
import type { Spread } from "./statistics.ts";

export interface BenchLine {
  readonly kind: "prefill" | "decode" | "verify";
  readonly batch: number;
  readonly rows: number;
  readonly contextTokens: number;
  readonly stepMs: Spread;
  readonly tokensPerSecond: number;
  /** Weight bytes that one step read, and the rate at which they came. */
  readonly weightBytes: number;
  readonly readGBps: number;
  readonly distinctExpertsPerLayer: number;
}

export interface BenchPlan {
  readonly repeatCount: number;
  readonly prefillTokens: readonly number[];
  readonly decodeBatches: readonly number[];
  readonly verifyRows: readonly number[];
  readonly contextTokens: number;
  readonly vocabularySize: number;
  readonly contextMax: number;
}

/** The lines that fit a model's context. Decode and verify stand at `contextTokens` known tokens. */
export function benchPlan(contextMax: number, vocabularySize: number, repeatCount: number): BenchPlan {
  return {
    repeatCount,
    prefillTokens: [128, 512, 2048].filter((tokens) => tokens <= contextMax),
    decodeBatches: [1, 2, 4, 8, 16],
    verifyRows: [2, 4, 8],
    contextTokens: Math.min(128, contextMax - 32),
    vocabularySize,
    contextMax,
  };
}

/** KV blocks that a plan needs. */
export function benchKvBlocks(plan: BenchPlan): number {
  const perSequence = ceilDiv(plan.contextTokens + 32, KV_BLOCK_TOKENS);
  return Math.max(
    perSequence * Math.max(...plan.decodeBatches),
    ceilDiv(Math.max(128, ...plan.prefillTokens), KV_BLOCK_TOKENS),
  );
}

/** Rows that a plan's largest step has. */
export function benchRowMax(plan: BenchPlan): number {
  return Math.min(512, Math.max(128, ...plan.prefillTokens));
}

function fill(
  batch: Batch,
  plan: BenchPlan,
  sequenceCount: number,
  rowsEach: number,
  firstPosition: number,
  isPrefill: boolean,
  draw: () => number,
): void {
  clearBatch(batch);
  const blocksEach = ceilDiv(firstPosition + rowsEach, KV_BLOCK_TOKENS);
  for (let sequence = 0; sequence < sequenceCount; sequence++) {
    addSequence(
      batch,
      Array.from({ length: blocksEach }, (_, block) => sequence * blocksEach + block),
    );
    for (let row = 0; row < rowsEach; row++) {
      addRow(batch, Math.floor(draw() * plan.vocabularySize), firstPosition + row, !isPrefill || row === rowsEach - 1);
    }
  }
}

function emptyStats(): StepStats {
  return { weightBytes: 0, integerOps: 0, distinctExperts: 0, expertLayers: 0 };
}

/** Runs the plan line by line, handing each to `onLine` as it is measured. Tokens are drawn uniformly from a fixed seed. */
export async function runEngineBench(
  model: DeviceModel,
  plan: BenchPlan,
  onLine: (line: BenchLine) => void,
  nowMs: () => number = () => performance.now(),
): Promise<BenchLine[]> {
  const draw = createUniform(1);
  const rowMax = model.options.rowMax;
  const batch = createBatch({
    rowMax,
    sequenceMax: Math.max(...plan.decodeBatches),
    blocksPerSequenceMax: ceilDiv(plan.contextMax, KV_BLOCK_TOKENS),
  });
  const lines: BenchLine[] = [];

  const measure = async (kind: BenchLine["kind"], sequenceCount: number, rowsEach: number, firstPosition: number) => {
    const stepMs: number[] = [];
    const stats = emptyStats();
    for (let run = -1; run < plan.repeatCount; run++) {
      // A prompt longer than a step's rows goes in chunks, as the engine does it; the time is of all of them.
      let totalMs = 0;
      stats.weightBytes = 0;
      stats.distinctExperts = 0;
      stats.expertLayers = 0;
      for (let done = 0; done < rowsEach; done += rowMax) {
        const chunk = Math.min(rowMax, rowsEach - done);
        fill(batch, plan, sequenceCount, chunk, firstPosition + done, kind === "prefill", draw);
        const chunkStats = emptyStats();
        const startMs = nowMs();
        model.run(batch, chunkStats);
        totalMs += nowMs() - startMs;
        stats.weightBytes += chunkStats.weightBytes;
        stats.distinctExperts += chunkStats.distinctExperts;
        stats.expertLayers += chunkStats.expertLayers;
      }
      if (run >= 0) stepMs.push(totalMs);
      await new Promise((resolve) => setImmediate(resolve));
    }
    const spread = spreadOf(stepMs);
    const line: BenchLine = {
      kind,
      batch: sequenceCount,
      rows: sequenceCount * rowsEach,
      contextTokens: firstPosition,
      stepMs: spread,
      tokensPerSecond: (sequenceCount * rowsEach * 1000) / spread.median,
      weightBytes: stats.weightBytes,
      readGBps: stats.weightBytes / spread.median / 1e6,
      distinctExpertsPerLayer: stats.expertLayers === 0 ? 0 : stats.distinctExperts / stats.expertLayers,
    };
    lines.push(line);
    onLine(line);
  };

  for (const tokens of plan.prefillTokens) await measure("prefill", 1, tokens, 0);
  for (const sequences of plan.decodeBatches) await measure("decode", sequences, 1, plan.contextTokens);
  for (const rows of plan.verifyRows) await measure("verify", 1, rows, plan.contextTokens);
  return lines;
}

/** The columns of a line, for a table. */
export function benchRow(line: BenchLine): Record<string, string> {
  return {
    kind: line.kind,
    batch: String(line.batch),
    rows: String(line.rows),
    context: String(line.contextTokens),
    "step ms": line.stepMs.median.toFixed(3),
    spread: `${line.stepMs.low.toFixed(3)}–${line.stepMs.high.toFixed(3)}`,
    "tokens/s": line.tokensPerSecond.toFixed(0),
    "MB read": (line.weightBytes / 1e6).toFixed(2),
    "GB/s": line.readGBps.toFixed(1),
    "experts/layer": line.distinctExpertsPerLayer.toFixed(1),
  };
}
