// The machine's limits as a report: which tasks are timed, in which sizes, and how their runs become rates. The timing itself
// is native (native/roof.ts). It judges nothing: shares of these limits are roof-share.ts's.

import { MIB } from "../base/units.ts";
import { type IsaName, type Native } from "../native/library.ts";
import { RoofLanes, type RoofRun, type RoofTask } from "../native/roof.ts";
import { Slab } from "../native/slab.ts";
import type { CacheBytes } from "./machine.ts";
import { median, rounded } from "./statistics.ts";

export type RoofUnit = "GB/s" | "GOPS" | "GFLOPS" | "ns";

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

export interface RoofOptions {
  readonly laneCount: number;
  readonly isa: IsaName;
  readonly isPinned: boolean;
  readonly cacheBytes: CacheBytes;
  readonly repeatCount: number;
  /** Length of one run. */
  readonly runMs: number;
  /** Bytes read for DRAM, all lanes together. */
  readonly dramBytes: number;
  /** What the mapped reads read; null: not measured. */
  readonly mappedPath: string | null;
  readonly mappedBytes: number;
}

/** A task with its place in the report. */
export interface RoofItem {
  readonly id: string;
  readonly what: string;
  readonly unit: RoofUnit;
  readonly lanes: number;
  readonly isa: IsaName;
  readonly task: RoofTask;
  /** The line whose median is this line's peak. */
  readonly peakId: string | null;
  readonly isMapped?: true;
}

export const MATMUL_ROWS = [1, 2, 4, 8, 16, 64] as const;
const COLUMNS = 2048;
const KEYS = 2048;
const QUERY_HEADS = 4;
const CHUNK = 512;

/** 1, 2, 4 … and the lane count itself. */
export function laneCounts(laneCount: number): number[] {
  const counts: number[] = [];
  for (let count = 1; count < laneCount; count *= 2) counts.push(count);
  return [...counts, laneCount];
}

const perLane = (bytes: number, lanes: number) => Math.max(CHUNK, Math.floor(bytes / lanes / CHUNK) * CHUNK);

function readItems(options: RoofOptions, lanes: number): RoofItem[] {
  const { isa, cacheBytes, dramBytes, mappedPath, mappedBytes } = options;
  const read = (level: string, what: string, bytes: number, isPrefetched: boolean): RoofItem => ({
    id: `read/${level}/${lanes}`,
    what,
    unit: "GB/s",
    lanes,
    isa,
    task: { kind: "read", bytes, isPrefetched },
    peakId: null,
  });
  const items = [
    read("l2", "L2 read", perLane(cacheBytes.l2 / 2, 1), false),
    read("l3", "L3 read", perLane(cacheBytes.l3 / 2, lanes), false),
    read("dram", "DRAM read, anonymous memory", perLane(dramBytes, lanes), true),
  ];
  if (mappedPath === null) return items;
  const bytes = perLane(Math.min(dramBytes, mappedBytes), lanes);
  return [...items, { ...read("mapped", "DRAM read, mapped file", bytes, true), isMapped: true }];
}

function peakItems(isa: IsaName, lanes: number): RoofItem[] {
  if (isa === "plain") return [];
  const common = { lanes, isa, peakId: null };
  return [
    {
      ...common,
      id: `peak/int8/${isa}/${lanes}`,
      what: "int8 multiply-add peak",
      unit: "GOPS",
      task: { kind: "integerDot" },
    },
    {
      ...common,
      id: `peak/f32/${isa}/${lanes}`,
      what: "float32 fma peak",
      unit: "GFLOPS",
      task: { kind: "floatFma" },
    },
  ];
}

function matmulItems(options: RoofOptions): RoofItem[] {
  const { isa, laneCount: lanes, cacheBytes } = options;
  return (["q4", "q8"] as const).flatMap((quantType) =>
    MATMUL_ROWS.map((rowCount): RoofItem => ({
      id: `matmul/${quantType}/l2/${rowCount}`,
      what: `${quantType} kernel, ${rowCount === 1 ? "1 row" : `${rowCount} rows`}, weights in L2`,
      unit: "GOPS",
      lanes,
      isa,
      task: { kind: "matmul", quantType, rowCount, columnCount: COLUMNS, bytes: perLane(cacheBytes.l2 / 2, 1) },
      peakId: `peak/int8/${isa}/${lanes}`,
    })),
  );
}

function streamingItems(options: RoofOptions): RoofItem[] {
  const { isa, laneCount: lanes, dramBytes } = options;
  return (["q4", "q8"] as const).map((quantType) => ({
    id: `matmul/${quantType}/dram/1`,
    what: `${quantType} kernel, 1 row, weights in DRAM`,
    unit: "GB/s",
    lanes,
    isa,
    task: { kind: "matmul", quantType, rowCount: 1, columnCount: COLUMNS, bytes: perLane(dramBytes, lanes) },
    peakId: `read/dram/${lanes}`,
  }));
}

function attentionItems(options: RoofOptions): RoofItem[] {
  const { isa, laneCount: lanes } = options;
  const items: RoofItem[] = [];
  for (const headDim of [32, 64, 128]) {
    for (const kvType of ["f16", "int8"] as const) {
      for (const rowCount of [1, 64]) {
        const work = rowCount === 1 ? "decode" : `prefill of ${rowCount} rows`;
        items.push({
          id: `attention/${headDim}/${kvType}/${rowCount}`,
          what: `attention, ${work}, ${kvType} KV, head dim ${headDim}, ${QUERY_HEADS} query heads, ${KEYS} keys`,
          unit: "GFLOPS",
          lanes,
          isa,
          task: { kind: "attention", kvType, rowCount, queryHeadCount: QUERY_HEADS, headDim, keyCount: KEYS },
          peakId: `peak/f32/${isa}/${lanes}`,
        });
      }
    }
  }
  return items;
}

/** Everything that `duet bench roof` measures. `isas` are those that can run here. */
export function roofItems(options: RoofOptions, isas: readonly IsaName[]): RoofItem[] {
  const { isa, laneCount: lanes } = options;
  const counts = laneCounts(lanes);
  const sync = { unit: "ns", lanes, isa, peakId: null } as const;
  const peaks = [...new Set([isa, ...isas])].flatMap((name) => peakItems(name, lanes));
  return [
    ...counts.flatMap((count) => readItems(options, count)),
    ...(counts.length > 1 ? peakItems(isa, 1) : []),
    ...peaks,
    { ...sync, id: "barrier", what: "one barrier of all lanes", task: { kind: "barrier" } },
    { ...sync, id: "hand-off", what: "from the caller to all lanes and back", task: { kind: "handOff" } },
    ...matmulItems(options),
    ...streamingItems(options),
    ...attentionItems(options),
  ];
}

/** The part that shares of the roof need: a second or two. */
export function shortRoofItems(options: RoofOptions): RoofItem[] {
  const { isa, laneCount } = options;
  return [...readItems(options, laneCount), ...peakItems(isa, laneCount), ...matmulItems(options)];
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

/** Large enough that no cache holds it, within a quarter of what is free. */
export function chooseDramBytes(cacheBytes: CacheBytes, freeBytes: number, isQuick: boolean): number {
  const wanted = Math.max(isQuick ? 0 : 512 * MIB, 4 * cacheBytes.l3);
  return Math.floor(Math.max(16 * MIB, Math.min(wanted, freeBytes / 4)) / MIB) * MIB;
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
