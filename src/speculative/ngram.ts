// Prompt lookup: when the last tokens of a sequence have occurred in it before, propose what followed them there. Each
// running sequence has a hash index from n-grams to where they last ended; a token adds its n-grams once, so the cost is O(1)
// a token. No model, no other sequence's tokens.

import type { StepOutcome } from "../device/device.ts";
import type { Drafts, DraftSequence, Proposer } from "./proposer.ts";

/** Lengths of the n-grams that are looked up, the longest first: the longer the match, the likelier its continuation. */
export const NGRAM_LENGTHS: readonly number[] = [8, 5, 3, 2];

/** Where each n-gram of one sequence last ended. Open addressing; a wrong hit is caught by comparing tokens. */
class NgramIndex {
  /** Of the last `continuation`. */
  rank = 0;
  /** Ends (index of the n-gram's last token) + 1; 0 is an empty place. Entries of all lengths share the table. */
  #ends = new Int32Array(1024);
  #lengths = new Uint8Array(1024);
  #entryCount = 0;
  /** N-grams that end before this index are in the table. */
  #indexedCount = 0;

  clear(): void {
    this.#ends.fill(0);
    this.#entryCount = 0;
    this.#indexedCount = 0;
  }

  /** Adds the n-grams that end before `count`. */
  extend(tokens: Int32Array, count: number): void {
    for (; this.#indexedCount < count; this.#indexedCount++) {
      for (let i = 0; i < NGRAM_LENGTHS.length; i++) {
        const n = NGRAM_LENGTHS[i]!;
        if (n <= this.#indexedCount + 1) this.#put(tokens, this.#indexedCount, n);
      }
    }
  }

  /**
   * Looks for the latest earlier occurrence of the longest known n-gram that ends at count − 1: sets `rank` (index into
   * NGRAM_LENGTHS) and returns the index after it, or −1.
   */
  continuation(tokens: Int32Array, count: number): number {
    for (this.rank = 0; this.rank < NGRAM_LENGTHS.length; this.rank++) {
      const n = NGRAM_LENGTHS[this.rank]!;
      if (n > count) continue;
      const end = this.#ends[this.#place(tokens, count - 1, n)]! - 1;
      if (end >= 0) return end + 1;
    }
    return -1;
  }

  #put(tokens: Int32Array, end: number, n: number): void {
    const place = this.#place(tokens, end, n);
    if (this.#ends[place] === 0) this.#entryCount++;
    this.#ends[place] = end + 1;
    this.#lengths[place] = n;
    if (this.#entryCount * 2 > this.#ends.length) this.#enlarge(tokens);
  }

  /** The place of an equal n-gram, else the empty place where it belongs. */
  #place(tokens: Int32Array, end: number, n: number): number {
    const mask = this.#ends.length - 1;
    let place = hashNgram(tokens, end, n) & mask;
    while (this.#ends[place] !== 0 && !this.#isEqual(tokens, place, end, n)) place = (place + 1) & mask;
    return place;
  }

  #isEqual(tokens: Int32Array, place: number, end: number, n: number): boolean {
    if (this.#lengths[place] !== n) return false;
    const other = this.#ends[place]! - 1;
    for (let i = 0; i < n; i++) {
      if (tokens[other - i] !== tokens[end - i]) return false;
    }
    return true;
  }

  #enlarge(tokens: Int32Array): void {
    const ends = this.#ends;
    const lengths = this.#lengths;
    this.#ends = new Int32Array(ends.length * 2);
    this.#lengths = new Uint8Array(ends.length * 2);
    for (let i = 0; i < ends.length; i++) {
      if (ends[i] === 0) continue;
      const place = this.#place(tokens, ends[i]! - 1, lengths[i]!);
      this.#ends[place] = ends[i]!;
      this.#lengths[place] = lengths[i]!;
    }
  }
}

function hashNgram(tokens: Int32Array, end: number, n: number): number {
  let hash = n;
  for (let i = 0; i < n; i++) {
    hash = Math.imul(hash ^ tokens[end - i]!, 0x85ebca6b);
    hash ^= hash >>> 13;
  }
  return hash >>> 0;
}

export class NgramProposer implements Proposer {
  readonly name = "ngram";
  readonly catchUpRows = 0;
  readonly kindCount = NGRAM_LENGTHS.length;
  readonly #indexes: NgramIndex[];

  constructor(sequenceMax: number) {
    this.#indexes = Array.from({ length: sequenceMax }, () => new NgramIndex());
  }

  start(sequence: DraftSequence): void {
    this.#index(sequence).clear();
  }

  observe(_sequence: DraftSequence): void {
    // The index catches up when it is asked.
  }

  kind(sequence: DraftSequence): number {
    return this.#index(sequence).rank;
  }

  missedRows(_sequence: DraftSequence): number {
    return 0;
  }

  available(sequence: DraftSequence, lengthMax: number): number {
    return this.#continuation(sequence) < 0 ? 0 : lengthMax;
  }

  propose(
    sequences: readonly DraftSequence[],
    sequenceCount: number,
    lengths: Int32Array,
    drafts: Drafts,
  ): StepOutcome {
    for (let s = 0; s < sequenceCount; s++) {
      const length = lengths[s]!;
      if (length === 0) continue;
      const sequence = sequences[s]!;
      const from = this.#continuation(sequence);
      drafts.counts[s] = from < 0 ? 0 : length;
      if (from < 0) continue;
      const out = s * drafts.stride;
      // A continuation that reaches the end of the sequence goes on in the draft itself: a repetition repeats.
      for (let i = 0; i < length; i++) {
        const at = from + i - sequence.tokenCount;
        drafts.tokens[out + i] = at < 0 ? sequence.tokens[from + i]! : drafts.tokens[out + at]!;
      }
    }
    return "ok";
  }

  #index(sequence: DraftSequence): NgramIndex {
    return this.#indexes[sequence.runIndex]!;
  }

  #continuation(sequence: DraftSequence): number {
    const index = this.#index(sequence);
    // The n-grams that end at the last token have no continuation yet.
    index.extend(sequence.tokens, sequence.tokenCount - 1);
    return index.continuation(sequence.tokens, sequence.tokenCount);
  }
}
