// The performance page's contents from reports: markdown tables, and the data of its charts. Pure: no number of the page is typed by
// hand, and none is measured here.
import type { EngineLine, EngineReport, RoofReport, StepLine } from "../src/bench/report.ts";
import { quantile } from "../src/bench/statistics.ts";
import type { Panel, Point, Series } from "../src/bench/svg-chart.ts";

export const BEGIN = "<!-- begin generated: bun scripts/plot-performance.ts -->";
export const END = "<!-- end generated -->";

/** A report as scripts/measure-performance.ts stores it. */
export type Stored<Report> = Report & { readonly commit?: string };

type Cells = readonly (string | number)[];

/** A markdown table; the first `textColumns` columns are text, the others numbers. */
export function markdownTable(head: Cells, rows: readonly Cells[], textColumns: number): string {
  const line = (cells: Cells) => `| ${cells.join(" | ")} |`;
  return [line(head), line(head.map((_, index) => (index < textColumns ? "---" : "--:"))), ...rows.map(line)].join(
    "\n",
  );
}

const percent = (share: number | null | undefined) =>
  share === null || share === undefined ? "" : `${(share * 100).toFixed(0)} %`;
const number = (value: number) =>
  value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value >= 1 ? value.toFixed(2) : value.toFixed(3);
const range = (values: readonly number[]) => `${number(quantile(values, 0.25))}–${number(quantile(values, 0.75))}`;
export const titleOf = (report: EngineReport) => `${report.model.name}, ${report.model.recipe}`;

type StepEngineLine = EngineLine & { readonly step: StepLine };
const stepsOf = (report: EngineReport, kind: EngineLine["kind"]) =>
  report.lines.filter((line): line is StepEngineLine => line.kind === kind && line.step !== null);

/** Where and when, so that a figure is never without its machine. */
function machineLines(roof: Stored<RoofReport>, reports: readonly Stored<EngineReport>[]): string {
  const { machine } = roof;
  const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
  const commits = [...new Set([roof, ...reports].flatMap((report) => report.commit ?? []))];
  const loads = [roof, ...reports].map((report) => report.machine.loadBefore);
  const parts = [
    `- machine: ${machine.cpu}, ${machine.cpus} CPUs, L2 ${mib(machine.cacheBytes.l2)} a core, L3 ${mib(machine.cacheBytes.l3)} (as the system states it), ${(machine.memoryBytes / 2 ** 30).toFixed(0)} GiB of memory, ${machine.system} ${machine.architecture}`,
    `- build: Duet ${roof.duet}, ${machine.compiler}, Bun ${machine.bun}${commits.length > 0 ? `, commit ${commits.join(", ")}` : ""}`,
    `- ${roof.lanes} lanes, ${roof.isa}${roof.isPinned ? ", pinned" : ""}; measured ${machine.date.slice(0, 16).replace("T", " ")} UTC`,
  ];
  const load = Math.max(...loads);
  if (load > 0.5) {
    parts.push(
      `- **other work ran at the same time** (load average up to ${load.toFixed(1)} before a measurement): times are longer and spreads wider than on a quiet machine`,
    );
  }
  return parts.join("\n");
}

function roofTable(roof: RoofReport): string {
  const rows = roof.lines.map((line) => [
    line.what,
    line.isa,
    line.lanes,
    number(line.median),
    range(line.values),
    line.unit,
    line.readGBps === null ? "" : number(line.readGBps),
    percent(line.peakShare),
  ]);
  return markdownTable(["what", "isa", "lanes", "median", "quartiles", "unit", "GB/s", "of peak"], rows, 2);
}

function summaryTable(reports: readonly EngineReport[]): string {
  const rows = reports.map((report) => {
    const find = (id: string) => report.lines.find((line) => line.id === id);
    const [one, sixteen, prefill] = [find("decode/1@0"), find("decode/16@0"), find("prefill/512@0")];
    const rate = (line: EngineLine | undefined) => (line?.step ? number(line.step.tokensPerSecond) : "");
    const share = (line: EngineLine | undefined) => percent(line?.step?.roof?.share);
    const warm = find("start-up/warm")?.median;
    const bun = find("start-up/bun")?.median;
    return [
      titleOf(report),
      (report.model.fileBytes / 1e6).toFixed(0),
      rate(one),
      share(one),
      rate(sixteen),
      share(sixteen),
      rate(prefill),
      percent(prefill?.step?.roof?.peakShare),
      warm === undefined || bun === undefined ? "" : (warm - bun).toFixed(0),
    ];
  });
  const head = ["model", "MB", "decode, tokens/s", "of roof", "batch 16, tokens/s", "of roof", "prefill 512, tokens/s"];
  return markdownTable([...head, "of int8 peak", "first token after Bun, ms"], rows, 1);
}

