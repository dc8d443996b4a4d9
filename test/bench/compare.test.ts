import { expect, test } from "bun:test";
import { compareReports, compareRow } from "../../src/bench/compare.ts";
import { ENGINE_FORMAT, type MeasuredReport } from "../../src/bench/report.ts";

const report = (lines: Record<string, [MeasuredReport["lines"][number]["unit"], number[]]>): MeasuredReport => ({
  format: ENGINE_FORMAT,
  machine: { cpu: "one" },
  lines: Object.entries(lines).map(([id, [unit, values]]) => ({ id, unit, values })),
});

test("a time that falls and a rate that rises are both faster", () => {
  const low = [1, 1.1, 1.2, 1.3, 1.4];
  const high = low.map((value) => 2 * value);
  const before = report({ time: ["ms", high], rate: ["GB/s", low], same: ["ms", low], slower: ["ns", low] });
  const after = report({ time: ["ms", low], rate: ["GB/s", high], same: ["ms", low], slower: ["ns", high] });
  const { lines } = compareReports(before, after);
  expect(lines.map((line) => [line.id, line.speedup, line.verdict])).toEqual([
    ["time", 2, "faster"],
    ["rate", 2, "faster"],
    ["same", 1, "no difference shown"],
    ["slower", 0.5, "slower"],
  ]);
  expect(lines[0]?.p).toBeCloseTo(2 / 252, 5);
});

test("a difference that chance makes too often is none", () => {
  const { lines } = compareReports(report({ a: ["ms", [1, 2, 3]] }), report({ a: ["ms", [4, 5, 6]] }));
  expect(lines[0]).toMatchObject({ speedup: 0.4, p: 0.1, verdict: "no difference shown" });
  expect(compareRow(lines[0]!)).toMatchObject({ before: "2", after: "5", p: "0.100" });
});

test("lines without a partner are named", () => {
  const comparison = compareReports(
    report({ a: ["ms", [1]], b: ["ms", [1]], u: ["ms", [1]] }),
    report({ b: ["ms", [1]], c: ["ms", [1]], u: ["ns", [1]] }),
  );
  expect(comparison.lines.map((line) => line.id)).toEqual(["b"]);
  expect(comparison.onlyBefore).toEqual(["a"]);
  expect(comparison.onlyAfter).toEqual(["c"]);
});
