import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { defined } from "../../src/base/assert.ts";
import { readContainer } from "../../src/weights/container.ts";
import { formatInspectReport, inspectContainer } from "../../src/weights/inspect.ts";
import { packCheckpoint } from "../../src/weights/packer.ts";
import { temporaryFolder } from "./temporary-folder.ts";
import { TINY_DENSE, writeTinyCheckpoint } from "./tiny-checkpoint.ts";

const root = temporaryFolder("inspect");
const path = join(root, "tiny.duet");
const { folder, shape } = writeTinyCheckpoint(join(root, "tiny"), { mtpLayerCount: 1, mtpFfnDim: 40 });
packCheckpoint({ folder, recipe: "q4", outPath: path });

describe("the report", () => {
  test("counts parameters once, and the active ones by the experts that a token takes", () => {
    const { parameters } = inspectContainer(readContainer(path));
    const attention = 2 * 48 * 12 * (4 + 2) + 12 * (4 + 2 * 2) + 48;
    const ffn = 3 * 48 * 40;
    const experts = 8 * 3 * 48 * 24;
    const layer = attention + ffn + experts + 8 * 48 + 8 + 2 * 48;
    expect(parameters.total).toBe(2 * layer + 300 * 48 + 48);
    expect(parameters.active).toBe(parameters.total - 2 * experts * (6 / 8));
    expect(parameters.mtp).toBe(attention + ffn + 2 * 48 * 48 + 5 * 48);
  });

  test("sums bytes over classes", () => {
    const report = inspectContainer(readContainer(path));
    expect(report.classes.map((one) => [one.class, one.quantType])).toEqual([
      ["norm", "f32"],
      ["attention", "q8"],
      ["router", "f32"],
      ["shared", "q8"],
      ["experts", "q4"],
      ["head", "q8"],
      ["mtp", "q8"],
    ]);
    expect(report.classes.reduce((sum, one) => sum + one.bytes, 0)).toBe(report.tensorBytes);
    expect(report.classes.reduce((sum, one) => sum + one.tensorCount, 0)).toBe(report.tensorCount);
    const { total, mtp } = report.parameters;
    expect(report.classes.reduce((sum, one) => sum + one.parameterCount, 0)).toBe(total + mtp);
    expect(report.bitsPerWeight).toBeCloseTo((8 * report.tensorBytes) / (total + mtp), 12);
    expect(report.shape).toEqual(shape);
    expect(JSON.parse(JSON.stringify(report))).toEqual(report);
  });

  test("says what was verified and what failed", () => {
    const states = (verify: boolean, from = path) =>
      new Set(inspectContainer(readContainer(from), { verify }).classes.map((one) => one.checksums));
    expect([...states(false)]).toEqual(["not checked"]);
    expect([...states(true)]).toEqual(["ok"]);
    const bytes = readFileSync(path);
    const { header } = readContainer(path);
    const victim = defined(header.tensors.find(({ name }) => name === "layers.0.ffn_exps.7"));
    bytes[victim.offset] = (bytes[victim.offset] ?? 0) ^ 128;
    const broken = join(root, "broken.duet");
    writeFileSync(broken, bytes);
    const report = inspectContainer(readContainer(broken), { verify: true });
    expect(report.checksums).toBe("failed");
    expect(report.classes.find((one) => one.class === "experts")?.failures).toEqual(["layers.0.ffn_exps.7"]);
    expect(report.classes.filter((one) => one.checksums === "failed").length).toBe(1);
    expect(formatInspectReport(report)).toContain("checksum differs: layers.0.ffn_exps.7");
  });
});

test("the text names model, file, classes and totals in aligned columns", () => {
  const report = inspectContainer(readContainer(path), { verify: true });
  const lines = formatInspectReport(report).split("\n");
  expect(lines[0]).toMatch(/^model +tiny /);
  expect(lines.find((line) => line.startsWith("feed-forward"))).toContain("8 experts 24 wide in 2 group(s), 2 active");
  const table = lines.slice(lines.indexOf("") + 1);
  expect(table.length).toBe(1 + report.classes.length + 1);
  expect(new Set(table.map((line) => line.length)).size).toBe(1);

  const dense = writeTinyCheckpoint(join(root, "dense"), TINY_DENSE);
  const densePath = join(root, "dense.duet");
  packCheckpoint({ folder: dense.folder, recipe: "f16", outPath: densePath });
  expect(formatInspectReport(inspectContainer(readContainer(densePath)))).toContain("dense, feed-forward 40");
});
