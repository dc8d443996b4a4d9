// `bun scripts/measure-performance.ts [options]`: measures everything that docs/performance.md shows, and writes the page anew. One
// command, for a quiet machine: it makes the containers that are missing, runs `duet bench roof` and `duet bench engine` on each,
// keeps their reports in docs/performance/*.json, and runs scripts/plot-performance.ts.
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";

const ROOT = join(import.meta.dirname, "..");
const SHIPPED = "fable-q4";
const MODELS = [SHIPPED, "tiny-q4", "small-q4", "pangu-slice-q4", "pangu-slice-q8"];

const HELP = `Usage: bun scripts/measure-performance.ts [options]

  --models LIST     of ${MODELS.join(",")} (default: all; about 20 GB of disk)
  --containers DIR  where the synthetic containers are kept (default: ${join(tmpdir(), "duet-performance")})
  --threads COUNT   lanes (default: one per CPU)
  --repeat COUNT    runs per line at least (default: 7)
  --quick           fewer lines and runs
  --keep-roof       don't measure the machine again`;

/** Runs `duet` and returns its standard output; its progress goes through. */
function duet(argv: readonly string[]): string {
  const command = [process.execPath, join(ROOT, "src/cli.ts"), ...argv];
  const child = Bun.spawnSync(command, { cwd: ROOT, stdout: "pipe", stderr: "inherit" });
  if (child.exitCode !== 0) throw new Error(`duet ${argv.join(" ")} ended with status ${child.exitCode}`);
  return child.stdout.toString();
}

/** The commit that was measured; "with changes" when the work tree has some in the sources. */
function describeCommit(): string {
  const git = (...argv: string[]) =>
    Bun.spawnSync(["git", ...argv], { cwd: ROOT })
      .stdout.toString()
      .trim();
  return (
    git("rev-parse", "--short", "HEAD") + (git("status", "--porcelain", "--", "src") === "" ? "" : " with changes")
  );
}

/** The container of a model, made when it isn't there. */
function containerOf(model: string, folder: string): string {
  if (model === SHIPPED) return join(ROOT, "models/fable/fable.duet");
  const path = join(folder, `${model}.duet`);
  if (existsSync(path)) return path;
  mkdirSync(folder, { recursive: true });
  const cut = model.lastIndexOf("-");
  duet(["synth", "--shape", model.slice(0, cut), "--recipe", model.slice(cut + 1), "-o", path]);
  return path;
}

function main(): void {
  const { values } = parseArgs({
    options: {
      models: { type: "string", default: MODELS.join(",") },
      containers: { type: "string", default: join(tmpdir(), "duet-performance") },
      threads: { type: "string" },
      repeat: { type: "string", default: "7" },
      quick: { type: "boolean", default: false },
      "keep-roof": { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return console.log(HELP);
  const models = values.models.split(",");
  const unknown = models.find((model) => !MODELS.includes(model));
  if (unknown !== undefined) throw new Error(`--models: expected a list of ${MODELS.join(",")}, got ${unknown}`);
  const common = ["--json", "--repeat", values.repeat, ...(values.quick ? ["--quick"] : [])];
  if (values.threads !== undefined) common.push("--threads", values.threads);
  const folder = join(ROOT, "docs/performance");
  mkdirSync(folder, { recursive: true });
  const commit = describeCommit();
  const store = (name: string, text: string) => {
    writeFileSync(join(folder, `${name}.json`), formatReport({ ...JSON.parse(text), commit }));
  };
  if (!values["keep-roof"]) {
    console.error("the machine");
    store("roof", duet(["bench", "roof", ...common]));
  }
  for (const model of models) {
    console.error(model);
    store(model, duet(["bench", "engine", ...common, containerOf(model, values.containers)]));
  }
  const plot = Bun.spawnSync([process.execPath, join(ROOT, "scripts/plot-performance.ts")], {
    stdio: ["ignore", "inherit", "inherit"],
  });
  if (plot.exitCode !== 0) throw new Error("the page was not written");
}

/** JSON with one line for each measured line, so that a new measurement reads well as a difference. */
export function formatReport(report: Record<string, unknown>): string {
  const fields = Object.entries(report).map(([key, value]) => {
    if (!Array.isArray(value) || value.length === 0) return `  ${JSON.stringify(key)}: ${JSON.stringify(value)}`;
    return `  ${JSON.stringify(key)}: [\n${value.map((item) => `    ${JSON.stringify(item)}`).join(",\n")}\n  ]`;
  });
  return `{\n${fields.join(",\n")}\n}\n`;
}

if (import.meta.main) main();
