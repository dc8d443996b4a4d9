// `duet bench` as a person meets it: reports that are whole and sane. What they say of speed is never asserted.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { EngineReport, RoofReport } from "../../src/bench/report.ts";
import { SHIPPED_DRAFT } from "../../src/config.ts";
import { isNativeAvailable, openNative } from "../../src/native/library.ts";

const CLI = join(import.meta.dir, "../../src/cli.ts");
const folder = mkdtempSync(join(tmpdir(), "duet-bench-test-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function duet(...argv: string[]): Promise<{ status: number; out: string; err: string }> {
  const child = Bun.spawn([process.execPath, CLI, ...argv], { stdout: "pipe", stderr: "pipe" });
  const [out, err] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { status: await child.exited, out, err };
}

function expectMeasured(lines: readonly { readonly values: readonly number[]; readonly median: number }[]): void {
  for (const { values, median } of lines) {
    expect(values.length).toBeGreaterThanOrEqual(2);
    for (const value of values) expect(value).toBeGreaterThan(0);
    expect(median).toBeGreaterThanOrEqual(Math.min(...values));
    expect(median).toBeLessThanOrEqual(Math.max(...values));
  }
}

describe.skipIf(!isNativeAvailable())(`on the cpu device${isNativeAvailable() ? "" : " (kernels not built)"}`, () => {
  test("roof measures memory, arithmetic, barriers and every kernel", async () => {
    const { status, out, err } = await duet("bench", "roof", "--quick", "--repeat", "2", "--threads", "2", "--json");
    expect([status, err.includes("duet:")]).toEqual([0, false]);
    const report = JSON.parse(out) as RoofReport;
    expect(report.machine.cpu.length).toBeGreaterThan(0);
    expect([report.lanes, report.repeatCount]).toEqual([2, 2]);
    expectMeasured(report.lines);
    const ids = report.lines.map((line) => line.id);
    expect(new Set(ids).size).toBe(ids.length);
    expect(ids).toContain("read/dram/1");
    expect(ids).toContain("read/mapped/2");
    expect(ids).toContain("barrier");
    expect(ids).toContain("hand-off");
    expect(ids.filter((id) => id.startsWith("matmul/"))).toHaveLength(2 * 6 + 2);
    expect(ids.filter((id) => id.startsWith("attention/"))).toHaveLength(3 * 2 * 2);
    const peaks = ids.filter((id) => id.startsWith("peak/int8/") && id.endsWith("/2"));
    expect(peaks).toHaveLength(openNative().cpu.isas.filter((isa) => isa !== "plain").length);
    for (const line of report.lines) if (line.id.startsWith("matmul/q4/l2/")) expect(line.readGBps).toBeGreaterThan(0);
  }, 60_000);

  test("an instruction set without a peak is measured without one", async () => {
    const { status, out } = await duet(
      "bench",
      "roof",
      "--quick",
      "--repeat",
      "2",
      "--threads",
      "1",
      "--isa",
      "plain",
      "--json",
    );
    expect(status).toBe(0);
    const { lines } = JSON.parse(out) as RoofReport;
    const kernel = lines.find((line) => line.id === "matmul/q4/l2/1");
    expect(kernel).toMatchObject({ isa: "plain", peakShare: null });
  }, 60_000);

  test("engine reports what each step read, computed and could have reached; compare reads two reports", async () => {
    const argv = ["bench", "engine", "--quick", "--repeat", "2", "--threads", "2", "--json", SHIPPED_DRAFT];
    const { status, out } = await duet(...argv);
    expect(status).toBe(0);
    const report = JSON.parse(out) as EngineReport;
    expectMeasured(report.lines);
    expect(new Set(report.lines.map((line) => line.kind))).toEqual(
      new Set(["start-up", "prefill", "decode", "verify"]),
    );
    for (const { step, values } of report.lines) {
      if (step === null) continue;
      expect(step.weightBytes).toBeGreaterThan(0);
      expect(step.kvBytes).toBeGreaterThan(0);
      expect(step.integerOps).toBeGreaterThan(0);
      expect(step.tokensPerSecond).toBeGreaterThan(0);
      expect(step.roof?.share).toBeGreaterThan(0);
      expect(["DRAM", "L3", "int8", "f32"]).toContain(step.roof?.binding ?? "");
      expect(values.length).toBeLessThanOrEqual(30);
    }
    const [first, second] = [join(folder, "a.json"), join(folder, "b.json")];
    writeFileSync(first, out);
    writeFileSync(second, (await duet(...argv.slice(0, 3), "--only", "verify", ...argv.slice(3))).out);
    const compared = await duet("bench", "compare", first, second, "--json");
    expect(compared.status).toBe(0);
    const verifyCount = report.lines.filter((line) => line.kind === "verify").length;
    expect(JSON.parse(compared.out).lines).toHaveLength(verifyCount);
    expect((await duet("bench", "compare", first, second)).out).toContain("Mann-Whitney");
  }, 60_000);
});

test("bench on another device has no share of the roof, and still is whole", async () => {
  const argv = ["bench", "--device", "reference", "--quick", "--repeat", "2", "--only", "verify,start-up", "--json"];
  const { status, out } = await duet(...argv, SHIPPED_DRAFT);
  expect(status).toBe(0);
  const report = JSON.parse(out) as EngineReport;
  expect(report.notes.join()).toContain("start-up");
  expect(report.lines.map((line) => line.step?.roof)).toEqual(report.lines.map(() => null));
  expect(report.lines.length).toBeGreaterThan(0);
}, 60_000);

test("what cannot be compared, or is no kind of line, is one clear error", async () => {
  const foreign = join(folder, "foreign.json");
  writeFileSync(foreign, '{"format": "duet-bench-roof/1", "machine": {"cpu": "x"}, "lines": []}');
  for (const path of [foreign, CLI, join(folder, "absent.json"), folder]) {
    const { status, err } = await duet("bench", "compare", path, path);
    expect(status).toBe(1);
    expect(err).toMatch(/^duet: .*report/);
    expect(err.trim().split("\n")).toHaveLength(1);
  }
  const { status, err } = await duet("bench", "--only", "decode,dance");
  expect(status).not.toBe(0);
  expect(err).toContain("start-up, prefill, decode, verify");
});
