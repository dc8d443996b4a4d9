// Sampling in plain TypeScript (docs/arithmetic.md, section 9): the reference device's, and the oracle of the native sampler's
// tests. Float32 steps are rounded where the page has them; exp, log and log1p are JavaScript's, so that a log-probability may
// differ in its last digit. A sample is a function of (logits, history, seed, position, choice).

/* oxlint-disable typescript/no-non-null-assertion -- indices are bounded by the shape and the checked batch */

import { philox4x32 } from "../../base/prng.ts";
import { type SampleRequest, type SampleResult, type SamplingParams, TOP_LOGPROBS_MAX } from "../sampling.ts";

export interface Sampler {
  /** logits[row][vocabularySize]; the request's rows are firstLogitRow and on. */
  sample(logits: Float32Array, request: SampleRequest, result: SampleResult): void;
}

export function createSampler(vocabularySize: number): Sampler {
  const z = new Float32Array(vocabularySize);
  return {
    sample(logits, request, result) {
      result.emittedCount = 0;
      for (let row = 0; row < request.rowCount; row++) {
        const start = (request.firstLogitRow + row) * vocabularySize;
        const rowLogits = logits.subarray(start, start + vocabularySize);
        z.set(rowLogits);
        processLogits(z, request, result.tokens, row);
        const position = request.position + row;
        const token =
          request.params.temperature === 0
            ? argmax(z)
            : sampleKeyed(z, request.params, request.draftSharpness, position, request.choiceIndex, request.purpose);
        result.tokens[row] = token;
        result.emittedCount = row + 1;
        writeLogprobs(rowLogits, request.params.topLogprobs, token, row, result);
        if (token !== request.draftTokens[row]) break;
      }
    },
  };
}

/** Bias, forbidden tokens and penalties, in place. `emitted[0 .. row)` are the tokens sampled before this row. */
function processLogits(z: Float32Array, request: SampleRequest, emitted: Int32Array, row: number): void {
  const { params, history, historyCount, promptCount } = request;
  const { repetitionPenalty, presencePenalty, frequencyPenalty } = params;
  for (let i = 0; i < params.biasIds.length; i++)
    z[params.biasIds[i]!] = z[params.biasIds[i]!]! + params.biasValues[i]!;
  if (request.position + row < params.bannedUntil) for (const id of params.bannedIds) z[id] = -Infinity;
  if (repetitionPenalty === 1 && presencePenalty === 0 && frequencyPenalty === 0) return;

  /** Times a token occurs in the output; 0 for one that only the prompt has. */
  const outputCounts = new Map<number, number>();
  for (let i = 0; i < historyCount; i++) {
    const id = history[i]!;
    outputCounts.set(id, (outputCounts.get(id) ?? 0) + (i < promptCount ? 0 : 1));
  }
  for (let i = 0; i < row; i++) outputCounts.set(emitted[i]!, (outputCounts.get(emitted[i]!) ?? 0) + 1);

  const repetition = Math.fround(repetitionPenalty);
  const presence = Math.fround(presencePenalty);
  const frequency = Math.fround(frequencyPenalty);
  for (const [id, count] of outputCounts) {
    let value = z[id]!;
    if (repetition !== 1) value = Math.fround(value > 0 ? value / repetition : value * repetition);
    if (count > 0) {
      value = Math.fround(value - presence);
      value = Math.fround(value - frequency * count);
    }
    z[id] = value;
  }
}

/** The largest value's index, ties to the lower one. */
export function argmax(z: Float32Array): number {
  let best = 0;
  for (let id = 1; id < z.length; id++) if (z[id]! > z[best]!) best = id;
  return best;
}

