// The draft model's KV frontier, over fake models: what it drafts is the target's own text, so every token must be accepted,
// and what it runs can be counted.

import { expect, test } from "bun:test";
import { KvBlockPool } from "../../src/memory/kv-block-pool.ts";
import { BlockTable } from "../../src/memory/block-table.ts";
import { DraftModelProposer } from "../../src/speculative/draft-model.ts";
import type { Drafts, DraftSequence } from "../../src/speculative/proposer.ts";
import { FakeEngine, GREEDY, promptOf, request } from "../support/fake-engine.ts";
import { FakeModel } from "../support/fake-model.ts";

type Growing = { -readonly [K in keyof DraftSequence]: DraftSequence[K] };

const TEXT = new FakeEngine({ proposers: [], draftTokenMax: 0 }).complete(
  request(promptOf(70), { outputTokenMax: 60 }),
)[0]!;
const TOKENS = Int32Array.from([...promptOf(70), ...TEXT.tokens]);

function setUp(rowMax: number): { proposer: DraftModelProposer; pool: KvBlockPool; model: FakeModel } {
  const pool = new KvBlockPool(16);
  const model = new FakeModel({ kvBlockCount: 16, rowMax, logitRowMax: 8 });
  const options = { sequenceMax: 4, draftTokenMax: 6, contextMax: 128, blocksPerSequenceMax: 4, abortWord: null };
  return { proposer: new DraftModelProposer({ model, pool, ...options }), pool, model };
}

function sequenceOf(pool: KvBlockPool, tokenCount: number, runIndex = 0): Growing {
  const blockTable = new BlockTable(pool, 4);
  blockTable.grow(TOKENS.length > 128 ? 128 : TOKENS.length);
  return {
    runIndex,
    tokens: TOKENS,
    tokenCount,
    promptCount: 70,
    tokenMax: 400,
    choiceIndex: 0,
    params: GREEDY,
    blockTable,
    speculation: "draft",
  };
}

function draft(proposer: DraftModelProposer, sequences: readonly DraftSequence[], ...lengths: number[]): number[][] {
  const drafts: Drafts = { stride: 6, tokens: new Int32Array(6 * 4), counts: new Int32Array(4) };
  expect(proposer.propose(sequences, sequences.length, Int32Array.from(lengths), drafts)).toBe("ok");
  return sequences.map((_, s) => [...drafts.tokens.subarray(s * 6, s * 6 + drafts.counts[s]!)]);
}

const after = (tokenCount: number, length: number) => [...TOKENS.subarray(tokenCount, tokenCount + length)];

test("drafts the text, and misses only what it has not run", () => {
  const { proposer, pool } = setUp(64);
  const sequence = sequenceOf(pool, 75);
  proposer.start(sequence);
  expect(draft(proposer, [sequence], 4)).toEqual([after(75, 4)]);
  expect(proposer.catchUpRows).toBe(74);
  // All four are accepted and one more follows: the last draft token has not been run.
  sequence.tokenCount = 80;
  proposer.observe(sequence);
  expect(draft(proposer, [sequence], 3)).toEqual([after(80, 3)]);
  expect(proposer.catchUpRows).toBe(1);
  // One of three is accepted: what was written beyond it is run again with the right token.
  sequence.tokenCount = 82;
  proposer.observe(sequence);
  expect(draft(proposer, [sequence], 2)).toEqual([after(82, 2)]);
  expect(proposer.catchUpRows).toBe(0);
  // Five steps without this proposer.
  for (let i = 0; i < 5; i++) {
    draft(proposer, [sequence], 0);
    sequence.tokenCount++;
    proposer.observe(sequence);
  }
  expect(draft(proposer, [sequence], 2)).toEqual([after(87, 2)]);
  expect(proposer.catchUpRows).toBe(4);
});

test("what was written for rejected tokens is not taken for known, however long the proposer pauses", () => {
  const { proposer, pool } = setUp(64);
  // The text goes on differently from what the model would say: drafts are rejected.
  const sequence = sequenceOf(pool, 30);
  proposer.start(sequence);
  const said = draft(proposer, [sequence], 6)[0]!;
  expect(said[0]).not.toBe(TOKENS[30]!);
  for (let i = 0; i < 4; i++) {
    sequence.tokenCount++;
    proposer.observe(sequence);
    draft(proposer, [sequence], 0);
  }
  const fresh = setUp(64);
  const same = sequenceOf(fresh.pool, 34);
  fresh.proposer.start(same);
  expect(draft(proposer, [sequence], 4)).toEqual(draft(fresh.proposer, [same], 4));
  expect(proposer.catchUpRows).toBe(3);
});

test("sequences draft together, each as far as asked, in batches of any size", () => {
  for (const rowMax of [4, 7, 64]) {
    const { proposer, pool, model } = setUp(rowMax);
    const sequences = [sequenceOf(pool, 71, 0), sequenceOf(pool, 90, 1), sequenceOf(pool, 100, 2)];
    for (const sequence of sequences) proposer.start(sequence);
    // Of what they have missed no more than a Batch is run in a step; who has missed more drafts in a later one.
    let drafts: number[][] = [];
    let steps = 0;
    let caughtUp = 0;
    do {
      const runsBefore = model.runCount;
      drafts = draft(proposer, sequences, 5, 0, 2);
      for (const [i, expected] of [after(71, 5), [], after(100, 2)].entries()) {
        if (drafts[i]!.length > 0) expect(drafts[i]).toEqual(expected);
      }
      const drafted = Math.max(...drafts.map((each) => each.length));
      expect(model.runCount - runsBefore).toBeLessThanOrEqual(1 + drafted);
      caughtUp += proposer.catchUpRows;
    } while (++steps < 100 && (drafts[0]!.length < 5 || drafts[2]!.length < 2));
    expect(caughtUp).toBeLessThanOrEqual(70 + 99);
    expect(steps).toBeLessThanOrEqual(Math.ceil((70 + 99) / rowMax) + 1);
  }
});

test("draft KV of a shared block is found by whoever shares it", () => {
  const { proposer, pool } = setUp(64);
  const first = sequenceOf(pool, 75);
  proposer.start(first);
  draft(proposer, [first], 1);
  const second = sequenceOf(pool, 75, 1);
  second.blockTable.clear();
  for (let i = 0; i < 2; i++) {
    pool.retain(first.blockTable.blocks[i]!);
    second.blockTable.append(first.blockTable.blocks[i]!);
  }
  second.blockTable.grow(96);
  proposer.start(second);
  expect(draft(proposer, [second], 3)).toEqual([after(75, 3)]);
  expect(proposer.catchUpRows).toBe(75 - 64 - 1);
});

test("has nothing to say beyond its own context", () => {
  const { proposer, pool } = setUp(64);
  const sequence = sequenceOf(pool, 126);
  expect(proposer.available(sequence, 6)).toBe(2);
});
