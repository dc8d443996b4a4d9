// The native sampler as a definition: against the plain TypeScript one over random logits and parameters, and by what the
// page on arithmetic promises (ties, order, keys, distribution, acceptance), the same bits on every instruction set.
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { defined } from "../../src/base/assert.ts";
import { createUniform } from "../../src/base/prng.ts";
import { argmax, createSampler } from "../../src/device/reference/sampler.ts";
import { createSampleResult, type SampleRequest, type SamplingParams } from "../../src/device/sampling.ts";
import { type IsaName, isNativeAvailable, openNative } from "../../src/native/library.ts";
import { sampleNatively } from "../support/native-sampler.ts";
import { greedyParams, sampleRequest, samplingCases } from "../support/sampling.ts";

const RUNS = { seed: 20250, numRuns: 250 };
const isas: readonly IsaName[] = isNativeAvailable() ? openNative().cpu.isas : [];
const sample = (logits: Float32Array, request: SampleRequest, mask: Uint32Array | null = null) =>
  sampleNatively("plain", logits, logits.length, request, mask);

/** Logits of a shape that models have: a few large ones over a broad rest; `grain` makes ties. */
function randomLogits(seed: number, vocabularySize: number, grain: number): Float32Array {
  const uniform = createUniform(seed);
  return Float32Array.from({ length: vocabularySize }, () => {
    const value = 4 * (uniform() + uniform() + uniform() - 1.5) + (uniform() < 0.01 ? 8 : 0);
    return grain === 0 ? value : Math.round(value / grain) * grain;
  });
}

const someLogits = fc.record({
  seed: fc.nat(1e6),
  vocabularySize: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 41, max: 3000 })),
  grain: fc.constantFrom(0, 0.25),
});

const someParams = fc.record({
  temperature: fc.constantFrom(0, 0.1, 0.7, 1, 1.9),
  topK: fc.constantFrom(0, 0, 1, 5, 50, 5000),
  topP: fc.constantFrom(1, 1, 0.1, 0.5, 0.93, 0.999),
  minP: fc.constantFrom(0, 0, 0.03, 0.5),
  repetitionPenalty: fc.constantFrom(1, 1.3, 0.8),
  presencePenalty: fc.constantFrom(0, 0.5, -0.5),
  frequencyPenalty: fc.constantFrom(0, 0.25),
  seedLow: fc.nat(1e9),
  seedHigh: fc.nat(1e9),
});

