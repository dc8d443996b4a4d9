// The performance page: every number from the reports, charts that stay within their panels, and markers that keep the prose.
import { describe, expect, test } from "bun:test";
import { formatReport } from "../../scripts/measure-performance.ts";
import {
  BEGIN,
  decodePanels,
  END,
  kernelPanels,
  markdownTable,
  renderGenerated,
  replaceGenerated,
  sharePanels,
  verifyPanels,
  verifyRatios,
} from "../../scripts/performance-page.ts";
import { formatNumber, linearTicks, logTicks, renderChart } from "../../src/bench/svg-chart.ts";
import {
  ENGINE_FORMAT,
  type EngineLine,
  type EngineReport,
  ROOF_FORMAT,
  type RoofReport,
} from "../../src/bench/report.ts";

const head = {
  duet: "1.2.3",
  machine: {
    cpu: "A <fast> CPU",
    cpus: 2,
    architecture: "x64",
    system: "Linux 6",
    memoryBytes: 8 * 2 ** 30,
    cacheBytes: { l2: 2 ** 20, l3: 2 ** 25 },
    compiler: "clang 19.1",
    bun: "1.0.0",
    date: "2026-01-02T03:04:05.000Z",
    loadBefore: 0.1,
  },
  lanes: 2,
  isa: "avx512",
  isPinned: false,
  repeatCount: 3,
  notes: [],
};

const stepLine = (
  kind: "decode" | "verify" | "prefill",
  sequences: number,
  rowsEach: number,
  ms: number,
): EngineLine => ({
  id: `${kind}/${kind === "decode" ? sequences : rowsEach}@0`,
  kind,
  unit: "ms",
  values: [ms, ms, ms * 2],
  median: ms,
  step: {
    sequences,
    rowsEach,
    contextTokens: 0,
    tokensPerSecond: (sequences * rowsEach * 1000) / ms,
    weightBytes: 1e6 * rowsEach,
    kvBytes: 0,
    readGBps: rowsEach / ms,
    integerOps: 1,
    distinctExpertsPerLayer: 4,
    roof: { roofMs: ms / 2, binding: "DRAM", share: 0.5, peakShare: 0.25 },
  },
});
const startUp = (id: string, ms: number): EngineLine => ({
  id,
  kind: "start-up",
  unit: "ms",
  values: [ms],
  median: ms,
  step: null,
});

const report: EngineReport = {
  ...head,
  format: ENGINE_FORMAT,
  notes: ["left out: decode/64@8192"],
  model: { name: "small", recipe: "q4", fingerprint: "abc", fileBytes: 5e6 },
  device: "cpu",
  kvType: "f16",
  roof: [],
  lines: [
    startUp("start-up/bun", 10),
    startUp("start-up/warm", 150),
    stepLine("decode", 1, 1, 2),
    stepLine("decode", 16, 1, 8),
    stepLine("prefill", 1, 512, 100),
    stepLine("verify", 1, 1, 2),
    stepLine("verify", 1, 4, 3),
  ],
};
const roofLine = (id: string, unit: "GOPS" | "GB/s", value: number, readGBps: number | null) => ({
  id,
  what: id,
  lanes: 2,
  isa: "avx512",
  unit,
  values: [value],
  median: value,
  readGBps,
  peakShare: null,
});
const roof: RoofReport = {
  ...head,
  format: ROOF_FORMAT,
  lines: [
    roofLine("peak/int8/avx512/2", "GOPS", 1900, null),
    roofLine("read/l2/2", "GB/s", 200, null),
    roofLine("matmul/q4/l2/1", "GOPS", 500, 140),
    roofLine("matmul/q4/l2/64", "GOPS", 1500, 7),
  ],
};

