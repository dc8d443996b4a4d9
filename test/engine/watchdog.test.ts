import { expect, test } from "bun:test";
import { Watchdog } from "../../src/engine/watchdog.ts";

const always = () => true;

test("an idle engine may be silent for ever", () => {
  const watchdog = new Watchdog();
  expect(watchdog.verdict(1e9, always)).toBeNull();
});

test("an engine with work may be silent for five minutes, counted from the work's arrival or the last word", () => {
  const watchdog = new Watchdog();
  watchdog.add("a", null, 1_000_000);
  expect(watchdog.verdict(1_299_999, always)).toBeNull();
  expect(watchdog.verdict(1_300_000, always)).toContain("300 s");
  watchdog.hear(1_200_000);
  expect(watchdog.verdict(1_300_000, always)).toBeNull();
  expect(watchdog.verdict(1_500_000, always)).not.toBeNull();
});

test("a deadline with its grace ends the patience, unless the engine spoke after it", () => {
  const watchdog = new Watchdog();
  watchdog.add("a", 2_000, 10_000);
  watchdog.hear(11_000);
  expect(watchdog.verdict(16_999, always)).toBeNull();
  expect(watchdog.verdict(17_000, always)).toContain("6 s");
  watchdog.hear(12_500);
  expect(watchdog.verdict(20_000, always)).toBeNull();
});

test("requests that have finished are forgotten", () => {
  const watchdog = new Watchdog();
  watchdog.add("a", 10, 0);
  expect(watchdog.verdict(1e9, () => false)).toBeNull();
  expect(watchdog.verdict(1e9, always)).toBeNull();
});

test("a step that outlives a deadline is aborted, once for each request", () => {
  const watchdog = new Watchdog();
  watchdog.add("a", 1000, 0);
  watchdog.add("b", 2000, 0);
  watchdog.add("c", null, 0);
  expect(watchdog.isOverdue(999)).toBe(false);
  expect([1000, 1500, 2500, 3000].map((nowMs) => watchdog.isOverdue(nowMs))).toEqual([true, false, true, false]);
  // Whoever spoke after the deadline has seen it.
  watchdog.add("d", 1000, 3000);
  watchdog.hear(4000);
  expect(watchdog.isOverdue(5000)).toBe(false);
});
