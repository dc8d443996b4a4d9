// The pool against a model: whatever is taken, retained, indexed and released, every block is exactly one of free, cached
// and referenced, and nothing is lost.

import { expect, test } from "bun:test";
import * as fc from "fast-check";
import { AssertionError } from "../../src/base/assert.ts";
import { KvBlockPool, NO_BLOCK } from "../../src/memory/kv-block-pool.ts";

const BLOCKS = 6;

interface ModelBlock {
  references: number;
  isIndexed: boolean;
}

interface Model {
  readonly blocks: ModelBlock[];
  /** Cached blocks, least recently used first. */
  readonly cached: number[];
}

class Fixture {
  readonly pool = new KvBlockPool(BLOCKS);
  readonly evicted: number[] = [];
  constructor() {
    this.pool.setEvictionListener((block) => this.evicted.push(block));
  }
}

function check(model: Model, fixture: Fixture): void {
  const used = model.blocks.filter((block) => block.references > 0).length;
  expect(fixture.pool.usedCount).toBe(used);
  expect(fixture.pool.cachedCount).toBe(model.cached.length);
  expect(fixture.pool.availableCount).toBe(BLOCKS - used);
  for (const [block, { references }] of model.blocks.entries()) {
    expect(fixture.pool.referenceCount(block)).toBe(references);
  }
}

class Take implements fc.Command<Model, Fixture> {
  check = () => true;
  toString = () => "take";
  run(model: Model, fixture: Fixture): void {
    const evictedBefore = fixture.evicted.length;
    const block = fixture.pool.take();
    const free = model.blocks.flatMap((b, i) => (b.references === 0 && !model.cached.includes(i) ? [i] : []));
    if (free.length > 0) expect(free).toContain(block);
    else expect(block).toBe(model.cached[0] ?? NO_BLOCK);
    expect(fixture.evicted.slice(evictedBefore)).toEqual(free.length > 0 || block === NO_BLOCK ? [] : [block]);
    if (block !== NO_BLOCK) {
      if (free.length === 0) model.cached.shift();
      model.blocks[block] = { references: 1, isIndexed: false };
      expect(fixture.pool.draftFrontier[block]).toBe(0);
      fixture.pool.draftFrontier[block] = 32;
    }
    check(model, fixture);
  }
}

class OnBlock implements fc.Command<Model, Fixture> {
  constructor(
    readonly action: "retain" | "release" | "index",
    readonly block: number,
  ) {}
  toString = () => `${this.action} ${this.block}`;
  check(model: Readonly<Model>): boolean {
    const { references } = model.blocks[this.block]!;
    if (this.action === "retain") return references > 0 || model.cached.includes(this.block);
    return references > 0;
  }
  run(model: Model, fixture: Fixture): void {
    const entry = model.blocks[this.block]!;
    if (this.action === "index") {
      fixture.pool.markIndexed(this.block);
      entry.isIndexed = true;
    } else if (this.action === "retain") {
      fixture.pool.retain(this.block);
      if (entry.references === 0) model.cached.splice(model.cached.indexOf(this.block), 1);
      entry.references++;
    } else {
      fixture.pool.release(this.block);
      entry.references--;
      if (entry.references === 0 && entry.isIndexed) model.cached.push(this.block);
    }
    check(model, fixture);
  }
}

test("no leak, no double use, and the counts add up", () => {
  const block = fc.integer({ min: 0, max: BLOCKS - 1 });
  const commands = [
    fc.constant(new Take()),
    fc.constant(new Take()),
    fc
      .tuple(fc.constantFrom("retain" as const, "release" as const, "index" as const), block)
      .map(([action, index]) => new OnBlock(action, index)),
  ];
  fc.assert(
    fc.property(fc.commands(commands, { maxCommands: 60 }), (sequence) => {
      const model: Model = {
        blocks: Array.from({ length: BLOCKS }, () => ({ references: 0, isIndexed: false })),
        cached: [],
      };
      fc.modelRun(() => ({ model, real: new Fixture() }), sequence);
    }),
    { numRuns: 300 },
  );
});

test("a double release and a retained free block are bugs", () => {
  const pool = new KvBlockPool(2);
  const block = pool.take();
  pool.release(block);
  expect(() => pool.release(block)).toThrow(AssertionError);
  expect(() => pool.retain(block)).toThrow(AssertionError);
});
