// What a body may hold, field by field: the OpenAI fields that this server honours, those that it refuses by name, and its own
// extensions. Ranges that depend on the model (token ids, context) are checked in generation.ts.

import { z } from "zod";
import { TOP_LOGPROBS_MAX } from "../device/sampling.ts";
import { echo, expected, flag, ignored, integer, list, number, optional, text, unsupported } from "./fields.ts";

export const CHOICE_MAX = 8;
export const PROMPT_MAX = 64;
export const STOP_MAX = 16;
const STOP_LENGTH_MAX = 1024;
const STOP_TOKEN_MAX = 64;
const BIAS_MAX = 1024;
const MESSAGE_MAX = 16384;
const DRAFT_TOKEN_MAX = 64;
const TOKEN_ID_MAX = 2 ** 31 - 1;
const COUNT_MAX = 2 ** 31 - 1;
const DEADLINE_MS_MAX = 86_400_000;
/** Beyond this, distributions are flat. Below TEMPERATURE_MIN they have one candidate and count as greedy. */
const TEMPERATURE_MAX = 100;

const isEmptyArray = (value: unknown) => Array.isArray(value) && value.length === 0;
const isOneOf =
  (...values: readonly unknown[]) =>
  (value: unknown) =>
    values.includes(value);

const tokenId = integer(0, TOKEN_ID_MAX);

/** What a transform returns for a value that it does not take. */
function refuse(context: z.RefinementCtx, input: unknown, message: string, path: string[] = []): never {
  context.addIssue({ code: "custom", message, path, input });
  return z.NEVER;
}

/** One string stands for an array of one. */
const stop = z
  .unknown()
  .transform((value) => (typeof value === "string" ? [value] : value))
  .pipe(
    list(
      text(STOP_LENGTH_MAX).refine((value) => value !== "", { error: 'expected a string that is not empty, got ""' }),
      0,
      STOP_MAX,
      "stop strings",
    ),
  );

/** {"<token id>": bias}; ids are checked against the vocabulary later. */
const logitBias = z.unknown().transform((value, context) => {
  const refuseThis = (message: string, path: string[] = []) => refuse(context, value, message, path);
  const what = `an object from token ids to numbers from -100 to 100, with at most ${BIAS_MAX} entries`;
  if (typeof value !== "object" || value === null || Array.isArray(value))
    return refuseThis(`expected ${what}, got ${echo(value)}`);
  const keys = Object.keys(value);
  if (keys.length > BIAS_MAX) return refuseThis(`expected ${what}, got ${keys.length} entries`);
  const entries: [number, number][] = [];
  for (const key of keys) {
    const bias = (value as Record<string, unknown>)[key];
    const shown = key.slice(0, 20);
    if (!/^(0|[1-9]\d{0,9})$/.test(key))
      return refuseThis(`expected a token id as the name of an entry, got ${echo(key)}`, [shown]);
    if (typeof bias !== "number" || !(bias >= -100 && bias <= 100)) {
      return refuseThis(`expected a number from -100 to 100, got ${echo(bias)}`, [shown]);
    }
    entries.push([Number(key), bias]);
  }
  return entries;
});

const streamOptions = z.strictObject(
  {
    include_usage: optional(flag),
    /** Extension: one event for each token, instead of one for what came in 10 ms. */
    event_per_token: optional(flag),
    include_obfuscation: unsupported("false", isOneOf(false)),
  },
  expected("an object"),
);

/** Extension: how drafts are proposed. It never changes the text. */
const speculation = z.strictObject(
  {
    mode: optional(z.enum(["auto", "off", "draft", "ngram"], expected('"auto", "off", "draft" or "ngram"'))),
    max_draft_tokens: optional(integer(0, DRAFT_TOKEN_MAX)),
  },
  expected("an object with mode and max_draft_tokens"),
);

const shared = {
  model: optional(text(256)),
  max_tokens: optional(integer(1, COUNT_MAX)),
  min_tokens: optional(integer(0, COUNT_MAX)),
  n: optional(integer(1, CHOICE_MAX)),
  stream: optional(flag),
  stream_options: optional(streamOptions),
  temperature: optional(number(0, TEMPERATURE_MAX)),
  top_p: optional(number(0, 1)),
  /** 0 and -1: off. */
  top_k: optional(integer(-1, COUNT_MAX)),
  min_p: optional(number(0, 1)),
  repetition_penalty: optional(number(0.1, 10)),
  presence_penalty: optional(number(-2, 2)),
  frequency_penalty: optional(number(-2, 2)),
  logit_bias: optional(logitBias),
  seed: optional(integer(0, Number.MAX_SAFE_INTEGER)),
  stop: optional(stop),
  stop_token_ids: optional(list(tokenId, 0, STOP_TOKEN_MAX, "token ids")),
  ignore_eos: optional(flag),
  skip_special_tokens: optional(flag),
  return_token_ids: optional(flag),
  speculation: optional(speculation),
  /** Extension: milliseconds from arrival after which the answer ends with finish_reason "cancelled". */
  deadline_ms: optional(integer(1, DEADLINE_MS_MAX)),
  user: ignored,
  metadata: ignored,
  safety_identifier: ignored,
  prompt_cache_key: ignored,
  prompt_cache_retention: ignored,
  store: unsupported("false", isOneOf(false)),
  service_tier: unsupported('"auto" or "default"', isOneOf("auto", "default")),
};

