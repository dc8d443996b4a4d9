// The official OpenAI client against the shipped model over a real socket: what it sends is understood, what it gets is what it
// asked for, and what it must not send is refused by name.

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { BadRequestError, NotFoundError, type OpenAI } from "openai";
import { defined } from "../../src/base/assert.ts";
import { readShipped, SHIPPED_TOKEN_COUNT } from "../golden/shipped.ts";
import { DEVICE_KIND, type Loose, type ShippedServer, startShippedServer } from "../support/shipped-server.ts";

setDefaultTimeout(60_000);

const FOX = [{ role: "user", content: "Tell me a story about a fox and a wolf." }] as const;
const ONCE = "Once upon a time there was a king who had three daughters, and";
const GREEDY = { temperature: 0, repetition_penalty: 1 };
/** On the reference, quantised activations may round otherwise: only clear choices are the recorded ones. */
const NEAR_TIE = 0.2;

let server: ShippedServer;
let client: OpenAI;

beforeAll(async () => {
  server = await startShippedServer();
  ({ client } = server);
});
afterAll(() => server.close());

type ChatFields = Partial<OpenAI.ChatCompletionCreateParamsNonStreaming> & Record<string, unknown>;
type CompletionFields = Partial<OpenAI.CompletionCreateParamsNonStreaming> & Record<string, unknown>;

const chat = (fields: ChatFields = {}) =>
  client.chat.completions.create({ model: "fable", messages: [...FOX], max_tokens: 24, ...fields });
const complete = (fields: CompletionFields = {}) =>
  client.completions.create({ model: "fable", prompt: ONCE, max_tokens: 24, ...fields });
const chatTexts = async (fields: ChatFields) => (await chat(fields)).choices.map(({ message }) => message.content);