function sampleKeyed(
  z: Float32Array,
  params: SamplingParams,
  sharpness: number,
  position: number,
  choiceIndex: number,
  purpose: number,
): number {
  const temperature = Math.fround(params.temperature);
  const factor = Math.fround(sharpness);
  for (let id = 0; id < z.length; id++) z[id] = Math.fround(z[id]! * factor) / temperature;
  const isCut = params.topK > 0 || params.topP < 1 || params.minP > 0;
  const candidates = isCut ? keptCandidates(z, params) : null;
  const count = candidates?.length ?? z.length;
  let best = -1;
  let bestValue = -Infinity;
  for (let i = 0; i < count; i++) {
    const id = candidates === null ? i : candidates[i]!;
    if (z[id] === -Infinity) continue;
    const gumbel = gumbelNoise(params.seedLow, params.seedHigh, position, choiceIndex, id, purpose);
    const value = Math.fround(z[id]! + gumbel);
    if (best < 0 || value > bestValue || (value === bestValue && id < best)) {
      best = id;
      bestValue = value;
    }
  }
  return Math.max(best, 0);
}

/** The ids that top_k, then top_p, then min_p leave, best first. */
function keptCandidates(z: Float32Array, params: SamplingParams): number[] {
  let ids = Array.from(z.keys()).sort((a, b) => z[b]! - z[a]! || a - b);
  if (params.topK > 0) ids = ids.slice(0, params.topK);
  const zMax = z[ids[0]!]!;
  const shares = ids.map((id) => Math.fround(Math.exp(Math.fround(z[id]! - zMax))));
  if (params.topP < 1) {
    const topP = Math.fround(params.topP);
    const isRanked = params.topK > 0 && params.topK < z.length;
    const sum = isRanked ? shares.reduce((total, share) => Math.fround(total + share), 0) : laneSum(z, zMax);
    let accumulated = 0;
    const crossing = shares.findIndex((share) => {
      accumulated = Math.fround(accumulated + Math.fround(share / sum));
      return accumulated >= topP;
    });
    if (crossing >= 0) ids = ids.slice(0, crossing + 1);
  }
  const minP = Math.fround(params.minP);
  return minP > 0 ? ids.filter((_, rank) => shares[rank]! >= minP) : ids;
}

const words = new Uint32Array(4);

/** Gumbel noise of a token at a position: −log(−log1p(−v)) with v from Philox, keyed and not drawn from a stream. */
export function gumbelNoise(
  seedLow: number,
  seedHigh: number,
  position: number,
  choiceIndex: number,
  tokenId: number,
  purpose: number,
): number {
  philox4x32(seedLow, seedHigh, position, choiceIndex, tokenId >>> 2, purpose, words);
  const v = (words[tokenId & 3]! + 0.5) * 2 ** -32;
  return Math.fround(-Math.log(-Math.log1p(-v)));
}

/** Σ exp(z − max) in 16 lanes by id (docs/arithmetic.md, rule 4). */
function laneSum(z: Float32Array, max: number): number {
  const lanes = new Float32Array(16);
  for (let id = 0; id < z.length; id++) {
    lanes[id & 15] = lanes[id & 15]! + Math.fround(Math.exp(Math.fround(z[id]! - max)));
  }
  for (let width = 8; width >= 1; width /= 2) {
    for (let lane = 0; lane < width; lane++) lanes[lane] = lanes[lane]! + lanes[lane + width]!;
  }
  return lanes[0]!;
}

/** m and log S of a row, both float32: a token's log-probability is f32(z − m) − log S. */
export function logNormaliser(logits: Float32Array): { max: number; logSum: number } {
  const max = logits[argmax(logits)]!;
  return { max, logSum: Math.fround(Math.log(laneSum(logits, max))) };
}

/** log softmax of one token. */
export function logprobOf(logit: number, normaliser: { max: number; logSum: number }): number {
  return Math.fround(Math.fround(logit - normaliser.max) - normaliser.logSum);
}

function writeLogprobs(
  logits: Float32Array,
  topCount: number | null,
  token: number,
  row: number,
  result: SampleResult,
): void {
  if (topCount === null) {
    result.logprobs[row] = NaN;
    return;
  }
  const normaliser = logNormaliser(logits);
  result.logprobs[row] = logprobOf(logits[token]!, normaliser);
  if (topCount === 0) return;
  const ranked = Array.from(logits.keys()).sort((a, b) => logits[b]! - logits[a]! || a - b);
  const start = row * TOP_LOGPROBS_MAX;
  for (const [rank, id] of ranked.slice(0, topCount).entries()) {
    result.topIds[start + rank] = id;
    result.topLogprobs[start + rank] = logprobOf(logits[id]!, normaliser);
  }
}
