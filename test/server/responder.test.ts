// What routes.test.ts can't reach: callers who are gone before the engine has the request, and when chunks leave.

import { describe, expect, test } from "bun:test";
import { FakeEngine, FAKE_USAGE, tokensOf } from "./fake-engine.ts";
import { createFixture, HEADERS, parseEvents } from "./fixture.ts";

const LIMITS = { heartbeatMs: 60_000 };
const step = (text: string) => ({ text, tokenIds: tokensOf(text) });

describe("a caller who has left before the request was queued", () => {
  test.each([false, true])("is cancelled; stream: %p", async (stream) => {
    const engine = new FakeEngine(() => [step("a")]);
    const { app } = createFixture({ engine });
    const controller = new AbortController();
    const submit = engine.submit.bind(engine);
    engine.submit = (request, listener) => {
      controller.abort();
      return submit(request, listener);
    };
    const response = await app.request("http://localhost:8080/v1/completions", {
      method: "POST",
      headers: HEADERS,
      body: JSON.stringify({ prompt: "x", stream }),
      signal: controller.signal,
    });
    if (!stream) expect(response.status).toBe(499);
    expect([engine.submitted.length, engine.liveCount, app.lifecycle.activeCount]).toEqual([1, 0, 0]);
  });
});

describe("chunks", () => {
  async function chunksOf(body: object, emit: (engine: FakeEngine, id: string) => Promise<void> | void) {
    const engine = new FakeEngine(() => []);
    const { post } = createFixture({ engine, streamLimits: LIMITS });
    const response = await post("/v1/completions", { prompt: "x", stream: true, ...body });
    await emit(engine, engine.last.requestId);
    return parseEvents(await response.text()).slice(0, -1);
  }

  test("the first leaves at once, what follows within the interval leaves together, the end leaves at once", async () => {
    const chunks = await chunksOf({}, (engine, id) => {
      for (const text of ["a", "b", "c"]) engine.emit(id, 0, step(text));
      engine.emit(id, 0, { ...step("d"), finishReason: "length", usage: FAKE_USAGE });
    });
    expect(chunks.map(({ choices: [choice] }) => [choice.text, choice.finish_reason])).toEqual([
      ["a", null],
      ["bcd", "length"],
    ]);
  });

  test("choices are collected apart", async () => {
    const chunks = await chunksOf({ n: 2 }, (engine, id) => {
      for (const text of ["a", "b", "c"]) for (const index of [0, 1]) engine.emit(id, index, step(text + index));
      for (const index of [1, 0]) engine.emit(id, index, { finishReason: "stop", usage: FAKE_USAGE });
    });
    expect(chunks.map(({ choices: [choice] }) => [choice.index, choice.text])).toEqual([
      [0, "a0"],
      [1, "a1"],
      [1, "b1c1"],
      [0, "b0c0"],
    ]);
  });

  test("tokens without text yet make no chunk, unless their ids or logprobs are asked for", async () => {
    const emit = (engine: FakeEngine, id: string) => {
      engine.emit(id, 0, { text: "", tokenIds: [0xc3] });
      engine.emit(id, 0, { text: "é", tokenIds: [0xa9], finishReason: "stop", usage: FAKE_USAGE });
    };
    expect((await chunksOf({}, emit)).map(({ choices: [choice] }) => choice.text)).toEqual(["é"]);
    const withIds = await chunksOf({ return_token_ids: true }, emit);
    expect(withIds.map(({ choices: [choice] }) => [choice.text, choice.token_ids])).toEqual([
      ["", []],
      ["", [0xc3]],
      ["é", [0xa9]],
    ]);
  });
});
