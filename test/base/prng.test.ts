import { expect, test } from "bun:test";
import { createUniform, philox4x32 } from "../../src/base/prng.ts";

/** Known answers of Philox4x32-10 from Random123's kat_vectors: key, counter, result. */
const KNOWN: [number[], number[], number[]][] = [
  [
    [0, 0],
    [0, 0, 0, 0],
    [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
  ],
  [
    [0xffffffff, 0xffffffff],
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
    [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  ],
  [
    [0xa4093822, 0x299f31d0],
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  ],
];

test.each(KNOWN)("Philox with key %p and counter %p", (key, counter, result) => {
  const out = new Uint32Array(4);
  philox4x32(key[0]!, key[1]!, counter[0]!, counter[1]!, counter[2]!, counter[3]!, out);
  expect([...out]).toEqual(result);
});

test("a uniform stream repeats for its seed, differs for another, and fills [0, 1)", () => {
  const draw = (seed: number) => Array.from({ length: 4000 }, createUniform(seed));
  const values = draw(7);
  expect(draw(7)).toEqual(values);
  expect(draw(8)).not.toEqual(values);
  expect(values.every((value) => value >= 0 && value < 1)).toBe(true);
  const deciles = Array.from({ length: 10 }, () => 0);
  for (const value of values) deciles[Math.floor(value * 10)]!++;
  // 400 expected each; six standard deviations are 114.
  for (const count of deciles) expect(Math.abs(count - 400)).toBeLessThan(114);
});
