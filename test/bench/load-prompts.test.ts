import { expect, test } from "bun:test";
import fc from "fast-check";
import { createUniform } from "../../src/base/prng.ts";
import { randomTokens, textSlices, tokenSlices } from "../../src/bench/load-prompts.ts";

const seed = fc.integer({ min: 0, max: 1e6 });
const count = fc.integer({ min: 1, max: 500 });

test("token slices are as long as asked, and run on from the end to the beginning", () => {
  const tokens = Array.from({ length: 37 }, (_, i) => i + 100);
  fc.assert(
    fc.property(seed, count, (key, length) => {
      const prompt = tokenSlices(tokens).draw(length, createUniform(key)) as number[];
      expect(prompt).toHaveLength(length);
      for (const [i, id] of prompt.entries()) expect(id).toBe(100 + ((prompt[0]! - 100 + i) % 37));
      expect(tokenSlices(tokens).draw(length, createUniform(key))).toEqual(prompt);
    }),
  );
});

test("random tokens are ids of the text, each as often as any other", () => {
  const source = randomTokens([5, 5, 5, 5, 9, 7]);
  const prompt = source.draw(9000, createUniform(1)) as number[];
  const counts = [5, 7, 9].map((id) => prompt.filter((each) => each === id).length);
  expect(counts.reduce((sum, each) => sum + each)).toBe(9000);
  for (const each of counts) expect(Math.abs(each - 3000)).toBeLessThan(250);
});

test("text slices have their length in characters, and are well-formed wherever they are cut", () => {
  const text = "Once 🦊 upon 🐺 a time";
  fc.assert(
    fc.property(seed, count, (key, length) => {
      const prompt = textSlices(text, 3).draw(length, createUniform(key)) as string;
      expect(prompt).toHaveLength(length * 3);
      expect(prompt.isWellFormed()).toBe(true);
      // What a cut left of a pair is a replacement character; all else is the text's.
      for (const character of prompt) expect(text + "\ufffd").toContain(character);
    }),
  );
  expect(textSlices("abc", 0.1).draw(1, createUniform(0))).toHaveLength(1);
});
