// Every route as a caller sees it, over a scripted engine.

import { describe, expect, test } from "bun:test";
import { RequestError } from "../../src/base/errors.ts";
import { decodeMsgpack, encodeMsgpack } from "../../src/server/msgpack.ts";
import { FakeEngine, FAKE_USAGE, says, tokensOf } from "./fake-engine.ts";
import { ASSISTANT_ID, createFixture, END_ID, json, MODEL, parseEvents, USER_HI, USER_ID } from "./fixture.ts";
import type { Loose } from "./fixture.ts";

const CHAT = "/v1/chat/completions";
const COMPLETIONS = "/v1/completions";

const events = async (response: Response) => parseEvents(await response.text());
const contentOf = (chunks: readonly Loose[], index = 0) =>
  chunks
    .flatMap((chunk) => chunk.choices ?? [])
    .filter((choice) => choice.index === index)
    .map((choice) => choice.delta?.content ?? choice.text ?? "")
    .join("");

describe("POST /v1/chat/completions", () => {
  test("a whole answer", async () => {
    const response = await createFixture().post(CHAT, { messages: USER_HI, model: MODEL });
    expect([response.status, response.headers.get("content-type")]).toEqual([200, "application/json"]);
    const { id, created, ...rest } = await json(response);
    expect([/^chatcmpl-[0-9a-f]{32}$/.test(id), Number.isInteger(created)]).toEqual([true, true]);
    expect(rest).toEqual({
      object: "chat.completion",
      model: MODEL,
      system_fingerprint: "duet-0123456789abcdef",
      seed: 4242,
      choices: [
        {
          index: 0,
          message: { role: "assistant", content: "Hello world", refusal: null },
          logprobs: null,
          finish_reason: "stop",
        },
      ],
      usage: {
        prompt_tokens: 4,
        completion_tokens: 2,
        total_tokens: 6,
        prompt_tokens_details: { cached_tokens: 1 },
        draft_tokens_proposed: 4,
        draft_tokens_accepted: 3,
        queue_ms: 0.5,
        prefill_ms: 1.25,
        decode_ms: 2.5,
      },
    });
  });

  test("a stream: role, content, finish reason, usage, [DONE]", async () => {
    const response = await createFixture().post(CHAT, {
      messages: USER_HI,
      stream: true,
      stream_options: { include_usage: true },
    });
    expect([response.headers.get("content-type"), response.headers.get("x-accel-buffering")]).toEqual([
      "text/event-stream; charset=utf-8",
      "no",
    ]);
    const all = await events(response);
    expect(all.at(-1)).toBe("[DONE]");
    const chunks = all.slice(0, -1);
    expect(chunks[0].choices[0]).toEqual({
      index: 0,
      delta: { role: "assistant", content: "" },
      logprobs: null,
      finish_reason: null,
    });
    expect(contentOf(chunks)).toBe("Hello world");
    expect(chunks.at(-2).choices[0].finish_reason).toBe("stop");
    expect([chunks.at(-1).choices, chunks.at(-1).usage.total_tokens]).toEqual([[], 6]);
    expect(new Set(chunks.map((chunk) => chunk.id)).size).toBe(1);
  });

  test("n choices, each by itself, in whole and stream", async () => {
    const script = (_request: unknown, index: number) => says(`choice ${index}`)({} as never, 0);
    const whole = await json(
      await createFixture({ engine: new FakeEngine(script) }).post(CHAT, { messages: USER_HI, n: 3 }),
    );
    expect(whole.choices.map((choice: Loose) => choice.message.content)).toEqual(["choice 0", "choice 1", "choice 2"]);
    expect([whole.usage.prompt_tokens, whole.usage.completion_tokens]).toEqual([4, 6]);
    const chunks = await events(
      await createFixture({ engine: new FakeEngine(script) }).post(CHAT, { messages: USER_HI, n: 3, stream: true }),
    );
    expect([0, 1, 2].map((index) => contentOf(chunks.slice(0, -1), index))).toEqual([
      "choice 0",
      "choice 1",
      "choice 2",
    ]);
  });

  test("what the engine is asked", async () => {
    const { post, engine } = createFixture({ defaults: { temperature: 0.5 } });
    await post(CHAT, { messages: USER_HI, max_tokens: 9, stop: "x", seed: 2 ** 32 + 3, deadline_ms: 50 });
    expect(engine.last).toMatchObject({
      choiceCount: 1,
      outputTokenMax: 9,
      stopStrings: ["x"],
      stopTokenIds: [END_ID],
      deadlineMs: 50,
      speculation: "auto",
    });
    expect([...engine.last.promptTokens]).toEqual([USER_ID, 72, 105, ASSISTANT_ID]);
    expect(engine.last.params).toMatchObject({ temperature: 0.5, seedLow: 3, seedHigh: 1, topLogprobs: null });
  });

  test("one event per token when asked", async () => {
    const body = { messages: USER_HI, stream: true, stream_options: { event_per_token: true }, return_token_ids: true };
    const chunks = (await events(await createFixture({ engine: new FakeEngine(says("añ")) }).post(CHAT, body))).slice(
      1,
      -1,
    );
    expect(chunks.map((chunk) => [chunk.choices[0].delta.content ?? "", chunk.choices[0].token_ids])).toEqual([
      ["a", [97]],
      ["", [0xc3]],
      ["ñ", [0xb1]],
      ["", []],
    ]);
  });

  test("a stop string and a deadline show in the answer", async () => {
    const engine = new FakeEngine(() => [
      { text: "a", tokenIds: [97], finishReason: "stop", stopString: "\n", usage: FAKE_USAGE },
    ]);
    const { choices } = await json(await createFixture({ engine }).post(CHAT, { messages: USER_HI }));
    expect([choices[0].finish_reason, choices[0].stop_reason]).toEqual(["stop", "\n"]);
  });
});

