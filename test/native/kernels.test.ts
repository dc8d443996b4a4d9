// Every fast kernel equals its plain twin bit for bit, and neither depends on the compiler. twin-test.c makes the
// comparisons; this file builds it with the repository's compilers, runs it for the instruction sets of this machine and
// judges its report.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "../..");
const SEED = "1";
const ROUNDS = "60";
const ENTRIES = [
  "quantise_row",
  "matmul_f32",
  "matmul_f16",
  "matmul_q8",
  "matmul_q4",
  "rms_norm_row",
  "exchange_add_row",
  "swiglu_row",
  "scaled_add_row",
  "exp_sum_row",
  "max_row",
  "attention",
];

interface Report {
  table: string;
  hash: string;
  entries: Record<string, { count: number; mismatches: number }>;
}

/** One compiler's build of the harness; undefined where there is no such compiler. */
interface Build {
  program: string;
  compiler: string;
}

const cpuFlags = existsSync("/proc/cpuinfo")
  ? new Set(/^(?:flags|Features)\s*:\s*(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1]?.split(" "))
  : new Set<string>();
const hasAll = (...flags: string[]) => flags.every((flag) => cpuFlags.has(flag));
const hasAvx512 = hasAll("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni");
const isX64 = process.arch === "x64";

const units = ["kernels_plain.c", "kernels_neon.c"]; // those of another architecture are left out
if (isX64) units.push("kernels_avx2.c", "kernels_avx512.c");
const paths = ["test/native/twin-test.c", ...units.map((unit) => `src/native/${unit}`)];
if (isX64) paths.push(hasAvx512 ? "test/native/avxvnni-as-evex_avx512.c" : "src/native/kernels_avxvnni.c");

const folder = mkdtempSync(join(tmpdir(), "duet-twins-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function build(name: string, args: string[]): Build | undefined {
  const program = join(folder, name);
  const command = ["node", "scripts/build-native.mjs", "--program", program, ...args, ...paths];
  const { exitCode, stdout, stderr } = Bun.spawnSync(command, { cwd: ROOT });
  if (stderr.includes("no C compiler was found")) return undefined;
  expect(stderr.toString()).toBe(""); // warnings too
  expect(exitCode).toBe(0);
  return { program, compiler: stdout.toString().trim() };
}

function compareTwins({ program }: Build, table: string): Report {
  const { exitCode, stdout, stderr } = Bun.spawnSync([program, table, SEED, ROUNDS]);
  expect(stderr.toString()).toBe("");
  expect(exitCode).toBe(0);
  return JSON.parse(stdout.toString()) as Report;
}

const clangs = ["clang", ...Array.from({ length: 26 }, (_, i) => `clang-${i + 15}`)];
const hasClang = clangs.some((name) => Bun.which(name) !== null);
const hasGcc = Bun.which("gcc") !== null || Bun.which("cc") !== null;
const hasCompiler = hasGcc || hasClang || Boolean(process.env["CC"]);
const hasBoth = hasGcc && hasClang;

const TABLES: { table: string; canRun: boolean; needs: string }[] = [
  { table: "avx2", canRun: isX64 && hasAll("avx2", "fma", "f16c"), needs: "AVX2, FMA and F16C" },
  { table: "avxvnni", canRun: isX64 && (hasAvx512 || hasAll("avx_vnni")), needs: "AVX-VNNI or AVX-512 VNNI" },
  { table: "neon", canRun: process.arch === "arm64" && hasAll("asimddp", "asimdhp"), needs: "Arm's dot products" },
  { table: "avx512", canRun: isX64 && hasAvx512, needs: "AVX-512 F, BW, VL, DQ and VNNI" },
];

describe.skipIf(!hasCompiler)(`kernels${hasCompiler ? "" : " (no C compiler)"}`, () => {
  let preferred: Build | undefined;
  let twin: Build | undefined;
  beforeAll(() => {
    preferred = build("preferred", []);
    twin = build("twin", ["--twin"]);
  }, 120_000);

  for (const { table, canRun, needs } of TABLES) {
    test.skipIf(!canRun)(
      `${table} equals the plain twin bit for bit${canRun ? "" : ` (this CPU lacks ${needs})`}`,
      () => {
        for (const one of [preferred, twin]) {
          if (!one) continue;
          const report = compareTwins(one, table);
          expect(report.table).toBe(table);
          expect(Object.keys(report.entries)).toEqual(ENTRIES);
          for (const [entry, { count, mismatches }] of Object.entries(report.entries)) {
            expect({ entry, isTested: count > 0, mismatches }).toEqual({ entry, isTested: true, mismatches: 0 });
          }
        }
        expect(preferred).toBeDefined();
      },
    );
  }

  test.skipIf(!hasBoth)(`gcc and clang give the same bits${hasBoth ? "" : " (one of them is absent)"}`, () => {
    if (!preferred || !twin) throw new Error("a compiler was found but could not be used");
    expect(twin.compiler).not.toBe(preferred.compiler);
    const { hash } = compareTwins(preferred, "plain");
    expect(hash).toMatch(/^[0-9a-f]{16}$/);
    expect(compareTwins(twin, "plain").hash).toBe(hash);
  });

  test("one wrong bit is noticed", () => {
    if (!preferred) throw new Error("a compiler was found but could not be used");
    const { stdout, stderr } = Bun.spawnSync([preferred.program, "wrong", SEED, "3"]);
    const { entries } = JSON.parse(stdout.toString()) as Report;
    const differing = Object.keys(entries).filter((entry) => entries[entry]?.mismatches !== 0);
    expect(differing).toEqual(["scaled_add_row"]);
    expect(entries["scaled_add_row"]).toEqual({ count: 3, mismatches: 3 });
    expect(stderr.toString()).toContain("scaled_add_row differs at byte");
  });

  test("a table that is not there is refused", () => {
    if (!preferred) throw new Error("a compiler was found but could not be used");
    const { exitCode, stderr } = Bun.spawnSync([preferred.program, "nonesuch", SEED, "1"]);
    expect(exitCode).toBe(2);
    expect(stderr.toString()).toContain("nonesuch");
  });
});
