// Log probabilities in the two shapes of OpenAI's API. A token whose bytes are not UTF-8 by themselves is written as
// "bytes:\xNN…", as OpenAI writes it, so that tokens stay distinct.

import type { TokenLogprob } from "../engine/messages.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

export interface ChatTopLogprob {
  readonly token: string;
  readonly logprob: number;
  readonly bytes: readonly number[];
}

export interface ChatLogprob extends ChatTopLogprob {
  readonly top_logprobs: readonly ChatTopLogprob[];
}

export interface CompletionLogprobs {
  readonly tokens: string[];
  readonly token_logprobs: number[];
  readonly top_logprobs: Record<string, number>[] | null;
  readonly text_offset: number[];
}

/** A number that JSON can carry: a probability of zero is -9999, as OpenAI has it. */
const LOGPROB_MIN = -9999;

export function tokenText(tokenizer: Tokenizer, tokenId: number): string {
  const whole = tokenizer.wholeText(tokenId);
  if (whole !== null) return whole;
  const bytes = Array.from(tokenizer.tokenBytes(tokenId), (byte) => `\\x${byte.toString(16).padStart(2, "0")}`);
  return `bytes:${bytes.join("")}`;
}

function finite(logprob: number): number {
  return Math.max(LOGPROB_MIN, logprob);
}

function chatEntry(tokenizer: Tokenizer, tokenId: number, logprob: number): ChatTopLogprob {
  return {
    token: tokenText(tokenizer, tokenId),
    logprob: finite(logprob),
    bytes: [...tokenizer.tokenBytes(tokenId)],
  };
}

/** `content` of a chat choice's logprobs; at most topCount alternatives a token. */
export function chatLogprobs(tokenizer: Tokenizer, entries: readonly TokenLogprob[], topCount: number): ChatLogprob[] {
  return entries.map((entry) => ({
    ...chatEntry(tokenizer, entry.tokenId, entry.logprob),
    top_logprobs: entry.top.slice(0, topCount).map((top) => chatEntry(tokenizer, top.tokenId, top.logprob)),
  }));
}

/**
 * A completion choice's logprobs. text_offset counts code points from textOffset on; the alternatives hold the sampled token
 * too, so that there may be topCount + 1.
 */
export function completionLogprobs(
  tokenizer: Tokenizer,
  entries: readonly TokenLogprob[],
  topCount: number,
  textOffset: number,
): CompletionLogprobs {
  const result: CompletionLogprobs = {
    tokens: [],
    token_logprobs: [],
    top_logprobs: topCount > 0 ? [] : null,
    text_offset: [],
  };
  let offset = textOffset;
  for (const entry of entries) {
    const token = tokenText(tokenizer, entry.tokenId);
    result.tokens.push(token);
    result.token_logprobs.push(finite(entry.logprob));
    result.text_offset.push(offset);
    offset += codePointCount(tokenizer, entry.tokenId);
    if (result.top_logprobs === null) continue;
    const pairs = entry.top.slice(0, topCount).map((top) => [tokenText(tokenizer, top.tokenId), finite(top.logprob)]);
    pairs.push([token, finite(entry.logprob)]);
    result.top_logprobs.push(Object.fromEntries(pairs) as Record<string, number>);
  }
  return result;
}

/** Code points that the token adds to the text: those that begin in it. */
export function codePointCount(tokenizer: Tokenizer, tokenId: number): number {
  let count = 0;
  for (const byte of tokenizer.tokenBytes(tokenId)) if ((byte & 0xc0) !== 0x80) count++;
  return count;
}
