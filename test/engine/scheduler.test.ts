// Admission, the rows of a step and preemption, seen through the plans that the scheduler makes. Nothing runs here: the test
// commits what a step would.

import { expect, test } from "bun:test";
import { ChoiceText } from "../../src/engine/choice-text.ts";
import { Scheduler, type SchedulerOptions } from "../../src/engine/scheduler.ts";
import { type RequestState, Sequence } from "../../src/engine/sequence.ts";
import { StepPlan } from "../../src/engine/step-plan.ts";
import { KvBlockPool } from "../../src/memory/kv-block-pool.ts";
import { PrefixIndex } from "../../src/memory/prefix-index.ts";
import { StepCost } from "../../src/speculative/step-cost.ts";
import { promptOf, request } from "../support/fake-engine.ts";

class Fixture {
  readonly pool: KvBlockPool;
  readonly stepCost = new StepCost();
  readonly scheduler: Scheduler;
  readonly plan = new StepPlan(8);
  readonly started: Sequence[] = [];
  #arrivals = 0;

  constructor(kvBlockCount: number, options: Partial<SchedulerOptions> = {}) {
    this.pool = new KvBlockPool(kvBlockCount);
    this.scheduler = new Scheduler(
      {
        pool: this.pool,
        prefixIndex: new PrefixIndex(this.pool),
        stepCost: this.stepCost,
        sequenceMax: 8,
        queueMax: 100,
        contextMax: 4096,
        prefillChunkMax: 256,
        stepMsTarget: 1e9,
        ...options,
      },
      (sequence) => this.started.push(sequence),
    );
  }

  add(promptCount: number, outputTokenMax: number, seed = this.#arrivals, priority = 0): Sequence {
    const owner: RequestState = {
      request: request(promptOf(promptCount, seed), { outputTokenMax, priority }),
      arrivalIndex: this.#arrivals++,
      arrivalMs: 0,
      deadlineMs: Number.POSITIVE_INFINITY,
      sequences: [],
      isPromptReady: false,
      isStarted: false,
    };
    const sequence = new Sequence(owner, 0, new ChoiceText({ push: () => "", flush: () => "" }, null), 0, this.pool);
    owner.sequences.push(sequence);
    this.scheduler.enqueue(sequence);
    return sequence;
  }

  /** Plans a step and commits it, with token 1 for every sampled sequence. Returns the planned rows by sequence. */
  step(): Map<Sequence, number> {
    this.scheduler.schedule(this.plan, 0);
    const rows = new Map<Sequence, number>();
    for (const [i, sequence] of this.plan.sequences.entries()) {
      rows.set(sequence, this.plan.rowCounts[i]!);
      const isSampled = this.plan.isSampled(i);
      sequence.kvFrontier += this.plan.rowCounts[i]!;
      if (isSampled) sequence.append(1);
      this.scheduler.indexBlocks(sequence);
    }
    return rows;
  }
}

test("admission sets aside the prompt and at most 256 output tokens", () => {
  // 8 blocks of prompt and 8 of output each: two fit 40 blocks.
  const fixture = new Fixture(40);
  const sequences = [0, 1, 2].map(() => fixture.add(256, 2000));
  fixture.step();
  expect(sequences.map((sequence) => sequence.state)).toEqual(["running", "running", "waiting"]);
  // What is set aside is not taken yet.
  expect(fixture.pool.usedCount).toBe(16);
  fixture.scheduler.finish(sequences[0]!);
  fixture.step();
  expect(sequences[2]!.state).toBe("running");
});

test("cached blocks count as free, and a cached prefix is not set aside twice", () => {
  const fixture = new Fixture(20);
  const first = fixture.add(320, 20, 5);
  fixture.step();
  fixture.step();
  fixture.scheduler.finish(first);
  expect(fixture.pool.cachedCount).toBe(10);
  expect(fixture.pool.availableCount).toBe(20);
  const [again, other] = [fixture.add(320, 20, 5), fixture.add(250, 20, 6)];
  const rows = fixture.step();
  // 9 of the prompt's 10 blocks are shared: its last token always runs. The other prompt evicts nothing that is in use.
  expect(rows.get(again)).toBe(32);
  expect(rows.get(other)).toBe(224);
  expect([again.state, other.state]).toEqual(["running", "running"]);
});

