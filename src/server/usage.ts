// What an answer cost, summed over its choices: OpenAI's fields, and beside them drafts and times.

import type { ChoiceUsage } from "../engine/messages.ts";

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
  /** Proposed by a proposer and verified by the target. */
  readonly draft_tokens_proposed: number;
  readonly draft_tokens_accepted: number;
  /** Times of the slowest choice, in ms. */
  readonly queue_ms: number;
  readonly prefill_ms: number;
  readonly decode_ms: number;
}

/** `choiceUsages[p]`: of the choices of prompt p, which has promptTokenCounts[p] tokens. A prompt counts once, whatever its choices. */
export function sumUsage(
  promptTokenCounts: readonly number[],
  choiceUsages: readonly (readonly (ChoiceUsage | null)[])[],
): Usage {
  let cachedTokens = 0;
  let outputTokens = 0;
  let drafted = 0;
  let accepted = 0;
  let queueMs = 0;
  let prefillMs = 0;
  let decodeMs = 0;
  for (const usages of choiceUsages) {
    let cachedOfPrompt = 0;
    for (const usage of usages) {
      if (usage === null) continue;
      cachedOfPrompt = Math.max(cachedOfPrompt, usage.cachedTokenCount);
      outputTokens += usage.outputTokenCount;
      drafted += usage.draftedCount;
      accepted += usage.acceptedCount;
      queueMs = Math.max(queueMs, usage.queueMs);
      prefillMs = Math.max(prefillMs, usage.prefillMs);
      decodeMs = Math.max(decodeMs, usage.decodeMs);
    }
    cachedTokens += cachedOfPrompt;
  }
  const promptTokens = promptTokenCounts.reduce((sum, count) => sum + count, 0);
  return {
    prompt_tokens: promptTokens,
    completion_tokens: outputTokens,
    total_tokens: promptTokens + outputTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
    draft_tokens_proposed: drafted,
    draft_tokens_accepted: accepted,
    queue_ms: roundMs(queueMs),
    prefill_ms: roundMs(prefillMs),
    decode_ms: roundMs(decodeMs),
  };
}

function roundMs(ms: number): number {
  return Math.round(ms * 1000) / 1000;
}
