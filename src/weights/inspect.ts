// What `duet inspect` says about a container, as data and as text. Reads the header, and the tensors only when asked to
// verify them; prints nothing itself.

import { formatBytes, formatCount } from "../base/units.ts";
import { type VerifyOptions, verifyTensors } from "./container.ts";
import type { Container, Provenance, RecipeName } from "./header.ts";
import type { ModelShape } from "./shape.ts";
import type { DieSplit } from "./split.ts";
import type { QuantType, TensorClass, TensorEntry } from "./tensor.ts";

export type ChecksumState = "ok" | "not checked" | "failed";

export interface ClassReport {
  readonly class: TensorClass;
  readonly quantType: QuantType;
  readonly tensorCount: number;
  /** Elements without padding. */
  readonly parameterCount: number;
  readonly bytes: number;
  readonly bitsPerWeight: number;
  readonly checksums: ChecksumState;
  /** Names of the tensors whose bytes differ from their checksum. */
  readonly failures: readonly string[];
}

/** Plain JSON. Counts are of the container: a split or tied tensor is counted once, as it is stored. */
export interface InspectReport {
  readonly path: string;
  readonly fileBytes: number;
  readonly fingerprint: string;
  readonly layout: string;
  readonly recipe: RecipeName;
  readonly shape: ModelShape;
  readonly split: DieSplit;
  readonly provenance: Provenance;
  readonly endTokenIds: readonly number[];
  /** `total` and `active` (those that work on a token) leave the MTP modules out. */
  readonly parameters: { readonly total: number; readonly active: number; readonly mtp: number };
  readonly tensorCount: number;
  readonly tensorBytes: number;
  readonly bitsPerWeight: number;
  readonly classes: readonly ClassReport[];
  readonly checksums: ChecksumState;
}

export interface InspectOptions extends VerifyOptions {
  /** Compare every tensor with its checksum. */
  readonly verify?: boolean;
}

/** Elements of a tensor without padding; of an expert gate, up and down. */
export function parameterCountOf({ kind, rows, columns }: TensorEntry): number {
  return kind === "expert" ? 1.5 * rows * columns : rows * columns;
}

/** DuetError only from verifying: `file_*`, `container_truncated`. */
export function inspectContainer(container: Container, options: InspectOptions = {}): InspectReport {
  const { header } = container;
  const { shape, tensors, recipe } = header;
  const failed = options.verify ? new Set(verifyTensors(container, options).map(({ name }) => name)) : null;
  const stateOf = (failures: number): ChecksumState =>
    failed === null ? "not checked" : failures === 0 ? "ok" : "failed";
  const sum = (entries: readonly TensorEntry[], of: (entry: TensorEntry) => number) =>
    entries.reduce((total, entry) => total + of(entry), 0);
  const bitsPerWeight = (entries: readonly TensorEntry[]) =>
    (8 * sum(entries, (entry) => entry.bytes)) / sum(entries, parameterCountOf);

  const classes = [...new Set(tensors.map((entry) => entry.class))].map((tensorClass): ClassReport => {
    const entries = tensors.filter((entry) => entry.class === tensorClass);
    const failures = entries.filter((entry) => failed?.has(entry.name)).map((entry) => entry.name);
    return {
      class: tensorClass,
      quantType: recipe.types[tensorClass],
      tensorCount: entries.length,
      parameterCount: sum(entries, parameterCountOf),
      bytes: sum(entries, (entry) => entry.bytes),
      bitsPerWeight: bitsPerWeight(entries),
      checksums: stateOf(failures.length),
      failures,
    };
  });

  const mtp = sum(
    tensors.filter((entry) => entry.name.startsWith("mtp.")),
    parameterCountOf,
  );
  const total = sum(tensors, parameterCountOf) - mtp;
  const experts = sum(
    tensors.filter((entry) => entry.class === "experts"),
    parameterCountOf,
  );
  const idle = shape.routedExpertCount === 0 ? 0 : experts * (1 - shape.activeExpertCount / shape.routedExpertCount);
  return {
    path: container.path,
    fileBytes: container.fileBytes,
    fingerprint: container.fingerprint,
    layout: header.layout,
    recipe: recipe.name,
    shape,
    split: header.split,
    provenance: header.provenance,
    endTokenIds: header.endTokenIds,
    parameters: { total, active: Math.round(total - idle), mtp },
    tensorCount: tensors.length,
    tensorBytes: sum(tensors, (entry) => entry.bytes),
    bitsPerWeight: bitsPerWeight(tensors),
    classes,
    checksums: stateOf(failed?.size ?? 0),
  };
}