function stepTable(report: EngineReport): string {
  const rows = report.lines.flatMap(({ kind, step, values, median }): Cells[] => {
    if (step === null) return [];
    const work =
      kind === "prefill"
        ? `prefill ${step.rowsEach}`
        : kind === "decode"
          ? `decode, batch ${step.sequences}`
          : `verify, ${step.rowsEach} rows`;
    return [
      [
        work,
        step.roof?.binding ?? "",
        step.contextTokens,
        number(median),
        range(values),
        number(step.tokensPerSecond),
        ((step.weightBytes + step.kvBytes) / 1e6).toFixed(1),
        number(step.readGBps),
        percent(step.roof?.share),
        percent(step.roof?.peakShare),
        step.distinctExpertsPerLayer.toFixed(1),
      ],
    ];
  });
  const head = ["step", "binds", "context", "ms", "quartiles", "tokens/s", "MB", "GB/s", "of roof", "of int8 peak"];
  return markdownTable([...head, "experts/layer"], rows, 2);
}

/** t(r) ÷ t(1) against bytes(r) ÷ bytes(1): at or below it, verifying costs no more than what it must read. */
export function verifyRatios(report: EngineReport): { rows: number; time: number; bytes: number }[] {
  const lines = stepsOf(report, "verify");
  const first = lines.find((line) => line.step.rowsEach === 1);
  if (first === undefined) return [];
  const bytesOf = (line: StepEngineLine) => line.step.weightBytes + line.step.kvBytes;
  return lines.map((line) => ({
    rows: line.step.rowsEach,
    time: line.median / first.median,
    bytes: bytesOf(line) / bytesOf(first),
  }));
}

function startUpTable(reports: readonly EngineReport[]): string {
  const rows = reports.flatMap((report) => {
    const times = report.lines.filter((line) => line.kind === "start-up");
    if (times.length === 0) return [];
    const cell = (id: string) => {
      const line = times.find((one) => one.id === id);
      return line === undefined ? "" : `${number(line.median)} (${range(line.values)})`;
    };
    return [[titleOf(report), cell("start-up/bun"), cell("start-up/warm"), cell("start-up/cold")]];
  });
  if (rows.length === 0) return "";
  const head = ["model", "Bun alone, ms", "page cache warm, ms", "cold, ms"];
  return [
    "### Start-up",
    "",
    "Process start to first token; quartiles in brackets.",
    "",
    markdownTable(head, rows, 1),
  ].join("\n");
}

function modelSection(report: EngineReport): string {
  const notes = report.notes.map((note) => `- ${note}`);
  return [
    `### ${titleOf(report)}`,
    "",
    `${report.device}, KV ${report.kvType}, container ${report.model.fingerprint}.`,
    "",
    stepTable(report),
    ...(notes.length > 0 ? ["", ...notes] : []),
  ].join("\n");
}

/** Everything between the markers; `figures` are file names beside the page, with their titles. */
export function renderGenerated(
  roof: Stored<RoofReport>,
  reports: readonly Stored<EngineReport>[],
  figures: readonly { readonly file: string; readonly title: string }[],
): string {
  const images = figures.map(({ file, title }) => `![${title}](performance/${file})`);
  return [
    "## Results",
    machineLines(roof, reports),
    summaryTable(reports),
    ...images,
    startUpTable(reports),
    "## The machine",
    roofTable(roof),
    "## Every line",
    ...reports.map(modelSection),
  ]
    .filter((part) => part !== "")
    .join("\n\n");
}

/** The page with what stands between the markers replaced; an Error when a marker is missing. */
export function replaceGenerated(page: string, generated: string): string {
  const [begin, end] = [page.indexOf(BEGIN), page.indexOf(END)];
  if (begin < 0 || end < begin) throw new Error(`the page must have "${BEGIN}" and behind it "${END}"`);
  return `${page.slice(0, begin + BEGIN.length)}\n\n${generated}\n\n${page.slice(end)}`;
}

// ---- charts -----------------------------------------------------------------------------------------------------------

const asPercent = (value: number) => `${Math.round(value * 100)} %`;

function ratePoint(line: StepEngineLine, x: number): Point {
  const rateAt = (ms: number) => (line.step.sequences * line.step.rowsEach * 1000) / ms;
  return {
    x,
    y: line.step.tokensPerSecond,
    low: rateAt(quantile(line.values, 0.75)),
    high: rateAt(quantile(line.values, 0.25)),
  };
}

