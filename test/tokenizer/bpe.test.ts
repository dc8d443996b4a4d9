// The heap-based merging against a naive one that rescans the word before every merge.

import { expect, test } from "bun:test";
import * as fc from "fast-check";
import { defined } from "../../src/base/assert.ts";
import { Bpe } from "../../src/tokenizer/bpe.ts";
import type { BpeOptions } from "../../src/tokenizer/bpe.ts";
import { DuetError } from "../../src/base/errors.ts";

function naiveMerge(word: string, merges: readonly (readonly [string, string])[]): string[] {
  const pieces = [...word];
  for (;;) {
    let best = Infinity;
    let at = -1;
    for (let i = 0; i + 1 < pieces.length; i++) {
      const rank = merges.findLastIndex(([left, right]) => left === pieces[i] && right === pieces[i + 1]);
      if (rank >= 0 && rank < best) [best, at] = [rank, i];
    }
    if (at < 0) return pieces;
    pieces.splice(at, 2, `${pieces[at]}${pieces[at + 1]}`);
  }
}

function options(merges: readonly (readonly [string, string])[], rest: Partial<BpeOptions> = {}): BpeOptions {
  const pieces = new Set(["a", "b", "c", ...merges.map(([left, right]) => left + right)]);
  const vocabulary = new Map([...pieces].map((piece, id) => [piece, id]));
  const base = { ignoreMerges: false, byteFallback: false, unknownId: undefined, fuseUnknown: false };
  return { vocabulary, merges, ...base, ...rest };
}

/** Merge lists in which every part is a letter or the product of an earlier merge, as training makes them. */
const mergeLists = fc.array(fc.tuple(fc.nat(), fc.nat()), { maxLength: 12 }).map((choices) => {
  const pieces = ["a", "b", "c"];
  return choices.map(([i, j]): readonly [string, string] => {
    const merge = [defined(pieces[i % pieces.length]), defined(pieces[j % pieces.length])] as const;
    pieces.push(merge[0] + merge[1]);
    return merge;
  });
});

test("merges as the naive algorithm does", () => {
  fc.assert(
    fc.property(mergeLists, fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 60 }), (merges, word) => {
      const { vocabulary, ...rest } = options(merges);
      const ids: number[] = [];
      new Bpe({ vocabulary, ...rest }).encode(word, ids);
      expect(ids).toEqual(naiveMerge(word, merges).map((piece) => defined(vocabulary.get(piece))));
    }),
    { numRuns: 1000 },
  );
});

test("the same word from the cache gives the same ids, also after the cache was full", () => {
  const bpe = new Bpe(options([["a", "b"]]));
  const encode = (word: string) => {
    const ids: number[] = [];
    bpe.encode(word, ids);
    return ids;
  };
  const first = encode("abc");
  for (let i = 0; i < 20_000; i++) encode(i.toString(3).replace(/\d/g, (digit) => "abc".charAt(Number(digit))));
  expect(encode("abc")).toEqual(first);
  expect(encode("abc")).toEqual([3, 2]);
});

test("unknown characters become one unknown token each, one a run, or nothing", () => {
  const encode = (rest: Partial<BpeOptions>) => {
    const ids: number[] = [];
    new Bpe(options([], rest)).encode("axyb", ids);
    return ids;
  };
  expect(encode({ unknownId: 2 })).toEqual([0, 2, 2, 1]);
  expect(encode({ unknownId: 2, fuseUnknown: true })).toEqual([0, 2, 1]);
  expect(encode({})).toEqual([0, 1]);
});

test("a merge outside the vocabulary is refused", () => {
  const broken = { ...options([]), merges: [["a", "z"]] as const };
  expect(() => new Bpe(broken)).toThrow(DuetError);
});
