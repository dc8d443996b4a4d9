// What `duet bench … --json` writes and `duet bench compare` reads: reports of lines, each with every run. Assembling and checking
// only; nothing is measured here.

import { readFileSync } from "node:fs";
import { z } from "zod";
import { DuetError } from "../base/errors.ts";
import type { ModelShape } from "../weights/shape.ts";
import type { StepTimes } from "./engine-bench.ts";
import { type StepKind, stepKeys } from "./engine-plan.ts";
import type { Machine } from "./machine.ts";
import type { RoofLine } from "./roof.ts";
import { type RoofRates, type RoofShare, roofShare } from "./roof-share.ts";
import { median, rounded } from "./statistics.ts";

export const ROOF_FORMAT = "duet-bench-roof/1";
export const ENGINE_FORMAT = "duet-bench-engine/1";

interface ReportHead {
  readonly duet: string;
  readonly machine: Machine;
  readonly lanes: number;
  readonly isa: string;
  readonly isPinned: boolean;
  readonly repeatCount: number;
  /** What the reader must know: lines left out, things that could not be done. */
  readonly notes: readonly string[];
}

export interface RoofReport extends ReportHead {
  readonly format: typeof ROOF_FORMAT;
  readonly lines: readonly RoofLine[];
}

export interface EngineLine {
  readonly id: string;
  readonly kind: StepKind | "start-up";
  readonly unit: "ms";
  /** Every run. */
  readonly values: readonly number[];
  readonly median: number;
  /** null for start-up. */
  readonly step: StepLine | null;
}

/** What a step did, and how near it came to the machine's limit. */
export interface StepLine {
  readonly sequences: number;
  readonly rowsEach: number;
  readonly contextTokens: number;
  readonly tokensPerSecond: number;
  readonly weightBytes: number;
  readonly kvBytes: number;
  readonly readGBps: number;
  readonly integerOps: number;
  readonly distinctExpertsPerLayer: number;
  /** null where the roof isn't known (another device than cpu). */
  readonly roof: RoofShare | null;
}

export interface EngineReport extends ReportHead {
  readonly format: typeof ENGINE_FORMAT;
  readonly model: {
    readonly name: string;
    readonly recipe: string;
    readonly fingerprint: string;
    readonly fileBytes: number;
  };
  readonly device: string;
  readonly kvType: string;
  /** The short roof, measured in front of the steps and again behind them. */
  readonly roof: readonly RoofLine[];
  readonly lines: readonly EngineLine[];
}

/** The parts of a model that shares of the roof depend on. */
export interface CostModel {
  readonly shape: ModelShape;
  readonly weightBytes: number;
  readonly expertType: string;
  readonly denseType: string;
}

const integerType = (type: string) => (type === "q4" ? "q4" : "q8");

/** A line of the report from a step's times; `rates` null: no share. */
export function stepLine(times: StepTimes, model: CostModel, rates: RoofRates | null): EngineLine {
  const { step, runsMs, weightBytes, kvBytes, integerOps, distinctExperts, expertLayers } = times;
  const middle = median(runsMs);
  const rows = step.sequences * step.rowsEach;
  const { shape } = model;
  const isIntegerExpert = model.expertType === "q4" || model.expertType === "q8";
  const pairs = expertLayers === 0 ? 0 : rows * shape.activeExpertCount * shape.layerCount;
  // A chunked prefill counts each chunk's experts: rows per expert are then the chunks' mean.
  const expertOps = isIntegerExpert ? Math.min(integerOps, 6 * shape.hiddenDim * shape.expertDim * pairs) : 0;
  const chunkCount = expertLayers === 0 ? 1 : Math.max(1, Math.round(expertLayers / shape.layerCount));
  const cost = {
    bytes: weightBytes + kvBytes,
    workingSetBytes: model.weightBytes + kvBytes,
    expertOps,
    denseOps: integerOps - expertOps,
    attentionOps: 4 * shape.queryHeadCount * shape.headDim * shape.layerCount * stepKeys(step),
    rows: rows / chunkCount,
    rowsPerExpert: distinctExperts === 0 ? 0 : pairs / distinctExperts,
  };
  const quantTypes = { expert: integerType(model.expertType), dense: integerType(model.denseType) } as const;
  return {
    id: step.id,
    kind: step.kind,
    unit: "ms",
    values: runsMs,
    median: rounded(middle),
    step: {
      sequences: step.sequences,
      rowsEach: step.rowsEach,
      contextTokens: step.contextTokens,
      tokensPerSecond: rounded((rows * 1000) / middle),
      weightBytes,
      kvBytes,
      readGBps: rounded(cost.bytes / middle / 1e6),
      integerOps,
      distinctExpertsPerLayer: expertLayers === 0 ? 0 : rounded(distinctExperts / expertLayers),
      roof: rates === null ? null : roundedShare(roofShare(cost, rates, quantTypes, middle)),
    },
  };
}

function roundedShare(share: RoofShare): RoofShare {
  return {
    roofMs: rounded(share.roofMs),
    binding: share.binding,
    share: rounded(share.share),
    peakShare: share.peakShare === null ? null : rounded(share.peakShare),
  };
}

const percent = (share: number | null) => (share === null ? "" : `${(share * 100).toFixed(0)} %`);
const fixed = (value: number) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(3));

/** The columns of a line, for a table. */
export function engineRow(line: EngineLine): Record<string, string> {
  const { step, values } = line;
  return {
    line: line.kind === "start-up" ? line.id : line.kind,
    batch: step === null ? "" : String(step.sequences),
    rows: step === null ? "" : String(step.sequences * step.rowsEach),
    context: step === null ? "" : String(step.contextTokens),
    ms: fixed(line.median),
    spread: `${fixed(Math.min(...values))}–${fixed(Math.max(...values))}`,
    runs: String(values.length),
    "tokens/s": step === null ? "" : fixed(step.tokensPerSecond),
    MB: step === null ? "" : ((step.weightBytes + step.kvBytes) / 1e6).toFixed(1),
    "GB/s": step === null ? "" : step.readGBps.toFixed(1),
    "of roof": percent(step?.roof?.share ?? null),
    binds: step?.roof?.binding ?? "",
    "of int8 peak": percent(step?.roof?.peakShare ?? null),
    "experts/layer": step === null ? "" : step.distinctExpertsPerLayer.toFixed(1),
  };
}

const measuredReport = z.looseObject({
  format: z.enum([ROOF_FORMAT, ENGINE_FORMAT]),
  machine: z.looseObject({ cpu: z.string() }),
  lines: z
    .array(
      z.looseObject({
        id: z.string(),
        unit: z.enum(["ms", "ns", "GB/s", "GOPS", "GFLOPS"]),
        values: z.array(z.number().positive()).min(1),
      }),
    )
    .min(1),
});

/** As much of a report as comparing needs. */
export type MeasuredReport = z.infer<typeof measuredReport>;

/** Reads a report from a file; DuetError `file_unreadable` when it is none. */
export function readReport(path: string): MeasuredReport {
  const next = "write one with `duet bench engine --json` or `duet bench roof --json`";
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(path, "utf8"));
  } catch (cause) {
    throw new DuetError("file_unreadable", "the report cannot be read", { where: path, got: String(cause), next });
  }
  const parsed = measuredReport.safeParse(value);
  if (parsed.success) return parsed.data;
  const first = parsed.error.issues[0];
  throw new DuetError("file_unreadable", "this is no report of a benchmark", {
    where: `${path}, ${first?.path.join(".") ?? ""}`,
    got: first?.message ?? "unknown",
    next,
  });
}
