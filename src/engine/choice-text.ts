// The text of one choice as its tokens arrive: whole code points, with stop strings held back and cut.

import type { StopMatcher } from "../tokenizer/stop-strings.ts";

/** Tokens to text; what tokenizer/detokenizer.ts does. */
export interface TokenDecoder {
  push(tokenId: number): string;
  flush(): string;
}

export class ChoiceText {
  /** The stop string that ended the text. */
  stopString: string | null = null;
  #pending = "";

  constructor(
    private readonly decoder: TokenDecoder,
    private readonly matcher: StopMatcher | null,
  ) {}

  /** Takes the next token; true when a stop string is complete. */
  push(tokenId: number): boolean {
    const text = this.decoder.push(tokenId);
    if (this.matcher === null) {
      this.#pending += text;
      return false;
    }
    if (text === "") return false;
    const result = this.matcher.push(text);
    this.#pending += result.text;
    if (result.stopped) this.stopString = this.matcher.stopString;
    return result.stopped;
  }

  /** The end of the output, unless a stop string ended it: what was held back comes out. */
  finish(): void {
    if (this.stopString !== null) return;
    const rest = this.decoder.flush();
    if (this.matcher === null) {
      this.#pending += rest;
      return;
    }
    const result = this.matcher.push(rest);
    this.#pending += result.text;
    if (result.stopped) this.stopString = this.matcher.stopString;
    else this.#pending += this.matcher.flush();
  }

  /** What has come out since the last call. */
  take(): string {
    const text = this.#pending;
    this.#pending = "";
    return text;
  }
}
