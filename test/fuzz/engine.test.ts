// The engine under everything at once: preemption, steps aborted at random, cancellations, deadlines, stop strings and tokens,
// several choices, every kind of draft. Each answer must be what it is alone, and everything taken must be given back.

import { expect, test } from "bun:test";
import * as fc from "fast-check";
import { createUniform } from "../../src/base/prng.ts";
import type { EngineRequest } from "../../src/engine/messages.ts";
import { blocksFor } from "../../src/memory/block-table.ts";
import { type Emitted, FakeEngine, GREEDY, promptOf, request, SAMPLED } from "../support/fake-engine.ts";

const CONTEXT_MAX = 512;
/** Cancels nobody: the step is aborted all the same. */
const NOBODY = "nobody";

const workload = fc.record({
  seed: fc.nat(1e9),
  requestCount: fc.integer({ min: 1, max: 7 }),
  abortRate: fc.constantFrom(0, 0.1, 0.5),
  sequenceMax: fc.integer({ min: 1, max: 6 }),
  prefillChunkMax: fc.constantFrom(1, 5, 64),
  draftTokenMax: fc.integer({ min: 0, max: 8 }),
  kvBlockCount: fc.integer({ min: 18, max: 24 }),
  isPrefixCached: fc.boolean(),
  draftNoise: fc.constantFrom(0, 2),
  stepMsTarget: fc.constantFrom(0.5, 1e9),
});

type Workload = typeof workload extends fc.Arbitrary<infer T> ? T : never;

function alone(given: EngineRequest): Emitted[] {
  const fake = new FakeEngine({ isPrefixCached: false, proposers: [], prefillChunkMax: CONTEXT_MAX, draftTokenMax: 0 });
  return fake.complete({ ...given, speculation: "off", deadlineMs: null });
}

function randomRequest(uniform: () => number): EngineRequest {
  const below = (count: number) => Math.floor(uniform() * count);
  const prompt = promptOf(1 + below(40), below(3));
  const stopTokenIds = uniform() < 0.2 ? [below(40)] : [];
  const params = uniform() < 0.5 ? GREEDY : SAMPLED;
  const isBanned = uniform() < 0.5;
  return request(prompt, {
    // Beyond what admission sets aside, so that sequences are preempted.
    outputTokenMax: 1 + below(uniform() < 0.8 ? 470 : 20),
    choiceCount: 1 + below(3),
    params: isBanned ? { ...params, bannedIds: Int32Array.from(stopTokenIds), bannedUntil: prompt.length + 7 } : params,
    stopTokenIds,
    stopStrings: uniform() < 0.3 ? [`${below(40)}> <${below(40)}`, `<${below(40)}> <`] : [],
    priority: below(2),
    speculation: (["off", "draft", "ngram", "auto"] as const)[below(4)]!,
    deadlineMs: uniform() < 0.15 ? below(60) : null,
  });
}

test("every answer is what it is alone, and nothing is kept", () => {
  let preemptionCount = 0;
  const run = ({ seed, requestCount, abortRate, ...options }: Workload) => {
    const uniform = createUniform(seed);
    const submitted: EngineRequest[] = [];
    const onTheirWay: string[] = [];
    const fake: FakeEngine = new FakeEngine({
      ...options,
      contextMax: CONTEXT_MAX,
      onRun: () => {
        if (uniform() >= abortRate) return;
        fake.words.announce();
        const victim = submitted[Math.floor(uniform() * submitted.length)];
        onTheirWay.push(uniform() < 0.1 ? victim!.requestId : NOBODY);
      },
    });
    const turn = () => {
      for (const requestId of onTheirWay.splice(0)) {
        fake.words.see();
        fake.engine.cancel(requestId);
      }
      fake.turn();
    };
    for (let i = 0; i < requestCount; i++) {
      const given = randomRequest(uniform);
      if (blocksFor(given.promptTokens.length + given.outputTokenMax) > options.kvBlockCount) continue;
      submitted.push(given);
      fake.engine.submit(given);
      for (let turns = Math.floor(uniform() * 40); turns > 0; turns--) turn();
    }
    for (let turns = 0; fake.engine.hasWork; turns++) {
      if (turns === 30_000) throw new Error("the engine does not come to an end");
      turn();
    }
    expect(fake.failures).toEqual([]);
    fake.expectIdle();
    preemptionCount += fake.engine.status().totals.preemptionCount;
    for (const given of submitted) {
      const expected = alone(given);
      for (const [choice, { tokens, logprobs, text, finishReason, last }] of fake.of(given).entries()) {
        const whole = expected[choice]!;
        if (finishReason === "cancelled") {
          expect(tokens).toEqual(whole.tokens.slice(0, tokens.length));
        } else {
          expect([finishReason, tokens, text]).toEqual([whole.finishReason, whole.tokens, whole.text]);
          expect([logprobs, last.stopString]).toEqual([whole.logprobs, whole.last.stopString]);
        }
      }
    }
  };
  fc.assert(fc.property(workload, run), { numRuns: 60, seed: 7 });
  expect(preemptionCount).toBeGreaterThan(0);
}, 120_000);
