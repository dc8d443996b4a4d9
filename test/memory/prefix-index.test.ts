// The index against a list of all prefixes that were ever added.

import { expect, test } from "bun:test";
import * as fc from "fast-check";
import { BlockTable } from "../../src/memory/block-table.ts";
import { KvBlockPool } from "../../src/memory/kv-block-pool.ts";
import { PrefixIndex, ROOT_ENTRY } from "../../src/memory/prefix-index.ts";

/** Tokens from one letter per block: equal letters are equal blocks. */
function tokensOf(text: string): Int32Array {
  return Int32Array.from(
    [...text].flatMap((letter) => Array.from({ length: 32 }, (_, i) => letter.charCodeAt(0) * (i + 1))),
  );
}

/** What an engine does with a prompt: match, take the rest, compute, index. Returns the table and the matched block count. */
function admit(
  pool: KvBlockPool,
  index: PrefixIndex,
  text: string,
  salt: string,
): { table: BlockTable; matched: number } {
  const tokens = tokensOf(text);
  const table = new BlockTable(pool, text.length);
  let entry = index.match(tokens, text.length, salt, table);
  const matched = table.blockCount;
  if (!table.grow(tokens.length)) {
    table.clear();
    return { table, matched: -1 };
  }
  for (let i = matched; i < text.length; i++) entry = index.add(entry, tokens, i * 32, salt, table.blocks[i]!);
  return { table, matched };
}

test("finds the longest known prefix under the same salt, and only that", () => {
  const pool = new KvBlockPool(16);
  const index = new PrefixIndex(pool);
  admit(pool, index, "abc", "").table.clear();
  expect(admit(pool, index, "abd", "").matched).toBe(2);
  expect(admit(pool, index, "bc", "").matched).toBe(0);
  expect(admit(pool, index, "abc", "other").matched).toBe(0);
  expect(admit(pool, index, "abc", "other").matched).toBe(3);
});

test("equal content in two blocks is one entry", () => {
  const pool = new KvBlockPool(4);
  const index = new PrefixIndex(pool);
  const tokens = tokensOf("a");
  const [first, second] = [pool.take(), pool.take()];
  const entry = index.add(ROOT_ENTRY, tokens, 0, "", first);
  expect(index.add(ROOT_ENTRY, tokens, 0, "", second)).toBe(entry);
  pool.release(second);
  expect(pool.cachedCount).toBe(0);
  pool.release(first);
  expect(pool.cachedCount).toBe(1);
});

test("the least recently used content goes first, the end of a prefix before its beginning", () => {
  const pool = new KvBlockPool(4);
  const index = new PrefixIndex(pool);
  admit(pool, index, "ab", "").table.clear();
  admit(pool, index, "cd", "").table.clear();
  admit(pool, index, "ab", "").table.clear();
  // One block is needed: the end of "cd".
  admit(pool, index, "x", "").table.clear();
  expect(admit(pool, index, "ab", "").matched).toBe(2);
  const pooled = new BlockTable(pool, 2);
  index.match(tokensOf("cd"), 2, "", pooled);
  expect(pooled.blockCount).toBe(1);
});

test("what is found is what was put there, under eviction and reuse", () => {
  const text = fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 4 });
  const actions = fc.array(
    fc.record({ text, salt: fc.constantFrom("", "s"), isKept: fc.boolean(), dropIndex: fc.nat(5) }),
    { maxLength: 60 },
  );
  fc.assert(
    fc.property(actions, (steps) => {
      const pool = new KvBlockPool(8);
      const index = new PrefixIndex(pool);
      /** What each block holds, as the device would: the whole prefix that its rows were computed from. */
      const contents = new Map<number, string>();
      const kept: BlockTable[] = [];
      for (const { text: prompt, salt, isKept, dropIndex } of steps) {
        kept.splice(dropIndex, 1)[0]?.clear();
        const { table, matched } = admit(pool, index, prompt, salt);
        for (let i = 0; i < matched; i++) {
          expect(contents.get(table.blocks[i]!)).toBe(`${salt}:${prompt.slice(0, i + 1)}`);
        }
        for (let i = Math.max(matched, 0); i < table.blockCount; i++) {
          contents.set(table.blocks[i]!, `${salt}:${prompt.slice(0, i + 1)}`);
        }
        if (isKept) kept.push(table);
        else table.clear();
        const held = new Set(kept.flatMap((each) => [...each.blocks.subarray(0, each.blockCount)]));
        expect(pool.usedCount).toBe(held.size);
      }
      for (const table of kept) table.clear();
      expect(pool.availableCount).toBe(8);
    }),
    { numRuns: 300 },
  );
});
