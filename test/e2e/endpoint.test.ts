// What the endpoint has beside OpenAI's API, on the shipped model: msgpack, tokens in and out, what it says about itself.

import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { Packr, Unpackr } from "msgpackr";
import { readShipped } from "../golden/shipped.ts";
import {
  DEVICE_KIND,
  eventsOf,
  type Loose,
  type ShippedServer,
  startShippedServer,
} from "../support/shipped-server.ts";

setDefaultTimeout(60_000);

const CHAT = "/v1/chat/completions";
const MSGPACK = "application/msgpack";
const BODY = {
  messages: [{ role: "user", content: "Tell me a story about a fox and a wolf. Grüße, 狐!" }],
  max_tokens: 24,
  temperature: 0.8,
  seed: 2 ** 40 + 3,
  logprobs: true,
  top_logprobs: 2,
  n: 2,
};

const packr = new Packr({ useRecords: false, variableMapSize: true });
const unpackr = new Unpackr({ useRecords: false });

let server: ShippedServer;
beforeAll(async () => {
  server = await startShippedServer();
});
afterAll(() => server.close());

/** A POST with msgpack in one or both directions. */
const send = (path: string, body: unknown, packs: boolean, accepts: boolean) =>
  fetch(`${server.url}${path}`, {
    method: "POST",
    headers: { "content-type": packs ? MSGPACK : "application/json", ...(accepts ? { accept: MSGPACK } : {}) },
    body: packs ? packr.pack(body) : JSON.stringify(body),
  });

/** What an answer or chunk says, apart from its name and its times. */
const essence = ({ choices, seed, system_fingerprint, object, model }: Loose) => ({
  choices,
  seed,
  system_fingerprint,
  object,
  model,
});

/** Choices by index: text, tokens with logprobs, finish reason. */
function assemble(chunks: readonly Loose[]) {
  const choices = [0, 1].map(() => ({ text: "", logprobs: [] as Loose[], finishReason: null as string | null }));
  for (const { index, delta, logprobs, finish_reason } of chunks.flatMap((chunk) => chunk.choices)) {
    const choice = choices[index]!;
    choice.text += delta.content ?? "";
    choice.logprobs.push(...(logprobs?.content ?? []));
    choice.finishReason ??= finish_reason;
  }
  return choices;
}

test("msgpack says what JSON says, in both directions", async () => {
  const json = essence(await server.ask(CHAT, BODY));
  for (const [packs, accepts] of [
    [true, true],
    [true, false],
    [false, true],
  ] as const) {
    const response = await send(CHAT, BODY, packs, accepts);
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toBe(accepts ? MSGPACK : "application/json");
    const bytes = new Uint8Array(await response.arrayBuffer());
    const answer: Loose = accepts ? unpackr.unpack(bytes) : JSON.parse(new TextDecoder().decode(bytes));
    expect(essence(answer)).toEqual(json);
  }
});

test("a msgpack stream carries the chunks of the event stream", async () => {
  const body = { ...BODY, stream: true, stream_options: { include_usage: true } };
  const events = eventsOf(await (await server.post(CHAT, body)).text());
  const response = await send(CHAT, body, true, true);
  expect(response.headers.get("content-type")).toBe("application/msgpack-seq");
  // nil is a heartbeat: one says that the request is queued.
  const items: Loose[] = unpackr.unpackMultiple(new Uint8Array(await response.arrayBuffer())) ?? [];
  expect(items[0]).toBe(null);
  const values = items.filter((value) => value !== null);
  const whole = (await server.ask(CHAT, BODY)).choices.map((choice: Loose) => ({
    text: choice.message.content,
    logprobs: choice.logprobs.content,
    finishReason: choice.finish_reason,
  }));
  expect(assemble(values)).toEqual(whole);
  expect(assemble(events)).toEqual(whole);
  expect(values.at(-1).usage.completion_tokens).toBe(48);
  expect(events.at(-1).usage.completion_tokens).toBe(48);
});

test("errors come as msgpack too, and damaged msgpack is a 400", async () => {
  const refused = await send(CHAT, { ...BODY, n: 9 }, true, true);
  expect(refused.status).toBe(400);
  const { error }: Loose = unpackr.unpack(new Uint8Array(await refused.arrayBuffer()));
  expect(error.param).toBe("n");
  const bytes = packr.pack(BODY);
  const cut = { method: "POST", headers: { "content-type": MSGPACK }, body: bytes.subarray(0, bytes.length - 3) };
  expect((await fetch(`${server.url}${CHAT}`, cut)).status).toBe(400);
});

