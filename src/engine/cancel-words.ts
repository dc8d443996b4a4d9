// Two words shared between the thread that takes requests and the thread that runs steps, so that a cancellation ends the
// step under way within a layer. Word 0 is the abort word, which devices poll; word 1 counts the cancellations that were
// announced. The step thread clears the abort word and then starts a step only when it has seen every announced cancellation:
// one announced before that is seen by the count, one announced after it sets the word during the step. So none is lost; and
// as the word is set before the message is sent, a cancellation that was seen cannot abort a later step.

const ABORT = 0;
const ANNOUNCED = 1;

export const CANCEL_WORDS_BYTES = 8;

export class CancelWords {
  /** One element; for Batch.abortWord. */
  readonly abortWord: Int32Array;
  readonly #words: Int32Array;
  #seenCount = 0;

  constructor(shared: SharedArrayBuffer = new SharedArrayBuffer(CANCEL_WORDS_BYTES)) {
    this.#words = new Int32Array(shared);
    this.abortWord = this.#words.subarray(ABORT, ABORT + 1);
  }

  /** Requesting thread, before it sends the message. */
  announce(): void {
    Atomics.add(this.#words, ANNOUNCED, 1);
    Atomics.store(this.#words, ABORT, 1);
  }

  /** Step thread, for each cancel message. */
  see(): void {
    this.#seenCount = (this.#seenCount + 1) | 0;
  }

  /** Step thread: clears the abort word. False: a cancel message is on its way; take messages and ask again. */
  arm(): boolean {
    Atomics.store(this.#words, ABORT, 0);
    return Atomics.load(this.#words, ANNOUNCED) === this.#seenCount;
  }
}
