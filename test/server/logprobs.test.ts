import { describe, expect, test } from "bun:test";
import type { TokenLogprob } from "../../src/engine/messages.ts";
import { chatLogprobs, codePointCount, completionLogprobs, tokenText } from "../../src/server/logprobs.ts";
import { byteTokenizer, END_ID } from "./fixture.ts";

const tokenizer = byteTokenizer();
const [C3, A9] = [0xc3, 0xa9];

const entry = (tokenId: number, logprob: number, ...top: [number, number][]): TokenLogprob => ({
  tokenId,
  logprob,
  top: top.map(([id, value]) => ({ tokenId: id, logprob: value })),
});

test("a token that is no text by itself is written by its bytes, so that tokens stay distinct", () => {
  expect([tokenText(tokenizer, 65), tokenText(tokenizer, C3), tokenText(tokenizer, END_ID)]).toEqual([
    "A",
    "bytes:\\xc3",
    "<|end|>",
  ]);
  const texts = Array.from({ length: 260 }, (_, id) => tokenText(tokenizer, id));
  expect(new Set(texts).size).toBe(260);
});

test("a code point counts where it begins", () => {
  expect([65, C3, A9, END_ID].map((id) => codePointCount(tokenizer, id))).toEqual([1, 1, 0, 7]);
});

describe("chatLogprobs", () => {
  test("token, logprob, bytes and as many alternatives as asked for", () => {
    const entries = [entry(65, -0.5, [66, -1], [C3, -2]), entry(A9, -3)];
    expect(chatLogprobs(tokenizer, entries, 1)).toEqual([
      { token: "A", logprob: -0.5, bytes: [65], top_logprobs: [{ token: "B", logprob: -1, bytes: [66] }] },
      { token: "bytes:\\xa9", logprob: -3, bytes: [A9], top_logprobs: [] },
    ]);
    expect(chatLogprobs(tokenizer, entries, 0)[0]?.top_logprobs).toEqual([]);
  });

  test("a probability of zero is a number that JSON has", () => {
    const [chosen] = chatLogprobs(tokenizer, [entry(65, -Infinity, [66, -Infinity])], 1);
    expect([chosen?.logprob, chosen?.top_logprobs[0]?.logprob]).toEqual([-9999, -9999]);
  });
});

describe("completionLogprobs", () => {
  test("offsets count code points from where the last chunk ended", () => {
    const entries = [entry(65, -1), entry(C3, -2), entry(A9, -3), entry(66, -4)];
    expect(completionLogprobs(tokenizer, entries, 0, 10)).toEqual({
      tokens: ["A", "bytes:\\xc3", "bytes:\\xa9", "B"],
      token_logprobs: [-1, -2, -3, -4],
      top_logprobs: null,
      text_offset: [10, 11, 12, 12],
    });
  });

  test("the alternatives hold the sampled token too", () => {
    const result = completionLogprobs(
      tokenizer,
      [entry(65, -3, [66, -1], [67, -2]), entry(66, -1, [66, -1], [67, -2])],
      2,
      0,
    );
    expect(result.top_logprobs).toEqual([
      { B: -1, C: -2, A: -3 },
      { B: -1, C: -2 },
    ]);
  });

  test("nothing gives nothing", () => {
    expect(completionLogprobs(tokenizer, [], 3, 0)).toEqual({
      tokens: [],
      token_logprobs: [],
      top_logprobs: [],
      text_offset: [],
    });
  });
});