describe.skipIf(!isNativeAvailable())(`sampler${isNativeAvailable() ? "" : " (library not built)"}`, () => {
  test("samples what the plain TypeScript sampler does, whatever the parameters", () => {
    fc.assert(
      fc.property(someLogits, someParams, fc.nat(1e6), ({ seed, vocabularySize, grain }, params, position) => {
        const logits = randomLogits(seed, vocabularySize, grain);
        const history = Int32Array.from({ length: 20 }, (_, i) => (seed + i * i) % vocabularySize);
        const request = sampleRequest(
          { ...greedyParams, ...params, topLogprobs: Math.min(3, vocabularySize) },
          { position, history, historyCount: 20, promptCount: 9, choiceIndex: seed % 5 },
        );
        const want = createSampleResult(1);
        createSampler(vocabularySize).sample(logits, request, want);
        const got = sample(logits, request);
        expect(got.tokens[0]).toBe(defined(want.tokens[0]));
        expect(got.topIds.slice(0, 3)).toEqual(want.topIds.slice(0, 3));
        expect(Math.abs(defined(got.logprobs[0]) - defined(want.logprobs[0]))).toBeLessThan(2e-6);
      }),
      RUNS,
    );
  });

  test("every instruction set gives the same bits", () => {
    fc.assert(
      fc.property(someLogits, someParams, ({ seed, vocabularySize, grain }, params) => {
        const logits = randomLogits(seed, vocabularySize, grain);
        const request = sampleRequest({ ...greedyParams, ...params, topLogprobs: 2 }, { position: seed });
        const [first, ...others] = isas.map((isa) => sampleNatively(isa, logits, vocabularySize, request));
        for (const other of others) expect(other).toEqual(defined(first));
      }),
      { ...RUNS, numRuns: 80 },
    );
  });

  test("greedy takes the lowest id among equals", () => {
    const logits = Float32Array.of(-1, 3, 2, 3, -0, 3);
    expect(sample(logits, sampleRequest(greedyParams)).tokens[0]).toBe(1);
    expect(sample(Float32Array.of(-0, 0, -0), sampleRequest(greedyParams)).tokens[0]).toBe(0);
    expect(sample(Float32Array.of(-Infinity, -Infinity), sampleRequest(greedyParams)).tokens[0]).toBe(0);
  });

  test("a token depends on seed, position, choice and purpose, and on nothing else", () => {
    const logits = new Float32Array(1000);
    const params = { ...greedyParams, temperature: 1 };
    const tokenOf = (over: Partial<SampleRequest>, changed: Partial<SamplingParams> = {}) =>
      sample(logits, sampleRequest({ ...params, ...changed }, over)).tokens[0];
    const token = tokenOf({ position: 7 });
    expect(tokenOf({ position: 7, history: Int32Array.of(1, 2), historyCount: 2 })).toBe(token);
    const others = [
      tokenOf({ position: 8 }),
      tokenOf({ position: 7, choiceIndex: 1 }),
      tokenOf({ position: 7, purpose: 1 }),
      tokenOf({ position: 7 }, { seedLow: 1 }),
      tokenOf({ position: 7 }, { seedHigh: 1 }),
    ];
    expect(new Set([token, ...others]).size).toBe(6);
  });

  test("samples follow the softmax", () => {
    const logits = Float32Array.of(2, 1, 0, -1, 0.5, 1.5, -2, 1);
    const temperature = 0.8;
    const weights = Array.from(logits, (z) => Math.exp(z / temperature));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const params = { ...greedyParams, temperature };
    const counts = new Float64Array(8);
    const sampleCount = 20_000;
    for (let position = 0; position < sampleCount; position++) {
      const token = defined(sample(logits, sampleRequest(params, { position })).tokens[0]);
      counts[token] = defined(counts[token]) + 1;
    }
    let chiSquare = 0;
    for (const [id, weight] of weights.entries()) {
      const expected = (weight / total) * sampleCount;
      chiSquare += (defined(counts[id]) - expected) ** 2 / expected;
    }
    // 7 degrees of freedom: 24.3 is passed by one key in a thousand. The draws are fixed by the seed.
    expect(chiSquare).toBeLessThan(24.3);
    expect(chiSquare).toBeGreaterThan(0.6);
  });

  test("samples over a large flat vocabulary reach all of it alike", () => {
    const vocabularySize = 4000;
    const params = { ...greedyParams, temperature: 1 };
    const bins = new Float64Array(8);
    for (let position = 0; position < 2000; position++) {
      const token = sample(new Float32Array(vocabularySize), sampleRequest(params, { position })).tokens[0];
      const bin = Math.floor(defined(token) / (vocabularySize / 8));
      bins[bin] = defined(bins[bin]) + 1;
    }
    const chiSquare = bins.reduce((sum, count) => sum + (count - 250) ** 2 / 250, 0);
    expect(chiSquare).toBeLessThan(24.3);
  });

  test("a mask leaves only what it allows", () => {
    fc.assert(
      fc.property(someLogits, someParams, ({ seed, vocabularySize, grain }, params) => {
        const logits = randomLogits(seed, vocabularySize, grain);
        const allowed = new Set([seed % vocabularySize, (seed * 7) % vocabularySize]);
        const mask = new Uint32Array(Math.ceil(vocabularySize / 32));
        for (const id of allowed) mask[id >>> 5] = defined(mask[id >>> 5]) | (1 << (id & 31));
        const request = sampleRequest({ ...greedyParams, ...params }, { position: seed });
        expect(allowed).toContain(defined(sample(logits, request, mask).tokens[0]));
      }),
      { ...RUNS, numRuns: 100 },
    );
  });

  test("forbidden end tokens are forbidden below their position only", () => {
    const logits = Float32Array.of(0, 9, 1);
    const params = { ...greedyParams, bannedIds: Int32Array.of(1), bannedUntil: 5 };
    expect(sample(logits, sampleRequest(params, { position: 4 })).tokens[0]).toBe(2);
    expect(sample(logits, sampleRequest(params, { position: 5 })).tokens[0]).toBe(1);
    const always = { ...params, bannedUntil: Infinity };
    expect(sample(logits, sampleRequest(always, { position: 2 ** 31 })).tokens[0]).toBe(2);
  });

  describe("drafts", () => {
    const vocabularySize = 50;
    const rowCount = 5;
    const logits = Float32Array.from({ length: rowCount }, (_, row) => row).reduce<Float32Array>(
      (all, row) => {
        all.set(randomLogits(row + 1, vocabularySize, 0), row * vocabularySize);
        return all;
      },
      new Float32Array(rowCount * vocabularySize),
    );
    const penalised = { ...greedyParams, temperature: 0.9, repetitionPenalty: 1.8, frequencyPenalty: 0.7 };

    /** Row by row with a growing history: what a run without drafts gives. */
    function oneByOne(params: SamplingParams): number[] {
      const history = Int32Array.of(3, 4, 0, 0, 0, 0, 0);
      const tokens: number[] = [];
      for (let row = 0; row < rowCount; row++) {
        const fields = { firstLogitRow: row, position: 10 + row, history, historyCount: 2 + row, promptCount: 1 };
        const token = defined(sampleNatively("plain", logits, vocabularySize, sampleRequest(params, fields)).tokens[0]);
        history[2 + row] = token;
        tokens.push(token);
      }
      return tokens;
    }

    test.each([0, 1, 2, 3, 4])(
      "the first wrong one, at %d, is replaced by the sample and ends the row run",
      (wrongAt) => {
        for (const params of [greedyParams, penalised, ...samplingCases.slice(1, 6).map((one) => one.params)]) {
          const want = oneByOne(params);
          const draftTokens = Int32Array.from(want.slice(0, rowCount - 1));
          if (wrongAt < draftTokens.length) draftTokens[wrongAt] = (defined(want[wrongAt]) + 1) % vocabularySize;
          const request = sampleRequest(params, {
            rowCount,
            position: 10,
            history: Int32Array.of(3, 4),
            historyCount: 2,
            promptCount: 1,
            draftTokens,
          });
          const got = sampleNatively("plain", logits, vocabularySize, request);
          expect(got.emittedCount).toBe(wrongAt + 1);
          expect([...got.tokens.subarray(0, got.emittedCount)]).toEqual(want.slice(0, wrongAt + 1));
        }
      },
    );

    test("sharpness scales the draft's logits in front of temperature", () => {
      const row = logits.subarray(0, vocabularySize);
      const request = sampleRequest({ ...greedyParams, temperature: 1 }, { position: 3 });
      const sharp = sample(row, { ...request, draftSharpness: 1e6 });
      expect(sharp.tokens[0]).toBe(argmax(row));
      const cool = sampleRequest({ ...greedyParams, temperature: 0.5 }, { position: 3 });
      expect(sample(row, { ...request, draftSharpness: 2 }).tokens).toEqual(sample(row, cool).tokens);
    });
  });

  test.each([
    ["a bias beyond the vocabulary", { biasIds: Int32Array.of(8), biasValues: Float32Array.of(1) }, "bias_ids[0]"],
    ["a forbidden token below 0", { bannedIds: Int32Array.of(1, -1) }, "banned_ids[1]"],
    ["a temperature that is no number", { temperature: NaN }, "temperature"],
    ["21 log-probabilities", { topLogprobs: 21 }, "top_logprobs"],
    ["a repetition penalty of 0", { repetitionPenalty: 0 }, "repetition_penalty"],
  ] as const)("%s is refused by name", (_, fields, name) => {
    const request = sampleRequest({ ...greedyParams, ...fields });
    expect(() => sample(new Float32Array(8), request)).toThrow(name);
  });
});
