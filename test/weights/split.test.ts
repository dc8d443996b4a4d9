import { expect, test } from "bun:test";
import fc from "fast-check";
import { dieRange, DIES, splitForShape, splitProblem } from "../../src/weights/split.ts";
import { anyShape } from "./any-shape.ts";
import { TINY_SHAPE } from "./tiny-checkpoint.ts";

test("every dimension is cut once, at its multiple, near the half; groups stay whole", () => {
  fc.assert(
    fc.property(anyShape, (shape) => {
      const split = splitForShape(shape);
      expect(splitProblem(shape, split)).toBeNull();
      const near = (boundary: number, total: number, multiple: number) => {
        expect(boundary).toBeLessThanOrEqual(total);
        expect(Math.abs(boundary - total / 2)).toBeLessThanOrEqual(multiple / 2);
      };
      near(split.kvHeadBoundary, shape.kvHeadCount, 1);
      near(split.ffnBoundary, shape.ffnDim, 32);
      near(split.mtpFfnBoundary, shape.mtpFfnDim, 32);
      near(split.vocabularyBoundary, shape.vocabularySize, 16);
      if (shape.kvHeadCount === 1) expect(split.kvHeadBoundary).toBe(1);
      if (shape.expertGroupCount > 1) {
        near(split.expertBoundary, shape.routedExpertCount, shape.routedExpertCount / shape.expertGroupCount);
      } else near(split.expertBoundary, shape.routedExpertCount, 1);
    }),
  );
});

test("the dies' ranges cover a dimension without overlap", () => {
  fc.assert(
    fc.property(fc.nat(1000), fc.nat(1000), (boundary, more) => {
      const total = boundary + more;
      const [first, second] = DIES.map((die) => dieRange(boundary, total, die));
      expect(first?.first).toBe(0);
      expect(first?.end).toBe(second?.first ?? NaN);
      expect(second?.end).toBe(total);
      expect((first?.count ?? 0) + (second?.count ?? 0)).toBe(total);
    }),
  );
});

test("a split that does not fit is named", () => {
  const split = splitForShape(TINY_SHAPE);
  expect(splitProblem(TINY_SHAPE, { ...split, kvHeadBoundary: 3 })).toContain("kvHeadBoundary");
  expect(splitProblem(TINY_SHAPE, { ...split, expertBoundary: 3 })).toContain("expertBoundary");
  expect(splitProblem(TINY_SHAPE, { ...split, ffnBoundary: 31 })).toContain("ffnBoundary");
  expect(splitProblem(TINY_SHAPE, { ...split, vocabularyBoundary: 8 })).toContain("vocabularyBoundary");
  expect(splitProblem(TINY_SHAPE, { ...split, ffnBoundary: 40 })).toBeNull();
});
