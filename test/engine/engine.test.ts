// The engine over a fake model whose every logit depends on the whole context: what it emits must not depend on how it was
// scheduled, and everything it takes must be given back.

import { describe, expect, test } from "bun:test";
import * as fc from "fast-check";
import { DuetError, RequestError } from "../../src/base/errors.ts";
import {
  type Emitted,
  FakeEngine,
  type FakeEngineOptions,
  GREEDY,
  promptOf,
  request,
  SAMPLED,
} from "../support/fake-engine.ts";

/** Tokens of a request that runs alone, without speculation, cache or chunks. */
function alone(prompt: readonly number[], fields: Parameters<typeof request>[1] = {}): Emitted[] {
  const engine = new FakeEngine({ isPrefixCached: false, proposers: [], prefillChunkMax: 512, draftTokenMax: 0 });
  return engine.complete(request(prompt, { ...fields, speculation: "off" }));
}

function refusal(act: () => void): RequestError {
  try {
    act();
  } catch (error) {
    if (error instanceof RequestError) return error;
    throw error;
  }
  throw new Error("expected a RequestError");
}

describe("tokens do not depend on", () => {
  const variants: [string, FakeEngineOptions][] = [
    ["chunks of 1", { prefillChunkMax: 1 }],
    ["chunks of 7", { prefillChunkMax: 7 }],
    ["chunks of 256", { prefillChunkMax: 256 }],
    ["a tight time budget", { prefillChunkMax: 64, stepMsTarget: 0.1 }],
    ["the draft model", { proposers: ["draft"] }],
    ["a perfect draft model", { proposers: ["draft"], draftNoise: 0 }],
    ["n-gram lookup", { proposers: ["ngram"] }],
    ["no prefix cache", { isPrefixCached: false }],
  ];
  for (const params of [GREEDY, SAMPLED]) {
    test.each(variants)(`%s, temperature ${params.temperature}`, (_, options) => {
      const engine = new FakeEngine(options);
      for (const length of [1, 31, 32, 33, 100]) {
        const prompt = promptOf(length);
        for (const speculation of ["off", "draft", "ngram", "auto"] as const) {
          const [got] = engine.complete(request(prompt, { params, speculation, outputTokenMax: 40 }));
          const [expected] = alone(prompt, { params, outputTokenMax: 40 });
          expect(got?.tokens).toEqual(expected!.tokens);
          expect(got?.logprobs).toEqual(expected!.logprobs);
          expect(got?.tokens.length).toBe(40);
        }
      }
      engine.expectIdle();
    });
  }

  test("preemption", () => {
    // 24 sequences of up to 5 blocks each share 20 blocks.
    const engine = new FakeEngine({ kvBlockCount: 20, sequenceMax: 24, isPrefixCached: false });
    const requests = Array.from({ length: 24 }, (_, i) =>
      request(promptOf(20, i), { outputTokenMax: 300, params: SAMPLED }),
    );
    for (const each of requests) engine.engine.submit(each);
    engine.finish();
    expect(engine.engine.status().totals.preemptionCount).toBe(0);
    // Admission sets 256 output tokens aside; only beyond that can sequences be preempted.
    const longer = Array.from({ length: 2 }, (_, i) =>
      request(promptOf(20, i), { outputTokenMax: 440, params: SAMPLED }),
    );
    for (const each of longer) engine.engine.submit(each);
    engine.finish();
    expect(engine.engine.status().totals.preemptionCount).toBeGreaterThan(0);
    for (const [i, each] of longer.entries()) {
      expect(engine.of(each)[0]?.tokens).toEqual(
        alone(promptOf(20, i), { outputTokenMax: 440, params: SAMPLED })[0]!.tokens,
      );
    }
    engine.expectIdle();
  });

  test("random company", () => {
    const workload = fc.record({
      options: fc.record({
        sequenceMax: fc.integer({ min: 1, max: 6 }),
        prefillChunkMax: fc.constantFrom(1, 7, 64),
        draftTokenMax: fc.integer({ min: 0, max: 5 }),
        kvBlockCount: fc.integer({ min: 6, max: 24 }),
        isPrefixCached: fc.boolean(),
        draftNoise: fc.constantFrom(0, 1, 3),
      }),
      requests: fc.array(
        fc.record({
          length: fc.integer({ min: 1, max: 90 }),
          seed: fc.integer({ min: 0, max: 2 }),
          outputTokenMax: fc.integer({ min: 1, max: 60 }),
          isSampled: fc.boolean(),
          choiceCount: fc.integer({ min: 1, max: 3 }),
          speculation: fc.constantFrom("off" as const, "draft" as const, "ngram" as const, "auto" as const),
          priority: fc.integer({ min: 0, max: 1 }),
          stepsBefore: fc.integer({ min: 0, max: 5 }),
          cancelAfter: fc.option(fc.integer({ min: 0, max: 12 }), { freq: 4 }),
        }),
        { minLength: 1, maxLength: 8 },
      ),
    });
    fc.assert(
      fc.property(workload, ({ options, requests }) => {
        const fake = new FakeEngine({ ...options, contextMax: 160 });
        const cancels: { id: string; atTurn: number }[] = [];
        let turn = 0;
        const advance = () => {
          for (const cancel of cancels) if (cancel.atTurn === turn) fake.engine.cancel(cancel.id);
          fake.turn();
          turn++;
        };
        const submitted = requests.map((each) => {
          for (let i = 0; i < each.stepsBefore; i++) advance();
          const params = each.isSampled ? SAMPLED : GREEDY;
          const { outputTokenMax, choiceCount, speculation, priority } = each;
          const given = request(promptOf(each.length, each.seed), {
            params,
            outputTokenMax,
            choiceCount,
            speculation,
            priority,
          });
          fake.engine.submit(given);
          if (each.cancelAfter !== null) cancels.push({ id: given.requestId, atTurn: turn + each.cancelAfter });
          return { each, given, isCancelled: each.cancelAfter !== null };
        });
        while (fake.engine.hasWork) advance();
        fake.expectIdle();
        expect(fake.failures).toEqual([]);
        for (const { each, given, isCancelled } of submitted) {
          const { params, outputTokenMax, choiceCount } = given;
          const expected = alone(promptOf(each.length, each.seed), { params, outputTokenMax, choiceCount });
          const got = fake.of(given);
          expect(got.length).toBe(choiceCount);
          for (const [choice, emitted] of got.entries()) {
            const tokens = expected[choice]!.tokens;
            expect(emitted.tokens).toEqual(isCancelled ? tokens.slice(0, emitted.tokens.length) : tokens);
            expect(emitted.finishReason).not.toBeNull();
          }
        }
      }),
      { numRuns: 60 },
    );
  });
});

