import { expect, test } from "bun:test";
import fc from "fast-check";
import { describePlacement, placementBytes, placementOf } from "../../src/model/placement.ts";
import { splitForShape } from "../../src/weights/split.ts";
import { headerOnlyContainer, testMogeShape, testShape } from "../support/containers.ts";

test("the two dies together hold everything, and each query head lies with its KV head", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 9 }),
      fc.integer({ min: 1, max: 4 }),
      fc.integer({ min: 1, max: 9 }),
      fc.integer({ min: 1, max: 6 }),
      fc.integer({ min: 1, max: 300 }),
      (kvHeadCount, queriesPerKv, expertGroupCount, perGroup, ffnDim) => {
        const shape = testMogeShape({
          kvHeadCount,
          queryHeadCount: kvHeadCount * queriesPerKv,
          expertGroupCount,
          routedExpertCount: expertGroupCount * perGroup,
          activeExpertCount: expertGroupCount,
          ffnDim,
        });
        const placement = placementOf(shape, splitForShape(shape));
        const total = ([a, b]: readonly [number, number]) => a + b;
        expect(total(placement.kvHeads)).toBe(kvHeadCount);
        expect(total(placement.queryHeads)).toBe(shape.queryHeadCount);
        expect(total(placement.expertCount)).toBe(shape.routedExpertCount);
        expect(total(placement.ffnColumns)).toBe(ffnDim);
        expect(total(placement.vocabularyRows)).toBe(shape.vocabularySize);
        expect(placement.expertFirst).toEqual([0, placement.expertCount[0]]);
        for (const die of [0, 1] as const) {
          expect(placement.queryHeads[die]).toBe(placement.kvHeads[die] * queriesPerKv);
          if (expertGroupCount > 1) expect(placement.expertCount[die] % perGroup).toBe(0);
        }
      },
    ),
  );
});

test("every byte of the container is on a die or replicated", () => {
  const container = headerOnlyContainer(testMogeShape());
  const { dies, replicated } = placementBytes(container);
  const all = container.header.tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
  expect(dies[0] + dies[1] + replicated).toBe(all);
  expect(dies[0]).toBeGreaterThan(0);
  expect(dies[1]).toBeGreaterThan(0);
});

test("describePlacement says what each die holds", () => {
  const text = describePlacement(headerOnlyContainer(testMogeShape()));
  expect(text).toContain(
    "die 0: 2 query heads over 1 KV heads, routed experts 0..7 in 2 expert groups, 64 shared-expert",
  );
  expect(text).toContain(
    "die 1: 2 query heads over 1 KV heads, routed experts 8..15 in 2 expert groups, 32 shared-expert",
  );
  expect(describePlacement(headerOnlyContainer(testShape()))).not.toContain("expert");
});
