import { expect, test } from "bun:test";
import { alignUp, ceilDiv, formatBytes, formatCount, formatMs } from "../../src/base/units.ts";

test("alignment and division round up", () => {
  expect([alignUp(0, 64), alignUp(1, 64), alignUp(64, 64), alignUp(65, 64)]).toEqual([0, 64, 64, 128]);
  expect([ceilDiv(0, 32), ceilDiv(1, 32), ceilDiv(32, 32), ceilDiv(33, 32)]).toEqual([0, 1, 1, 2]);
});

test("numbers as people read them", () => {
  expect([1023, 1024, 20_795_392, 5 * 2 ** 30].map(formatBytes)).toEqual(["1023 B", "1.0 KiB", "19.8 MiB", "5.00 GiB"]);
  expect([999, 12_500, 29_502_208, 71.99e9].map(formatCount)).toEqual(["999", "12.5K", "29.5M", "71.99B"]);
  expect([0.85, 12.34, 4200].map(formatMs)).toEqual(["850 us", "12.3 ms", "4.2 s"]);
});
