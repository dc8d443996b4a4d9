// What a step's target tokens become: they join their sequence until one ends it, and turn into text, logprobs and a finish
// reason. Changes the sequence's tokens, text and counts, nothing else.

import { TOP_LOGPROBS_MAX, type SampleResult } from "../device/sampling.ts";
import type { ChoiceOutput, FinishReason, TokenLogprob, TopLogprob } from "./messages.ts";
import type { Sequence } from "./sequence.ts";

/** Appends the result's tokens to the sequence, up to the one that ends it, and says what that emits. */
export function emitTokens(sequence: Sequence, result: SampleResult, nowMs: number): ChoiceOutput {
  if (Number.isNaN(sequence.firstTokenMs)) sequence.firstTokenMs = nowMs;
  const { topLogprobs } = sequence.params;
  const tokenIds: number[] = [];
  const logprobs: TokenLogprob[] | null = topLogprobs === null ? null : [];
  let finishReason: FinishReason | null = null;
  for (let row = 0; row < result.emittedCount && finishReason === null; row++) {
    const tokenId = result.tokens[row]!;
    sequence.append(tokenId);
    tokenIds.push(tokenId);
    logprobs?.push(readLogprob(result, row, topLogprobs ?? 0));
    finishReason = finishOf(sequence, tokenId);
  }
  sequence.acceptedCount += Math.min(result.emittedCount - 1, tokenIds.length);
  if (finishReason !== null) {
    sequence.text.finish();
    // What the decoder held back may have completed a stop string.
    if (sequence.text.stopString !== null) finishReason = "stop";
  }
  return createOutput(sequence, tokenIds, logprobs, finishReason, null, nowMs);
}

/** The last output of a sequence that ends without a token: cancelled, or failed. */
export function endOutput(
  sequence: Sequence,
  reason: FinishReason,
  message: string | null,
  nowMs: number,
): ChoiceOutput {
  sequence.text.finish();
  return createOutput(sequence, [], null, reason, message, nowMs);
}

/** Whether the token just appended ends its sequence. Its text joins the sequence's unless it is a stop token. */
function finishOf(sequence: Sequence, tokenId: number): FinishReason | null {
  if (sequence.owner.request.stopTokenIds.includes(tokenId)) return "stop";
  if (sequence.text.push(tokenId)) return "stop";
  return sequence.tokenCount === sequence.tokenMax ? "length" : null;
}

function readLogprob(result: SampleResult, row: number, topCount: number): TokenLogprob {
  const top: TopLogprob[] = [];
  for (let i = row * TOP_LOGPROBS_MAX; i < row * TOP_LOGPROBS_MAX + topCount; i++) {
    top.push({ tokenId: result.topIds[i]!, logprob: result.topLogprobs[i]! });
  }
  return { tokenId: result.tokens[row]!, logprob: result.logprobs[row]!, top };
}

function createOutput(
  sequence: Sequence,
  tokenIds: readonly number[],
  logprobs: readonly TokenLogprob[] | null,
  finishReason: FinishReason | null,
  errorMessage: string | null,
  nowMs: number,
): ChoiceOutput {
  return {
    requestId: sequence.owner.request.requestId,
    choiceIndex: sequence.choiceIndex,
    tokenIds,
    text: sequence.text.take(),
    logprobs,
    finishReason,
    usage: finishReason === null ? null : sequence.usage(nowMs),
    stopString: sequence.text.stopString,
    errorMessage,
  };
}
