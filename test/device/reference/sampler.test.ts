import { describe, expect, test } from "bun:test";
import { createSampler, gumbelNoise } from "../../../src/device/reference/sampler.ts";
import { createSampleResult, type SampleRequest, type SamplingParams } from "../../../src/device/sampling.ts";
import { greedyParams, sampleRequest } from "../../support/sampling.ts";

function sampleOne(logits: readonly number[], params: Partial<SamplingParams>, fields: Partial<SampleRequest> = {}) {
  const result = createSampleResult(1);
  const request = sampleRequest({ ...greedyParams, ...params }, fields);
  createSampler(logits.length).sample(Float32Array.from(logits), request, result);
  return { token: result.tokens[0], result };
}

/** How often each token is sampled over many positions. */
function frequencies(logits: readonly number[], params: Partial<SamplingParams>, sampleCount = 4000): number[] {
  const counts = new Array<number>(logits.length).fill(0);
  for (let position = 0; position < sampleCount; position++) {
    const { token } = sampleOne(logits, { temperature: 1, ...params }, { position });
    counts[token as number] = (counts[token as number] ?? 0) + 1 / sampleCount;
  }
  return counts;
}

describe("greedy", () => {
  test("takes the largest logit, ties to the lower id", () => {
    expect(sampleOne([1, 7, 7, 3], {}).token).toBe(1);
  });

  test("bias and forbidden tokens come first", () => {
    expect(sampleOne([1, 2, 3], { biasIds: Int32Array.of(0), biasValues: Float32Array.of(10) }).token).toBe(0);
    const banned = { bannedIds: Int32Array.of(2), bannedUntil: 5 };
    expect(sampleOne([1, 2, 3], banned, { position: 4 }).token).toBe(1);
    expect(sampleOne([1, 2, 3], banned, { position: 5 }).token).toBe(2);
  });

  test("repetition divides what is positive and multiplies what is negative, for prompt and output", () => {
    const seen = { history: Int32Array.of(2, 1), historyCount: 2, promptCount: 1 };
    expect(sampleOne([1.6, 1.9, 3], { repetitionPenalty: 2 }, seen).token).toBe(0);
    expect(sampleOne([-3, -2.9, -2], { repetitionPenalty: 2 }, seen).token).toBe(0);
  });

  test("presence and frequency count the output only", () => {
    const history = Int32Array.of(0, 0, 1, 1);
    const seen = { history, historyCount: 4, promptCount: 2 };
    expect(sampleOne([1, 1.5, 0.8], { presencePenalty: 0.6 }, seen).token).toBe(0);
    expect(sampleOne([1, 1.5, 0.8], { frequencyPenalty: 0.2 }, seen).token).toBe(1);
    expect(sampleOne([1, 1.5, 0.8], { frequencyPenalty: 0.3 }, seen).token).toBe(0);
  });
});

