// The machine's limits as a report: items are timed one after another, and their runs become rates. The timing itself is native
// (native/roof.ts). It judges nothing: shares of these limits are roof-share.ts's.

import type { Native } from "../native/library.ts";
import { RoofLanes, type RoofRun } from "../native/roof.ts";
import { Slab } from "../native/slab.ts";
import type { RoofItem, RoofOptions, RoofUnit } from "./roof-items.ts";
import { median, rounded } from "./statistics.ts";

/** One limit. `values` has every run, in the unit. */
export interface RoofLine {
  readonly id: string;
  readonly what: string;
  readonly lanes: number;
  readonly isa: string;
  readonly unit: RoofUnit;
  readonly values: readonly number[];
  readonly median: number;
  /** Weight bytes per second of a matmul line, else null. */
  readonly readGBps: number | null;
  /** Median ÷ the limit that the same report found for the instruction set or the memory; null where there is none. */
  readonly peakShare: number | null;
}

function rateOf(unit: RoofUnit, { nanoseconds, bytes, operations, passCount }: RoofRun): number {
  switch (unit) {
    case "GB/s":
      return bytes / nanoseconds;
    case "GOPS":
    case "GFLOPS":
      return operations / nanoseconds;
    case "ns":
      return nanoseconds / passCount;
  }
}

/** Times the items in order; `onItem` comes before each. Lanes are started anew where their number or instruction set changes. */
export async function measureRoof(
  native: Native,
  options: RoofOptions,
  items: readonly RoofItem[],
  onItem: (index: number, item: RoofItem) => void,
): Promise<RoofLine[]> {
  const lines: RoofLine[] = [];
  const { mappedPath, mappedBytes } = options;
  const slab = mappedPath === null ? null : Slab.map(native, mappedPath, mappedBytes);
  let lanes: RoofLanes | null = null;
  try {
    for (const [index, item] of items.entries()) {
      onItem(index, item);
      await new Promise((resolve) => setImmediate(resolve));
      if (lanes?.laneCount !== item.lanes || lanes.isa !== item.isa) {
        lanes?.close();
        lanes = new RoofLanes(native, item.lanes, item.isa, options.isPinned);
      }
      const task = item.isMapped === true && slab !== null ? { ...item.task, slab } : item.task;
      const runs = lanes.measure(task, options.repeatCount, options.runMs);
      lines.push(lineOf(item, runs, lines));
    }
  } finally {
    lanes?.close();
    slab?.unmap();
  }
  return lines;
}

/**
 * What a line says of the machine. Other work can only slow a loop over registers or L2 down, so the best run is the limit; what
 * memory gives depends on what else uses it at that time, so there it is the median.
 */
export function limitOf(unit: RoofUnit, values: readonly number[]): number {
  return unit === "GOPS" || unit === "GFLOPS" ? Math.max(...values) : median(values);
}

function lineOf(item: RoofItem, runs: readonly RoofRun[], before: readonly RoofLine[]): RoofLine {
  const values = runs.map((run) => rounded(rateOf(item.unit, run)));
  const middle = median(values);
  const peak = before.find((line) => line.id === item.peakId);
  const first = runs[0];
  const isL2Matmul = item.task.kind === "matmul" && item.unit === "GOPS" && first !== undefined;
  return {
    id: item.id,
    what: item.what,
    lanes: item.lanes,
    isa: item.isa,
    unit: item.unit,
    values,
    median: rounded(middle),
    readGBps: isL2Matmul ? rounded((middle * first.bytes) / first.operations) : null,
    peakShare: peak === undefined ? null : rounded(middle / limitOf(peak.unit, peak.values)),
  };
}

/** The columns of a line, for a table. */
export function roofRow(line: RoofLine): Record<string, string> {
  const spread = `${formatRate(Math.min(...line.values))}–${formatRate(Math.max(...line.values))}`;
  return {
    what: line.what,
    lanes: String(line.lanes),
    isa: line.isa,
    median: formatRate(line.median),
    unit: line.unit,
    spread,
    "GB/s": line.readGBps === null ? "" : line.readGBps.toFixed(1),
    "of peak": line.peakShare === null ? "" : `${(line.peakShare * 100).toFixed(0)} %`,
  };
}

const formatRate = (value: number) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
