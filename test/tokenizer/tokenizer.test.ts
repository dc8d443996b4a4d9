// The tokenizer against the ids of the training tokenizer, against the library it builds on, and on hostile text.

import { describe, expect, test } from "bun:test";
import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers";
import * as fc from "fast-check";
import { defined } from "../../src/base/assert.ts";
import { DuetError, RequestError } from "../../src/base/errors.ts";
import { createTokenizer } from "../../src/tokenizer/tokenizer.ts";
import { byteFallbackJson, fableTokenizer, goldenPrompts, tokenizerConfig, tokenizerJson } from "./fixtures/fable.ts";

const tokenizer = fableTokenizer();
const library = new LibraryTokenizer(tokenizerJson, tokenizerConfig);
const plain = { allowSpecial: false };
const withSpecial = { allowSpecial: true };

/** Text of all of Unicode without lone surrogates, rich in what tokenizers stumble over. */
const anyText = fc
  .array(
    fc.oneof(
      fc.string({ unit: "binary" }),
      fc.string({ unit: "grapheme" }),
      fc.constantFrom(
        " ",
        "\n",
        "\r\n",
        "\u0301",
        "\uFEFF",
        "\u0000",
        "'s",
        "<|user|>",
        "<|",
        "|>",
        "<|endoftext|>",
        "Ġ",
        "é",
      ),
    ),
  )
  .map((parts) => parts.join(""));

test("the golden prompts have the ids that the model was trained with", () => {
  expect(goldenPrompts).toHaveLength(6);
  for (const { prompt, ids } of goldenPrompts) {
    expect(tokenizer.encode(prompt, withSpecial)).toEqual(ids);
    expect(tokenizer.decode(ids, { skipSpecial: false })).toBe(prompt);
  }
});

test("every token's bytes are those that the library decodes", () => {
  expect(tokenizer.vocabularySize).toBe(4096);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const byByte = new Map<number, number>();
  for (let id = 0; id < tokenizer.vocabularySize; id++) {
    const bytes = tokenizer.tokenBytes(id);
    expect(bytes.length).toBeGreaterThan(0);
    expect(decoder.decode(bytes)).toBe(library.decode([id], { clean_up_tokenization_spaces: false }));
    expect(tokenizer.pieceOf(id)).toBe(defined(library.id_to_token(id)));
    if (bytes.length === 1) byByte.set(defined(bytes[0]), id);
  }
  expect(byByte.size).toBe(256);
});

test("a token whose bytes are text encodes to a sequence with the same bytes", () => {
  for (let id = 4; id < tokenizer.vocabularySize; id++) {
    const text = tokenizer.wholeText(id);
    if (text === null) continue;
    const ids = tokenizer.encode(text, plain);
    expect(tokenizer.decode(ids, { skipSpecial: false })).toBe(text);
  }
});

test("arbitrary text comes back, with and without special tokens", () => {
  fc.assert(
    fc.property(anyText, fc.boolean(), (text, allowSpecial) => {
      const ids = tokenizer.encode(text, { allowSpecial });
      expect(tokenizer.decode(ids, { skipSpecial: false })).toBe(text);
    }),
    { numRuns: 500 },
  );
});

test("encoding equals the library's, special tokens included", () => {
  fc.assert(
    fc.property(anyText, (text) => {
      expect(tokenizer.encode(text, withSpecial)).toEqual(library.encode(text).ids);
    }),
    { numRuns: 500 },
  );
});

describe("special tokens", () => {
  test("in a user's text they are text", () => {
    fc.assert(
      fc.property(anyText, (text) => {
        for (const id of tokenizer.encode(text, plain)) expect(tokenizer.isSpecial(id)).toBe(false);
      }),
    );
    const ids = tokenizer.encode("<|user|>", plain);
    expect(ids.length).toBeGreaterThan(1);
    expect(tokenizer.decode(ids, { skipSpecial: true })).toBe("<|user|>");
  });

  test("they are not reached through a vocabulary that takes whole words without merging", () => {
    const preTokenizer = { type: "ByteLevel", add_prefix_space: false, use_regex: false };
    const model = { ...tokenizerJson.model, ignore_merges: true };
    const json = { ...tokenizerJson, model, pre_tokenizer: preTokenizer };
    const whole = createTokenizer({ tokenizerJson: json, tokenizerConfig });
    expect(whole.encode("<|user|>", plain)).not.toContain(1);
    expect(whole.encode("<|user|>", withSpecial)).toEqual([1]);
  });

  test("they are known by content and id", () => {
    expect(tokenizer.specialTokens.map((token) => token.content)).toEqual([
      "<|endoftext|>",
      "<|user|>",
      "<|assistant|>",
      "<|pad|>",
    ]);
    expect(tokenizer.specialTokenId("<|assistant|>")).toBe(2);
    expect(tokenizer.specialTokenId("the")).toBeUndefined();
    expect(tokenizer.isSpecial(3)).toBe(true);
    expect(tokenizer.isSpecial(4)).toBe(false);
    expect(tokenizer.endOfTextIds).toEqual([0]);
    expect(tokenizer.decode([1, 88, 0], { skipSpecial: true })).toBe("T");
  });

  test("they swallow white space where they say so, and ordinary added tokens count everywhere", () => {
    const added = [
      ...tokenizerJson.added_tokens,
      { id: 4096, content: "<end>", special: true, lstrip: true, rstrip: true },
      { id: 4097, content: "<think>", special: false },
    ];
    const extended = createTokenizer({ tokenizerJson: { ...tokenizerJson, added_tokens: added }, tokenizerConfig });
    expect(extended.vocabularySize).toBe(4098);
    const ids = extended.encode("fox \n<end> \twolf", withSpecial);
    expect(ids).toEqual([...extended.encode("fox", plain), 4096, ...extended.encode("wolf", plain)]);
    expect(extended.encode("<think>", plain)).toEqual([4097]);
    expect(extended.isSpecial(4097)).toBe(false);
  });
});

