// The sampling of one sequence in one step, as devices take it (native/kernels.h, duet_sample_request). The order of the
// processors and the arithmetic are in docs/arithmetic.md; a sample is a function of (context, seed, position, choice).

export const TOP_LOGPROBS_MAX = 20;

/** Per-sequence sampling parameters that do not change from step to step. */
export interface SamplingParams {
  /** 0: greedy. */
  readonly temperature: number;
  /** 0: off. */
  readonly topK: number;
  /** 1: off. */
  readonly topP: number;
  /** 0: off. */
  readonly minP: number;
  /** 1: off; applies to prompt and output tokens. */
  readonly repetitionPenalty: number;
  /** 0: off; output tokens. */
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  /** 64 bits, as two unsigned halves. */
  readonly seedLow: number;
  readonly seedHigh: number;
  readonly biasIds: Int32Array;
  readonly biasValues: Float32Array;
  /** null: no logprobs; 0: the sampled token's only; up to 20 alternatives. */
  readonly topLogprobs: number | null;
  /** End tokens that min_tokens forbids while the sampled position is below bannedUntil (Infinity: always). */
  readonly bannedIds: Int32Array;
  readonly bannedUntil: number;
}

export const SAMPLE_PURPOSE_OUTPUT = 0;

/** Rows firstLogitRow .. +rowCount−1 follow consecutive positions; sampling stops after the first row that misses its draft. */
export interface SampleRequest {
  params: SamplingParams;
  choiceIndex: number;
  purpose: number;
  firstLogitRow: number;
  rowCount: number;
  /** Absolute position of the token sampled from the first row. */
  position: number;
  /** Prompt and output so far; only the first historyCount entries count. */
  history: Int32Array;
  historyCount: number;
  promptCount: number;
  /** rowCount − 1 drafts. */
  draftTokens: Int32Array;
  /** Factor on the penalised logits in front of temperature; 1 for the target. */
  draftSharpness: number;
}

/** Filled by DeviceModel.sample: emittedCount target tokens (accepted drafts + 1). */
export interface SampleResult {
  emittedCount: number;
  readonly tokens: Int32Array;
  /** NaN when not asked for. */
  readonly logprobs: Float32Array;
  /** [row][TOP_LOGPROBS_MAX] */
  readonly topIds: Int32Array;
  readonly topLogprobs: Float32Array;
}

export function createSampleResult(rowMax: number): SampleResult {
  return {
    emittedCount: 0,
    tokens: new Int32Array(rowMax),
    logprobs: new Float32Array(rowMax),
    topIds: new Int32Array(rowMax * TOP_LOGPROBS_MAX),
    topLogprobs: new Float32Array(rowMax * TOP_LOGPROBS_MAX),
  };
}
