// The drafter in a simulated machine: a clock that proposals and steps turn, acceptance by chance. What it must show is that
// drafting pays where it can and costs next to nothing where it can't.

import { describe, expect, test } from "bun:test";
import { createUniform } from "../../src/base/prng.ts";
import { BlockTable } from "../../src/memory/block-table.ts";
import { KvBlockPool } from "../../src/memory/kv-block-pool.ts";
import { Drafter } from "../../src/speculative/drafter.ts";
import type { DraftSequence, Proposer, ProposerName } from "../../src/speculative/proposer.ts";
import { StepCost } from "../../src/speculative/step-cost.ts";
import { GREEDY } from "../support/fake-engine.ts";

interface Machine {
  readonly stepMs: (rows: number) => number;
  /** Milliseconds per drafted token, and the chance that one is accepted, by proposer. */
  readonly proposers: Partial<Record<ProposerName, { draftMs: number; rate: number }>>;
  readonly speculation: DraftSequence["speculation"];
  readonly sequenceCount?: number;
}

interface Outcome {
  readonly tokensPerMs: number;
  /** Share of steps that drafted anything, and drafted tokens per step. */
  readonly draftingShare: number;
  readonly lengthMean: number;
  readonly totals: ReturnType<Drafter["totals"]>;
}

const DRAFT_MAX = 5;

function simulate(machine: Machine, stepCount: number): Outcome {
  let nowMs = 0;
  const clock = { nowMs: () => nowMs, wallSeconds: () => 0 };
  const count = machine.sequenceCount ?? 1;
  const uniform = createUniform(7);
  const stepCost = new StepCost();
  const rates = new Map<number, number>();
  const proposers = Object.entries(machine.proposers).map(([name, { draftMs, rate }]): Proposer => ({
    name: name as ProposerName,
    catchUpRows: 0,
    available: (_, lengthMax) => lengthMax,
    missedRows: () => 0,
    kindCount: 1,
    kind: () => 0,
    propose(_, sequenceCount, lengths, drafts) {
      for (let s = 0; s < sequenceCount; s++) {
        if (lengths[s]! === 0) continue;
        drafts.counts[s] = lengths[s]!;
        rates.set(s, rate);
      }
      nowMs += draftMs * Math.max(...lengths.subarray(0, sequenceCount));
      return "ok";
    },
    observe() {},
    start() {},
  }));
  const drafter = new Drafter({ proposers, sequenceMax: count, draftTokenMax: DRAFT_MAX, stepCost, clock });
  const sequences = Array.from({ length: count }, (_, runIndex): DraftSequence => ({
    runIndex,
    tokens: new Int32Array(1),
    tokenCount: 1,
    promptCount: 1,
    tokenMax: 400,
    choiceIndex: 0,
    params: GREEDY,
    blockTable: new BlockTable(new KvBlockPool(1), 1),
    speculation: machine.speculation,
  }));
  for (const sequence of sequences) drafter.start(sequence);
  const limits = new Int32Array(count).fill(DRAFT_MAX);
  let tokens = 0;
  let draftingSteps = 0;
  let drafted = 0;
  for (let step = 0; step < stepCount; step++) {
    drafter.draft(sequences, count, limits, count, (_, length) => length);
    const counts = drafter.drafts.counts.subarray(0, count);
    const draftCount = counts.reduce((sum, each) => sum + each, 0);
    const ms = machine.stepMs(count + draftCount);
    nowMs += ms;
    stepCost.observe(count + draftCount, ms);
    drafted += draftCount;
    if (draftCount > 0) draftingSteps++;
    for (let s = 0; s < count; s++) {
      let accepted = 0;
      while (accepted < counts[s]! && uniform() < rates.get(s)!) accepted++;
      tokens += accepted + 1;
      drafter.observe(sequences[s]!, s, accepted);
    }
  }
  return {
    tokensPerMs: tokens / nowMs,
    draftingShare: draftingSteps / stepCount,
    lengthMean: drafted / stepCount,
    totals: drafter.totals(),
  };
}

const cheapRows = (rows: number) => 10 + rows * 0.1;
const dearRows = (rows: number) => rows * 10;

describe("auto", () => {
  test("drafts as long as it can where drafts are accepted and rows are cheap", () => {
    const machine = {
      stepMs: cheapRows,
      speculation: "auto" as const,
      proposers: { draft: { draftMs: 0.2, rate: 0.95 } },
    };
    const outcome = simulate(machine, 2000);
    expect(outcome.lengthMean).toBeGreaterThan(DRAFT_MAX - 0.5);
    expect(outcome.tokensPerMs).toBeGreaterThan(3.5 / cheapRows(1));
  });

  test("costs at most 2 % where drafts are never accepted", () => {
    for (const stepMs of [cheapRows, dearRows]) {
      const machine = { stepMs, speculation: "auto" as const, proposers: { draft: { draftMs: 5, rate: 0 } } };
      const outcome = simulate(machine, 5000);
      expect(outcome.tokensPerMs).toBeGreaterThan(0.98 / stepMs(1));
      expect(outcome.draftingShare).toBeLessThan(0.02);
    }
  });

  test("stays off where a row costs as much as a step, however good the drafts", () => {
    const machine = { stepMs: dearRows, speculation: "auto" as const, proposers: { ngram: { draftMs: 0, rate: 0.9 } } };
    const outcome = simulate(machine, 5000);
    expect(outcome.draftingShare).toBeLessThan(0.02);
  });

  test("takes the proposer that pays", () => {
    const proposers = { draft: { draftMs: 4, rate: 0.7 }, ngram: { draftMs: 0, rate: 0.7 } };
    const free = simulate({ stepMs: cheapRows, speculation: "auto", proposers }, 2000);
    expect(free.totals["ngram"]!.draftedCount).toBeGreaterThan(20 * free.totals["draft"]!.draftedCount);
    const wrong = { draft: { draftMs: 0.2, rate: 0.9 }, ngram: { draftMs: 0, rate: 0.1 } };
    const better = simulate({ stepMs: cheapRows, speculation: "auto", proposers: wrong }, 2000);
    expect(better.totals["draft"]!.draftedCount).toBeGreaterThan(20 * better.totals["ngram"]!.draftedCount);
  });

  test("shortens drafts as the batch grows and rows become dear", () => {
    // A step of few rows is bound by memory, one of many by arithmetic.
    const stepMs = (rows: number) => Math.max(10, rows * 1.2);
    const proposers = { draft: { draftMs: 0.1, rate: 0.6 } };
    const one = simulate({ stepMs, speculation: "auto", proposers, sequenceCount: 1 }, 3000);
    const many = simulate({ stepMs, speculation: "auto", proposers, sequenceCount: 8 }, 3000);
    expect(one.lengthMean).toBeGreaterThan(3);
    expect(many.lengthMean / 8).toBeLessThan(0.5);
  });
});

test("a fixed mode drafts at least one token, and only its own proposer's", () => {
  const proposers = { draft: { draftMs: 5, rate: 0 }, ngram: { draftMs: 0, rate: 0 } };
  const outcome = simulate({ stepMs: dearRows, speculation: "ngram", proposers }, 300);
  expect(outcome.draftingShare).toBe(1);
  expect(outcome.totals["draft"]!.draftedCount).toBe(0);
  expect(simulate({ stepMs: dearRows, speculation: "off", proposers }, 300).draftingShare).toBe(0);
});
