// Byte-pair merging of one pre-token (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units",
// 2016): always the pair of lowest rank, leftmost first. Works on integer ids with a heap, O(n log n), because the
// tokenizer library's own merging needs seconds and hundreds of megabytes for a megabyte without spaces.

import { DuetError } from "../base/errors.ts";

/** Merge rules over token ids. `vocabulary` maps pieces to ids; merges are pairs of pieces in order of rank. */
export interface BpeOptions {
  readonly vocabulary: ReadonlyMap<string, number>;
  readonly merges: readonly (readonly [string, string])[];
  /** A pre-token that is itself a piece is taken whole, without merging. */
  readonly ignoreMerges: boolean;
  /** Characters that are no piece become `<0xNN>` pieces, one per UTF-8 byte. */
  readonly byteFallback: boolean;
  /** What else a character that is no piece becomes; without one it is dropped. */
  readonly unknownId: number | undefined;
  /** Whether a run of unknown characters is one unknown token. */
  readonly fuseUnknown: boolean;
}

const CACHED_WORD_LENGTH = 64;
const CACHED_WORD_COUNT = 16384;
// A heap key is rank × 2^32 + position: one comparison orders by rank, then leftmost.
const RANK_UNIT = 2 ** 32;

export class Bpe {
  readonly #options: BpeOptions;
  /** (left id × #span + right id) to rank. */
  readonly #rankOfPair = new Map<number, number>();
  readonly #mergedIdOfRank: Int32Array;
  readonly #span: number;
  readonly #cache = new Map<string, readonly number[]>();
  readonly #encoder = new TextEncoder();

  /** Throws container_corrupt when a merge names a piece outside the vocabulary. */
  constructor(options: BpeOptions) {
    this.#options = options;
    let idMax = 0;
    for (const id of options.vocabulary.values()) idMax = Math.max(idMax, id);
    this.#span = idMax + 1;
    this.#mergedIdOfRank = new Int32Array(options.merges.length);
    for (const [rank, [left, right]] of options.merges.entries()) {
      const leftId = options.vocabulary.get(left);
      const rightId = options.vocabulary.get(right);
      const mergedId = options.vocabulary.get(left + right);
      if (leftId === undefined || rightId === undefined || mergedId === undefined) {
        throw new DuetError("container_corrupt", "a merge rule names a piece that the vocabulary lacks", {
          where: `tokenizer.json model.merges[${rank}]`,
          expected: "both parts and their concatenation in model.vocab",
          got: JSON.stringify([left, right]),
          next: "take tokenizer.json from the same checkpoint as the weights and pack again",
        });
      }
      this.#rankOfPair.set(leftId * this.#span + rightId, rank);
      this.#mergedIdOfRank[rank] = mergedId;
    }
  }

  /** Appends the token ids of one pre-token to `out`. */
  encode(word: string, out: number[]): void {
    const ids = this.#cache.get(word) ?? this.#encodeUncached(word);
    for (const id of ids) out.push(id);
  }

  #encodeUncached(word: string): readonly number[] {
    const whole = this.#options.ignoreMerges ? this.#options.vocabulary.get(word) : undefined;
    const ids = whole === undefined ? this.#merge(this.#symbols(word)) : [whole];
    if (word.length <= CACHED_WORD_LENGTH) {
      if (this.#cache.size >= CACHED_WORD_COUNT) this.#cache.clear();
      this.#cache.set(word, ids);
    }
    return ids;
  }

  /** The ids of the single characters of `word`. */
  #symbols(word: string): number[] {
    const { vocabulary, byteFallback, unknownId, fuseUnknown } = this.#options;
    const ids: number[] = [];
    let isUnknownRun = false;
    for (const character of word) {
      const id = vocabulary.get(character);
      if (id !== undefined) {
        ids.push(id);
        isUnknownRun = false;
        continue;
      }
      const bytes = byteFallback ? this.#bytePieces(character) : undefined;
      if (bytes !== undefined) {
        for (const byteId of bytes) ids.push(byteId);
        isUnknownRun = false;
      } else if (unknownId !== undefined) {
        if (!(fuseUnknown && isUnknownRun)) ids.push(unknownId);
        isUnknownRun = true;
      }
    }
    return ids;
  }

  #bytePieces(character: string): number[] | undefined {
    const ids: number[] = [];
    for (const byte of this.#encoder.encode(character)) {
      const id = this.#options.vocabulary.get(bytePiece(byte));
      if (id === undefined) return undefined;
      ids.push(id);
    }
    return ids;
  }

  /** Merges in place until no rule applies. The symbols form a linked list; a merged-away symbol has id -1. */
  #merge(ids: number[]): readonly number[] {
    const count = ids.length;
    if (count < 2) return ids;
    const next = new Int32Array(count);
    const previous = new Int32Array(count);
    const heap: number[] = [];
    for (let i = 0; i < count; i++) {
      next[i] = i + 1;
      previous[i] = i - 1;
      if (i > 0) this.#offer(heap, ids, i - 1, i);
    }
    while (heap.length > 0) {
      const key = popSmallest(heap);
      const rank = Math.floor(key / RANK_UNIT);
      const left = key - rank * RANK_UNIT;
      const right = next[left] as number;
      // An entry is stale when its left symbol is gone or the pair there is another one by now.
      if ((ids[left] as number) < 0 || right >= count || this.#rankAt(ids, left, right) !== rank) continue;
      ids[left] = this.#mergedIdOfRank[rank] as number;
      ids[right] = -1;
      const after = next[right] as number;
      next[left] = after;
      if (after < count) {
        previous[after] = left;
        this.#offer(heap, ids, left, after);
      }
      const beforeLeft = previous[left] as number;
      if (beforeLeft >= 0) this.#offer(heap, ids, beforeLeft, left);
    }
    return ids.filter((id) => id >= 0);
  }

  #rankAt(ids: readonly number[], left: number, right: number): number | undefined {
    return this.#rankOfPair.get((ids[left] as number) * this.#span + (ids[right] as number));
  }

  #offer(heap: number[], ids: readonly number[], left: number, right: number): void {
    const rank = this.#rankAt(ids, left, right);
    if (rank !== undefined) pushKey(heap, rank * RANK_UNIT + left);
  }
}

/** The piece that stands for one raw byte in a vocabulary with byte fallback. */
export function bytePiece(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
}

function pushKey(heap: number[], key: number): void {
  let at = heap.length;
  heap.push(key);
  while (at > 0) {
    const parent = (at - 1) >> 1;
    const parentKey = heap[parent] as number;
    if (parentKey <= key) break;
    heap[at] = parentKey;
    at = parent;
  }
  heap[at] = key;
}

/** Removes the smallest key; the heap must not be empty. */
function popSmallest(heap: number[]): number {
  const smallest = heap[0] as number;
  const key = heap.pop() as number;
  const count = heap.length;
  if (count === 0) return smallest;
  let at = 0;
  for (let child = 1; child < count; child = 2 * at + 1) {
    if (child + 1 < count && (heap[child + 1] as number) < (heap[child] as number)) child++;
    const childKey = heap[child] as number;
    if (childKey >= key) break;
    heap[at] = childKey;
    at = child;
  }
  heap[at] = key;
  return smallest;
}
