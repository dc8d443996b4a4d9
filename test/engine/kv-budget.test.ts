import { expect, test } from "bun:test";
import { DuetError } from "../../src/base/errors.ts";
import { chooseKvBlockCount, kvBlockBytes } from "../../src/engine/kv-budget.ts";
import type { ProgramShape } from "../../src/model/program.ts";

const pangu = { kvLayerCount: 48, kvHeads: [4, 4], headDim: 128 } as unknown as ProgramShape;

test("Pangu Pro MoE 72B: 196608 bytes a token in fp16", () => {
  expect(kvBlockBytes(pangu, "f16")).toBe(32 * 196_608);
  expect(kvBlockBytes(pangu, "f32")).toBe(32 * 2 * 196_608);
  expect(kvBlockBytes(pangu, "int8")).toBe(32 * (196_608 / 2 + 48 * 8 * 2 * 4));
});

test("full contexts for all, half of the free memory at most, a number as asked", () => {
  const budget = {
    kvBlockCount: null,
    sequenceMax: 16,
    contextMax: 512,
    blockBytes: 1000,
    freeBytes: 1e9,
    weightBytes: 0,
  };
  expect(chooseKvBlockCount(budget)).toBe(256);
  expect(chooseKvBlockCount({ ...budget, freeBytes: 100_000 })).toBe(50);
  expect(chooseKvBlockCount({ ...budget, kvBlockCount: 7 })).toBe(7);
  expect(() => chooseKvBlockCount({ ...budget, freeBytes: 1000 })).toThrow(DuetError);
});

test("memory that the weights will take is not free, and where they want all of it a share remains", () => {
  const budget = { kvBlockCount: null, sequenceMax: 16, contextMax: 131_072, blockBytes: 1e6, freeBytes: 64e9 };
  expect(chooseKvBlockCount({ ...budget, weightBytes: 40e9 })).toBe(12_000);
  expect(chooseKvBlockCount({ ...budget, weightBytes: 72e9 })).toBe(4000);
});
