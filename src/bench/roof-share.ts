// How near a step came to the machine's limits: the least time that its bytes and its integer operations allow, by rates that
// were measured in the same report. Pure arithmetic.

import type { CacheBytes } from "./machine.ts";
import { MATMUL_ROWS } from "./roof-items.ts";
import { limitOf, type RoofLine } from "./roof.ts";

/** What one step must move and compute. */
export interface StepCost {
  /** Weights and KV. */
  readonly bytes: number;
  /** Everything that steps like this one read again and again: what a cache would have to hold. */
  readonly workingSetBytes: number;
  /** int8 operations of routed experts, and of everything else. */
  readonly expertOps: number;
  readonly denseOps: number;
  /** float32 operations of attention: scores and their weighted sum. */
  readonly attentionOps: number;
  readonly rows: number;
  readonly rowsPerExpert: number;
}

export interface RoofRates {
  readonly l3GBps: number;
  readonly dramGBps: number;
  readonly cacheBytes: CacheBytes;
  /** null for plain C. */
  readonly int8PeakGops: number | null;
  readonly f32PeakGflops: number | null;
  /** The kernel's GOPS with weights in L2, by rows ascending. */
  readonly kernelGops: Readonly<Record<"q4" | "q8", readonly { readonly rows: number; readonly gops: number }[]>>;
}

export type Binding = "DRAM" | "L3" | "int8" | "f32";

export interface RoofShare {
  /** The least time that the machine allows. */
  readonly roofMs: number;
  /** What sets it. */
  readonly binding: Binding;
  /** roofMs ÷ measured. */
  readonly share: number;
  /** Integer operations per second ÷ the peak of the product instruction; null for plain C. */
  readonly peakShare: number | null;
}

/** Rates from roof lines of one or more measurements; runs of the same line are pooled. DRAM is the faster of both reads. */
export function roofRates(lines: readonly RoofLine[], lanes: number, isa: string, cacheBytes: CacheBytes): RoofRates {
  const rate = (id: string) => {
    const found = lines.filter((line) => line.id === id);
    const first = found[0];
    return first === undefined
      ? Number.NaN
      : limitOf(
          first.unit,
          found.flatMap((line) => line.values),
        );
  };
  const orNull = (value: number) => (Number.isNaN(value) ? null : value);
  const anonymous = rate(`read/dram/${lanes}`);
  const kernel = (quantType: "q4" | "q8") =>
    MATMUL_ROWS.map((rows) => ({ rows, gops: rate(`matmul/${quantType}/l2/${rows}`) }));
  return {
    l3GBps: rate(`read/l3/${lanes}`),
    dramGBps: Math.max(anonymous, orNull(rate(`read/mapped/${lanes}`)) ?? anonymous),
    cacheBytes,
    int8PeakGops: orNull(rate(`peak/int8/${isa}/${lanes}`)),
    f32PeakGflops: orNull(rate(`peak/f32/${isa}/${lanes}`)),
    kernelGops: { q4: kernel("q4"), q8: kernel("q8") },
  };
}

/** The kernel's rate at a number of rows: between measured ones by their logarithm, beyond them the nearest. */
export function gopsAtRows(points: readonly { readonly rows: number; readonly gops: number }[], rows: number): number {
  const above = points.findIndex((point) => point.rows >= rows);
  const high = points[above < 0 ? points.length - 1 : above];
  const low = above <= 0 ? high : points[above - 1];
  if (high === undefined || low === undefined) return Number.NaN;
  if (above <= 0 || high.rows === rows) return high.gops;
  const part = Math.log(rows / low.rows) / Math.log(high.rows / low.rows);
  return low.gops + part * (high.gops - low.gops);
}

/** The largest of bytes ÷ read rate, int8 operations ÷ kernel rate and float operations ÷ fma peak, against what was measured. */
export function roofShare(
  cost: StepCost,
  rates: RoofRates,
  quantTypes: { readonly expert: "q4" | "q8"; readonly dense: "q4" | "q8" },
  measuredMs: number,
): RoofShare {
  const isCached = cost.workingSetBytes <= rates.cacheBytes.l3;
  const bytesMs = cost.bytes / ((isCached ? rates.l3GBps : rates.dramGBps) * 1e6);
  const opsMs = (ops: number, quantType: "q4" | "q8", rows: number) =>
    ops === 0 ? 0 : ops / (gopsAtRows(rates.kernelGops[quantType], rows) * 1e6);
  const integerMs =
    opsMs(cost.expertOps, quantTypes.expert, cost.rowsPerExpert) + opsMs(cost.denseOps, quantTypes.dense, cost.rows);
  const floatMs = rates.f32PeakGflops === null ? 0 : cost.attentionOps / (rates.f32PeakGflops * 1e6);
  const roofMs = Math.max(bytesMs, integerMs, floatMs);
  const peak = rates.int8PeakGops;
  const memory = isCached ? "L3" : "DRAM";
  return {
    roofMs,
    binding: roofMs === bytesMs ? memory : roofMs === integerMs ? "int8" : "f32",
    share: roofMs / measuredMs,
    peakShare: peak === null ? null : (cost.expertOps + cost.denseOps) / (peak * 1e6 * measuredMs),
  };
}
