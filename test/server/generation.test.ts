import { describe, expect, test } from "bun:test";
import { RequestError } from "../../src/base/errors.ts";
import { parseFields } from "../../src/server/fields.ts";
import { PLAIN_SAMPLING, planChat, planCompletion } from "../../src/server/generation.ts";
import type { ServedModel } from "../../src/server/generation.ts";
import { chatSchema, completionSchema } from "../../src/server/schema.ts";
import { ASSISTANT_ID, byteTemplate, byteTokenizer, CONTEXT_MAX, END_ID, MODEL, USER_HI, USER_ID } from "./fixture.ts";

const tokenizer = byteTokenizer();
const MODEL_SERVED: ServedModel = {
  name: MODEL,
  tokenizer,
  chatTemplate: byteTemplate(tokenizer),
  contextMax: CONTEXT_MAX,
  defaults: { ...PLAIN_SAMPLING, temperature: 0.7, topK: 40 },
  endTokenIds: [END_ID],
};

const chat = (body: object, model = MODEL_SERVED) =>
  planChat(parseFields(chatSchema, { messages: USER_HI, ...body }), model, "id", 7);
const completion = (body: object, model = MODEL_SERVED) =>
  planCompletion(parseFields(completionSchema, { prompt: "ab", ...body }), model, "id", 7);
const one = (body: object) => completion(body).requests[0]!;

function refusal(run: () => unknown): RequestError {
  try {
    run();
  } catch (error) {
    if (error instanceof RequestError) return error;
    throw error;
  }
  throw new Error("expected a refusal");
}

describe("prompts", () => {
  test("a chat goes through the template", () => {
    expect([...chat({}).requests[0]!.promptTokens]).toEqual([USER_ID, 72, 105, ASSISTANT_ID]);
    expect([...chat({ add_generation_prompt: false }).requests[0]!.promptTokens]).toEqual([USER_ID, 72, 105]);
  });

  test("a chat on a model without a template is refused", () => {
    const error = refusal(() => chat({}, { ...MODEL_SERVED, chatTemplate: null }));
    expect([error.httpStatus, error.param]).toEqual([400, "messages"]);
    expect(error.message).toContain("/v1/completions");
  });

  test("special tokens in text stay text; ids can say them", () => {
    expect([...one({ prompt: "<|end|>" }).promptTokens]).toEqual([...new TextEncoder().encode("<|end|>")]);
    expect([...one({ prompt: [END_ID, 65] }).promptTokens]).toEqual([END_ID, 65]);
  });

  test("many prompts become many requests of one id", () => {
    const { requests, choiceCount } = completion({ prompt: ["a", "bc"], n: 3 });
    expect(requests.map((request) => [request.requestId, request.choiceCount, request.promptTokens.length])).toEqual([
      ["id-0", 3, 1],
      ["id-1", 3, 2],
    ]);
    expect(choiceCount).toBe(3);
    expect(completion({ prompt: [[1], [2, 3]] }).requests.map((request) => [...request.promptTokens])).toEqual([
      [1],
      [2, 3],
    ]);
  });

  test("echo is the prompt's text", () => {
    expect(completion({ prompt: ["hé", [256, 65]], echo: true }).echoes).toEqual(["hé", "<|end|>A"]);
    expect(completion({}).echoes).toBeNull();
  });

  test.each([
    [[65, -1], "prompt[1]: expected a token id from 0 to 259, got -1"],
    [[260], "prompt[0]: expected a token id from 0 to 259, got 260"],
    [[[65], [2 ** 53 - 1]], "prompt[1][0]: expected a token id from 0 to 259, got 9007199254740991"],
  ])("ids outside the vocabulary are refused: %j", (prompt, message) => {
    const error = refusal(() => completion({ prompt }));
    expect(error.message).toBe(message);
  });
});

describe("context", () => {
  const ids = (count: number) => new Array<number>(count).fill(65);

  test("the answer may fill what the prompt leaves", () => {
    expect(one({ prompt: ids(CONTEXT_MAX - 1) }).outputTokenMax).toBe(1);
    expect(one({ prompt: ids(12) }).outputTokenMax).toBe(CONTEXT_MAX - 12);
    expect(one({ prompt: ids(12), max_tokens: 5 }).outputTokenMax).toBe(5);
    expect(one({ prompt: ids(12), max_tokens: 2 ** 31 - 1 }).outputTokenMax).toBe(CONTEXT_MAX - 12);
  });

  test.each([CONTEXT_MAX, CONTEXT_MAX + 1])(
    "a prompt of %d tokens leaves no room, and the message has both numbers",
    (count) => {
      const error = refusal(() => completion({ prompt: ids(count) }));
      expect([error.httpStatus, error.param, error.code]).toEqual([400, "prompt", "context_length_exceeded"]);
      expect(error.message).toContain(`context is ${CONTEXT_MAX} tokens`);
      expect(error.message).toContain(`the prompt has ${count}`);
    },
  );

  test("a chat that is too long names messages", () => {
    const error = refusal(() => chat({ messages: [{ role: "user", content: "x".repeat(CONTEXT_MAX) }] }));
    expect([error.param, error.code]).toEqual(["messages", "context_length_exceeded"]);
  });

  test("an empty prompt is refused", () => {
    expect(refusal(() => completion({ prompt: "" })).message).toBe("prompt: expected at least one token, got none");
  });

  test("min_tokens beyond what the answer may have is refused", () => {
    expect(refusal(() => completion({ max_tokens: 3, min_tokens: 4 })).message).toBe(
      "min_tokens: expected at most the 3 tokens that the answer may have, got 4",
    );
    expect(one({ max_tokens: 4, min_tokens: 4 }).outputTokenMax).toBe(4);
  });
});