describe("the generated part", () => {
  const text = renderGenerated(roof, [report], [{ file: "decode.svg", title: "Decode" }]);
  test("has machine, figures, notes and every line", () => {
    for (const part of [
      "A <fast> CPU",
      "clang 19.1",
      "![Decode](performance/decode.svg)",
      "left out: decode/64@8192",
    ]) {
      expect(text).toContain(part);
    }
    expect(text).toContain("| small, q4 | 5 | 500 | 50 % | 2000 | 50 % | 5120 | 25 % | 140 |");
    expect(text).toContain("| verify, 4 rows | DRAM | 0 | 3.00 | 3.00–4.50 | 1333 | 4.0 | 1.33 | 50 % | 25 % | 4.0 |");
    expect(text).not.toContain("undefined");
    expect(text).not.toContain("NaN");
  });
  test("says so when other work ran", () => {
    expect(text).not.toContain("other work");
    const busy = { ...roof, machine: { ...roof.machine, loadBefore: 3.2 } };
    expect(renderGenerated(busy, [report], [])).toContain("load average up to 3.2");
  });
  test("goes between the markers, and the prose stays", () => {
    const page = `prose\n${BEGIN}\nold\n${END}\nmore\n`;
    const once = replaceGenerated(page, text);
    expect(once.startsWith(`prose\n${BEGIN}`) && once.endsWith(`${END}\nmore\n`)).toBe(true);
    expect(once).not.toContain("\nold\n");
    expect(replaceGenerated(once, text)).toBe(once);
    expect(() => replaceGenerated("no markers", text)).toThrow("begin generated");
  });
});

test("verifying is compared with what it reads", () => {
  expect(verifyRatios(report)).toEqual([
    { rows: 1, time: 1, bytes: 1 },
    { rows: 4, time: 1.5, bytes: 4 },
  ]);
  expect(verifyRatios({ ...report, lines: [] })).toEqual([]);
});

test("a table aligns numbers to the right", () => {
  expect(markdownTable(["a", "b"], [["x", 1]], 1)).toBe("| a | b |\n| --- | --: |\n| x | 1 |");
});

test("a stored report has a line for each measured line, and is the same report", () => {
  const text = formatReport({ ...roof });
  expect(JSON.parse(text)).toEqual(JSON.parse(JSON.stringify(roof)));
  expect(text.split("\n").filter((line) => line.includes('"id"'))).toHaveLength(roof.lines.length);
});

describe("charts", () => {
  test("draw every point within the figure, and escape text", () => {
    const panels = [
      ...decodePanels([report]),
      ...sharePanels([report]),
      ...verifyPanels([report]),
      ...kernelPanels(roof),
    ];
    const svg = renderChart("Speed & <shares>", panels, 3);
    expect(svg).toContain("Speed &#38; &#60;shares&#62;");
    expect(svg).not.toContain("NaN");
    const [, width = "", height = ""] = /viewBox='0 0 (\d+) (\d+)'/.exec(svg) ?? [];
    const circles = [...svg.matchAll(/<circle cx='([\d.-]+)' cy='([\d.-]+)'/g)];
    expect(circles.length).toBe(2 + (2 + 2 + 1) + 2 + (2 + 2));
    for (const [, x, y] of circles) {
      expect(Number(x)).toBeWithin(0, Number(width) + 0.1);
      expect(Number(y)).toBeWithin(0, Number(height) + 0.1);
    }
  });
  test("leave out what has no points", () => {
    const svg = renderChart("Empty", decodePanels([{ ...report, lines: [] }]), 2);
    expect(svg).not.toContain("<circle");
  });
  test("have round ticks", () => {
    expect(logTicks(3, 120)).toEqual([5, 10, 20, 50, 100]);
    expect(logTicks(1, 1e6)).toEqual([1, 10, 100, 1000, 1e4, 1e5, 1e6]);
    expect(linearTicks(0, 1)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1]);
    expect([0.25, 3, 512, 12000, 2.5e6].map(formatNumber)).toEqual(["0.25", "3", "512", "12k", "2.5M"]);
  });
});
