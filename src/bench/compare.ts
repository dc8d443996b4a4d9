// Two reports of one kind, line by line: how much faster the later one is, and whether chance alone would do that. Pure.

import type { MeasuredReport } from "./report.ts";
import { mannWhitneyP, median, rounded } from "./statistics.ts";

/** Below this p a line is called faster or slower. */
export const SIGNIFICANCE = 0.01;

export type Verdict = "faster" | "slower" | "no difference shown";

export interface ComparedLine {
  readonly id: string;
  readonly unit: string;
  readonly before: number;
  readonly after: number;
  /** Above 1 the later report is faster, whatever the unit. */
  readonly speedup: number;
  /** Two-sided, Mann-Whitney U over all runs. */
  readonly p: number;
  readonly verdict: Verdict;
}

export interface Comparison {
  readonly lines: readonly ComparedLine[];
  /** Ids that only one of the reports has. */
  readonly onlyBefore: readonly string[];
  readonly onlyAfter: readonly string[];
}

const isTime = (unit: string) => unit === "ms" || unit === "ns";

export function compareReports(before: MeasuredReport, after: MeasuredReport): Comparison {
  const later = new Map(after.lines.map((line) => [line.id, line]));
  const earlier = new Set(before.lines.map((line) => line.id));
  const lines = before.lines.flatMap((line): ComparedLine[] => {
    const match = later.get(line.id);
    if (match === undefined || match.unit !== line.unit) return [];
    const [first, second] = [median(line.values), median(match.values)];
    const speedup = isTime(line.unit) ? first / second : second / first;
    const p = mannWhitneyP(line.values, match.values);
    const verdict = p >= SIGNIFICANCE || speedup === 1 ? "no difference shown" : speedup > 1 ? "faster" : "slower";
    return [
      {
        id: line.id,
        unit: line.unit,
        before: rounded(first),
        after: rounded(second),
        speedup: rounded(speedup),
        p: rounded(p),
        verdict,
      },
    ];
  });
  return {
    lines,
    onlyBefore: before.lines.map((line) => line.id).filter((id) => !later.has(id)),
    onlyAfter: after.lines.map((line) => line.id).filter((id) => !earlier.has(id)),
  };
}

/** The columns of a line, for a table. */
export function compareRow(line: ComparedLine): Record<string, string> {
  return {
    line: line.id,
    before: String(line.before),
    after: String(line.after),
    unit: line.unit,
    speedup: line.speedup.toFixed(3),
    p: line.p < 0.001 ? "< 0.001" : line.p.toFixed(3),
    verdict: line.verdict,
  };
}
