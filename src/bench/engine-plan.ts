// Which steps `duet bench engine` times on a model, and how much KV they need. Pure.

import { ceilDiv } from "../base/units.ts";
import { KV_BLOCK_TOKENS } from "../device/batch.ts";

export type StepKind = "prefill" | "decode" | "verify";

/** One line: `sequences` sequences with `rowsEach` new tokens behind `contextTokens` known ones. */
export interface PlannedStep {
  readonly id: string;
  readonly kind: StepKind;
  readonly sequences: number;
  readonly rowsEach: number;
  readonly contextTokens: number;
}

export interface EnginePlan {
  readonly steps: readonly PlannedStep[];
  /** Lines that were left out, with the reason. */
  readonly skipped: readonly string[];
  readonly rowMax: number;
  readonly logitRowMax: number;
  readonly sequenceMax: number;
  readonly blocksPerSequenceMax: number;
  readonly kvBlockCount: number;
}

export interface PlanLimits {
  readonly kinds: readonly string[];
  readonly isQuick: boolean;
  readonly contextMax: number;
  readonly kvBlockBytes: number;
  /** What the KV cache of a line may take. */
  readonly kvBytesMax: number;
}

/** Rows of the largest step; a longer prompt goes in chunks, as the engine does it. */
const CHUNK_ROWS = 512;
const VERIFY_CONTEXT = 128;

/** kvBlocks that a step's sequences fill. */
export function stepBlocks(step: PlannedStep): number {
  return step.sequences * ceilDiv(step.contextTokens + step.rowsEach, KV_BLOCK_TOKENS);
}

/** Keys that a step's rows see, summed over them. */
export function stepKeys({ sequences, rowsEach, contextTokens }: PlannedStep): number {
  return sequences * (rowsEach * contextTokens + (rowsEach * (rowsEach + 1)) / 2);
}

/** 0, 2k and 8k where the model has them; a shorter model's longest context instead. */
export function decodeContexts(contextMax: number, isQuick: boolean): number[] {
  const long = (isQuick ? [2048] : [2048, 8192]).filter((tokens) => tokens < contextMax);
  if (long.length > 0) return [0, ...long];
  return contextMax > 2 * KV_BLOCK_TOKENS ? [0, contextMax - KV_BLOCK_TOKENS] : [0];
}

function wantedSteps({ kinds, isQuick, contextMax }: PlanLimits): PlannedStep[] {
  const steps: PlannedStep[] = [];
  const add = (kind: StepKind, sequences: number, rowsEach: number, contextTokens: number) => {
    if (!kinds.includes(kind)) return;
    const name = kind === "prefill" ? rowsEach : kind === "decode" ? `${sequences}` : rowsEach;
    steps.push({ id: `${kind}/${name}@${contextTokens}`, kind, sequences, rowsEach, contextTokens });
  };
  for (const tokens of isQuick ? [128, 512] : [128, 512, 2048]) {
    if (tokens <= contextMax) add("prefill", 1, tokens, 0);
  }
  for (const context of decodeContexts(contextMax, isQuick)) {
    for (const sequences of isQuick ? [1, 4, 16] : [1, 2, 4, 8, 16, 32, 64]) add("decode", sequences, 1, context);
  }
  const context = Math.max(0, Math.min(VERIFY_CONTEXT, contextMax - KV_BLOCK_TOKENS));
  const rowCounts = isQuick ? [1, 2, 4, 8] : Array.from({ length: 16 }, (_, index) => index + 1);
  for (const rows of rowCounts) if (context + rows <= contextMax) add("verify", 1, rows, context);
  return steps;
}

/** The lines that fit the model's context and the memory for KV. */
export function enginePlan(limits: PlanLimits): EnginePlan {
  const steps: PlannedStep[] = [];
  const skipped: string[] = [];
  for (const step of wantedSteps(limits)) {
    const kvBytes = stepBlocks(step) * limits.kvBlockBytes;
    if (kvBytes <= limits.kvBytesMax) steps.push(step);
    else
      skipped.push(
        `${step.id}: its KV takes ${(kvBytes / 1e9).toFixed(1)} GB of ${(limits.kvBytesMax / 1e9).toFixed(1)} GB`,
      );
  }
  const most = (values: readonly number[]) => Math.max(1, ...values);
  const warmRows = Math.min(CHUNK_ROWS, limits.contextMax);
  const warmBlocks = ceilDiv(warmRows, KV_BLOCK_TOKENS);
  return {
    steps,
    skipped,
    rowMax: Math.max(warmRows, most(steps.map((step) => Math.min(CHUNK_ROWS, step.sequences * step.rowsEach)))),
    logitRowMax: most(steps.map((step) => (step.kind === "prefill" ? 1 : step.sequences * step.rowsEach))),
    sequenceMax: most(steps.map((step) => step.sequences)),
    blocksPerSequenceMax: Math.max(warmBlocks, most(steps.map((step) => stepBlocks(step) / step.sequences))),
    kvBlockCount: Math.max(warmBlocks, most(steps.map(stepBlocks))),
  };
}