const contentPart = z.strictObject(
  {
    type: z.literal("text", expected('"text" (this server takes text parts only)')),
    text: text(),
  },
  expected("an object with type and text"),
);

/** Text, null or parts; always parts afterwards. */
const content = z
  .unknown()
  .transform((value, context) => {
    if (typeof value === "string") return [{ type: "text", text: value }];
    if (value === null) return [];
    if (Array.isArray(value)) return value;
    return refuse(context, value, `expected a string or an array of text parts, got ${echo(value)}`);
  })
  .pipe(list(contentPart, 0, MESSAGE_MAX, "text parts"));

const message = z.strictObject(
  {
    role: text(64),
    content,
    tool_calls: unsupported("an empty array", isEmptyArray),
    function_call: unsupported(),
    tool_call_id: unsupported(),
    name: unsupported(),
    refusal: unsupported(),
    audio: unsupported(),
    annotations: unsupported("an empty array", isEmptyArray),
  },
  expected("an object with role and content"),
);

const messages = list(message, 1, MESSAGE_MAX, "messages");

export const chatSchema = z.strictObject(
  {
    ...shared,
    messages,
    max_completion_tokens: optional(integer(1, COUNT_MAX)),
    logprobs: optional(flag),
    top_logprobs: optional(integer(0, TOP_LOGPROBS_MAX)),
    add_generation_prompt: optional(flag),
    response_format: unsupported('{"type":"text"}', (value) => JSON.stringify(value) === '{"type":"text"}'),
    tools: unsupported("an empty array", isEmptyArray),
    tool_choice: unsupported('"none" or "auto"', isOneOf("none", "auto")),
    parallel_tool_calls: unsupported("true or false", (value) => typeof value === "boolean"),
    functions: unsupported("an empty array", isEmptyArray),
    function_call: unsupported('"none" or "auto"', isOneOf("none", "auto")),
    modalities: unsupported('["text"]', (value) => JSON.stringify(value) === '["text"]'),
    audio: unsupported(),
    prediction: unsupported(),
    reasoning_effort: unsupported('"none"', isOneOf("none")),
    verbosity: unsupported('"medium"', isOneOf("medium")),
    web_search_options: unsupported(),
  },
  expected("an object"),
);

/** A string, an array of strings, an array of token ids or an array of such arrays; always an array of prompts afterwards. */
const prompt = z
  .unknown()
  .transform((value, context): unknown => {
    if (typeof value === "string") return [value];
    if (Array.isArray(value) && value.length > 0) return typeof value[0] === "number" ? [value] : value;
    const what = `a string, token ids, or an array of 1 to ${PROMPT_MAX} of either`;
    return refuse(context, value, `expected ${what}, got ${echo(value)}`);
  })
  .pipe(
    list(
      z.unknown().transform((item, context): string | readonly number[] => {
        if (typeof item === "string") {
          return item.isWellFormed() ? item : refuse(context, item, "expected Unicode text, got an unpaired surrogate");
        }
        const isList = Array.isArray(item) && item.length > 0;
        const wrongIndex = isList ? item.findIndex((id) => !Number.isSafeInteger(id)) : -1;
        if (isList && wrongIndex < 0) return item;
        const got = echo(isList ? item[wrongIndex] : item);
        return refuse(context, item, `expected a string or an array of one or more integers, got ${got}`);
      }),
      1,
      PROMPT_MAX,
      "prompts",
    ),
  );

export const completionSchema = z.strictObject(
  {
    ...shared,
    prompt,
    echo: optional(flag),
    logprobs: optional(integer(0, TOP_LOGPROBS_MAX)),
    add_special_tokens: optional(flag),
    best_of: unsupported("1", isOneOf(1)),
    suffix: unsupported('""', isOneOf("")),
  },
  expected("an object"),
);

export const tokenizeSchema = z.strictObject(
  {
    model: optional(text(256)),
    prompt: optional(text()),
    messages: optional(messages),
    add_special_tokens: optional(flag),
    add_generation_prompt: optional(flag),
    return_token_strs: optional(flag),
  },
  expected("an object"),
);

export const detokenizeSchema = z.strictObject(
  {
    model: optional(text(256)),
    tokens: list(z.unknown(), 0, Infinity, "token ids"),
  },
  expected("an object"),
);

export type ChatBody = z.output<typeof chatSchema>;
export type CompletionBody = z.output<typeof completionSchema>;
