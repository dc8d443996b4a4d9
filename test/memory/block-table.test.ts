import { expect, test } from "bun:test";
import { AssertionError } from "../../src/base/assert.ts";
import { BlockTable, blocksFor } from "../../src/memory/block-table.ts";
import { KvBlockPool } from "../../src/memory/kv-block-pool.ts";

test("a kvBlock holds 32 tokens", () => {
  expect([0, 1, 32, 33, 64].map(blocksFor)).toEqual([0, 1, 1, 2, 2]);
});

test("grows as far as the pool reaches, and gives everything back", () => {
  const pool = new KvBlockPool(3);
  const first = new BlockTable(pool, 8);
  const second = new BlockTable(pool, 8);
  expect(first.grow(33)).toBe(true);
  expect(first.grow(20)).toBe(true);
  expect(first.blockCount).toBe(2);
  expect(second.grow(64)).toBe(false);
  expect(second.blockCount).toBe(1);
  const distinct = new Set([...first.blocks.subarray(0, 2), ...second.blocks.subarray(0, 1)]);
  expect(distinct.size).toBe(3);
  first.clear();
  expect(pool.usedCount).toBe(1);
  second.clear();
  expect(pool.usedCount).toBe(0);
});

test("never outgrows the context", () => {
  const table = new BlockTable(new KvBlockPool(9), 2);
  expect(() => table.grow(65)).toThrow(AssertionError);
});