describe("POST /v1/completions", () => {
  test("many prompts, n each, in order, with their usage", async () => {
    const engine = new FakeEngine((request, index) => says(`${request.promptTokens[0]}.${index}`)(request, index));
    const answer = await json(
      await createFixture({ engine }).post(COMPLETIONS, { prompt: ["A", "BC"], n: 2, echo: true }),
    );
    expect(answer.choices.map((choice: Loose) => choice.text)).toEqual(["A65.0", "A65.1", "BC66.0", "BC66.1"]);
    expect(answer.usage).toMatchObject({
      prompt_tokens: 3,
      completion_tokens: 8,
      prompt_tokens_details: { cached_tokens: 2 },
    });
  });

  test("logprobs and token ids", async () => {
    const logprobs = [{ tokenId: 97, logprob: -0.25, top: [{ tokenId: 98, logprob: -2 }] }];
    const engine = new FakeEngine(() => [
      { text: "a", tokenIds: [97], logprobs, finishReason: "length", usage: FAKE_USAGE },
    ]);
    const answer = await json(
      await createFixture({ engine }).post(COMPLETIONS, { prompt: [65, 66], logprobs: 1, return_token_ids: true }),
    );
    expect(answer.choices[0]).toEqual({
      index: 0,
      text: "a",
      logprobs: { tokens: ["a"], token_logprobs: [-0.25], top_logprobs: [{ b: -2, a: -0.25 }], text_offset: [0] },
      finish_reason: "length",
      token_ids: [97],
      prompt_token_ids: [65, 66],
    });
  });

  test("msgpack in and out, whole and streamed", async () => {
    const headers = { "content-type": "application/msgpack", accept: "application/msgpack" };
    const whole = await createFixture().post(COMPLETIONS, encodeMsgpack({ prompt: "x" }), headers);
    expect(decodeMsgpack(await whole.bytes())).toMatchObject({ choices: [{ text: "Hello world" }] });
    const stream = await createFixture().post(COMPLETIONS, encodeMsgpack({ prompt: "x", stream: true }), headers);
    expect(stream.headers.get("content-type")).toBe("application/msgpack-seq");
    expect([...(await stream.bytes())][0]).toBe(0xc0);
  });
});

