// Incremental detokenising: tokens in, whole code points out. A token may end in the middle of a character; its bytes
// are held back until the rest arrives. The concatenation of all pushes and the flush equals the decoding of all bytes
// at once with replacement as the WHATWG Encoding Standard defines it. It knows nothing of stop strings.

import type { Tokenizer } from "./tokenizer.ts";

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
/** A UTF-8 sequence that is not complete has at most 3 bytes. */
const HELD_BYTES_MAX = 3;

export interface DetokenizerOptions {
  /** Whether special tokens appear as their text. Default false: they are skipped. */
  readonly keepSpecial?: boolean;
}

/** The output of one choice. As a continuation of its prompt: a leading space of the first token is kept. */
export class Detokenizer {
  readonly #tokenizer: Tokenizer;
  readonly #keepSpecial: boolean;
  readonly #held = new Uint8Array(HELD_BYTES_MAX);
  #heldCount = 0;

  constructor(tokenizer: Tokenizer, options: DetokenizerOptions = {}) {
    this.#tokenizer = tokenizer;
    this.#keepSpecial = options.keepSpecial ?? false;
  }

  /** The text that token `id` completes, perhaps empty. Throws RequestError 400 for an id out of range. */
  push(id: number): string {
    if (!this.#keepSpecial && this.#tokenizer.isSpecial(id)) return "";
    if (this.#heldCount === 0) {
      const whole = this.#tokenizer.wholeText(id);
      if (whole !== null) return whole;
    }
    const token = this.#tokenizer.tokenBytes(id);
    const bytes = new Uint8Array(this.#heldCount + token.length);
    bytes.set(this.#held.subarray(0, this.#heldCount));
    bytes.set(token, this.#heldCount);
    const complete = bytes.length - incompleteTailLength(bytes);
    this.#held.set(bytes.subarray(complete));
    this.#heldCount = bytes.length - complete;
    return decoder.decode(bytes.subarray(0, complete));
  }

  /** At the end of the output: U+FFFD when bytes of an incomplete character are left, else nothing. */
  flush(): string {
    const text = decoder.decode(this.#held.subarray(0, this.#heldCount));
    this.#heldCount = 0;
    return text;
  }
}

/** How many bytes at the end begin a UTF-8 sequence that more bytes can still make valid: 0 to 3. */
function incompleteTailLength(bytes: Uint8Array): number {
  for (let length = 1; length <= Math.min(HELD_BYTES_MAX, bytes.length); length++) {
    const lead = bytes[bytes.length - length] as number;
    if (lead >= 0x80 && lead < 0xc0) continue;
    if (length >= sequenceLength(lead)) return 0;
    if (length === 1) return 1;
    return isSecondByte(lead, bytes[bytes.length - length + 1] as number) ? length : 0;
  }
  return 0;
}

/** Bytes in the sequence that `lead` begins; 1 for bytes that begin none. */
function sequenceLength(lead: number): number {
  if (lead < 0xc2 || lead > 0xf4) return 1;
  return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/** Whether `second` may follow `lead` (Unicode Standard, table 3-7): no overlong forms, no surrogates, nothing past U+10FFFF. */
function isSecondByte(lead: number, second: number): boolean {
  const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80;
  const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf;
  return second >= low && second <= high;
}