/** All chunks of a streamed chat. */
async function chatChunks(fields: ChatFields) {
  const stream = await client.chat.completions.create({
    model: "fable",
    messages: [...FOX],
    max_tokens: 24,
    ...fields,
    stream: true,
  });
  const chunks: OpenAI.ChatCompletionChunk[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const chunkText = (chunks: readonly OpenAI.ChatCompletionChunk[], index = 0) =>
  chunks
    .flatMap(({ choices }) => choices)
    .filter((choice) => choice.index === index)
    .map(({ delta }) => delta.content ?? "")
    .join("");

/** The error that a call must end with. */
async function failure(call: Promise<unknown>): Promise<Loose> {
  try {
    await call;
  } catch (error) {
    return error;
  }
  throw new Error("the call succeeded");
}

test("models are listed and retrieved", async () => {
  const { data } = await client.models.list();
  expect(data.map(({ id }) => id)).toEqual(["fable"]);
  const model = await client.models.retrieve("fable");
  expect(model).toEqual(defined(data[0]));
  expect(await failure(client.models.retrieve("gpt"))).toBeInstanceOf(NotFoundError);
});

describe("chat", () => {
  test("is answered in OpenAI's shape", async () => {
    const answer = await chat({ seed: 5 });
    expect(answer).toMatchObject({ object: "chat.completion", model: "fable", seed: 5 });
    expect(answer.id).toStartWith("chatcmpl-");
    expect(answer.system_fingerprint).toBe(`duet-${readShipped().fable.fingerprint}`);
    const [choice] = answer.choices;
    expect(choice).toMatchObject({ index: 0, finish_reason: "length", message: { role: "assistant", refusal: null } });
    expect(defined(choice).message.content?.length).toBeGreaterThan(20);
    expect(answer.usage).toMatchObject({ prompt_tokens: 14, completion_tokens: 24, total_tokens: 38 });
  });

  test("streams the text that it gives whole", async () => {
    const fields = { temperature: 0.8, seed: 7, max_tokens: 60, ignore_eos: true };
    const [text] = await chatTexts(fields);
    const chunks = await chatChunks({ ...fields, stream_options: { include_usage: true } });
    expect(chunkText(chunks)).toBe(text!);
    expect(chunks[0]?.choices[0]?.delta).toEqual({ role: "assistant", content: "" });
    expect(chunks.length).toBeGreaterThan(3);
    const last = chunks.at(-1)!;
    expect(last.choices).toEqual([]);
    expect(last.usage).toMatchObject({ prompt_tokens: 14, completion_tokens: 60, total_tokens: 74 });
    expect(chunks.slice(0, -1).every(({ usage }) => usage === null)).toBe(true);
    expect(chunks.at(-2)?.choices[0]?.finish_reason).toBe("length");
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
    const plain = await chatChunks(fields);
    expect(plain.every(({ usage, choices }) => usage === undefined && choices.length === 1)).toBe(true);
    const helper = client.chat.completions.stream({ model: "fable", messages: [...FOX], ...fields });
    expect(await helper.finalContent()).toBe(text!);
  });

  test("streams several choices, each with its own text, and one event a token on demand", async () => {
    const fields = { temperature: 0.8, seed: 8, n: 3 };
    const texts = await chatTexts(fields);
    const options: Loose = { event_per_token: true };
    const chunks = await chatChunks({ ...fields, return_token_ids: true, stream_options: options });
    expect([0, 1, 2].map((index) => chunkText(chunks, index))).toEqual(texts as string[]);
    const counts = chunks.flatMap(({ choices }) => choices.map((choice: Loose) => choice.token_ids.length));
    expect(Math.max(...counts)).toBe(1);
    expect(counts.reduce((sum, count) => sum + count, 0)).toBe(3 * 24);
  });

  test("has log-probabilities that fit its text and its tokens", async () => {
    const answer = await chat({ temperature: 0.8, seed: 3, max_tokens: 40, logprobs: true, top_logprobs: 20 });
    const { message, logprobs } = defined(answer.choices[0]);
    const content = defined(logprobs?.content ?? undefined);
    expect(content).toHaveLength(40);
    expect(Buffer.from(content.flatMap(({ bytes }) => bytes ?? [])).toString()).toBe(message.content!);
    let sampledBelowBest = 0;
    for (const { token, logprob, bytes, top_logprobs: top } of content) {
      expect(Buffer.from(bytes ?? []).toString()).toBe(token);
      expect(top).toHaveLength(20);
      const values = top.map((entry) => entry.logprob);
      expect(values).toEqual(values.toSorted((a, b) => b - a));
      expect(values.reduce((sum, value) => sum + Math.exp(value), 0)).toBeLessThanOrEqual(1 + 1e-5);
      const listed = top.find((entry) => entry.token === token);
      if (listed === undefined) expect(logprob).toBeLessThanOrEqual(defined(values.at(-1)));
      else expect(logprob).toBe(listed.logprob);
      if (logprob < defined(values[0])) sampledBelowBest++;
    }
    expect(sampledBelowBest).toBeGreaterThan(0);
    const greedy = await chat({ ...GREEDY, logprobs: true, top_logprobs: 1 });
    for (const entry of defined(greedy.choices[0]?.logprobs?.content ?? undefined)) {
      expect(entry.token).toBe(defined(entry.top_logprobs[0]).token);
    }
    const streamed = await chatChunks({ temperature: 0.8, seed: 3, max_tokens: 40, logprobs: true, top_logprobs: 20 });
    expect(streamed.flatMap(({ choices }) => choices[0]?.logprobs?.content ?? [])).toEqual(content);
  });

  test("gives n choices: a function of the seed and their index", async () => {
    const fields = { temperature: 0.8, seed: 11 };
    const two = await chatTexts({ ...fields, n: 2 });
    expect(two).toHaveLength(2);
    expect(two[0]).not.toBe(two[1]!);
    expect(await chatTexts({ ...fields, n: 2 })).toEqual(two);
    const eight = await chatTexts({ ...fields, n: 8 });
    expect(new Set(eight).size).toBe(8);
    expect(eight.slice(0, 2)).toEqual(two);
    expect((await chat({ ...fields, n: 8 })).usage?.completion_tokens).toBe(8 * 24);
    const refused = await failure(chat({ n: 9 }));
    expect(refused).toBeInstanceOf(BadRequestError);
    expect([refused.status, refused.param]).toEqual([400, "n"]);
  });

  test("cuts exactly in front of a stop string, wherever tokens end", async () => {
    const [text] = await chatTexts({ ...GREEDY, max_tokens: 60 });
    const base = defined(text ?? undefined);
    for (let start = 12; start < 120; start += 9) {
      for (const length of [1, 4, 9]) {
        const stop = base.slice(start, start + length);
        const answer = await chat({ ...GREEDY, max_tokens: 60, stop });
        const { message, finish_reason } = defined(answer.choices[0]);
        expect([stop, message.content, finish_reason]).toEqual([stop, base.slice(0, base.indexOf(stop)), "stop"]);
      }
    }
    const late = base.slice(90, 97);
    const early = base.slice(40, 47);
    const chunks = await chatChunks({ ...GREEDY, max_tokens: 60, stop: [late, "not in it", early] });
    expect(chunkText(chunks)).toBe(base.slice(0, base.indexOf(early)));
    expect(chunks.at(-1)?.choices[0]).toMatchObject({ finish_reason: "stop", stop_reason: early });
    const absent = await chat({ ...GREEDY, max_tokens: 60, stop: `${base.slice(0, 30)}#` });
    expect(absent.choices[0]).toMatchObject({ finish_reason: "length", message: { content: base } });
  });

  test("is the same for the same seed, and another for another", async () => {
    const fields = { temperature: 0.8, seed: 2 ** 53 - 1 };
    const first = await chatTexts(fields);
    expect(await chatTexts(fields)).toEqual(first);
    expect(await chatTexts({ ...fields, seed: 2 ** 53 - 2 })).not.toEqual(first);
    const drawn = await chat({ temperature: 0.8 });
    const repeated = await chatTexts({ temperature: 0.8, seed: (drawn as Loose).seed });
    expect(repeated).toEqual(drawn.choices.map(({ message }) => message.content));
  });

  test("ends at the token limit, by either name", async () => {
    for (const limit of [{ max_tokens: 5 }, { max_tokens: null, max_completion_tokens: 5 }]) {
      const answer = await chat(limit);
      expect(answer.choices[0]?.finish_reason).toBe("length");
      expect(answer.usage?.completion_tokens).toBe(5);
    }
  });

  test("obeys logit_bias and penalties", async () => {
    const [tokenId] = server.tokenizer.encode(" wolf", { allowSpecial: false });
    const forced = await chat({ temperature: 0.8, logit_bias: { [defined(tokenId)]: 100 }, repetition_penalty: 1 });
    expect(forced.choices[0]?.message.content).toBe(" wolf".repeat(24));
    const [plain] = await chatTexts({ ...GREEDY, max_tokens: 100 });
    const [first] = server.tokenizer.encode(defined(plain ?? undefined), { allowSpecial: false });
    const banned = await chat({ ...GREEDY, logit_bias: { [defined(first)]: -100 }, return_token_ids: true });
    expect((banned.choices[0] as Loose).token_ids).not.toContain(first);
    const mostUses = async (fields: ChatFields) => {
      const answer = await chat({ ...GREEDY, max_tokens: 100, return_token_ids: true, ignore_eos: true, ...fields });
      const ids = (answer.choices[0] as Loose).token_ids as number[];
      return Math.max(...ids.map((id) => ids.filter((other) => other === id).length));
    };
    const uses = await mostUses({});
    expect(await mostUses({ frequency_penalty: 2 })).toBeLessThan(uses);
    expect(await mostUses({ presence_penalty: 2, repetition_penalty: 1.3 })).toBeLessThan(uses);
  });
});

describe("completions", () => {
  test("take a string, token ids, and lists of either", async () => {
    const fields = { ...GREEDY, return_token_ids: true };
    const other = "The fox said to the wolf:";
    const ids = [ONCE, other].map((text) => server.tokenizer.encode(text, { allowSpecial: false }));
    const alone = [await complete(fields), await complete({ ...fields, prompt: other })];
    const texts = alone.map(({ choices }) => defined(choices[0]).text);
    expect(alone[0]).toMatchObject({ object: "text_completion", choices: [{ index: 0, finish_reason: "length" }] });
    expect((alone[0]!.choices[0] as Loose).prompt_token_ids).toEqual(ids[0]);
    expect((await complete({ ...fields, prompt: ids[0]! })).choices[0]?.text).toBe(texts[0]!);
    for (const prompt of [[ONCE, other], ids]) {
      const { choices, usage } = await complete({ ...fields, prompt });
      expect(choices.map(({ index, text }) => [index, text])).toEqual(texts.map((text, i) => [i, text]));
      expect(usage).toMatchObject({ prompt_tokens: ids.flat().length, completion_tokens: 48 });
    }
    const echoed = await complete({ ...fields, prompt: [ONCE, other], n: 2, echo: true });
    const expected = [ONCE, ONCE, other, other].map((prompt, i) => prompt + texts[Math.floor(i / 2)]!);
    expect(echoed.choices.map(({ text }) => text)).toEqual(expected);
  });

  test("stream what they give whole, echo included", async () => {
    const fields = { temperature: 0.8, seed: 4, echo: true };
    const stream = await client.completions.create({
      model: "fable",
      prompt: ONCE,
      stream: true,
      max_tokens: 24,
      ...fields,
    });
    let text = "";
    for await (const chunk of stream) text += chunk.choices[0]?.text ?? "";
    expect(text).toBe(defined((await complete(fields)).choices[0]).text);
  });

  test("have log-probabilities with text offsets", async () => {
    const { choices } = await complete({ temperature: 0.8, seed: 6, logprobs: 3 });
    const { text, logprobs } = defined(choices[0]);
    const { tokens = [], token_logprobs, top_logprobs, text_offset = [] } = defined(logprobs ?? undefined);
    expect(tokens.join("")).toBe(text);
    expect(tokens.map((token, i) => text.slice(text_offset[i], text_offset[i]! + token.length))).toEqual(tokens);
    for (const [i, token] of tokens.entries()) {
      const top = defined(top_logprobs?.[i]);
      expect(Object.keys(top).length).toBeOneOf([3, 4]);
      expect(top[token]).toBe(defined(token_logprobs?.[i]));
      expect(Object.values(top).reduce((sum, value) => sum + Math.exp(value), 0)).toBeLessThanOrEqual(1 + 1e-5);
    }
  });

  test("end at the model's end token, unless min_tokens or ignore_eos say otherwise", async () => {
    const [endId] = server.tokenizer.endOfTextIds;
    const pushed = { logit_bias: { [defined(endId)]: 100 }, return_token_ids: true };
    const run = async (fields: CompletionFields) => {
      const { choices, usage } = await complete({ ...pushed, ...fields });
      return { ...(choices[0] as Loose), count: usage?.completion_tokens };
    };
    expect(await run({})).toMatchObject({ finish_reason: "stop", text: "", token_ids: [endId], count: 1 });
    const later = await run({ min_tokens: 5 });
    expect(later).toMatchObject({ finish_reason: "stop", count: 6 });
    expect(later.token_ids.indexOf(endId)).toBe(5);
    const through = await run({ ignore_eos: true });
    expect(through).toMatchObject({
      finish_reason: "length",
      text: "",
      token_ids: new Array(24).fill(endId),
      count: 24,
    });
  });

  test("give the container's recorded greedy tokens, whoever drafts", async () => {
    const { runs } = readShipped().fable;
    expect(runs.length).toBe(6);
    for (const mode of ["off", "draft", "ngram", "auto"]) {
      let proposed = 0;
      for (const { ids, tokens, gaps } of runs) {
        const nearTie = DEVICE_KIND === "cpu" ? -1 : gaps.findIndex((gap) => gap < NEAR_TIE);
        const count = nearTie < 0 ? SHIPPED_TOKEN_COUNT : nearTie;
        const answer: Loose = await complete({
          ...GREEDY,
          prompt: [...ids],
          max_tokens: SHIPPED_TOKEN_COUNT,
          ignore_eos: true,
          return_token_ids: true,
          speculation: { mode },
        });
        expect(answer.choices[0].token_ids).toHaveLength(SHIPPED_TOKEN_COUNT);
        expect(answer.choices[0].token_ids.slice(0, count)).toEqual(tokens.slice(0, count));
        const { usage } = answer;
        expect(usage.draft_tokens_accepted).toBeLessThanOrEqual(usage.draft_tokens_proposed);
        expect(usage.prefill_ms).toBeGreaterThan(0);
        expect(usage.decode_ms).toBeGreaterThan(0);
        proposed += usage.draft_tokens_proposed;
      }
      if (mode === "off") expect(proposed).toBe(0);
      else expect([mode, proposed > 0]).toEqual([mode, true]);
    }
  });
});

describe("what is refused", () => {
  const cases: [string, ChatFields, string][] = [
    ["a number out of range", { temperature: -1 }, "temperature"],
    ["another type", { max_tokens: "many" as Loose }, "max_tokens"],
    ["no messages", { messages: [] }, "messages"],
    ["a role that the template drops", { messages: [{ role: "system", content: "Be brief." }] }, "messages[0].role"],
    [
      "an image",
      { messages: [{ role: "user", content: [{ type: "image_url" } as Loose] }] },
      "messages[0].content[0].type",
    ],
    ["tools", { tools: [{ type: "function", function: { name: "f" } }] }, "tools"],
    ["a JSON schema", { response_format: { type: "json_object" } }, "response_format"],
    ["an unknown field", { temprature: 1 }, "temprature"],
    ["a token that isn't one", { logit_bias: { 4096: 1 } }, "logit_bias"],
    ["too many alternatives", { logprobs: true, top_logprobs: 21 }, "top_logprobs"],
    ["alternatives without logprobs", { top_logprobs: 2 }, "top_logprobs"],
    ["two limits", { max_completion_tokens: 3 }, "max_tokens"],
    ["an empty stop string", { stop: "" }, "stop[0]"],
    ["more tokens at least than at most", { min_tokens: 25 }, "min_tokens"],
  ];
  test.each(cases)("%s, with a BadRequestError that names the field", async (_, fields, param) => {
    const error = await failure(chat(fields));
    expect(error).toBeInstanceOf(BadRequestError);
    expect([error.status, error.param, error.type]).toEqual([400, param, "invalid_request_error"]);
    expect(error.message).toContain(param);
    expect(error.headers.get("x-request-id")).toStartWith("req-");
    const streamed = await failure(chatChunks(fields));
    expect([streamed.status, streamed.param]).toEqual([400, param]);
  });

  test("an unknown model, with a NotFoundError", async () => {
    const error = await failure(chat({ model: "gpt-4" }));
    expect(error).toBeInstanceOf(NotFoundError);
    expect([error.status, error.param, error.code]).toEqual([404, "model", "model_not_found"]);
  });

  test("a prompt beyond the context, with both numbers", async () => {
    const error = await failure(complete({ prompt: new Array<number>(600).fill(263) }));
    expect(error).toBeInstanceOf(BadRequestError);
    expect([error.code, error.param]).toEqual(["context_length_exceeded", "prompt"]);
    expect(error.message).toContain("512");
    expect(error.message).toContain("600");
    const long = [{ role: "user" as const, content: "wolf ".repeat(800) }];
    expect((await failure(chat({ messages: long }))).code).toBe("context_length_exceeded");
    const fits = await complete({ prompt: new Array<number>(511).fill(263), max_tokens: 10 });
    expect(fits.usage).toMatchObject({ prompt_tokens: 511, completion_tokens: 1 });
  });
});
