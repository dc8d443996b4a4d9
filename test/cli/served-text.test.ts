import { expect, test } from "bun:test";
import { openServedText, samplingDefaults } from "../../src/cli/served-text.ts";
import { SHIPPED_CONTAINER } from "../../src/config.ts";
import { readContainer } from "../../src/weights/container.ts";

test("generation_config.json becomes sampling defaults; do_sample false is greedy", () => {
  expect(samplingDefaults({ temperature: 0.7, top_k: 50, max_new_tokens: 9 })).toEqual({ temperature: 0.7, topK: 50 });
  expect(samplingDefaults({ temperature: 0.7, do_sample: false })).toEqual({ temperature: 0 });
  expect(samplingDefaults(null)).toEqual({});
});

test("the shipped model brings tokenizer, chat template and defaults", () => {
  const text = openServedText(readContainer(SHIPPED_CONTAINER));
  expect(text.tokenizer.vocabularySize).toBe(4096);
  expect(text.defaults).toEqual({ temperature: 0.7, topK: 50, topP: 0.95, repetitionPenalty: 1.05 });
  const ids = text.chatTemplate?.encodeChat([{ role: "user", content: "Hello" }], { addGenerationPrompt: true });
  expect(ids?.[0]).toBe(text.tokenizer.specialTokenId("<|user|>"));
});