describe("failures while answering", () => {
  test.each([
    [429, 2, "the queue is full"],
    [503, null, "draining"],
    [400, null, "could never fit"],
  ])("a refusal of the engine is the answer's status: %d", async (httpStatus, retryAfterSeconds, message) => {
    for (const stream of [false, true]) {
      const engine = new FakeEngine();
      engine.refusal = Object.assign(new RequestError(httpStatus, message), {
        retryAfterSeconds: retryAfterSeconds ?? undefined,
      });
      const { post, app } = createFixture({ engine });
      const response = await post(CHAT, { messages: USER_HI, stream });
      expect([response.status, (await json(response)).error.message]).toEqual([httpStatus, message]);
      if (httpStatus === 429) expect(response.headers.get("retry-after")).toBe("2");
      expect(app.lifecycle.activeCount).toBe(0);
    }
  });

  test("of many prompts, one refused takes the others with it", async () => {
    const engine = new FakeEngine(() => []);
    const submit = engine.submit.bind(engine);
    engine.submit = (request, listener) => {
      if (engine.submitted.length === 2) engine.refusal = new RequestError(429, "the queue is full");
      return submit(request, listener);
    };
    const response = await createFixture({ engine }).post(COMPLETIONS, { prompt: ["a", "b", "c"] });
    expect([response.status, engine.cancelled.length, engine.liveCount]).toEqual([429, 2, 0]);
  });

  test("a failed sequence is 500, or the stream's last event", async () => {
    const script = () => [
      { text: "a", tokenIds: [97] },
      { finishReason: "error" as const, errorMessage: "NaN on die 1" },
    ];
    const whole = await createFixture({ engine: new FakeEngine(script) }).post(CHAT, { messages: USER_HI });
    expect([whole.status, (await json(whole)).error.code]).toEqual([500, "generation_failed"]);
    const all = await events(
      await createFixture({ engine: new FakeEngine(script) }).post(CHAT, { messages: USER_HI, stream: true }),
    );
    expect(all.at(-2).error.message).toContain("NaN on die 1");
    expect(all.at(-1)).toBe("[DONE]");
  });

  test("an engine that fails ends whole answers with 503 and streams with an error", async () => {
    const engine = new FakeEngine(() => [{ text: "a", tokenIds: [97] }]);
    const { post, get, app } = createFixture({ engine });
    const whole = post(CHAT, { messages: USER_HI });
    const stream = await post(CHAT, { messages: USER_HI, stream: true });
    await Bun.sleep(1);
    engine.fail("a kernel hangs");
    expect((await whole).status).toBe(503);
    expect((await events(stream)).at(-2).error).toMatchObject({ code: "engine_unhealthy", message: "a kernel hangs" });
    expect([
      (await get("/health/ready")).status,
      (await post(CHAT, { messages: USER_HI })).status,
      app.lifecycle.activeCount,
    ]).toEqual([503, 503, 0]);
  });

  test("a caller who goes away cancels the request, streaming or not", async () => {
    for (const stream of [false, true]) {
      const engine = new FakeEngine(() => [{ text: "a", tokenIds: [97] }]);
      const { app } = createFixture({ engine });
      const controller = new AbortController();
      const answer = app.request(`http://localhost${CHAT}`, {
        method: "POST",
        headers: { host: "localhost", "content-type": "application/json" },
        body: JSON.stringify({ messages: USER_HI, stream }),
        signal: controller.signal,
      });
      await Bun.sleep(2);
      expect(engine.liveCount).toBe(1);
      controller.abort();
      const response = await answer;
      if (!stream) expect(response.status).toBe(499);
      expect([engine.cancelled.length, engine.liveCount, app.lifecycle.activeCount]).toEqual([1, 0, 0]);
    }
  });
});

