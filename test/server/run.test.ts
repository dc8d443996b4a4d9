import { describe, expect, test } from "bun:test";
import type { Clock } from "../../src/base/clock.ts";
import { RequestError } from "../../src/base/errors.ts";
import type { ChoiceOutput } from "../../src/engine/messages.ts";
import { parseFields } from "../../src/server/fields.ts";
import { PLAIN_SAMPLING, planCompletion } from "../../src/server/generation.ts";
import { Lifecycle } from "../../src/server/lifecycle.ts";
import { Run } from "../../src/server/run.ts";
import { completionSchema } from "../../src/server/schema.ts";
import { FakeEngine, FAKE_USAGE } from "./fake-engine.ts";
import { byteTokenizer, CONTEXT_MAX, END_ID, MODEL } from "./fixture.ts";

const tokenizer = byteTokenizer();
const model = {
  name: MODEL,
  tokenizer,
  chatTemplate: null,
  contextMax: CONTEXT_MAX,
  defaults: PLAIN_SAMPLING,
  endTokenIds: [END_ID],
};

/** Two prompts of two choices each on an engine that emits what the test says, at times that the test says. */
function open() {
  const engine = new FakeEngine(() => []);
  const lifecycle = new Lifecycle(engine);
  let nowMs = 1000;
  const clock: Clock = { nowMs: () => nowMs, wallSeconds: () => 0 };
  const measured: [string, ...number[]][] = [];
  const metrics = {
    promptTokens: (count: number) => void measured.push(["promptTokens", count]),
    outputTokens: (count: number) => void measured.push(["outputTokens", count]),
    firstToken: (ms: number) => void measured.push(["firstToken", ms]),
    betweenTokens: (ms: number, count: number) => void measured.push(["betweenTokens", ms, count]),
    answered: (ms: number) => void measured.push(["answered", ms]),
  };
  const outputs: [number, ChoiceOutput][] = [];
  const ends: (RequestError | null)[] = [];
  const generation = planCompletion(parseFields(completionSchema, { prompt: ["a", "bcd"], n: 2 }), model, "id", 1);
  const run = new Run(
    generation,
    { engine, lifecycle, metrics, clock },
    { output: (index, output) => outputs.push([index, output]), end: (failure) => ends.push(failure) },
  );
  const finish = { finishReason: "stop", usage: FAKE_USAGE } as const;
  const pass = (ms: number) => (nowMs += ms);
  return { engine, lifecycle, run, outputs, ends, measured, finish, pass };
}

test("hands on every choice under its index over all prompts, and ends after the last", async () => {
  const { engine, lifecycle, run, outputs, ends, finish } = open();
  await run.start();
  expect([engine.liveCount, lifecycle.activeCount]).toEqual([2, 1]);
  engine.emit("id-1", 0, { text: "x", tokenIds: [1] });
  engine.emit("id-0", 1, { text: "y", tokenIds: [1] });
  expect(outputs.map(([index, { text }]) => [index, text])).toEqual([
    [2, "x"],
    [1, "y"],
  ]);
  for (const [id, index] of [
    ["id-0", 0],
    ["id-0", 1],
    ["id-1", 1],
  ] as const)
    engine.emit(id, index, finish);
  expect([ends, run.hasEnded]).toEqual([[], false]);
  engine.emit("id-1", 0, finish);
  expect([ends, run.hasEnded, lifecycle.activeCount, engine.cancelled.length]).toEqual([[null], true, 0, 0]);
  expect(run.usage()).toMatchObject({
    prompt_tokens: 4,
    completion_tokens: 8,
    prompt_tokens_details: { cached_tokens: 2 },
  });
});

describe("ends once, and tells the engine", () => {
  test("when the caller goes away", async () => {
    const { engine, lifecycle, run, ends, outputs } = open();
    await run.start();
    run.abandon();
    run.abandon();
    run.fail("late");
    expect([ends, engine.cancelled, lifecycle.activeCount]).toEqual([[null], ["id-0", "id-1"], 0]);
    expect(outputs).toEqual([]);
  });

  test("when one choice fails", async () => {
    const { engine, run, ends } = open();
    await run.start();
    engine.emit("id-1", 1, { finishReason: "error", errorMessage: "NaN" });
    expect(ends.map((failure) => [failure?.httpStatus, failure?.code])).toEqual([[500, "generation_failed"]]);
    expect([engine.cancelled, engine.liveCount]).toEqual([["id-0", "id-1"], 0]);
  });

  test("when the engine fails", async () => {
    const { engine, run, ends } = open();
    await run.start();
    engine.fail("gone");
    expect(ends.map((failure) => [failure?.httpStatus, failure?.message])).toEqual([[503, "gone"]]);
  });

  test("when a request is refused, or the engine is not ready: start rejects and nothing stays", async () => {
    const { engine, lifecycle, run, ends } = open();
    engine.refusal = new RequestError(429, "full");
    expect(run.start()).rejects.toThrow("full");
    await Bun.sleep(0);
    expect([lifecycle.activeCount, engine.liveCount, run.hasEnded, ends]).toEqual([0, 0, true, []]);
    const other = open();
    other.engine.state = "draining";
    expect(other.run.start()).rejects.toThrow("draining");
    expect([other.lifecycle.activeCount, other.engine.submitted]).toEqual([0, []]);
  });
});

test("measures the answer's first token, each choice's tokens after that, and the whole", async () => {
  const { engine, run, measured, finish, pass } = open();
  await run.start();
  pass(20);
  engine.emit("id-0", 0, { text: "x", tokenIds: [1] });
  pass(5);
  engine.emit("id-0", 1, { text: "y", tokenIds: [1] });
  pass(10);
  engine.emit("id-0", 0, { text: "zz", tokenIds: [1, 2] });
  engine.emit("id-0", 1, finish);
  pass(7);
  run.abandon();
  expect(measured).toEqual([
    ["promptTokens", 1],
    ["promptTokens", 3],
    ["firstToken", 20],
    ["outputTokens", 1],
    ["outputTokens", 1],
    ["betweenTokens", 7.5, 2],
    ["outputTokens", 2],
    ["answered", 42],
  ]);
});
