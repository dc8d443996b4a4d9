import { expect, test } from "bun:test";
import { countWindows, evaluatePerplexity } from "../../src/bench/evaluate.ts";
import { FAKE_VOCABULARY, FakeModel } from "../support/fake-model.ts";

const tokens = Int32Array.from({ length: 70 }, (_, i) => (i * 7) % FAKE_VOCABULARY);
const evaluate = (rowMax: number, windowTokens: number, windowMax: number | null = null) =>
  evaluatePerplexity(new FakeModel({ kvBlockCount: 4, rowMax, logitRowMax: rowMax }), tokens, {
    windowTokens,
    windowMax,
    textBytes: 140,
  });

test("every position but the first is predicted once", async () => {
  expect(countWindows(70, 32)).toBe(3);
  expect((await evaluate(64, 32)).tokenCount).toBe(69);
  expect((await evaluate(64, 32, 2)).tokenCount).toBe(64);
});

test("the loss does not depend on how rows are chunked", async () => {
  const whole = await evaluate(64, 48);
  const chunked = await evaluate(5, 48);
  expect(chunked.loss).toBeCloseTo(whole.loss, 12);
  expect(whole.loss).toBeGreaterThan(0);
  expect(whole.perplexity).toBeCloseTo(Math.exp(whole.loss), 9);
  // Two bytes a token.
  expect(whole.bitsPerByte).toBeCloseTo(whole.loss / Math.LN2 / 2, 9);
});

test("a window that is longer sees more context and so differs", async () => {
  expect((await evaluate(64, 16)).loss).not.toBe((await evaluate(64, 64)).loss);
});
