import { expect, test } from "bun:test";
import { summarise } from "../../src/bench/load-summary.ts";
import type { LoadRecord } from "../../src/bench/open-loop.ts";
import { failureLines, formatSlo, latencyRows, servePanels, throughputRow } from "../../src/bench/serve-report.ts";
import { failedAnswer } from "../../src/bench/stream-answer.ts";
import { renderChart } from "../../src/bench/svg-chart.ts";

const SLO = { ttftMs: 100, tpotMs: null, endToEndMs: 2000 };
const common = { promptTokens: 4, outputTokens: 3, sentMs: 0 };
const whole: LoadRecord = {
  ...common,
  arrivalMs: 0,
  index: 0,
  answer: { ...failedAnswer(""), failure: null, chunkMs: [50, 60, 80], endMs: 80, promptTokens: 4, outputTokens: 3 },
};
const failed: LoadRecord = { ...common, arrivalMs: 10, sentMs: 10, index: 1, answer: failedAnswer("HTTP 429", "full") };
const window = { fromMs: 0, toMs: 1000 };
const lines = [summarise([whole, failed], 8, window, SLO), summarise([failed], 2, window, SLO)];

test("tables have a line for each rate and measure, and dashes where nothing was measured", () => {
  expect(lines.map(throughputRow)).toMatchObject([
    {
      rate: "8",
      arrived: "2",
      whole: "1",
      failed: "1",
      "requests/s": "1.00",
      "tokens/s": "3.00",
      "tokens/chunk": "1.00",
    },
    { rate: "2", whole: "0", failed: "1", "goodput/s": "0.00", "output tokens": "–" },
  ]);
  expect(latencyRows(lines[0]!)).toMatchObject([
    { ms: "TTFT", p50: "50.0", samples: "1" },
    { ms: "TPOT", p50: "15.0" },
    { ms: "ITL", p50: "15.0", max: "20.0", samples: "2" },
    { ms: "end to end", p99: "80.0" },
  ]);
  expect(latencyRows(lines[1]!).map(({ p50, samples }) => [p50, samples])).toEqual(
    Array.from({ length: 4 }, () => ["–", "0"]),
  );
  expect(failureLines(lines[0]!)).toEqual(['at 8 requests/s: 1 × HTTP 429 ("full")']);
  expect(formatSlo(SLO)).toBe("TTFT ≤ 100 ms, end to end ≤ 2000 ms");
});

test("the figure has the rates in order, and leaves out what was not measured", () => {
  const panels = servePanels(lines);
  expect(panels.map(({ title }) => title)).toEqual(["Answers", "Output tokens", "TTFT", "TPOT"]);
  expect(panels[0]!.series[2]!.points).toEqual([
    { x: 2, y: 2 },
    { x: 8, y: 8 },
  ]);
  expect(panels[2]!.series.map(({ points }) => points)).toEqual([[{ x: 8, y: 50 }], [{ x: 8, y: 50 }]]);
  for (const shown of [lines, lines.slice(1), []]) {
    const svg = renderChart("load", servePanels(shown), 2);
    expect(svg).toEndWith("</svg>\n");
    expect(svg).not.toMatch(/NaN|Infinity/);
  }
});
