// The kernel library on arm64, under emulation: the same twins, the same bits as on this machine, and the shipped models from
// end to end. It says nothing about speed, nor about how a real Arm core orders memory. Skipped without a cross compiler
// and qemu-user (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user).
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { encodeProgram } from "../../src/device/cpu/encode.ts";
import { compileProgram } from "../../src/model/compile.ts";
import { ISA, STATUS } from "../../src/native/binding.ts";
import { readContainer } from "../../src/weights/container.ts";
import { readShipped, SHIPPED_TOKEN_COUNT } from "../golden/shipped.ts";
import { containerPath, MODEL_NAMES, type ModelName, ROOT } from "../support/fable.ts";

setDefaultTimeout(120_000);

const TARGET = "aarch64-linux-gnu";
const EMULATOR = ["qemu-aarch64", "qemu-aarch64-static"].find((name) => Bun.which(name) !== null);
const SYSROOT = `/usr/${TARGET}`;
const SEED = "1";
const ROUNDS = "40";
const CONTEXT = 96;
/** How many of the recorded prompts are run; emulation is slow. */
const RUN_COUNTS: Readonly<Record<ModelName, number>> = { fable: 2, "fable-draft": 6 };
const DEADLINE_MS = 100_000;
const TWIN_UNITS = ["test/native/twin-test.c", "src/native/kernels_plain.c", "src/native/kernels_neon.c"];
const LIBRARY_UNITS = readdirSync(join(ROOT, "src/native"))
  .filter((name) => name.endsWith(".c"))
  .map((name) => `src/native/${name}`);

const lacking = [
  ...(Bun.which(`${TARGET}-gcc`) === null ? [`${TARGET}-gcc`] : []),
  ...(existsSync(join(SYSROOT, "include/stdio.h")) ? [] : ["libc6-dev-arm64-cross"]),
  ...(EMULATOR === undefined ? ["qemu-user"] : []),
];
const suite = lacking.length === 0 ? describe : describe.skip;

const folder = mkdtempSync(join(tmpdir(), "duet-arm64-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Builds a program and returns its path, or null where there is no such compiler. */
function build(name: string, options: readonly string[], units: readonly string[]): string | null {
  const program = join(folder, name);
  const command = ["node", "scripts/build-native.mjs", "--program", program, ...options, ...units];
  const { exitCode, stderr } = Bun.spawnSync(command, { cwd: ROOT });
  if (stderr.includes("no C compiler")) return null;
  expect(stderr.toString()).toBe(""); // warnings too
  expect(exitCode).toBe(0);
  return program;
}

/** Runs a program and returns what it printed. */
function run(command: readonly string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], { timeout: DEADLINE_MS, killSignal: "SIGKILL" });
  expect(stderr.toString()).toBe("");
  expect(exitCode).toBe(0);
  return stdout.toString();
}

const emulateCpu = (cpu: string, ...command: string[]) => run([EMULATOR ?? "", "-cpu", cpu, "-L", SYSROOT, ...command]);
const emulate = (...command: string[]) => emulateCpu("max", ...command);

interface Report {
  readonly table: string;
  readonly hash: string;
  readonly entries: Readonly<Record<string, { readonly count: number; readonly mismatches: number }>>;
}
const compareTwins = (print: string) => JSON.parse(print) as Report;

