// Lanes under stress, with as many lanes as CPUs and with more, alone and beside busy processes. lanes-stress.c counts; this file
// builds and runs it, each run in a process with a deadline, so that a lost wake-up is a failure and not a hang.
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

  function stress(laneCount: number, steps: number, pauseUs: number): void {
    const args = ["steps", ...[laneCount, steps, pauseUs].map(String)];
    const run = Bun.spawnSync([program, ...args], { timeout: DEADLINE_MS, killSignal: "SIGKILL" });
    expect(run.exitCode).toBe(0);
    expect(JSON.parse(run.stdout.toString())).toEqual({ mistakes: 0 });
  }

  test.each([1, 2, 3, 4, 8])("%d lanes do every item once, in its phase", (laneCount) => {
    stress(laneCount, 2000, 0);
  });

  test.each([2, 3, 4])("%d lanes wake up from sleep, every time", (laneCount) => {
    stress(laneCount, 400, 200);
  });

  test.each([2, 4])("%d lanes that lose their CPUs to other processes", (laneCount) => {
    const busy = Array.from({ length: 2 }, () => Bun.spawn(["sh", "-c", "while :; do :; done"]));
    try {
      stress(laneCount, 500, 0);
    } finally {
      for (const process of busy) process.kill("SIGKILL");
    }
  });

  test("a device of many lanes starts and stops", () => {
    for (let round = 0; round < 10; round++) stress(16, 1, 0);
  });

  test("lanes without work use no CPU", () => {
    const run = Bun.spawnSync([program, "idle", "4", "400"], { timeout: DEADLINE_MS, killSignal: "SIGKILL" });
    expect(run.exitCode).toBe(0);
    expect(JSON.parse(run.stdout.toString()).cpuMs).toBeLessThan(2);
  });
});
