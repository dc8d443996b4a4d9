// Prompts of a given length: slices of a text, as token ids where the server takes and makes them, or random token ids. Drawing
// only; the text and its tokens come from the caller.

import { assert, defined } from "../base/assert.ts";

export type Prompt = string | readonly number[];

export interface PromptSource {
  /** For the report. */
  readonly description: string;
  draw(tokenCount: number, uniform: () => number): Prompt;
}

const below = (limit: number, uniform: () => number) => Math.floor(uniform() * limit);

/** `count` elements from a random place, going on at the beginning where the list ends. */
function sliceAround<T>(list: readonly T[], count: number, uniform: () => number): T[] {
  const start = below(list.length, uniform);
  return Array.from({ length: count }, (_, i) => defined(list[(start + i) % list.length]));
}

/** Exactly as long as asked. */
export function tokenSlices(tokenIds: readonly number[]): PromptSource {
  assert(tokenIds.length > 0, "a text to draw prompts from has tokens");
  return {
    description: "token ids, slices of the text",
    draw: (tokenCount, uniform) => sliceAround(tokenIds, tokenCount, uniform),
  };
}

/** Uniform over the ids that occur in the text: without knowing the vocabulary, each is valid and none is special. */
export function randomTokens(tokenIds: readonly number[]): PromptSource {
  const distinct = [...new Set(tokenIds)];
  assert(distinct.length > 0, "a text to draw token ids from has tokens");
  return {
    description: `token ids, uniform over ${distinct.length}`,
    draw: (tokenCount, uniform) =>
      Array.from({ length: tokenCount }, () => defined(distinct[below(distinct.length, uniform)])),
  };
}

/** About as long as asked: the server's tokens are known by their mean length only. */
export function textSlices(text: string, charactersPerToken: number): PromptSource {
  assert(text.length > 0 && charactersPerToken > 0, "a text to draw prompts from is not empty");
  return {
    description: `text, ${charactersPerToken.toFixed(2)} characters a token`,
    draw(tokenCount, uniform) {
      const count = Math.max(1, Math.round(tokenCount * charactersPerToken));
      const start = below(text.length, uniform);
      const around = text.slice(start) + text.repeat(Math.ceil(count / text.length));
      // A cut may fall between the halves of a surrogate pair.
      return around.slice(0, count).toWellFormed();
    },
  };
}
