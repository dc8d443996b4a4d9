import { expect, test } from "bun:test";
import fc from "fast-check";
import type { ChoiceOutput } from "../../src/engine/messages.ts";
import { TokenSplitter } from "../../src/server/token-splitter.ts";
import { tokensOf } from "./fake-engine.ts";
import { byteTokenizer, END_ID } from "./fixture.ts";

const tokenizer = byteTokenizer();
const output = (tokenIds: number[], text: string): ChoiceOutput => ({
  requestId: "r",
  choiceIndex: 0,
  tokenIds,
  text,
  logprobs: null,
  finishReason: null,
  usage: null,
  stopString: null,
  errorMessage: null,
});

test("each token has its own text", () => {
  expect(new TokenSplitter(tokenizer, false).split(output(tokensOf("abc"), "abc"))).toEqual(["a", "b", "c"]);
});

test("a character of several tokens comes with its last", () => {
  expect(new TokenSplitter(tokenizer, false).split(output(tokensOf("é!😀"), "é!😀"))).toEqual([
    "",
    "é",
    "!",
    "",
    "",
    "",
    "😀",
  ]);
});

test("special tokens have text only where they are kept", () => {
  expect(new TokenSplitter(tokenizer, false).split(output([97, END_ID], "a"))).toEqual(["a", ""]);
  expect(new TokenSplitter(tokenizer, true).split(output([97, END_ID], "a<|end|>"))).toEqual(["a", "<|end|>"]);
});

test("text that a stop string held back comes with a later token", () => {
  const splitter = new TokenSplitter(tokenizer, false);
  expect(splitter.split(output(tokensOf("ab"), ""))).toEqual(["", ""]);
  expect(splitter.split(output(tokensOf("cd"), "abc"))).toEqual(["abc", ""]);
  expect(splitter.split(output(tokensOf("e"), "de"))).toEqual(["de"]);
});

test("an output without tokens is left alone", () => {
  expect(new TokenSplitter(tokenizer, false).split(output([], "rest"))).toEqual([]);
});

test("the parts make up the step's text, however it was held back", () => {
  const steps = fc.array(
    fc.tuple(fc.string({ unit: "grapheme", minLength: 1, maxLength: 6 }), fc.double({ min: 0, max: 1, noNaN: true })),
    { maxLength: 12 },
  );
  fc.assert(
    fc.property(steps, (pieces) => {
      const splitter = new TokenSplitter(tokenizer, false);
      let waiting = "";
      for (const [text, share] of pieces) {
        waiting += text;
        // Code points, as the engine lets them out.
        const points = [...waiting];
        const out = points.slice(0, Math.round(points.length * share)).join("");
        waiting = waiting.slice(out.length);
        const parts = splitter.split(output(tokensOf(text), out));
        expect([parts.length, parts.join("")]).toEqual([tokensOf(text).length, out]);
      }
    }),
  );
});
