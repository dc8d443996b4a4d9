// From the content of full kvBlocks to the kvBlock that holds it. An entry is (the entry before it, 32 tokens), so that a
// found entry stands for the whole prefix; tokens are compared, the hash only finds candidates. Entry numbers are never used
// twice: an entry whose predecessor was evicted is never found again and ages out of the pool's list. All memory is taken at
// construction. Eviction is the pool's (kv-block-pool.ts).

import { KV_BLOCK_TOKENS } from "../device/batch.ts";
import { type KvBlockPool, NO_BLOCK } from "./kv-block-pool.ts";

/** The predecessor of a first block. */
export const ROOT_ENTRY = 0;

export class PrefixIndex {
  readonly #pool: KvBlockPool;
  readonly #bucketMask: number;
  /** First block of each bucket, and the next block of the same bucket. */
  readonly #buckets: Int32Array;
  readonly #nextInBucket: Int32Array;
  /** Per block: its entry number (0: not indexed), its predecessor's, its tokens and, for a first block, its salt. */
  readonly #entry: Float64Array;
  readonly #parentEntry: Float64Array;
  readonly #tokens: Int32Array;
  readonly #bucket: Uint32Array;
  readonly #salt: (string | null)[];
  #lastEntry = ROOT_ENTRY;

  constructor(pool: KvBlockPool) {
    this.#pool = pool;
    let bucketCount = 16;
    while (bucketCount < 2 * pool.blockCount) bucketCount *= 2;
    this.#bucketMask = bucketCount - 1;
    this.#buckets = new Int32Array(bucketCount).fill(NO_BLOCK);
    this.#nextInBucket = new Int32Array(pool.blockCount).fill(NO_BLOCK);
    this.#entry = new Float64Array(pool.blockCount);
    this.#parentEntry = new Float64Array(pool.blockCount);
    this.#tokens = new Int32Array(pool.blockCount * KV_BLOCK_TOKENS);
    this.#bucket = new Uint32Array(pool.blockCount);
    this.#salt = Array.from({ length: pool.blockCount }, () => null);
    pool.setEvictionListener((block) => this.#remove(block));
  }

  /**
   * Finds the longest run of indexed blocks that begins the tokens, at most `blockMax` blocks; appends them to `out` with a reference
   * each. `salt` isolates: content is found only under the salt that it was added with. Returns the last entry found
   * (ROOT_ENTRY: none), to go on with `add`.
   */
  match(tokens: Int32Array, blockMax: number, salt: string, out: { append(block: number): void }): number {
    let entry = ROOT_ENTRY;
    for (let i = 0; i < blockMax; i++) {
      const block = this.#find(entry, tokens, i * KV_BLOCK_TOKENS, salt);
      if (block === NO_BLOCK) break;
      this.#pool.retain(block);
      out.append(block);
      entry = this.#entry[block]!;
    }
    return entry;
  }

  /**
   * Adds the full block that holds tokens[start .. start + 32) and follows `parentEntry`. Where the same content is known
   * already, that entry stands and is returned; the caller's own block stays out of the index.
   */
  add(parentEntry: number, tokens: Int32Array, start: number, salt: string, block: number): number {
    const known = this.#find(parentEntry, tokens, start, salt);
    if (known !== NO_BLOCK) return this.#entry[known]!;
    const bucket = hashBlock(parentEntry, tokens, start) & this.#bucketMask;
    const own = block * KV_BLOCK_TOKENS;
    for (let i = 0; i < KV_BLOCK_TOKENS; i++) this.#tokens[own + i] = tokens[start + i]!;
    this.#entry[block] = ++this.#lastEntry;
    this.#parentEntry[block] = parentEntry;
    this.#bucket[block] = bucket;
    this.#salt[block] = parentEntry === ROOT_ENTRY ? salt : null;
    this.#nextInBucket[block] = this.#buckets[bucket]!;
    this.#buckets[bucket] = block;
    this.#pool.markIndexed(block);
    return this.#lastEntry;
  }

  #find(parentEntry: number, tokens: Int32Array, start: number, salt: string): number {
    let block = this.#buckets[hashBlock(parentEntry, tokens, start) & this.#bucketMask]!;
    while (block !== NO_BLOCK && !this.#isEqual(block, parentEntry, tokens, start, salt)) {
      block = this.#nextInBucket[block]!;
    }
    return block;
  }

  #isEqual(block: number, parentEntry: number, tokens: Int32Array, start: number, salt: string): boolean {
    if (this.#parentEntry[block] !== parentEntry) return false;
    if (parentEntry === ROOT_ENTRY && this.#salt[block] !== salt) return false;
    const own = block * KV_BLOCK_TOKENS;
    for (let i = 0; i < KV_BLOCK_TOKENS; i++) {
      if (this.#tokens[own + i] !== tokens[start + i]) return false;
    }
    return true;
  }

  #remove(block: number): void {
    const bucket = this.#bucket[block]!;
    const after = this.#nextInBucket[block]!;
    let at = this.#buckets[bucket]!;
    if (at === block) {
      this.#buckets[bucket] = after;
    } else {
      while (this.#nextInBucket[at] !== block) at = this.#nextInBucket[at]!;
      this.#nextInBucket[at] = after;
    }
    this.#entry[block] = 0;
    this.#salt[block] = null;
  }
}

/** 32-bit multiply-xor hash over the predecessor's entry number and the block's tokens. */
function hashBlock(parentEntry: number, tokens: Int32Array, start: number): number {
  let hash = Math.imul(parentEntry | 0, 0x9e3779b1) ^ Math.imul(Math.floor(parentEntry / 4294967296), 0x85ebca6b);
  for (let i = 0; i < KV_BLOCK_TOKENS; i++) {
    hash = Math.imul(hash ^ tokens[start + i]!, 0x85ebca6b);
    hash ^= hash >>> 15;
  }
  hash = Math.imul(hash, 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
