// One event per token: shares a step's text among its tokens. Stop strings hold text back, so that a token's own text may come with
// a later one; the concatenation is always the step's text.

import type { ChoiceOutput } from "../engine/messages.ts";
import { Detokenizer } from "../tokenizer/detokenizer.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

export class TokenSplitter {
  readonly #detokenizer: Detokenizer;
  /** Code units that the tokens so far stand for, and that the engine has let out. */
  #decodedLength = 0;
  #emittedLength = 0;

  constructor(tokenizer: Tokenizer, keepSpecial: boolean) {
    this.#detokenizer = new Detokenizer(tokenizer, { keepSpecial });
  }

  /** The text of each of the output's tokens, the last one with all that is left. Empty when there are no tokens. */
  split(output: ChoiceOutput): string[] {
    const { tokenIds, text } = output;
    const start = this.#emittedLength;
    let cut = 0;
    const texts = tokenIds.map((id, i) => {
      this.#decodedLength += this.#detokenizer.push(id).length;
      const from = cut;
      const isLast = i === tokenIds.length - 1;
      cut = isLast ? text.length : Math.min(text.length, Math.max(cut, this.#decodedLength - start));
      return text.slice(from, cut);
    });
    this.#emittedLength = start + text.length;
    return texts;
  }
}
