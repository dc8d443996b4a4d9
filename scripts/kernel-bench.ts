// `bun scripts/kernel-bench.ts [table...]`: builds scripts/kernel-bench.c with the library's own flags, runs it for the
// kernel tables that this machine has (all by default) and prints their figures. One core; no thresholds: it judges nothing.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "..");
const TABLES = process.arch === "x64" ? ["avx512", "avxvnni", "avx2", "plain"] : ["plain"];

interface Figure {
  what: "peak" | "decode" | "rows" | "attention";
  [name: string]: string | number;
}

/** A figure in words. */
function describeFigure(figure: Figure): string {
  const { what, ...rest } = figure;
  if (what === "peak") return `int8 peak of the product instruction: ${rest["GOPS"]} GOPS`;
  if (what === "decode") return `${rest["quant"]}, 1 row, weights from ${rest["from"]}: ${rest["GBps"]} GB/s`;
  if (what === "rows") {
    const share =
      Number(rest["shareOfPeak"]) > 0 ? ` (${(Number(rest["shareOfPeak"]) * 100).toFixed(1)} % of peak)` : "";
    return `${rest["quant"]}, ${rest["rows"]} rows, weights in L2: ${rest["GOPS"]} GOPS${share}`;
  }
  return (
    `attention, ${rest["kv"]} KV, head dim ${rest["headDim"]}, ${rest["queryHeads"]} query heads, ${rest["keys"]} keys: ` +
    `${rest["GFLOPS"]} GFLOPS, ${rest["usPerRow"]} us a row`
  );
}

function main(tables: string[]): void {
  const folder = mkdtempSync(join(tmpdir(), "duet-bench-"));
  try {
    const program = join(folder, "kernel-bench");
    const units = ["plain", ...(process.arch === "x64" ? ["avx2", "avxvnni", "avx512"] : [])];
    const paths = ["scripts/kernel-bench.c", ...units.map((unit) => `src/native/kernels_${unit}.c`)];
    const build = Bun.spawnSync(["node", "scripts/build-native.mjs", "--program", program, ...paths], { cwd: ROOT });
    if (build.exitCode !== 0) throw new Error(build.stderr.toString().trim());
    const cpu = /^model name\s*:\s*(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1] ?? "unknown CPU";
    console.log(`${cpu}; ${build.stdout.toString().trim()}`);
    for (const table of tables) {
      const { exitCode, stdout, stderr } = Bun.spawnSync([program, table]);
      console.log(`\n${table}`);
      if (exitCode !== 0) console.log(`  ${stderr.toString().trim()}`);
      for (const line of stdout.toString().split("\n")) {
        if (line) console.log(`  ${describeFigure(JSON.parse(line) as Figure)}`);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

if (import.meta.main) main(process.argv.length > 2 ? process.argv.slice(2) : TABLES);
