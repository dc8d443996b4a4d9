// From a checked body to what the engine takes: prompts become token ids, defaults are filled in, and what depends on the model
// (context, vocabulary) is checked. Pure apart from the identifier and the seed, which the caller hands in.

import { RequestError } from "../base/errors.ts";
import type { SamplingParams } from "../device/sampling.ts";
import type { EngineRequest } from "../engine/messages.ts";
import type { ChatTemplate } from "../tokenizer/chat-template.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { ChatBody, CompletionBody } from "./schema.ts";

/** Sampling when the request does not say: the model's own recommendation. */
export interface SamplingDefaults {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
}

export const PLAIN_SAMPLING: SamplingDefaults = { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 };

/** What a model offers to the routes. */
export interface ServedModel {
  readonly name: string;
  readonly tokenizer: Tokenizer;
  /** null: the model has no chat template. */
  readonly chatTemplate: ChatTemplate | null;
  readonly contextMax: number;
  readonly defaults: SamplingDefaults;
  /** Tokens that end an answer. */
  readonly endTokenIds: readonly number[];
}

/** One call: one engine request for each prompt, and how the answer is to look. */
export interface Generation {
  readonly id: string;
  readonly seed: number;
  readonly requests: readonly EngineRequest[];
  /** Choices of each prompt; choice c of prompt p has the index p × choiceCount + c. */
  readonly choiceCount: number;
  readonly isStream: boolean;
  readonly includesUsage: boolean;
  readonly isEventPerToken: boolean;
  readonly returnsTokenIds: boolean;
  readonly hasLogprobs: boolean;
  /** Alternatives asked for with each token. */
  readonly topLogprobs: number;
  /** Text in front of each prompt's answers (echo); null: none. */
  readonly echoes: readonly string[] | null;
}

/** Distributions colder than this have one candidate. */
export const TEMPERATURE_MIN = 1e-4;
const TWO_32 = 2 ** 32;

/** Throws RequestError 404, as OpenAI does for models that are not there. */
export function checkModel(name: string | undefined, model: ServedModel): void {
  if (name === undefined || name === model.name) return;
  throw new RequestError(
    404,
    `the model ${JSON.stringify(name.slice(0, 100))} does not exist here; this server has ${JSON.stringify(model.name)}`,
    "model",
    "model_not_found",
  );
}

/** Token ids of a chat. Throws RequestError 400. */
export function chatPrompt(messages: ChatBody["messages"], addGenerationPrompt: boolean, model: ServedModel): number[] {
  if (model.chatTemplate === null) {
    throw new RequestError(400, `the model ${model.name} has no chat template; use /v1/completions`, "messages");
  }
  return model.chatTemplate.encodeChat(messages, { addGenerationPrompt });
}

export function planChat(body: ChatBody, model: ServedModel, id: string, drawnSeed: number): Generation {
  checkModel(body.model, model);
  if (body.top_logprobs !== undefined && body.logprobs !== true) {
    throw new RequestError(400, "top_logprobs: expected logprobs to be true beside it", "top_logprobs");
  }
  if (body.max_tokens !== undefined && body.max_completion_tokens !== undefined) {
    throw new RequestError(
      400,
      "max_tokens: expected one of max_tokens and max_completion_tokens, got both",
      "max_tokens",
    );
  }
  const prompt = chatPrompt(body.messages, body.add_generation_prompt ?? true, model);
  const tokenMax = body.max_completion_tokens ?? body.max_tokens;
  const topLogprobs = body.logprobs === true ? (body.top_logprobs ?? 0) : null;
  return plan(body, [prompt], "messages", tokenMax, topLogprobs, null, model, id, drawnSeed);
}

export function planCompletion(body: CompletionBody, model: ServedModel, id: string, drawnSeed: number): Generation {
  checkModel(body.model, model);
  if (body.echo === true && body.logprobs !== undefined) {
    throw new RequestError(400, "echo: not supported together with logprobs; the prompt's are not computed", "echo");
  }
  const { tokenizer } = model;
  const prompts = body.prompt.map((prompt, i) => {
    if (typeof prompt === "string") {
      return tokenizer.encode(prompt, { allowSpecial: false, addSpecial: body.add_special_tokens ?? true });
    }
    tokenizer.checkIds(prompt, body.prompt.length === 1 ? "prompt" : `prompt[${i}]`);
    return prompt;
  });
  const echoes = body.echo === true ? prompts.map((ids) => tokenizer.decode(ids, { skipSpecial: false })) : null;
  return plan(body, prompts, "prompt", body.max_tokens, body.logprobs ?? null, echoes, model, id, drawnSeed);
}