describe("keyed sampling", () => {
  test("follows the softmax at any temperature", () => {
    const logits = [Math.log(1), Math.log(2), Math.log(5)];
    for (const [id, share] of [1 / 8, 2 / 8, 5 / 8].entries()) {
      expect(Math.abs((frequencies(logits, {})[id] ?? NaN) - share)).toBeLessThan(0.025);
    }
    const hot = frequencies(logits, { temperature: 0.5 });
    for (const [id, share] of [1 / 30, 4 / 30, 25 / 30].entries()) {
      expect(Math.abs((hot[id] ?? NaN) - share)).toBeLessThan(0.025);
    }
  });

  test("depends on seed, position, choice and purpose, and on nothing else", () => {
    const logits = Array.from({ length: 64 }, (_, i) => Math.sin(i));
    const at = (params: Partial<SamplingParams>, fields: Partial<SampleRequest>) =>
      sampleOne(logits, { temperature: 2, ...params }, fields).token;
    const run = (params: Partial<SamplingParams>, fields: Partial<SampleRequest>) =>
      Array.from({ length: 12 }, (_, position) => at(params, { position, ...fields })).join();
    const base = run({}, {});
    expect(run({}, {})).toBe(base);
    const others = [
      run({ seedLow: 1 }, {}),
      run({ seedHigh: 1 }, {}),
      run({}, { choiceIndex: 1 }),
      run({}, { purpose: 1 }),
    ];
    expect(new Set([base, ...others]).size).toBe(5);
  });

  test("noise has the mean and variance of the Gumbel distribution", () => {
    const noise = Array.from({ length: 20000 }, (_, i) => gumbelNoise(7, 8, i >> 6, 0, i & 63, 0));
    const mean = noise.reduce((sum, value) => sum + value, 0) / noise.length;
    const variance = noise.reduce((sum, value) => sum + (value - mean) ** 2, 0) / noise.length;
    expect(Math.abs(mean - 0.5772)).toBeLessThan(0.03);
    expect(Math.abs(variance - Math.PI ** 2 / 6)).toBeLessThan(0.1);
  });

  const support = (logits: readonly number[], params: Partial<SamplingParams>) =>
    frequencies(logits, params, 1500).flatMap((share, id) => (share > 0 ? [id] : []));
  const logits = [Math.log(0.1), Math.log(0.4), Math.log(0.3), Math.log(0.2)];

  test("top_k keeps the k best, ties to the lower id", () => {
    expect(support(logits, { topK: 2 })).toEqual([1, 2]);
    expect(support([1, 1, 1], { topK: 2 })).toEqual([0, 1]);
  });

  test("top_p keeps the token that crosses", () => {
    expect(support(logits, { topP: 0.35 })).toEqual([1]);
    expect(support(logits, { topP: 0.65 })).toEqual([1, 2]);
    expect(support(logits, { topP: 0.75 })).toEqual([1, 2, 3]);
    expect(support(logits, { topK: 2, topP: 0.6 })).toEqual([1, 2]);
  });

  test("min_p measures against the best", () => {
    expect(support(logits, { minP: 0.6 })).toEqual([1, 2]);
    expect(support(logits, { minP: 1 })).toEqual([1]);
  });

  test("a forbidden token is never sampled", () => {
    expect(support([0, 0, 0], { bannedIds: Int32Array.of(1), bannedUntil: Infinity })).toEqual([0, 2]);
  });
});

describe("rows", () => {
  test("sampling stops after the first row that misses its draft, and penalties see what was emitted", () => {
    const logits = Float32Array.of(0, 3, 2.5, 0, 3, 2.5, 0, 3, 2.5);
    const result = createSampleResult(3);
    const params = { ...greedyParams, presencePenalty: 1 };
    const sample = (drafts: number[]) => {
      createSampler(3).sample(
        logits,
        sampleRequest(params, { rowCount: 3, draftTokens: Int32Array.from(drafts) }),
        result,
      );
      return Array.from(result.tokens.subarray(0, result.emittedCount));
    };
    expect(sample([1, 2])).toEqual([1, 2, 1]);
    expect(sample([1, 1])).toEqual([1, 2]);
    expect(sample([0, 2])).toEqual([1]);
  });

  test("log-probabilities are those of the unmodified logits", () => {
    const logits = [Math.log(1), Math.log(2), Math.log(5)];
    const bias = { biasIds: Int32Array.of(0), biasValues: Float32Array.of(50) };
    const { token, result } = sampleOne(logits, { ...bias, topLogprobs: 2 });
    expect(token).toBe(0);
    expect(result.logprobs[0]).toBeCloseTo(Math.log(1 / 8), 6);
    expect(Array.from(result.topIds.subarray(0, 2))).toEqual([2, 1]);
    expect(result.topLogprobs[0]).toBeCloseTo(Math.log(5 / 8), 6);
    expect(sampleOne(logits, {}).result.logprobs[0]).toBeNaN();
  });
});
