// What a loop's records say: percentiles of what a user feels, goodput, rates, failures. Arithmetic only.
//
// Definitions. TTFT: first chunk with text − the intended arrival (a request that the generator sent late is late). ITL: time
// between two chunks with text. TPOT: (end − first chunk) ÷ (output tokens − 1). End to end: end − the intended arrival. Goodput:
// requests a second that are whole and meet every limit.

import { defined } from "../base/assert.ts";
import { INTERRUPTED, type LoadRecord } from "./open-loop.ts";
import { quantile, rounded } from "./statistics.ts";
import type { StreamAnswer } from "./stream-answer.ts";

/** Limits in ms; null: none. */
export interface Slo {
  readonly ttftMs: number | null;
  readonly tpotMs: number | null;
  readonly endToEndMs: number | null;
}

export interface Percentiles {
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
  readonly max: number;
  readonly count: number;
}

/** What a user felt of one whole answer. `tpotMs` null: one token only. */
export interface Felt {
  readonly ttftMs: number;
  readonly tpotMs: number | null;
  readonly endToEndMs: number;
}

export interface Failure {
  readonly kind: string;
  readonly count: number;
  /** The server's own words for one of them. */
  readonly message: string | null;
}

/** The answers to the requests that arrived within the window, and what came within it. */
export interface RateSummary {
  /** Requests a second, as asked. */
  readonly rate: number;
  readonly windowSeconds: number;
  readonly arrivedCount: number;
  readonly wholeCount: number;
  readonly withinSloCount: number;
  /** Cut off by the user; neither whole nor failed. */
  readonly interruptedCount: number;
  readonly failures: readonly Failure[];
  /** Whole answers that ended within the window, a second, whenever they were asked for. */
  readonly requestsPerSecond: number;
  readonly goodputPerSecond: number;
  /** Tokens that came within the window, a second. */
  readonly outputTokensPerSecond: number;
  readonly tokensPerChunk: number | null;
  /** Means over whole answers; null where the server sent no usage. */
  readonly promptTokensMean: number | null;
  readonly outputTokensMean: number | null;
  readonly cachedTokensMean: number | null;
  /** null: no whole answer has one. */
  readonly ttftMs: Percentiles | null;
  readonly tpotMs: Percentiles | null;
  readonly itlMs: Percentiles | null;
  readonly endToEndMs: Percentiles | null;
  /** How late the generator sent: its own delay, or a wait for one of its connections. */
  readonly sendDelayMs: Percentiles | null;
}

export function percentilesOf(values: readonly number[]): Percentiles | null {
  if (values.length === 0) return null;
  const at = (p: number) => rounded(quantile(values, p));
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1), count: values.length };
}

/** Output tokens of an answer; chunks with text stand in for them where the server sent no usage. */
const tokensOf = ({ outputTokens, chunkMs }: StreamAnswer) => outputTokens ?? chunkMs.length;

/** null for an answer that is not whole. */
export function feltOf({ answer, arrivalMs }: LoadRecord): Felt | null {
  const [first] = answer.chunkMs;
  if (answer.failure !== null || first === undefined || answer.endMs === null) return null;
  const tokens = tokensOf(answer);
  return {
    ttftMs: first - arrivalMs,
    tpotMs: tokens > 1 ? (answer.endMs - first) / (tokens - 1) : null,
    endToEndMs: answer.endMs - arrivalMs,
  };
}

export function meetsSlo(felt: Felt, slo: Slo): boolean {
  const isWithin = (value: number | null, limit: number | null) => value === null || limit === null || value <= limit;
  return (
    isWithin(felt.ttftMs, slo.ttftMs) && isWithin(felt.tpotMs, slo.tpotMs) && isWithin(felt.endToEndMs, slo.endToEndMs)
  );
}

export function gapsOf(times: readonly number[]): number[] {
  return times.slice(1).map((time, i) => time - defined(times[i]));
}

function meanOf(values: readonly (number | null)[]): number | null {
  const known = values.filter((value) => value !== null);
  return known.length === 0 ? null : rounded(known.reduce((sum, value) => sum + value, 0) / known.length);
}