function plan(
  body: ChatBody | CompletionBody,
  prompts: readonly (readonly number[])[],
  param: string,
  tokenMax: number | undefined,
  topLogprobs: number | null,
  echoes: readonly string[] | null,
  model: ServedModel,
  id: string,
  drawnSeed: number,
): Generation {
  if (body.stream !== true && body.stream_options !== undefined) {
    throw new RequestError(400, "stream_options: expected stream to be true beside it", "stream_options");
  }
  const { tokenizer, contextMax } = model;
  const extraStops = body.stop_token_ids ?? [];
  tokenizer.checkIds(extraStops, "stop_token_ids");
  const biasIds = body.logit_bias?.map(([tokenId]) => tokenId) ?? [];
  const wrongId = biasIds.find((tokenId) => tokenId >= tokenizer.vocabularySize);
  if (wrongId !== undefined) {
    const message = `logit_bias.${wrongId}: expected a token id from 0 to ${tokenizer.vocabularySize - 1}, got ${wrongId}`;
    throw new RequestError(400, message, "logit_bias", "invalid_value");
  }

  const seed = body.seed ?? drawnSeed;
  const endTokenIds = [...new Set([...model.endTokenIds, ...extraStops])];
  const stopTokenIds = body.ignore_eos === true ? [...new Set(extraStops)] : endTokenIds;
  const draftTokenMax = body.speculation?.max_draft_tokens ?? null;
  const params = {
    ...samplingParams(body, model.defaults),
    seedLow: seed % TWO_32,
    seedHigh: Math.floor(seed / TWO_32),
    biasIds: Int32Array.from(biasIds),
    biasValues: Float32Array.from(body.logit_bias ?? [], ([, bias]) => bias),
    topLogprobs,
  };

  const requests = prompts.map((prompt, i): EngineRequest => {
    const outputTokenMax = checkContext(prompt.length, tokenMax, contextMax, param);
    const minTokens = body.min_tokens ?? 0;
    if (minTokens > outputTokenMax) {
      throw new RequestError(
        400,
        `min_tokens: expected at most the ${outputTokenMax} tokens that the answer may have, got ${minTokens}`,
        "min_tokens",
      );
    }
    return {
      requestId: `${id}-${i}`,
      promptTokens: Int32Array.from(prompt),
      choiceCount: body.n ?? 1,
      params: { ...params, ...bannedTokens(minTokens, prompt.length, endTokenIds) },
      outputTokenMax,
      stopTokenIds,
      stopStrings: body.stop ?? [],
      speculation: draftTokenMax === 0 ? "off" : (body.speculation?.mode ?? "auto"),
      draftTokenMax: draftTokenMax === 0 ? null : draftTokenMax,
      deadlineMs: body.deadline_ms ?? null,
      priority: 0,
      keepSpecialTokens: body.skip_special_tokens === false,
    };
  });

  return {
    id,
    seed,
    requests,
    choiceCount: body.n ?? 1,
    isStream: body.stream === true,
    includesUsage: body.stream_options?.include_usage === true,
    isEventPerToken: body.stream_options?.event_per_token === true,
    returnsTokenIds: body.return_token_ids === true,
    hasLogprobs: topLogprobs !== null,
    topLogprobs: topLogprobs ?? 0,
    echoes,
  };
}

type StaticParams = Pick<
  SamplingParams,
  "temperature" | "topK" | "topP" | "minP" | "repetitionPenalty" | "presencePenalty" | "frequencyPenalty"
>;

function samplingParams(body: ChatBody | CompletionBody, defaults: SamplingDefaults): StaticParams {
  const temperature = body.temperature ?? defaults.temperature;
  return {
    temperature: temperature < TEMPERATURE_MIN ? 0 : temperature,
    topK: Math.max(0, body.top_k ?? defaults.topK),
    topP: body.top_p ?? defaults.topP,
    minP: body.min_p ?? defaults.minP,
    repetitionPenalty: body.repetition_penalty ?? defaults.repetitionPenalty,
    presencePenalty: body.presence_penalty ?? 0,
    frequencyPenalty: body.frequency_penalty ?? 0,
  };
}

/** min_tokens forbids the model's end tokens and stop_token_ids for so many tokens, also where ignore_eos lets them pass later. */
function bannedTokens(
  minTokens: number,
  promptTokenCount: number,
  endTokenIds: readonly number[],
): Pick<SamplingParams, "bannedIds" | "bannedUntil"> {
  if (minTokens === 0) return { bannedIds: new Int32Array(0), bannedUntil: 0 };
  return { bannedIds: Int32Array.from(endTokenIds), bannedUntil: promptTokenCount + minTokens };
}

/** Output tokens that fit after the prompt, at most tokenMax. Throws RequestError 400 when none does. */
function checkContext(
  promptTokenCount: number,
  tokenMax: number | undefined,
  contextMax: number,
  param: string,
): number {
  if (promptTokenCount === 0) throw new RequestError(400, `${param}: expected at least one token, got none`, param);
  const room = contextMax - promptTokenCount;
  if (room < 1) {
    throw new RequestError(
      400,
      `${param}: this model's context is ${contextMax} tokens, and the prompt has ${promptTokenCount}; ` +
        `expected a prompt of at most ${contextMax - 1} tokens`,
      param,
      "context_length_exceeded",
    );
  }
  return Math.min(tokenMax ?? room, room);
}
