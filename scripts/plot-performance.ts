// `bun scripts/plot-performance.ts [folder]`: writes docs/performance/*.svg and the generated part of docs/performance.md from the
// reports in docs/performance/*.json (scripts/measure-performance.ts makes them). It measures nothing.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ENGINE_FORMAT, type EngineReport, ROOF_FORMAT, type RoofReport } from "../src/bench/report.ts";
import {
  decodePanels,
  kernelPanels,
  renderGenerated,
  replaceGenerated,
  sharePanels,
  type Stored,
  verifyPanels,
} from "./performance-page.ts";
import { type Panel, renderChart } from "../src/bench/svg-chart.ts";

const DOCS = join(import.meta.dirname, "../docs");
/** Small to large; models that aren't named come last. */
const MODEL_ORDER = ["tiny", "fable", "small", "pangu-slice"];

interface Figure {
  readonly file: string;
  readonly title: string;
  readonly panels: readonly Panel[];
  readonly columns: number;
}

function readReports(folder: string): { roof: Stored<RoofReport>; reports: Stored<EngineReport>[] } {
  const texts = readdirSync(folder)
    .filter((name) => name.endsWith(".json"))
    .sort();
  const all = texts.map(
    (name) => JSON.parse(readFileSync(join(folder, name), "utf8")) as Stored<RoofReport | EngineReport>,
  );
  const roof = all.find((report): report is Stored<RoofReport> => report.format === ROOF_FORMAT);
  if (roof === undefined) throw new Error(`${folder} has no report of \`duet bench roof --json\``);
  const rank = (report: EngineReport) =>
    (MODEL_ORDER.indexOf(report.model.name) + MODEL_ORDER.length + 1) % (MODEL_ORDER.length + 1);
  const reports = all
    .filter((report): report is Stored<EngineReport> => report.format === ENGINE_FORMAT)
    .sort((a, b) => rank(a) - rank(b) || (a.model.recipe < b.model.recipe ? -1 : 1));
  return { roof, reports };
}

function main(docs: string): void {
  const folder = join(docs, "performance");
  const { roof, reports } = readReports(folder);
  const figures: Figure[] = [
    { file: "decode.svg", title: "Decode throughput", panels: decodePanels(reports), columns: 2 },
    { file: "share.svg", title: "Share of the machine's limit", panels: sharePanels(reports), columns: 3 },
    { file: "verify.svg", title: "What verifying more rows costs", panels: verifyPanels(reports), columns: 2 },
    { file: "kernels.svg", title: "Kernels with weights in L2, all lanes", panels: kernelPanels(roof), columns: 2 },
  ];
  for (const { file, title, panels, columns } of figures) {
    writeFileSync(join(folder, file), renderChart(title, panels, columns));
  }
  const page = join(docs, "performance.md");
  writeFileSync(page, replaceGenerated(readFileSync(page, "utf8"), renderGenerated(roof, reports, figures)));
  const files = [page, ...figures.map(({ file }) => join(folder, file))];
  console.log(files.join("\n"));
}

if (import.meta.main) main(process.argv[2] ?? DOCS);
