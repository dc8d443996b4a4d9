// Every kind of malformed or foreign tokenizer.json is refused with the right code and the place.

import { describe, expect, test } from "bun:test";
import { DuetError } from "../../src/base/errors.ts";
import type { DuetErrorCode } from "../../src/base/errors.ts";
import { readTokenizerJson } from "../../src/tokenizer/tokenizer-json.ts";
import { byteFallbackJson, tokenizerJson } from "./fixtures/fable.ts";

const model = tokenizerJson.model;
const withModel = (change: object) => ({ ...tokenizerJson, model: { ...model, ...change } });
const withAdded = (change: object) => ({ ...tokenizerJson, added_tokens: [{ id: 5000, content: "<x>", ...change }] });
const withoutByte = Object.fromEntries(Object.entries(model.vocab).filter(([piece]) => piece !== "Ġ"));

const refused: [string, unknown, DuetErrorCode, string][] = [
  ["no object", null, "container_corrupt", "(root)"],
  ["no model", { ...tokenizerJson, model: undefined }, "container_corrupt", "model"],
  ["another kind of model", withModel({ type: "Unigram" }), "container_unsupported", "model.type"],
  [
    "a suffix at word ends",
    withModel({ end_of_word_suffix: "</w>" }),
    "container_unsupported",
    "model.end_of_word_suffix",
  ],
  ["dropout", withModel({ dropout: 0.1 }), "container_unsupported", "model.dropout"],
  ["no vocabulary", withModel({ vocab: null }), "container_corrupt", "model.vocab"],
  ["an empty vocabulary", { ...withModel({ vocab: {} }), added_tokens: [] }, "container_corrupt", "model.vocab"],
  ["a fractional id", withModel({ vocab: { ...model.vocab, zz: 0.5 } }), "container_corrupt", 'model.vocab["zz"]'],
  ["a huge id", withModel({ vocab: { ...model.vocab, zz: 2 ** 40 } }), "container_corrupt", 'model.vocab["zz"]'],
  ["an id used twice", withModel({ vocab: { ...model.vocab, zz: 9 } }), "container_corrupt", 'model.vocab["zz"]'],
  ["a byte without a token", withModel({ vocab: withoutByte }), "container_unsupported", "model.vocab"],
  ["no merges", withModel({ merges: undefined }), "container_corrupt", "model.merges"],
  ["a merge of three", withModel({ merges: ["a b c"] }), "container_corrupt", "model.merges[0]"],
  ["added tokens that are no list", { ...tokenizerJson, added_tokens: {} }, "container_corrupt", "added_tokens"],
  ["an empty added token", withAdded({ content: "" }), "container_corrupt", "added_tokens[0].content"],
  ["an added token on another's id", withAdded({ id: 99 }), "container_corrupt", "added_tokens[0].id"],
  ["whole-word added tokens", withAdded({ single_word: true }), "container_unsupported", "added_tokens[0].single_word"],
  ["another decoder", { ...tokenizerJson, decoder: { type: "CTC" } }, "container_unsupported", "decoder"],
  [
    "another pre-tokeniser",
    { ...tokenizerJson, pre_tokenizer: { type: "Digits" } },
    "container_unsupported",
    "pre_tokenizer",
  ],
];

describe("refuses", () => {
  test.each(refused)("%s", (_, json, code, where) => {
    try {
      readTokenizerJson(json);
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(DuetError);
      expect((error as DuetError).code).toBe(code);
      expect((error as DuetError).detail.where).toBe(`tokenizer.json ${where}`);
    }
  });
});

test("reads both forms of merges and a Sequence of pre-tokenisers", () => {
  const paired = readTokenizerJson(tokenizerJson);
  const joined = readTokenizerJson(withModel({ merges: model.merges.map((merge) => merge.join(" ")) }));
  expect(joined.merges).toEqual(paired.merges);
  expect(paired.idLimit).toBe(4096);
  const sequence = { type: "Sequence", pretokenizers: [{ type: "Digits" }, { type: "ByteLevel", use_regex: false }] };
  expect(readTokenizerJson({ ...tokenizerJson, pre_tokenizer: sequence }).spelling).toEqual({ kind: "byteLevel" });
});

test("reads a byte-fallback vocabulary", () => {
  const parts = readTokenizerJson(byteFallbackJson());
  expect(parts.spelling).toEqual({ kind: "byteFallback", replacements: [["▁", " "]] });
  expect(parts.unknownId).toBe(0);
  expect(parts.stripsLeadingSpace).toBe(true);
});