describe("choices", () => {
  test("differ by their index and share the prompt's full blocks", () => {
    const fake = new FakeEngine();
    const given = request(promptOf(100), { choiceCount: 4, params: SAMPLED, outputTokenMax: 20 });
    const choices = fake.complete(given);
    expect(new Set(choices.map((choice) => choice.tokens.join(" "))).size).toBe(4);
    expect(choices.map((choice) => choice.last.usage?.cachedTokenCount)).toEqual([0, 96, 96, 96]);
    fake.expectIdle();
  });

  test("salted prompts share with none of another salt", () => {
    const fake = new FakeEngine();
    const cached = (cacheSalt: string) =>
      fake.complete(request(promptOf(70), { cacheSalt }))[0]?.last.usage?.cachedTokenCount;
    expect([cached("a"), cached("b"), cached("a"), cached("b")]).toEqual([0, 0, 64, 64]);
  });
});

describe("finishing", () => {
  const prompt = promptOf(10);
  const [free] = alone(prompt, { outputTokenMax: 30 });
  const tokens = free!.tokens;

  test("at a stop token, which counts and has no text", () => {
    const stop = tokens[12]!;
    const first = tokens.indexOf(stop);
    const [got] = new FakeEngine().complete(request(prompt, { outputTokenMax: 30, stopTokenIds: [stop] }));
    expect(got?.tokens).toEqual(tokens.slice(0, first + 1));
    expect(got?.text).toBe(
      tokens
        .slice(0, first)
        .map((id) => `<${id}> `)
        .join(""),
    );
    expect(got?.finishReason).toBe("stop");
    expect(got?.last.stopString).toBeNull();
    expect(got?.last.usage?.outputTokenCount).toBe(first + 1);
  });

  test("at a stop string that straddles tokens, cut exactly", () => {
    const whole = tokens.map((id) => `<${id}> `).join("");
    const stop = `${tokens[6]}> <${tokens[7]}`;
    for (const speculation of ["off", "draft", "ngram"] as const) {
      const given = request(prompt, { outputTokenMax: 30, stopStrings: ["never", stop], speculation });
      const [got] = new FakeEngine().complete(given);
      expect(got?.text).toBe(whole.slice(0, whole.indexOf(stop)));
      expect(got?.finishReason).toBe("stop");
      expect(got?.last.stopString).toBe(stop);
    }
  });

  test("at the length, with held-back text let out", () => {
    const last = tokens[29]!;
    const given = request(prompt, { outputTokenMax: 30, stopStrings: [`<${last}> x`] });
    const [got] = new FakeEngine().complete(given);
    expect(got?.text).toBe(tokens.map((id) => `<${id}> `).join(""));
    expect(got?.finishReason).toBe("length");
  });

  test("forbidden end tokens don't come before min_tokens", () => {
    const stop = tokens[0]!;
    const params = { ...GREEDY, bannedIds: Int32Array.of(stop), bannedUntil: prompt.length + 5 };
    for (const speculation of ["off", "draft", "ngram"] as const) {
      const given = request(prompt, { outputTokenMax: 200, stopTokenIds: [stop], params, speculation });
      const [got] = new FakeEngine().complete(given);
      expect(got!.tokens.length).toBeGreaterThan(5);
      expect(got!.tokens.slice(0, 5)).not.toContain(stop);
    }
  });

  test("usage adds up", () => {
    const fake = new FakeEngine({ proposers: ["draft"], draftNoise: 0 });
    const [got] = fake.complete(request(promptOf(40), { outputTokenMax: 30, speculation: "draft" }));
    const usage = got!.last.usage!;
    const { totals } = fake.engine.status();
    expect(usage.outputTokenCount).toBe(30);
    // The fake draft model is the target itself.
    expect(usage.acceptedCount).toBe(usage.draftedCount);
    expect(usage.draftedCount).toBeGreaterThan(0);
    expect(totals.draftedCount).toBe(usage.draftedCount);
    expect(totals.proposers["draft"]).toEqual({ draftedCount: usage.draftedCount, acceptedCount: usage.acceptedCount });
    expect(totals.outputTokenCount).toBe(30);
    expect(totals.prefillTokenCount).toBe(40);
    expect(fake.reports.length).toBe(totals.stepCount);
    expect(fake.model.runCount).toBe(totals.stepCount);
  });
});

