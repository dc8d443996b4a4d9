import { expect, test } from "bun:test";
import { sumUsage } from "../../src/server/usage.ts";
import { FAKE_USAGE } from "./fake-engine.ts";

test("tokens and drafts add up, a prompt counts once, times are the slowest choice's", () => {
  const slow = { ...FAKE_USAGE, outputTokenCount: 5, cachedTokenCount: 3, decodeMs: 9.87654, prefillMs: 1, queueMs: 7 };
  expect(sumUsage([10, 20], [[FAKE_USAGE, slow], [FAKE_USAGE]])).toEqual({
    prompt_tokens: 30,
    completion_tokens: 9,
    total_tokens: 39,
    prompt_tokens_details: { cached_tokens: 3 + 1 },
    draft_tokens_proposed: 12,
    draft_tokens_accepted: 9,
    queue_ms: 7,
    prefill_ms: 1.25,
    decode_ms: 9.877,
  });
});

test("choices without usage, and none at all, cost nothing", () => {
  expect(sumUsage([4], [[null, null]])).toMatchObject({
    prompt_tokens: 4,
    completion_tokens: 0,
    total_tokens: 4,
    decode_ms: 0,
  });
  expect(sumUsage([], [])).toMatchObject({ prompt_tokens: 0, total_tokens: 0 });
});
