// `duet bench compare`: two reports, line by line.

import { compareReports, compareRow, SIGNIFICANCE } from "../bench/compare.ts";
import { readReport } from "../bench/report.ts";
import { DuetError } from "../base/errors.ts";
import type { BenchCompareCommand } from "../config/bench.ts";
import { formatTable, print } from "./terminal.ts";

/** Status 0 whatever the comparison says: it informs, and judges no build. */
export function benchCompare(command: BenchCompareCommand): number {
  const before = readReport(command.beforePath);
  const after = readReport(command.afterPath);
  const comparison = compareReports(before, after);
  if (before.format !== after.format || comparison.lines.length === 0) {
    throw new DuetError("config_invalid", "the reports have no line in common", {
      expected: `another report like ${command.beforePath} (${before.format})`,
      got: `${command.afterPath} (${after.format})`,
      next: "compare two reports of the same command",
    });
  }
  if (command.isJson) {
    print(JSON.stringify(comparison, null, 1));
    return 0;
  }
  if (before.machine.cpu !== after.machine.cpu)
    print(`WARNING: different machines: ${before.machine.cpu}; ${after.machine.cpu}`);
  print(formatTable(comparison.lines.map(compareRow)));
  print();
  const { lines, onlyBefore, onlyAfter } = comparison;
  print(
    `speedup above 1: the later report is faster. p: two-sided Mann-Whitney U over all runs. Of ${lines.length} lines without any ` +
      `difference, about ${(lines.length * SIGNIFICANCE).toFixed(1)} would be called faster or slower by chance.`,
  );
  for (const [ids, path] of [
    [onlyBefore, command.beforePath],
    [onlyAfter, command.afterPath],
  ] as const) {
    if (ids.length > 0) print(`only in ${path}: ${ids.join(", ")}`);
  }
  return 0;
}