suite(`arm64 under emulation${lacking.length === 0 ? "" : ` (skipped: needs ${lacking.join(", ")})`}`, () => {
  describe("kernels", () => {
    const reports: Report[] = [];
    beforeAll(() => {
      for (const [name, options] of [
        ["gcc", []],
        ["clang", ["--twin"]],
      ] as const) {
        const program = build(`twins-${name}`, ["--target", TARGET, ...options], TWIN_UNITS);
        if (program !== null) reports.push(compareTwins(emulate(program, "neon", SEED, ROUNDS)));
      }
    });

    test("NEON equals the plain twin bit for bit, whatever the compiler", () => {
      expect(reports.length).toBeGreaterThan(0);
      for (const { table, entries } of reports) {
        expect(table).toBe("neon");
        const got = Object.entries(entries).map(([entry, { count, mismatches }]) => [entry, count > 0, mismatches]);
        expect(got).toEqual(Object.keys(entries).map((entry) => [entry, true, 0]));
        expect(got.length).toBe(12);
      }
    });

    test("plain C gives the bits that it gives on this machine", () => {
      const host = build("twins-host", [], ["test/native/twin-test.c", "src/native/kernels_plain.c"]);
      const { hash } = compareTwins(run([host ?? "", "plain", SEED, ROUNDS]));
      expect(hash).toMatch(/^[0-9a-f]{16}$/);
      for (const report of reports) expect(report.hash).toBe(hash);
    });
  });

  describe("whole models", () => {
    let program = "";
    beforeAll(() => {
      program = build("step", ["--target", TARGET], ["test/native/step-test.c", ...LIBRARY_UNITS]) ?? "";
      for (const name of MODEL_NAMES) writeProgram(name);
    });

    test.each([
      ["fable-draft", "plain", 1],
      ["fable-draft", "best", 1],
      ["fable-draft", "best", 2],
      ["fable-draft", "best", 3],
      ["fable", "best", 2],
    ] as const)("%s has the recorded bits on %s kernels (lanes: %d)", (name, isa, laneCount) => {
      const logits = join(folder, "logits");
      const counts = [String(laneCount), String(SHIPPED_TOKEN_COUNT)];
      const ran = emulate(program, programPath(name), containerPath(name), logits, isa, ...counts);
      expect(Number(ran)).toBe(isa === "plain" ? ISA.plain : ISA.neon);
      expect(hashRuns(name, readFileSync(logits))).toEqual(recordedRuns(name).map((one) => one.logitsHash));
    });

    test("a CPU without dot products runs plain C", () => {
      const args = [programPath("fable-draft"), containerPath("fable-draft"), join(folder, "logits"), "best", "1", "1"];
      expect(Number(emulateCpu("cortex-a72", program, ...args))).toBe(ISA.plain);
      expect(Number(emulateCpu("neoverse-n1", program, ...args))).toBe(ISA.neon);
    });

    test("a container that shrinks under its mapping is an error, not a crash", () => {
      expect(Number(emulate(program, "truncate", join(folder, "shrinking")))).toBe(STATUS.mappingLost);
    });
  });
});

const recordedRuns = (name: ModelName) => readShipped()[name].runs.slice(0, RUN_COUNTS[name]);
const programPath = (name: ModelName) => join(folder, `${name}.program`);

/** Writes what step-test.c reads: sections, each with its byte count in front, and the container's size. */
function writeProgram(name: ModelName): void {
  const container = readContainer(containerPath(name));
  const options = { kvType: "f16", kvBlockCount: CONTEXT / 32, rowMax: CONTEXT, logitRowMax: CONTEXT } as const;
  const encoded = encodeProgram(compileProgram(container), container.header.tensors, options);
  const prompts = recordedRuns(name).flatMap(({ ids }) => [ids.length, ...ids]);
  const sections = [
    encoded.shape.memory,
    new Uint8Array(encoded.inverseFrequencies.buffer),
    encoded.tensors.memory,
    encoded.slots.memory,
    encoded.ops.memory,
    encoded.options.memory,
    new Uint8Array(Int32Array.from(prompts).buffer),
  ];
  const u64 = (value: number) => new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);
  const parts = sections.flatMap((bytes) => [u64(bytes.length), bytes]);
  writeFileSync(programPath(name), Buffer.concat([...parts, u64(container.fileBytes)]));
}

/** The chained hash of each run's logit rows, as test/golden/shipped.ts makes it. */
function hashRuns(name: ModelName, logits: Uint8Array): string[] {
  const rowBytes = 4 * readContainer(containerPath(name)).header.shape.vocabularySize;
  const rowCounts = recordedRuns(name).map(({ ids }) => ids.length + SHIPPED_TOKEN_COUNT - 1);
  expect(logits.length).toBe(rowBytes * rowCounts.reduce((sum, count) => sum + count, 0));
  let offset = 0;
  return rowCounts.map((count) => {
    let hash = 0n;
    for (let row = 0; row < count; row++, offset += rowBytes) {
      hash = Bun.hash.xxHash64(logits.slice(offset, offset + rowBytes), hash);
    }
    return hash.toString(16).padStart(16, "0");
  });
}