test("/tokenize and /detokenize are each other's inverse", async () => {
  for (const prompt of [
    "Once upon a time",
    "  two  spaces\n\n\tand a tab",
    "Grüße, 狐と狼 🦊",
    "<|endoftext|> as text",
    "",
  ]) {
    const { tokens, count, max_model_len } = await server.ask("/tokenize", { model: "fable", prompt });
    expect([count, max_model_len]).toEqual([tokens.length, 512]);
    expect(tokens).not.toContain(0);
    expect((await server.ask("/detokenize", { model: "fable", tokens })).prompt).toBe(prompt);
  }
  const messages = [{ role: "user", content: "Hi" }];
  const { tokens } = await server.ask("/tokenize", { messages, return_token_strs: true });
  expect((await server.ask("/detokenize", { tokens })).prompt).toBe("<|user|>Hi<|assistant|>");
  const answer = await server.ask(CHAT, { messages, max_tokens: 1, return_token_ids: true });
  expect(answer.choices[0].prompt_token_ids).toEqual(tokens);
  for (const tokenId of [4096, -1, 0.5]) {
    const refused = await server.post("/detokenize", { tokens: [1, tokenId] });
    expect([refused.status, ((await refused.json()) as Loose).error.param]).toEqual([400, "tokens"]);
  }
});

/** Samples of the exposition format by name and labels; throws on a line that is none. */
function parseMetrics(text: string): Map<string, number> {
  const samples = new Map<string, number>();
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const [, name, value] = /^([a-z_]+(?:\{(?:[a-z]+="[^"]*",?)*\})?) (\S+)$/.exec(line) ?? [];
    if (name === undefined || Number.isNaN(Number(value)) || samples.has(name))
      throw new Error(`not a sample: ${line}`);
    samples.set(name, Number(value));
  }
  return samples;
}

test("/metrics parses, and counts what happens", async () => {
  const scrape = async () => parseMetrics(await (await fetch(`${server.url}/metrics`)).text());
  const before = await scrape();
  const { usage } = await server.ask(CHAT, { ...BODY, speculation: { mode: "ngram" }, max_tokens: 60 });
  await server.post(CHAT, { ...BODY, n: 9 });
  const after = await scrape();
  const rise = (name: string) => (after.get(name) ?? 0) - (before.get(name) ?? 0);
  expect(rise('duet_http_requests_total{route="/v1/chat/completions",status="200"}')).toBe(1);
  expect(rise('duet_http_requests_total{route="/v1/chat/completions",status="400"}')).toBe(1);
  expect(rise("duet_prompt_tokens_total")).toBe(usage.prompt_tokens);
  expect(rise("duet_output_tokens_total")).toBe(usage.completion_tokens);
  expect(rise("duet_ttft_seconds_count")).toBe(1);
  expect(rise("duet_finished_total")).toBe(2);
  expect(rise("duet_steps_total")).toBe(rise("duet_step_seconds_count"));
  expect(rise('duet_draft_tokens_proposed_total{proposer="ngram"}')).toBe(usage.draft_tokens_proposed);
  expect(rise('duet_draft_tokens_accepted_total{proposer="ngram"}')).toBe(usage.draft_tokens_accepted);
  expect(after.get("duet_ready")).toBe(1);
  expect(after.get("duet_kv_blocks_used")).toBe(0);
});

test("/v1/status says what runs where", async () => {
  const answer: Loose = await (await fetch(`${server.url}/v1/status`)).json();
  expect(answer.engine).toMatchObject({
    state: "ready",
    modelName: "fable",
    draftModelName: "fable-draft",
    containerFingerprint: readShipped().fable.fingerprint,
    contextMax: 512,
    kvBlocksUsed: 0,
    sequences: [],
  });
  expect(answer.engine.device.kind).toBe(DEVICE_KIND);
  expect(answer.engine.device.dies).toHaveLength(2);
  expect(answer.server).toMatchObject({ modelName: "fable", activeCount: 0, isDraining: false, unreadyReason: null });
  const running = server.ask("/v1/completions", { prompt: "Once", max_tokens: 400, ignore_eos: true, n: 3 });
  const { sequences, kvBlocksUsed } = await server.until(({ runningCount }) => runningCount === 3);
  expect(sequences.map(({ choiceIndex }) => choiceIndex)).toEqual([0, 1, 2]);
  expect(kvBlocksUsed).toBe(sequences.reduce((sum, { kvBlockCount }) => sum + kvBlockCount, 0));
  await running;
});