/** Decode tokens/s by batch, one line for each context, one panel for each model. */
export function decodePanels(reports: readonly EngineReport[]): Panel[] {
  const all = reports.flatMap((report) => stepsOf(report, "decode"));
  // The same list in every panel: a context keeps its colour, and the legend its order.
  const contexts = [...new Set(all.map((line) => line.step.contextTokens))].sort((a, b) => a - b);
  return reports.map((report) => {
    const lines = stepsOf(report, "decode");
    return {
      title: titleOf(report),
      xLabel: "sequences in the batch",
      yLabel: "tokens/s, all sequences",
      xScale: "log",
      yScale: "log",
      series: contexts.map((context): Series => ({
        name: `context ${context}`,
        points: lines
          .filter((line) => line.step.contextTokens === context)
          .map((line) => ratePoint(line, line.step.sequences)),
      })),
    };
  });
}

/** Share of the roof: decode by batch, verify by rows, prefill by tokens; one line for each model. */
export function sharePanels(reports: readonly EngineReport[]): Panel[] {
  const panel = (
    title: string,
    xLabel: string,
    kind: "decode" | "verify" | "prefill",
    xOf: (step: StepLine) => number,
  ): Panel => ({
    title,
    xLabel,
    yLabel: "share of the roof",
    xScale: kind === "verify" ? "linear" : "log",
    yScale: "linear",
    yMin: 0,
    yMax: 1.2,
    formatY: asPercent,
    series: reports.map((report) => ({
      name: titleOf(report),
      points: stepsOf(report, kind).flatMap((line): Point[] => {
        const { roof, contextTokens } = line.step;
        if (roof === null || (kind === "decode" && contextTokens > 0)) return [];
        return [{ x: xOf(line.step), y: Math.min(roof.share, 1.2) }];
      }),
    })),
  });
  return [
    panel("decode at context 0", "sequences in the batch", "decode", (step) => step.sequences),
    panel("verify", "rows of one sequence", "verify", (step) => step.rowsEach),
    panel("prefill", "tokens", "prefill", (step) => step.rowsEach),
  ];
}

/** What verifying r rows costs, beside what it must read. */
export function verifyPanels(reports: readonly EngineReport[]): Panel[] {
  return reports.map((report) => {
    const ratios = verifyRatios(report);
    return {
      title: titleOf(report),
      xLabel: "rows of one sequence",
      yLabel: "relative to one row",
      xScale: "linear",
      yScale: "linear",
      yMin: 0,
      series: [
        { name: "time", points: ratios.map(({ rows, time }) => ({ x: rows, y: time })) },
        { name: "bytes read", points: ratios.map(({ rows, bytes }) => ({ x: rows, y: bytes })), isDashed: true },
      ],
    };
  });
}

/** The kernels over weights in L2, beside the peak of the product instruction. */
export function kernelPanels(roof: RoofReport): Panel[] {
  const points = (quantType: string, y: (line: RoofReport["lines"][number]) => number | null): Point[] =>
    roof.lines.flatMap((line) => {
      const match = line.id.startsWith(`matmul/${quantType}/l2/`) ? Number(line.id.split("/")[3]) : Number.NaN;
      const value = y(line);
      return Number.isNaN(match) || value === null ? [] : [{ x: match, y: value }];
    });
  const peak = roof.lines.find((line) => line.id === `peak/int8/${roof.isa}/${roof.lanes}`);
  const l2 = roof.lines.find((line) => line.id === `read/l2/${roof.lanes}`);
  const flat = (value: number | undefined) => (value === undefined ? [] : points("q4", () => value));
  const axes = { xLabel: "rows", xScale: "log", yScale: "linear", yMin: 0 } as const;
  return [
    {
      ...axes,
      title: "operations",
      yLabel: "GOPS",
      series: [
        { name: "q4", points: points("q4", (line) => line.median) },
        { name: "q8", points: points("q8", (line) => line.median) },
        { name: "limit", points: flat(peak && Math.max(...peak.values)), isDashed: true },
      ],
    },
    {
      ...axes,
      title: "weight bytes",
      yLabel: "GB/s",
      series: [
        { name: "q4", points: points("q4", (line) => line.readGBps) },
        { name: "q8", points: points("q8", (line) => line.readGBps) },
        { name: "limit", points: flat(l2?.median), isDashed: true },
      ],
    },
  ];
}
