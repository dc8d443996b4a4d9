// What the main thread needs of a container besides its weights: tokenizer, chat template and the model's recommended sampling.

import { DuetError } from "../base/errors.ts";
import type { SamplingDefaults } from "../server/generation.ts";
import { ChatTemplate, chatTemplateSource } from "../tokenizer/chat-template.ts";
import { createTokenizer } from "../tokenizer/tokenizer.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { Container } from "../weights/header.ts";

export interface ServedText {
  readonly tokenizer: Tokenizer;
  /** null: the model has none. */
  readonly chatTemplate: ChatTemplate | null;
  readonly defaults: Partial<SamplingDefaults>;
}

function parseJson(text: string, name: string, container: Container): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new DuetError("container_corrupt", `${name} in the container is not JSON`, {
      where: container.path,
      got: error instanceof Error ? error.message : String(error),
      next: "pack the model again",
    });
  }
}

const SAMPLING_KEYS: Readonly<Record<keyof SamplingDefaults, string>> = {
  temperature: "temperature",
  topK: "top_k",
  topP: "top_p",
  minP: "min_p",
  repetitionPenalty: "repetition_penalty",
};

/** The sampling that generation_config.json recommends; `do_sample: false` means greedy. */
export function samplingDefaults(generationConfig: unknown): Partial<SamplingDefaults> {
  const config = (generationConfig ?? {}) as Record<string, unknown>;
  const entries = Object.entries(SAMPLING_KEYS)
    .map(([name, key]) => [name, config[key]] as const)
    .filter((entry): entry is readonly [string, number] => typeof entry[1] === "number");
  const defaults: Partial<SamplingDefaults> = Object.fromEntries(entries);
  return config.do_sample === false ? { ...defaults, temperature: 0 } : defaults;
}

export function openServedText(container: Container): ServedText {
  const { tokenizer: files, shape } = container.header;
  const tokenizerConfig = parseJson(files.tokenizerConfigJson, "tokenizer_config.json", container);
  const tokenizer = createTokenizer({
    tokenizerJson: parseJson(files.tokenizerJson, "tokenizer.json", container),
    tokenizerConfig,
    vocabularySize: shape.vocabularySize,
  });
  const source = chatTemplateSource(tokenizerConfig);
  return {
    tokenizer,
    chatTemplate: source === null ? null : new ChatTemplate({ source, tokenizer }),
    defaults: samplingDefaults(parseJson(files.generationConfigJson, "generation_config.json", container)),
  };
}
