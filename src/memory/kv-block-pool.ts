// The fixed pool of kvBlocks: reference counts, the free list and the list of cached blocks (unreferenced, their content kept
// for the prefix index). All memory is taken at construction; nothing is allocated afterwards. It knows neither tokens nor
// sequences. A block is free, cached or referenced, never two of these.

import { assert } from "../base/assert.ts";

/** A kvBlock is an index from 0 to blockCount − 1; NO_BLOCK is none. */
export const NO_BLOCK = -1;

export class KvBlockPool {
  readonly blockCount: number;
  /**
   * Per block: how many of its leading rows hold the draft model's KV for its present content. Reset when a block is taken;
   * otherwise the draft-model proposer's business.
   */
  readonly draftFrontier: Uint8Array;
  /** Grows with every block that becomes available: a failed admission need not be tried again while it stands still. */
  releaseCount = 0;

  readonly #references: Int32Array;
  readonly #free: Int32Array;
  #freeCount: number;
  /** 1: the prefix index holds the block's content. */
  readonly #isIndexed: Uint8Array;
  /** Unreferenced indexed blocks, least recently used first, as a doubly linked list; blockCount is its sentinel. */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  #cachedCount = 0;
  #onEvict: (block: number) => void = () => {};

  constructor(blockCount: number) {
    assert(Number.isInteger(blockCount) && blockCount > 0, "a pool has at least one kvBlock");
    this.blockCount = blockCount;
    this.draftFrontier = new Uint8Array(blockCount);
    this.#references = new Int32Array(blockCount);
    this.#isIndexed = new Uint8Array(blockCount);
    this.#next = new Int32Array(blockCount + 1).fill(blockCount);
    this.#previous = new Int32Array(blockCount + 1).fill(blockCount);
    // Lower blocks are handed out first.
    this.#free = Int32Array.from({ length: blockCount }, (_, i) => blockCount - 1 - i);
    this.#freeCount = blockCount;
  }

  /** Blocks that `take` can still hand out: free and cached ones. */
  get availableCount(): number {
    return this.#freeCount + this.#cachedCount;
  }

  get cachedCount(): number {
    return this.#cachedCount;
  }

  /** Blocks that some sequence references. */
  get usedCount(): number {
    return this.blockCount - this.availableCount;
  }

  referenceCount(block: number): number {
    return this.#references[block]!;
  }

  /** Whom to tell that an indexed block is about to be handed out with new content. */
  setEvictionListener(listener: (block: number) => void): void {
    this.#onEvict = listener;
  }

  /** A block with one reference: a free one, else the least recently used cached one. NO_BLOCK when there is none. */
  take(): number {
    let block: number;
    if (this.#freeCount > 0) {
      block = this.#free[--this.#freeCount]!;
    } else if (this.#cachedCount > 0) {
      block = this.#next[this.blockCount]!;
      this.#unlink(block);
      this.#isIndexed[block] = 0;
      this.#onEvict(block);
    } else {
      return NO_BLOCK;
    }
    assert(this.#references[block] === 0, "an available kvBlock has no reference");
    this.#references[block] = 1;
    this.draftFrontier[block] = 0;
    return block;
  }

  /** One more reference to a block that is referenced or cached. */
  retain(block: number): void {
    const count = this.#references[block]!;
    if (count === 0) {
      assert(this.#isIndexed[block] === 1, "a free kvBlock cannot be retained");
      this.#unlink(block);
    }
    this.#references[block] = count + 1;
  }

  /** Drops a reference; the last one makes the block cached when it is indexed, else free. */
  release(block: number): void {
    const count = this.#references[block]!;
    assert(count > 0, "a kvBlock is released once per reference");
    this.#references[block] = count - 1;
    if (count > 1) return;
    this.releaseCount++;
    if (this.#isIndexed[block] === 1) this.#link(block);
    else this.#free[this.#freeCount++] = block;
  }

  /** The prefix index now holds this block's content. The caller has a reference. */
  markIndexed(block: number): void {
    assert(this.#references[block]! > 0, "only a referenced kvBlock can be indexed");
    this.#isIndexed[block] = 1;
  }

  #link(block: number): void {
    const end = this.blockCount;
    const last = this.#previous[end]!;
    this.#next[last] = block;
    this.#previous[block] = last;
    this.#next[block] = end;
    this.#previous[end] = block;
    this.#cachedCount++;
  }

  #unlink(block: number): void {
    const before = this.#previous[block]!;
    const after = this.#next[block]!;
    this.#next[before] = after;
    this.#previous[after] = before;
    this.#cachedCount--;
  }
}
