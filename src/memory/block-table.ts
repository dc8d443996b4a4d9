// A sequence's kvBlocks in order of position. Holds one reference to each; the pool has the counts.

import { assert } from "../base/assert.ts";
import { ceilDiv } from "../base/units.ts";
import { KV_BLOCK_TOKENS } from "../device/batch.ts";
import { type KvBlockPool, NO_BLOCK } from "./kv-block-pool.ts";

/** kvBlocks that `tokens` token rows need. */
export function blocksFor(tokens: number): number {
  return ceilDiv(tokens, KV_BLOCK_TOKENS);
}

export class BlockTable {
  /** Blocks 0 .. blockCount − 1 count. */
  readonly blocks: Int32Array;
  blockCount = 0;

  constructor(
    private readonly pool: KvBlockPool,
    blockMax: number,
  ) {
    this.blocks = new Int32Array(blockMax);
  }

  /** Takes blocks until `tokens` rows fit; false when the pool has no more (what was taken stays). */
  grow(tokens: number): boolean {
    const wanted = blocksFor(tokens);
    assert(wanted <= this.blocks.length, "a block table reaches to the end of the context at most");
    while (this.blockCount < wanted) {
      const block = this.pool.take();
      if (block === NO_BLOCK) return false;
      this.blocks[this.blockCount++] = block;
    }
    return true;
  }

  /** Appends a block whose reference the caller hands over. */
  append(block: number): void {
    assert(this.blockCount < this.blocks.length, "a block table reaches to the end of the context at most");
    this.blocks[this.blockCount++] = block;
  }

  /** Releases all blocks, the last first: of a cached prefix the end is evicted before the beginning. */
  clear(): void {
    while (this.blockCount > 0) this.pool.release(this.blocks[--this.blockCount]!);
  }
}