describe("POST /tokenize and /detokenize", () => {
  const { post } = createFixture();
  const tokenize = async (body: object) => json(await post("/tokenize", body));

  test("text and messages to ids", async () => {
    expect(await tokenize({ prompt: "h<|end|>" })).toEqual({
      count: 8,
      max_model_len: 512,
      tokens: tokensOf("h<|end|>"),
      token_strs: null,
    });
    expect((await tokenize({ prompt: "" })).tokens).toEqual([]);
    expect((await tokenize({ prompt: "a é", return_token_strs: true })).token_strs).toHaveLength(4);
    expect((await tokenize({ messages: USER_HI })).tokens).toEqual([USER_ID, 72, 105, ASSISTANT_ID]);
    expect((await tokenize({ messages: USER_HI, add_generation_prompt: false })).tokens).toEqual([USER_ID, 72, 105]);
  });

  test("ids to text", async () => {
    const body = { tokens: [...tokensOf("hé"), END_ID] };
    expect(await json(await post("/detokenize", body))).toEqual({ prompt: "hé<|end|>" });
    expect(await json(await post("/detokenize", { tokens: [] }))).toEqual({ prompt: "" });
  });

  test("what is tokenized comes back", async () => {
    for (const text of ["", "a b\n", "😀é", "<|user|>"]) {
      const { tokens } = await tokenize({ prompt: text });
      expect(await json(await post("/detokenize", { tokens }))).toEqual({ prompt: text });
    }
  });

  test.each([
    ["/tokenize", {}, "prompt", "expected one of prompt and messages"],
    ["/tokenize", { prompt: "a", messages: USER_HI }, "prompt", "expected one of prompt and messages"],
    ["/tokenize", { prompt: 5 }, "prompt", "expected a string, got 5"],
    ["/tokenize", { text: "a" }, "text", "unknown field"],
    ["/detokenize", {}, "tokens", "got nothing"],
    ["/detokenize", { tokens: "a" }, "tokens", 'got "a"'],
    ["/detokenize", { tokens: [1, 260] }, "tokens", "tokens[1]: expected a token id from 0 to 259, got 260"],
    ["/detokenize", { tokens: [-1] }, "tokens", "got -1"],
    ["/detokenize", { tokens: [1.5] }, "tokens", "got 1.5"],
    ["/detokenize", { tokens: ["x".repeat(100_000)] }, "tokens", "expected a token id"],
    ["/detokenize", { tokens: [{ a: ["x".repeat(100_000)] }] }, "tokens", "expected a token id"],
  ])("%s refuses", async (path, body, param, message) => {
    const response = await post(path, body);
    const { error } = await json(response);
    expect([response.status, error.param]).toEqual([400, param]);
    expect(error.message).toContain(message);
    expect(error.message.length).toBeLessThan(200);
  });

  test("an unknown model is 404 here too", async () => {
    expect((await post("/tokenize", { model: "other", prompt: "a" })).status).toBe(404);
    expect((await post("/detokenize", { model: "other", tokens: [] })).status).toBe(404);
  });
});

describe("what is there to read", () => {
  test("models", async () => {
    const { get } = createFixture();
    const entry = { id: MODEL, object: "model", created: expect.any(Number), owned_by: "duet", max_model_len: 512 };
    expect(await json(await get("/v1/models"))).toEqual({ object: "list", data: [entry] });
    expect(await json(await get(`/v1/models/${MODEL}`))).toEqual(entry);
    expect(decodeMsgpack(await (await get("/v1/models", { accept: "application/msgpack" })).bytes())).toMatchObject({
      data: [{ id: MODEL }],
    });
  });

  test("health", async () => {
    const { get, engine } = createFixture();
    expect(await json(await get("/health/live"))).toEqual({ status: "live" });
    expect(await json(await get("/health/ready"))).toEqual({ status: "ready" });
    engine.state = "unhealthy";
    const response = await get("/health/ready");
    expect([response.status, response.headers.get("retry-after")]).toEqual([503, "5"]);
    expect(await json(response)).toEqual({ status: "not_ready", reason: "the engine is unhealthy: scripted" });
  });

  test("status, even from an engine that does not answer", async () => {
    const { get, engine } = createFixture();
    const { server, engine: status } = await json(await get("/v1/status"));
    expect(server).toMatchObject({
      modelName: MODEL,
      contextMax: 512,
      activeCount: 0,
      isDraining: false,
      unreadyReason: null,
    });
    expect(status).toEqual(JSON.parse(JSON.stringify(engine.lastStatus)));
    engine.status = () => Promise.reject(new Error("gone"));
    expect((await get("/v1/status")).status).toBe(200);
  });

  test("metrics are Prometheus text", async () => {
    const response = await createFixture().get("/metrics");
    expect(response.headers.get("content-type")).toContain("text/plain; version=0.0.4");
    expect(await response.text()).toContain("# TYPE duet_ttft_seconds histogram");
  });
});
