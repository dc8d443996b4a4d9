import { afterAll, beforeEach, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const SCRIPT = join(import.meta.dirname, "../../scripts/test-summary.mjs");
const folder = mkdtempSync(join(tmpdir(), "duet-summary-"));
const results = join(folder, "results");

beforeEach(() => {
  rmSync(results, { recursive: true, force: true });
  mkdirSync(results);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const write = (name: string, text: string) => writeFileSync(join(results, name), text);

function summarise() {
  const { exitCode, stdout } = Bun.spawnSync(["node", SCRIPT, results]);
  return { exitCode, lines: stdout.toString().trimEnd().split("\n") };
}

/** Runs Bun's own runner on a test file, as .ci/run does. */
function runTests(name: string, text: string): void {
  const file = join(folder, `${name.replace(" ", "-")}.test.ts`);
  writeFileSync(file, text);
  const report = [`--reporter=junit`, `--reporter-outfile=${join(results, `${name}.xml`)}`];
  const { exitCode, signalCode } = Bun.spawnSync([process.execPath, "test", ...report, file], { cwd: folder });
  write(`${name}.status`, String(exitCode ?? signalCode));
}

const HEAD = 'import { describe, expect, test } from "bun:test";\n';

test("sums what the runner reports, and names what was skipped and what failed", () => {
  runTests("test one", `${HEAD}test("a > \\"b\\"", () => {}); test.skip("c & d", () => {}); test.todo("e");\n`);
  runTests("test two", `${HEAD}describe("f", () => test("g", () => expect(1).toBe(2))); test("h", () => {});\n`);
  write("lint.status", "0\n");
  const { exitCode, lines } = summarise();
  expect(lines.map((line) => line.replace(/: .*\.test\.ts/, ": FILE"))).toEqual([
    "skipped: FILE > c & d",
    "skipped: FILE > e",
    "failed: FILE > f > g",
    "2 passed, 1 failed, 2 skipped",
  ]);
  expect(exitCode).toBe(1);
});

test("all passed is a status of 0 and one line", () => {
  runTests("test one", `${HEAD}test("a", () => {}); test("b", () => {});\n`);
  expect(summarise()).toEqual({ exitCode: 0, lines: ["2 passed, 0 failed"] });
});

test("a runner that dies, an error outside of tests, and a failed step are failures", () => {
  runTests("test one", `${HEAD}test("a", () => { process.kill(process.pid, "SIGKILL"); });\n`);
  runTests("test two", `${HEAD}test("b", () => {}); throw new Error("outside");\n`);
  write("types.status", "1\n");
  const { exitCode, lines } = summarise();
  expect(lines).toContain("failed: types (status 1)");
  expect(lines.filter((line) => line.startsWith("failed: test one (no report"))).toHaveLength(1);
  expect(lines.at(-1)).toMatch(/^\d passed, 3 failed$/);
  expect(exitCode).toBe(1);
});

test("nothing run is not a success", () => {
  expect(summarise()).toEqual({ exitCode: 1, lines: ["0 passed, 0 failed"] });
});
