// What `duet bench serve` writes: the report, its tables and its figure. Formatting only; nothing is measured here.

import type { Machine } from "./machine.ts";
import type { Served } from "./load-client.ts";
import { feltOf, type Percentiles, type RateSummary, type Slo } from "./load-summary.ts";
import type { LengthMix } from "./load-schedule.ts";
import type { LoadRecord } from "./open-loop.ts";
import { rounded } from "./statistics.ts";
import type { Panel, Point } from "./svg-chart.ts";

export const SERVE_FORMAT = "duet-bench-serve/1";

/** One request of the window: times in ms from the start of its rate. */
export interface RequestLine {
  readonly arrivalMs: number;
  readonly sentMs: number | null;
  readonly ttftMs: number | null;
  readonly tpotMs: number | null;
  readonly endToEndMs: number | null;
  readonly promptTokens: number | null;
  readonly outputTokens: number | null;
  readonly failure: string | null;
}

export interface RateLine extends RateSummary {
  readonly requests: readonly RequestLine[];
}

export interface ServeReport {
  readonly format: typeof SERVE_FORMAT;
  readonly duet: string;
  /** Of the load generator. */
  readonly machine: Machine;
  readonly url: string;
  /** In this process, by this command. */
  readonly isOwnServer: boolean;
  readonly served: Served;
  readonly api: string;
  readonly prompts: string;
  readonly mix: LengthMix;
  readonly seed: number;
  readonly seconds: number;
  readonly warmUpSeconds: number;
  readonly connectionMax: number;
  readonly slo: Slo;
  /** The user ended it early. */
  readonly isInterrupted: boolean;
  readonly notes: readonly string[];
  readonly rates: readonly RateLine[];
}

export function requestLine(record: LoadRecord): RequestLine {
  const felt = feltOf(record);
  const known = (value: number | null | undefined) => (value === null || value === undefined ? null : rounded(value));
  return {
    arrivalMs: rounded(record.arrivalMs),
    sentMs: known(record.sentMs),
    ttftMs: known(felt?.ttftMs),
    tpotMs: known(felt?.tpotMs),
    endToEndMs: known(felt?.endToEndMs),
    promptTokens: record.answer.promptTokens,
    outputTokens: record.answer.outputTokens,
    failure: record.answer.failure,
  };
}

export function formatSlo({ ttftMs, tpotMs, endToEndMs }: Slo): string {
  const limits = [
    ["TTFT", ttftMs],
    ["TPOT", tpotMs],
    ["end to end", endToEndMs],
  ] as const;
  return limits.flatMap(([name, limit]) => (limit === null ? [] : [`${name} ≤ ${limit} ms`])).join(", ");
}

const fixed = (value: number | null) =>
  value === null ? "–" : value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);

/** One line for each rate. */
export function throughputRow(line: RateSummary): Record<string, string> {
  const failedCount = line.failures.reduce((sum, { count }) => sum + count, 0);
  return {
    rate: String(line.rate),
    arrived: String(line.arrivedCount),
    whole: String(line.wholeCount),
    failed: String(failedCount),
    "requests/s": fixed(line.requestsPerSecond),
    "goodput/s": fixed(line.goodputPerSecond),
    "tokens/s": fixed(line.outputTokensPerSecond),
    "prompt tokens": fixed(line.promptTokensMean),
    "output tokens": fixed(line.outputTokensMean),
    "tokens/chunk": fixed(line.tokensPerChunk),
    "sent late p99": fixed(line.sendDelayMs?.p99 ?? null),
  };
}

/** What users felt: four lines for each rate, in ms. */
export function latencyRows(line: RateSummary): Record<string, string>[] {
  const row = (measure: string, percentiles: Percentiles | null) => ({
    rate: String(line.rate),
    ms: measure,
    p50: fixed(percentiles?.p50 ?? null),
    p90: fixed(percentiles?.p90 ?? null),
    p99: fixed(percentiles?.p99 ?? null),
    max: fixed(percentiles?.max ?? null),
    samples: String(percentiles?.count ?? 0),
  });
  return [
    row("TTFT", line.ttftMs),
    row("TPOT", line.tpotMs),
    row("ITL", line.itlMs),
    row("end to end", line.endToEndMs),
  ];
}

/** Failures in words, one line for each kind and rate. */
export function failureLines(line: RateSummary): string[] {
  return line.failures.map(
    ({ kind, count, message }) =>
      `at ${line.rate} requests/s: ${count} × ${kind}${message === null ? "" : ` (${JSON.stringify(message)})`}`,
  );
}

/** Throughput, goodput and latency over the rate. */
export function servePanels(lines: readonly RateSummary[]): Panel[] {
  const sorted = [...lines].sort((a, b) => a.rate - b.rate);
  const points = (value: (line: RateSummary) => number | null | undefined): Point[] =>
    sorted.flatMap((line) => {
      const y = value(line);
      return y === null || y === undefined ? [] : [{ x: line.rate, y }];
    });
  // A logarithmic axis has no place for 0.
  const above0 = (all: readonly Point[]) => all.filter(({ y }) => y > 0);
  const common = { xLabel: "requests/s sent", xScale: "log", yScale: "linear", yMin: 0 } as const;
  const goodputAndAnswers = [
    { name: "requests/s", points: points((line) => line.requestsPerSecond) },
    { name: "goodput/s", points: points((line) => line.goodputPerSecond) },
    { name: "sent", points: points((line) => line.rate), isDashed: true },
  ];
  return [
    { ...common, title: "Answers", yLabel: "requests/s", series: goodputAndAnswers },
    {
      ...common,
      title: "Output tokens",
      yLabel: "tokens/s",
      series: [{ name: "tokens/s", points: points((line) => line.outputTokensPerSecond) }],
    },
    {
      ...common,
      title: "TTFT",
      yLabel: "ms",
      yScale: "log",
      series: [
        { name: "p50", points: above0(points((line) => line.ttftMs?.p50)) },
        { name: "p99", points: above0(points((line) => line.ttftMs?.p99)) },
      ],
    },
    {
      ...common,
      title: "TPOT",
      yLabel: "ms",
      series: [
        { name: "p50", points: points((line) => line.tpotMs?.p50) },
        { name: "p99", points: points((line) => line.tpotMs?.p99) },
      ],
    },
  ];
}
