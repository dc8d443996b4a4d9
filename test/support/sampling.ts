// Sampling parameters and requests for tests.

import { SAMPLE_PURPOSE_OUTPUT, type SampleRequest, type SamplingParams } from "../../src/device/sampling.ts";

export const greedyParams: SamplingParams = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seedLow: 12345,
  seedHigh: 678,
  biasIds: new Int32Array(0),
  biasValues: new Float32Array(0),
  topLogprobs: null,
  bannedIds: new Int32Array(0),
  bannedUntil: 0,
};

const biased = { biasIds: Int32Array.of(3, 77, 400), biasValues: Float32Array.of(5, -100, 2.5) };

/** Each processor alone, then together. */
export const samplingCases: readonly { readonly name: string; readonly params: SamplingParams }[] = (
  [
    ["greedy", {}],
    ["temperature", { temperature: 0.8 }],
    ["greedy with logprobs", { topLogprobs: 5 }],
    ["top_k", { temperature: 1, topK: 7 }],
    ["top_p", { temperature: 1.3, topP: 0.7 }],
    ["min_p", { temperature: 1.3, minP: 0.2 }],
    ["penalties", { repetitionPenalty: 1.4, presencePenalty: 0.7, frequencyPenalty: 0.3 }],
    ["logit_bias", { temperature: 1, ...biased }],
    ["forbidden end tokens", { temperature: 1, bannedIds: Int32Array.of(0, 5), bannedUntil: Infinity }],
    [
      "all at once",
      {
        temperature: 0.9,
        topK: 40,
        topP: 0.9,
        minP: 0.05,
        repetitionPenalty: 1.1,
        presencePenalty: -0.4,
        frequencyPenalty: 0.2,
        bannedIds: Int32Array.of(9),
        bannedUntil: 250,
        topLogprobs: 20,
        ...biased,
      },
    ],
  ] as const
).map(([name, fields]) => ({ name, params: { ...greedyParams, ...fields } }));

export function sampleRequest(params: SamplingParams, fields: Partial<SampleRequest> = {}): SampleRequest {
  return {
    params,
    choiceIndex: 0,
    purpose: SAMPLE_PURPOSE_OUTPUT,
    firstLogitRow: 0,
    rowCount: 1,
    position: 0,
    history: new Int32Array(0),
    historyCount: 0,
    promptCount: 0,
    draftTokens: new Int32Array(0),
    draftSharpness: 1,
    ...fields,
  };
}
