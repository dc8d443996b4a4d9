import { describe, expect, test } from "bun:test";
import { ChatFormat, CompletionFormat, emptyPiece } from "../../src/server/format.ts";
import type { Piece } from "../../src/server/format.ts";
import { sumUsage } from "../../src/server/usage.ts";
import type { Generation } from "../../src/server/generation.ts";
import { FAKE_USAGE, tokensOf } from "./fake-engine.ts";
import { byteTokenizer } from "./fixture.ts";

const tokenizer = byteTokenizer();
const HEAD = { id: "id-1", created: 12, model: "m", system_fingerprint: "duet-1", seed: 5 };
const USAGE = sumUsage([3], [[FAKE_USAGE]]);
const PLAIN: Generation = {
  id: "id-1",
  seed: 5,
  requests: [
    { promptTokens: Int32Array.of(1, 2) },
    { promptTokens: Int32Array.of(3) },
  ] as unknown as Generation["requests"],
  choiceCount: 2,
  isStream: false,
  includesUsage: false,
  isEventPerToken: false,
  returnsTokenIds: false,
  hasLogprobs: false,
  topLogprobs: 0,
  echoes: null,
};

const chat = (changes: Partial<Generation> = {}) => new ChatFormat(tokenizer, { ...PLAIN, ...changes }, HEAD);
const completion = (changes: Partial<Generation> = {}) =>
  new CompletionFormat(tokenizer, { ...PLAIN, ...changes }, HEAD);
const piece = (text: string, changes: Partial<Piece> = {}): Piece => ({
  ...emptyPiece(),
  text,
  tokenIds: tokensOf(text),
  logprobs: tokensOf(text).map((tokenId) => ({ tokenId, logprob: -1, top: [{ tokenId: 90, logprob: -2 }] })),
  ...changes,
});

describe("chat", () => {
  test("whole", () => {
    expect(chat().whole([piece("Hi", { finishReason: "stop", stopString: "\n" })], USAGE)).toEqual({
      ...HEAD,
      object: "chat.completion",
      choices: [
        {
          index: 0,
          message: { role: "assistant", content: "Hi", refusal: null },
          logprobs: null,
          finish_reason: "stop",
          stop_reason: "\n",
        },
      ],
      usage: USAGE,
    });
  });

  test("a stream opens with the role, goes on with content, ends with an empty delta", () => {
    const format = chat();
    const base = { ...HEAD, object: "chat.completion.chunk" };
    expect(format.opening(1)).toEqual({
      ...base,
      choices: [{ index: 1, delta: { role: "assistant", content: "" }, logprobs: null, finish_reason: null }],
    });
    expect(format.chunk(1, piece("a"))).toEqual({
      ...base,
      choices: [{ index: 1, delta: { content: "a" }, logprobs: null, finish_reason: null }],
    });
    expect(format.chunk(1, piece("", { finishReason: "length" }))).toEqual({
      ...base,
      choices: [{ index: 1, delta: {}, logprobs: null, finish_reason: "length" }],
    });
  });

  test("with usage every chunk has null but the last, which has no choices", () => {
    const format = chat({ includesUsage: true });
    expect([format.opening(0)?.["usage"], format.chunk(0, piece("a"))["usage"]]).toEqual([null, null]);
    expect(format.usageChunk(USAGE)).toMatchObject({ choices: [], usage: USAGE, object: "chat.completion.chunk" });
    expect("usage" in chat().chunk(0, piece("a"))).toBe(false);
  });

  test("logprobs", () => {
    const { choices } = chat({ hasLogprobs: true, topLogprobs: 1 }).whole([piece("a")], USAGE) as {
      choices: { logprobs: unknown }[];
    };
    expect(choices[0]?.logprobs).toEqual({
      content: [{ token: "a", logprob: -1, bytes: [97], top_logprobs: [{ token: "Z", logprob: -2, bytes: [90] }] }],
      refusal: null,
    });
  });
});

describe("completions", () => {
  test("whole, with echo in front of each prompt's choices", () => {
    const whole = completion({ echoes: ["one ", "two "] }).whole(
      ["a", "b", "c", "d"].map((text) => piece(text)),
      USAGE,
    );
    expect(whole["object"]).toBe("text_completion");
    expect((whole["choices"] as { index: number; text: string }[]).map(({ index, text }) => [index, text])).toEqual([
      [0, "one a"],
      [1, "one b"],
      [2, "two c"],
      [3, "two d"],
    ]);
  });

  test("a stream opens with nothing but the echo", () => {
    expect(completion().opening(0)).toBeNull();
    expect(completion({ echoes: ["one ", "two "] }).opening(3)).toMatchObject({
      choices: [{ index: 3, text: "two ", finish_reason: null }],
    });
  });

  test("text_offset goes on from chunk to chunk, for each choice by itself", () => {
    const format = completion({ hasLogprobs: true });
    const offsets = (index: number, text: string) =>
      (format.chunk(index, piece(text)) as { choices: { logprobs: { text_offset: number[] } }[] }).choices[0]?.logprobs
        .text_offset;
    expect([offsets(0, "ab"), offsets(1, "xyz"), offsets(0, "c"), offsets(1, "é"), offsets(1, "w")]).toEqual([
      [0, 1],
      [0, 1, 2],
      [2],
      [3, 4],
      [4],
    ]);
  });
});

test("token ids: the prompt's with the opening or the whole, the choice's with each piece", () => {
  for (const make of [chat, completion]) {
    const format = make({ returnsTokenIds: true });
    expect(format.opening(1)).toMatchObject({ choices: [{ token_ids: [], prompt_token_ids: [1, 2] }] });
    expect(format.opening(2)).toMatchObject({ choices: [{ prompt_token_ids: [3] }] });
    expect(format.chunk(2, piece("ab"))).toMatchObject({ choices: [{ token_ids: [97, 98] }] });
    const whole = format.whole([piece("a"), piece("b"), piece("c"), piece("d")], USAGE);
    expect(whole).toMatchObject({
      choices: [
        { token_ids: [97], prompt_token_ids: [1, 2] },
        { token_ids: [98], prompt_token_ids: [1, 2] },
        { token_ids: [99], prompt_token_ids: [3] },
        { token_ids: [100], prompt_token_ids: [3] },
      ],
    });
  }
});