test("decoding sequences all run, prefill takes what time is left, and at least 8 rows", () => {
  const fixture = new Fixture(100, { stepMsTarget: 10 });
  for (const rows of [1, 10, 100, 300]) fixture.stepCost.observe(rows, rows);
  const decoding = [fixture.add(1, 50), fixture.add(1, 50)];
  fixture.step();
  const filling = fixture.add(100, 50);
  let rows = fixture.step();
  expect(decoding.map((sequence) => rows.get(sequence))).toEqual([1, 1]);
  expect(rows.get(filling)).toBe(8);
  for (let i = 0; i < 5; i++) fixture.add(1, 50);
  fixture.step();
  rows = fixture.step();
  expect(rows.size).toBe(8);
  expect(rows.get(filling)).toBe(8);
});

test("one prompt after another fills the rows of a step", () => {
  const fixture = new Fixture(100, { prefillChunkMax: 64 });
  const [first, second] = [fixture.add(40, 5), fixture.add(100, 5)];
  expect([...fixture.step().values()]).toEqual([40, 24]);
  const rows = fixture.step();
  expect([rows.get(first), rows.get(second)]).toEqual([1, 64]);
});

test("the youngest of lowest priority is preempted, and comes back before later arrivals", () => {
  const fixture = new Fixture(24, { prefixIndex: null, sequenceMax: 2 });
  const high = fixture.add(10, 700, 1, 1);
  const low = fixture.add(10, 700, 2, 0);
  fixture.step();
  expect([high.state, low.state]).toEqual(["running", "running"]);
  const later = fixture.add(10, 100);
  while (low.state === "running") fixture.step();
  expect(low.state).toBe("preempted");
  expect([low.kvFrontier, low.blockTable.blockCount]).toEqual([0, 0]);
  expect(high.state).toBe("running");
  expect(fixture.scheduler.waiting).toEqual([low, later]);
  const known = low.tokenCount;
  fixture.scheduler.finish(high);
  const rows = fixture.step();
  expect(rows.get(low)).toBe(Math.min(256, known));
  expect(fixture.started.filter((sequence) => sequence === low).length).toBe(2);
});

test("a draft takes no block that another sequence was promised", () => {
  // 10 + 256 tokens are 9 blocks each; of 18 nothing is left over.
  const fixture = new Fixture(18, { prefixIndex: null });
  const long = fixture.add(10, 500);
  const other = fixture.add(10, 300);
  while (long.tokenCount < 9 * 32 - 2) fixture.step();
  expect(fixture.scheduler.reserveDraft(long, 2)).toBe(2);
  // The other has not taken all of its own yet.
  fixture.scheduler.finish(other);
  const late = fixture.add(10, 278);
  fixture.step();
  expect([late.state, late.blockTable.blockCount, fixture.pool.availableCount]).toEqual(["running", 1, 8]);
  expect(fixture.scheduler.reserveDraft(long, 8)).toBe(9 * 32 - long.tokenCount);
  expect(fixture.scheduler.reserveDraft(late, 60)).toBe(60);
  expect(fixture.scheduler.preemptionCount).toBe(0);
});

test("free places don't lengthen the queue while the first in it finds no blocks", () => {
  const fixture = new Fixture(18, { queueMax: 2 });
  const running = fixture.add(256, 300);
  fixture.step();
  for (let i = 0; i < 2; i++) {
    fixture.scheduler.checkAdmissible(256, 300);
    fixture.add(256, 300);
  }
  fixture.step();
  expect(() => fixture.scheduler.checkAdmissible(256, 300)).toThrow("2 requests are waiting already");
  fixture.scheduler.finish(running);
  fixture.scheduler.checkAdmissible(256, 300);
});
