// Lanes and barriers under stress, with as many lanes as CPUs and with more. lanes-stress.c counts; this file builds and runs
// it, each run in a process with a deadline, so that a lost wake-up is a failure and not a hang.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "../..");
const UNITS = [
  "test/native/lanes-stress.c",
  ...["lanes", "library", "kernels_plain"].map((unit) => `src/native/${unit}.c`),
];
const DEADLINE_MS = 30_000;

const hasCompiler = ["cc", "gcc", "clang", "clang-19"].some((name) => Bun.which(name) !== null);
const folder = mkdtempSync(join(tmpdir(), "duet-lanes-"));
const program = join(folder, "lanes-stress");

describe.skipIf(!hasCompiler)(`lanes${hasCompiler ? "" : " (no C compiler)"}`, () => {
  beforeAll(() => {
    const command = ["node", "scripts/build-native.mjs", "--program", program, ...UNITS];
    const { exitCode, stderr } = Bun.spawnSync(command, { cwd: ROOT });
    expect(stderr.toString()).toBe("");
    expect(exitCode).toBe(0);
  }, 60_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  function stress(laneCount: number, steps: number, barriers: number, pauseUs: number): void {
    const args = [laneCount, steps, barriers, pauseUs].map(String);
    const run = Bun.spawnSync([program, ...args], { timeout: DEADLINE_MS, killSignal: "SIGKILL" });
    expect(run.exitCode).toBe(0);
    expect(JSON.parse(run.stdout.toString())).toEqual({
      works: laneCount * steps,
      arrivals: steps * barriers,
      mistakes: 0,
    });
  }

  test.each([1, 2, 3, 4])("%d lanes meet at every barrier, step after step", (laneCount) => {
    stress(laneCount, 300, 24, 0);
  });

  test.each([2, 3, 4])("%d lanes wake up from sleep, every time", (laneCount) => {
    stress(laneCount, 400, 1, 200);
  });

  test("a device of many lanes starts and stops", () => {
    for (let round = 0; round < 10; round++) stress(16, 1, 1, 0);
  });
});
