// The lookup against a search from the end of the text.

import { expect, test } from "bun:test";
import * as fc from "fast-check";
import { BlockTable } from "../../src/memory/block-table.ts";
import { KvBlockPool } from "../../src/memory/kv-block-pool.ts";
import { NGRAM_LENGTHS, NgramProposer } from "../../src/speculative/ngram.ts";
import type { Drafts, DraftSequence } from "../../src/speculative/proposer.ts";
import { GREEDY } from "../support/fake-engine.ts";

type Growing = { -readonly [K in keyof DraftSequence]: DraftSequence[K] };

function sequenceOf(tokens: readonly number[], tokenCount = tokens.length, runIndex = 0): Growing {
  return {
    runIndex,
    tokens: Int32Array.from(tokens),
    tokenCount,
    promptCount: 1,
    tokenMax: 400,
    choiceIndex: 0,
    params: GREEDY,
    blockTable: new BlockTable(new KvBlockPool(1), 1),
    speculation: "ngram",
  };
}

/** What followed the latest earlier occurrence of the longest suffix of a looked-up length; repeats when it runs into the end. */
function naive(tokens: readonly number[], length: number): number[] {
  for (const n of NGRAM_LENGTHS) {
    const suffix = tokens.slice(-n);
    if (suffix.length < n) continue;
    for (let end = tokens.length - 2; end >= n - 1; end--) {
      if (suffix.every((token, i) => tokens[end - n + 1 + i] === token)) {
        const extended = [...tokens];
        for (let i = 0; i < length; i++) extended.push(extended[end + 1 + i]!);
        return extended.slice(tokens.length);
      }
    }
  }
  return [];
}

function draftsOf(stride: number, count = 1): Drafts {
  return { stride, tokens: new Int32Array(stride * count), counts: new Int32Array(count) };
}

test("proposes what followed the longest suffix last time, at every length of the text", () => {
  const texts = fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 1, maxLength: 1200 });
  fc.assert(
    fc.property(texts, fc.integer({ min: 1, max: 7 }), fc.integer({ min: 1, max: 200 }), (tokens, length, stride) => {
      const proposer = new NgramProposer(1);
      const sequence = sequenceOf(tokens, 1);
      proposer.start(sequence);
      for (let count = 1; count <= tokens.length; count += stride) {
        sequence.tokenCount = count;
        const expected = naive(tokens.slice(0, count), length);
        expect(proposer.available(sequence, length)).toBe(expected.length);
        const drafts = draftsOf(length);
        proposer.propose([sequence], 1, Int32Array.of(length), drafts);
        expect([...drafts.tokens.subarray(0, drafts.counts[0])]).toEqual(expected);
      }
    }),
    { numRuns: 60 },
  );
});

test("sequences don't see each other, and a new one starts empty", () => {
  const proposer = new NgramProposer(2);
  const first = sequenceOf([1, 2, 3, 1, 2]);
  const second = sequenceOf([5, 1, 2], 3, 1);
  proposer.start(first);
  proposer.start(second);
  expect(proposer.available(first, 4)).toBe(4);
  expect(proposer.available(second, 4)).toBe(0);
  const next = sequenceOf([9, 1, 2]);
  proposer.start(next);
  expect(proposer.available(next, 4)).toBe(0);
});
