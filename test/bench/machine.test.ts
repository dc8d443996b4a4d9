import { expect, test } from "bun:test";
import { describeMachine, parseCacheBytes } from "../../src/bench/machine.ts";

test("cache sizes as Linux writes them", () => {
  expect(["32K\n", "1024K", "32M", "", "1G", "x"].map(parseCacheBytes)).toEqual([
    32768,
    1 << 20,
    32 << 20,
    null,
    null,
    null,
  ]);
});

test("a machine is described without the kernel library too", () => {
  const machine = describeMachine(null, new Date("2026-01-02T03:04:05Z"));
  expect(machine).toMatchObject({ compiler: "none", date: "2026-01-02T03:04:05.000Z" });
  expect(machine.cacheBytes.l3).toBeGreaterThan(machine.cacheBytes.l2);
  expect(machine.cpus).toBeGreaterThan(0);
});
