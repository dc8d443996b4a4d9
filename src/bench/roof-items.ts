// What a measurement of the machine's limits consists of: which tasks, on how many lanes, in which sizes. Pure.

import { MIB } from "../base/units.ts";
import type { IsaName } from "../native/library.ts";
import type { RoofTask } from "../native/roof.ts";
import type { CacheBytes } from "./machine.ts";

export type RoofUnit = "GB/s" | "GOPS" | "GFLOPS" | "ns";

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
    { ...sync, id: "barrier", what: "one phase that reaches every lane", task: { kind: "barrier" } },
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

/** Large enough that no cache holds it, within a quarter of what is free. */
export function chooseDramBytes(cacheBytes: CacheBytes, freeBytes: number, isQuick: boolean): number {
  const wanted = Math.max(isQuick ? 0 : 512 * MIB, 4 * cacheBytes.l3);
  return Math.floor(Math.max(16 * MIB, Math.min(wanted, freeBytes / 4)) / MIB) * MIB;
}