describe("cancelling", () => {
  test("releases blocks at once while waiting, in prefill and in decode", () => {
    const fake = new FakeEngine({ sequenceMax: 2, prefillChunkMax: 8, isPrefixCached: false });
    const [decoding, filling, waiting] = [1, 2, 3].map((seed) => request(promptOf(60, seed), { outputTokenMax: 100 }));
    fake.engine.submit(decoding!);
    for (let i = 0; i < 12; i++) fake.turn();
    fake.engine.submit(filling!);
    fake.engine.submit(waiting!);
    fake.turn();
    const before = fake.engine.status();
    expect(before.sequences.map((each) => each.state)).toEqual(["running", "running", "waiting"]);
    expect(before.sequences[1]!.kvFrontier).toBeLessThan(59);
    for (const [each, left] of [
      [waiting!, 2],
      [filling!, 1],
      [decoding!, 0],
    ] as const) {
      const used = fake.pool.usedCount;
      const held = fake.engine.status().sequences.find((s) => s.requestId === each.requestId)!.kvBlockCount;
      fake.engine.cancel(each.requestId);
      expect(fake.pool.usedCount).toBe(used - held);
      expect(fake.engine.status().sequences.length).toBe(left);
      expect(fake.of(each)[0]?.finishReason).toBe("cancelled");
    }
    fake.engine.cancel("unknown");
    fake.expectIdle();
  });

  test("ends the step under way and leaves the others' tokens alone", () => {
    let victim: string | null = null;
    const fake: FakeEngine = new FakeEngine({
      // Another thread would announce the cancellation in the middle of the step.
      onRun: () => {
        if (victim !== null && fake.model.runCount === 5) fake.words.announce();
      },
    });
    const [first, second] = [promptOf(40, 1), promptOf(40, 2)].map((prompt) => request(prompt, { outputTokenMax: 30 }));
    fake.engine.submit(first!);
    fake.engine.submit(second!);
    victim = first!.requestId;
    for (let i = 0; i < 5; i++) fake.turn();
    const emittedBefore = fake.of(second!)[0]!.tokens.length;
    // No step runs until the message has come.
    fake.turn();
    expect(fake.model.runCount).toBe(5);
    expect(fake.of(second!)[0]!.tokens.length).toBe(emittedBefore);
    fake.words.see();
    fake.engine.cancel(victim);
    fake.finish();
    expect(fake.of(first!)[0]?.finishReason).toBe("cancelled");
    expect(fake.of(second!)[0]?.tokens).toEqual(alone(promptOf(40, 2), { outputTokenMax: 30 })[0]!.tokens);
    fake.expectIdle();
  });

  test("however often it happens, the others go on", () => {
    const fake: FakeEngine = new FakeEngine({
      onRun: () => {
        fake.words.announce();
        fake.words.see();
      },
    });
    const [got] = fake.complete(request(promptOf(40), { outputTokenMax: 10 }));
    expect(got?.tokens).toEqual(alone(promptOf(40), { outputTokenMax: 10 })[0]!.tokens);
  });

  test("at the deadline", () => {
    const fake = new FakeEngine();
    const given = request(promptOf(10), { outputTokenMax: 400, deadlineMs: 50 });
    fake.engine.submit(given);
    fake.turn();
    fake.turn();
    expect(fake.engine.status().runningCount).toBe(1);
    fake.nowMs += 100;
    fake.turn();
    const [got] = fake.of(given);
    expect(got?.finishReason).toBe("cancelled");
    expect(got?.last.errorMessage).toBe("deadline exceeded");
    expect(got!.tokens.length).toBeGreaterThan(0);
    fake.expectIdle();
  });
});