function describeExperts(shape: ModelShape): string {
  if (shape.routedExpertCount === 0) return `dense, feed-forward ${shape.ffnDim}`;
  const { routedExpertCount, expertGroupCount, activeExpertCount, expertDim, ffnDim } = shape;
  const shared = ffnDim > 0 ? `; shared experts ${ffnDim} wide` : "";
  return `${routedExpertCount} experts ${expertDim} wide in ${expertGroupCount} group(s), ${activeExpertCount} active${shared}`;
}

const columns = (cells: readonly string[], widths: readonly number[]) =>
  cells
    .map((cell, i) => (i < 2 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0)))
    .join("  ")
    .trimEnd();

/** The report as a table for a terminal. */
export function formatInspectReport(report: InspectReport): string {
  const { shape, split, parameters, provenance } = report;
  const mtp = parameters.mtp > 0 ? `, MTP ${formatCount(parameters.mtp)} more` : "";
  const facts: [string, string][] = [
    ["model", `${provenance.modelName} (${provenance.license}; ${provenance.source})`],
    ["file", `${report.path}, ${formatBytes(report.fileBytes)}, fingerprint ${report.fingerprint}`],
    ["packed", `${provenance.packedBy}, recipe ${report.recipe}, layout ${report.layout}`],
    ["source", `sha256 ${provenance.sourceDigest}`],
    ["parameters", `${formatCount(parameters.total)} (${formatCount(parameters.active)} active)${mtp}`],
    [
      "layers",
      `${shape.layerCount} of ${shape.hiddenDim}, context ${shape.contextMax}, vocabulary ${shape.vocabularySize}`,
    ],
    ["attention", `${shape.queryHeadCount} query heads, ${shape.kvHeadCount} KV heads of ${shape.headDim}`],
    ["feed-forward", describeExperts(shape)],
    [
      "die 0",
      `${split.kvHeadBoundary} KV heads, ${split.expertBoundary} experts, ${split.ffnBoundary} feed-forward columns, ${split.vocabularyBoundary} vocabulary rows`,
    ],
  ];
  const rows = [
    ["class", "type", "tensors", "weights", "bytes", "bits/weight", "checksums"],
    ...report.classes.map((one) => [
      one.class,
      one.quantType,
      `${one.tensorCount}`,
      formatCount(one.parameterCount),
      formatBytes(one.bytes),
      one.bitsPerWeight.toFixed(2),
      one.checksums,
    ]),
    [
      "all",
      "",
      `${report.tensorCount}`,
      formatCount(parameters.total + parameters.mtp),
      formatBytes(report.tensorBytes),
      report.bitsPerWeight.toFixed(2),
      report.checksums,
    ],
  ];
  const widths = Array.from({ length: 7 }, (_, i) => Math.max(...rows.map((row) => (row[i] ?? "").length)));
  const factWidth = Math.max(...facts.map(([label]) => label.length));
  const failures = report.classes.flatMap((one) => one.failures).map((name) => `checksum differs: ${name}`);
  return [
    ...facts.map(([label, value]) => `${label.padEnd(factWidth)}  ${value}`),
    "",
    ...rows.map((row) => columns(row, widths)),
    ...failures,
  ].join("\n");
}