describe("end tokens", () => {
  const banned = (body: object) => {
    const { params, stopTokenIds } = one(body);
    return { stops: stopTokenIds, ids: [...params.bannedIds], until: params.bannedUntil };
  };

  test("end an answer, beside the request's own", () => {
    expect(banned({})).toEqual({ stops: [END_ID], ids: [], until: 0 });
    expect(banned({ stop_token_ids: [10, END_ID, 10] })).toEqual({ stops: [END_ID, 10], ids: [], until: 0 });
  });

  test("with ignore_eos they may be sampled and do not end it", () => {
    expect(banned({ ignore_eos: true })).toEqual({ stops: [], ids: [], until: 0 });
    expect(banned({ ignore_eos: true, stop_token_ids: [10, 10] })).toEqual({ stops: [10], ids: [], until: 0 });
  });

  test("with min_tokens they cannot be sampled before so many", () => {
    expect(banned({ min_tokens: 3, stop_token_ids: [10] })).toEqual({
      stops: [END_ID, 10],
      ids: [END_ID, 10],
      until: 5,
    });
  });

  test("min_tokens forbids them under ignore_eos too", () => {
    expect(banned({ min_tokens: 3, ignore_eos: true, stop_token_ids: [10] })).toEqual({
      stops: [10],
      ids: [END_ID, 10],
      until: 5,
    });
  });
});

describe("sampling", () => {
  test("what the request leaves out is the model's", () => {
    const { params } = one({});
    expect([params.temperature, params.topK, params.topP, params.minP, params.repetitionPenalty]).toEqual([
      0.7, 40, 1, 0, 1,
    ]);
    const asked = one({ temperature: 0.3, top_k: -1, top_p: 0.5, min_p: 0.1, repetition_penalty: 1.5 }).params;
    expect([asked.temperature, asked.topK, asked.topP, asked.minP, asked.repetitionPenalty]).toEqual([
      0.3, 0, 0.5, 0.1, 1.5,
    ]);
  });

  test("a temperature too cold to matter is greedy", () => {
    expect(one({ temperature: 1e-30 }).params.temperature).toBe(0);
    expect(one({ temperature: 1e-4 }).params.temperature).toBe(1e-4);
  });

  test.each([0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1])("the seed %d survives its split", (seed) => {
    const generation = completion({ seed });
    const { seedLow, seedHigh } = generation.requests[0]!.params;
    expect(BigInt(seedHigh) * 2n ** 32n + BigInt(seedLow)).toBe(BigInt(seed));
    expect(generation.seed).toBe(seed);
  });

  test("without a seed the drawn one is used and told", () => {
    expect([completion({}).seed, one({}).params.seedLow]).toEqual([7, 7]);
  });

  test("logit_bias", () => {
    const { biasIds, biasValues } = one({ logit_bias: { "5": -100, "259": 1.5 } }).params;
    expect([[...biasIds], [...biasValues]]).toEqual([
      [5, 259],
      [-100, 1.5],
    ]);
    const error = refusal(() => completion({ logit_bias: { "5": 1, "260": 1 } }));
    expect([error.message, error.param]).toEqual([
      "logit_bias.260: expected a token id from 0 to 259, got 260",
      "logit_bias",
    ]);
  });

  test("stop_token_ids outside the vocabulary are refused", () => {
    expect(refusal(() => completion({ stop_token_ids: [1, 260] })).message).toBe(
      "stop_token_ids[1]: expected a token id from 0 to 259, got 260",
    );
  });
});

describe("speculation", () => {
  test.each([
    [{}, "auto", null],
    [{ speculation: { mode: "ngram", max_draft_tokens: 64 } }, "ngram", 64],
    [{ speculation: { mode: "draft", max_draft_tokens: 0 } }, "off", null],
    [{ speculation: { max_draft_tokens: 3 } }, "auto", 3],
  ])("%j", (body, mode, draftTokenMax) => {
    expect([one(body).speculation, one(body).draftTokenMax]).toEqual([mode as never, draftTokenMax]);
  });
});

describe("fields that need or exclude each other", () => {
  test.each([
    [() => chat({ top_logprobs: 2 }), "top_logprobs"],
    [() => chat({ top_logprobs: 2, logprobs: false }), "top_logprobs"],
    [() => chat({ max_tokens: 2, max_completion_tokens: 2 }), "max_tokens"],
    [() => chat({ stream_options: { include_usage: true } }), "stream_options"],
    [() => completion({ echo: true, logprobs: 0 }), "echo"],
    [() => completion({ model: "other" }), "model"],
  ])("%p", (run, param) => {
    expect(refusal(run).param).toBe(param);
  });

  test("an unknown model is a 404 that names both", () => {
    const error = refusal(() => chat({ model: "gpt\0" }));
    expect([error.httpStatus, error.code]).toEqual([404, "model_not_found"]);
    expect(error.message).toBe(`the model "gpt\\u0000" does not exist here; this server has "${MODEL}"`);
  });

  test("logprobs", () => {
    expect(chat({ logprobs: true }).topLogprobs).toBe(0);
    expect(chat({ logprobs: true, top_logprobs: 20 }).requests[0]!.params.topLogprobs).toBe(20);
    expect(chat({}).requests[0]!.params.topLogprobs).toBeNull();
    expect([completion({ logprobs: 0 }).hasLogprobs, completion({}).hasLogprobs]).toEqual([true, false]);
  });
});