describe("refusing", () => {
  test("what could never fit: 400", () => {
    const fake = new FakeEngine({ contextMax: 128, kvBlockCount: 3 });
    const tooLong = refusal(() => fake.engine.submit(request(promptOf(100), { outputTokenMax: 29 })));
    expect([tooLong.httpStatus, tooLong.code]).toEqual([400, "context_length_exceeded"]);
    expect(tooLong.message).toContain("128");
    const tooBig = refusal(() => fake.engine.submit(request(promptOf(60), { outputTokenMax: 60 })));
    expect([tooBig.httpStatus, tooBig.code]).toEqual([400, "context_length_exceeded"]);
    expect(refusal(() => fake.engine.submit(request([]))).httpStatus).toBe(400);
    expect(fake.engine.hasWork).toBe(false);
  });

  test("more than the queue holds: 429", () => {
    const fake = new FakeEngine({ sequenceMax: 1, queueMax: 2 });
    fake.engine.submit(request(promptOf(5), { choiceCount: 3 }));
    fake.turn();
    fake.engine.submit(request(promptOf(5)));
    fake.engine.submit(request(promptOf(5)));
    expect(refusal(() => fake.engine.submit(request(promptOf(5)))).httpStatus).toBe(429);
    fake.finish();
    fake.engine.submit(request(promptOf(5)));
    fake.finish();
    fake.expectIdle();
  });

  test("while draining: 503, and what runs is finished", () => {
    const fake = new FakeEngine();
    const given = request(promptOf(5));
    fake.engine.submit(given);
    fake.engine.startDraining();
    expect(refusal(() => fake.engine.submit(request(promptOf(5)))).httpStatus).toBe(503);
    fake.finish();
    expect(fake.of(given)[0]?.finishReason).toBe("length");
  });
});

test("a device fault ends every request with an error, and later ones are refused", () => {
  const fake: FakeEngine = new FakeEngine({
    sequenceMax: 1,
    onRun: () => {
      if (fake.model.runCount === 3) throw new DuetError("device_fault", "a mapped file shrank");
    },
  });
  const [running, waiting] = [request(promptOf(5)), request(promptOf(5))];
  fake.engine.submit(running!);
  fake.engine.submit(waiting!);
  fake.finish();
  for (const each of [running!, waiting!]) {
    expect(fake.of(each)[0]?.finishReason).toBe("error");
    expect(fake.of(each)[0]?.last.errorMessage).toContain("a mapped file shrank");
  }
  expect(fake.failures.length).toBe(1);
  expect(fake.engine.status().state).toBe("unhealthy");
  expect(refusal(() => fake.engine.submit(request(promptOf(5)))).httpStatus).toBe(503);
  fake.expectIdle();
});

test("higher priority goes first, then earlier arrival", () => {
  const fake = new FakeEngine({ sequenceMax: 1 });
  const order: string[] = [];
  const given = [0, 0, 1].map((priority) => request(promptOf(5), { priority, outputTokenMax: 2 }));
  for (const each of given) fake.engine.submit(each);
  while (fake.engine.hasWork) {
    fake.turn();
    const running = fake.engine.status().sequences.find((each) => each.state === "running");
    if (running !== undefined && order.at(-1) !== running.requestId) order.push(running.requestId);
  }
  expect(order).toEqual([given[2]!, given[0]!, given[1]!].map((each) => each.requestId));
});