function failuresOf(records: readonly LoadRecord[]): Failure[] {
  const failed = records.filter(({ answer }) => answer.failure !== null && answer.failure !== INTERRUPTED);
  return [...Map.groupBy(failed, ({ answer }) => answer.failure ?? "")]
    .map(([kind, all]) => ({
      kind,
      count: all.length,
      message: all.find(({ answer }) => answer.failureMessage !== null)?.answer.failureMessage ?? null,
    }))
    .sort((a, b) => b.count - a.count);
}

/** Tokens a chunk, over the answers whose tokens are known; null without any. */
function tokensPerChunk(records: readonly LoadRecord[]): number | null {
  let [tokens, chunks] = [0, 0];
  for (const { answer } of records) {
    if (answer.outputTokens === null) continue;
    tokens += answer.outputTokens;
    chunks += answer.chunkMs.length;
  }
  return chunks === 0 ? null : tokens / chunks;
}

/** Output tokens whose chunks came in [fromMs, toMs): an answer's tokens are spread evenly over its chunks. */
function tokensWithin(records: readonly LoadRecord[], fromMs: number, toMs: number, perChunk: number): number {
  let sum = 0;
  for (const { answer } of records) {
    const { chunkMs, outputTokens } = answer;
    const each = outputTokens === null ? perChunk : outputTokens / chunkMs.length;
    for (const time of chunkMs) if (time >= fromMs && time < toMs) sum += each;
  }
  return sum;
}

/** Sums up the window [fromMs, toMs) of a loop. All its records are needed: what came within it may have been asked for before. */
export function summarise(
  records: readonly LoadRecord[],
  rate: number,
  { fromMs, toMs }: { readonly fromMs: number; readonly toMs: number },
  slo: Slo,
): RateSummary {
  const isWithin = (time: number | null) => time !== null && time >= fromMs && time < toMs;
  const arrived = records.filter(({ arrivalMs }) => isWithin(arrivalMs));
  const whole = arrived.filter((record) => feltOf(record) !== null);
  const felt = whole.map(feltOf).filter((each) => each !== null);
  const withinSloCount = felt.filter((each) => meetsSlo(each, slo)).length;
  const endedCount = records.filter((record) => feltOf(record) !== null && isWithin(record.answer.endMs)).length;
  const perChunk = tokensPerChunk(records);
  const seconds = (toMs - fromMs) / 1000;
  return {
    rate,
    windowSeconds: rounded(seconds),
    arrivedCount: arrived.length,
    wholeCount: whole.length,
    withinSloCount,
    interruptedCount: arrived.filter(({ answer }) => answer.failure === INTERRUPTED).length,
    failures: failuresOf(arrived),
    requestsPerSecond: rounded(endedCount / seconds),
    goodputPerSecond: rounded(withinSloCount / seconds),
    outputTokensPerSecond: rounded(tokensWithin(records, fromMs, toMs, perChunk ?? 1) / seconds),
    tokensPerChunk: perChunk === null ? null : rounded(perChunk),
    promptTokensMean: meanOf(whole.map(({ answer }) => answer.promptTokens)),
    outputTokensMean: meanOf(whole.map(({ answer }) => answer.outputTokens)),
    cachedTokensMean: meanOf(whole.map(({ answer }) => answer.cachedTokens)),
    ttftMs: percentilesOf(felt.map(({ ttftMs }) => ttftMs)),
    tpotMs: percentilesOf(felt.map(({ tpotMs }) => tpotMs).filter((value) => value !== null)),
    itlMs: percentilesOf(whole.flatMap(({ answer }) => gapsOf(answer.chunkMs))),
    endToEndMs: percentilesOf(felt.map(({ endToEndMs }) => endToEndMs)),
    sendDelayMs: percentilesOf(
      arrived.map(({ sentMs, arrivalMs }) => (sentMs === null ? null : sentMs - arrivalMs)).filter((ms) => ms !== null),
    ),
  };
}