test("segments are pre-tokenised as one text, and special tokens never straddle them", () => {
  const split = [
    { text: "Once up", allowSpecial: true },
    { text: "on a ti", allowSpecial: false },
    { text: "me", allowSpecial: true },
  ];
  expect(tokenizer.encodeSegments(split)).toEqual(tokenizer.encode("Once upon a time", plain));
  const straddling = [
    { text: "<|us", allowSpecial: true },
    { text: "er|>", allowSpecial: true },
  ];
  expect(tokenizer.encodeSegments(straddling)).toEqual(tokenizer.encode("<|user|>", plain));
});

describe("a megabyte of", () => {
  const count = 1_000_000;
  const fill = (unit: string) => unit.repeat(count / new TextEncoder().encode(unit).length);
  const texts: Record<string, string> = {
    "one letter": fill("a"),
    "spaces and a word": `${fill(" ")}fox`,
    "line feeds": fill("\n"),
    "combining marks": fill("\u0301"),
    "one ideograph": fill("中"),
    "one word that merges": fill("the"),
    "beginnings of special tokens": fill("<|"),
    "special tokens": fill("<|user|>"),
  };
  test.each(Object.entries(texts))("%s comes back", (_, text) => {
    const ids = tokenizer.encode(text, plain);
    expect(tokenizer.decode(ids, { skipSpecial: true }) === text).toBe(true);
  });
});

test("ids out of range are the caller's fault, by name", () => {
  for (const [ids, got] of [
    [[5, 4096], "tokens[1]: expected a token id from 0 to 4095, got 4096"],
    [[-1], "tokens[0]: expected a token id from 0 to 4095, got -1"],
    [[1.5], "tokens[0]: expected a token id from 0 to 4095, got 1.5"],
  ] as const) {
    expect(() => tokenizer.decode(ids, { skipSpecial: true })).toThrow(new RequestError(400, got, "tokens"));
  }
  expect(() => tokenizer.checkIds(["fox"], "prompt")).toThrow(
    'prompt[0]: expected a token id from 0 to 4095, got "fox"',
  );
  expect(() => tokenizer.tokenBytes(4096)).toThrow(RequestError);
  expect(() => tokenizer.pieceOf(4096)).toThrow(RequestError);
  expect(() => tokenizer.wholeText(4096)).toThrow(RequestError);
});

describe("vocabulary size", () => {
  test("ids in the padding of the model's vocabulary are valid and have no bytes", () => {
    const padded = createTokenizer({ tokenizerJson, tokenizerConfig, vocabularySize: 4100 });
    expect(padded.vocabularySize).toBe(4100);
    expect(padded.tokenBytes(4099)).toHaveLength(0);
    expect(padded.decode([88, 4099], { skipSpecial: true })).toBe("T");
    expect(() => padded.tokenBytes(4100)).toThrow(RequestError);
  });

  test("a tokenizer with more ids than the model is refused", () => {
    expect(() => createTokenizer({ tokenizerJson, tokenizerConfig, vocabularySize: 4095 })).toThrow(DuetError);
  });
});

describe("byte fallback", () => {
  const json = byteFallbackJson();
  const fallback = createTokenizer({ tokenizerJson: json, tokenizerConfig: { eos_token: { content: "</s>" } } });
  const reference = new LibraryTokenizer(json, { clean_up_tokenization_spaces: false });

  test("encoding and decoding equal the library's, beginning of text included", () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(..."the ina zé中🦊\u0301") }), (text) => {
        const ids = fallback.encode(text, { allowSpecial: true, addSpecial: true });
        expect(ids).toEqual(reference.encode(text).ids);
        expect(fallback.decode(ids, { skipSpecial: true })).toBe(text);
      }),
    );
  });

  test("tokens have their bytes", () => {
    expect(fallback.tokenBytes(3 + 0xc3)).toEqual(Uint8Array.of(0xc3));
    expect(fallback.tokenBytes(defined(fallback.encode("the", plain)[0]))).toEqual(new TextEncoder().encode(" the"));
    expect(fallback.endOfTextIds).toEqual([2]);
  });

  test("a megabyte without any pre-tokeniser comes back", () => {
    const text = "the in".repeat(170_000);
    expect(fallback.decode(fallback.encode(text, plain), { skipSpecial: true }) === text).toBe(true);
  });
});

test("add_bos_token counts where there is no post-processor", () => {
  const config = { ...tokenizerConfig, add_bos_token: true };
  const begun = createTokenizer({ tokenizerJson, tokenizerConfig: config });
  expect(begun.encode("T", { allowSpecial: false, addSpecial: true })).toEqual([0, 88]);
  expect(begun.encode("T", plain)).toEqual([88]);
});

test("an end-of-text token that does not exist is refused", () => {
  const config = { ...tokenizerConfig, eos_token: "<|none|>" };
  expect(() => createTokenizer({ tokenizerJson, tokenizerConfig: config })).toThrow("tokenizer_config.json eos_token");
  expect(() => createTokenizer({ tokenizerJson, tokenizerConfig: [] })).toThrow(DuetError);
});

test("a component that the library lacks is refused as unsupported", () => {
  const json = { ...tokenizerJson, normalizer: { type: "Esperanto" } };
  try {
    createTokenizer({ tokenizerJson: json, tokenizerConfig });
    expect.unreachable();
  } catch (error) {
    expect(error).toBeInstanceOf(DuetError);
    expect((error as DuetError).code).toBe("container_unsupported");
    expect((error as DuetError).message).toContain("Esperanto");
  }
});
