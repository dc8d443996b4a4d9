// Perplexity of a token stream on a bound model: windows without overlap, every position counted. Pure measurement: the caller
// opens the model and prints.

import { assert } from "../base/assert.ts";
import { ceilDiv } from "../base/units.ts";
import { addRow, addSequence, clearBatch, createBatch, KV_BLOCK_TOKENS } from "../device/batch.ts";
import type { DeviceModel } from "../device/device.ts";

export interface EvaluateOptions {
  /** Tokens that a window feeds; each predicts its successor. */
  readonly windowTokens: number;
  /** null: all. */
  readonly windowMax: number | null;
  /** Bytes of the text that the tokens came from, for bits per byte. */
  readonly textBytes: number;
  readonly onProgress?: (windowsDone: number, windowCount: number) => void;
}

export interface Evaluation {
  readonly windowCount: number;
  readonly tokenCount: number;
  /** Mean negative log-likelihood per token, in nats. */
  readonly loss: number;
  readonly perplexity: number;
  readonly bitsPerByte: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
}

/** Windows that `tokens` gives: each needs windowTokens inputs and one more token to predict; a shorter last one counts from 2. */
export function countWindows(tokenCount: number, windowTokens: number): number {
  return Math.max(0, ceilDiv(tokenCount - 1, windowTokens));
}

/** Runs every window through the model in chunks of its rowMax; the KV of blocks 0.. is overwritten. */
export async function evaluatePerplexity(
  model: DeviceModel,
  tokens: Int32Array,
  options: EvaluateOptions,
  nowMs: () => number = () => performance.now(),
): Promise<Evaluation> {
  const { windowTokens } = options;
  const { rowMax, logitRowMax, kvBlockCount } = model.options;
  const chunkRows = Math.min(rowMax, logitRowMax);
  const blockCount = ceilDiv(windowTokens, KV_BLOCK_TOKENS);
  assert(blockCount <= kvBlockCount, "the KV cache holds one window");
  const blockTable = Int32Array.from({ length: blockCount }, (_, block) => block);
  const batch = createBatch({ rowMax: chunkRows, sequenceMax: 1, blocksPerSequenceMax: blockCount });
  const windowCount = Math.min(
    countWindows(tokens.length, windowTokens),
    options.windowMax ?? Number.POSITIVE_INFINITY,
  );
  const logprobs = new Float32Array(chunkRows);
  const startMs = nowMs();
  let negativeLogLikelihood = 0;
  let tokenCount = 0;
  for (let window = 0; window < windowCount; window++) {
    const first = window * windowTokens;
    const inputCount = Math.min(windowTokens, tokens.length - 1 - first);
    for (let done = 0; done < inputCount; done += chunkRows) {
      const rowCount = Math.min(chunkRows, inputCount - done);
      clearBatch(batch);
      addSequence(batch, blockTable);
      for (let row = 0; row < rowCount; row++) addRow(batch, tokens[first + done + row] ?? 0, done + row, true);
      model.run(batch);
      const start = first + done + 1;
      model.score(tokens.subarray(start, start + rowCount), logprobs);
      for (let row = 0; row < rowCount; row++) negativeLogLikelihood -= logprobs[row] ?? 0;
    }
    tokenCount += inputCount;
    options.onProgress?.(window + 1, windowCount);
    // A long evaluation must leave room for signals and the progress bar.
    await new Promise((resolve) => setImmediate(resolve));
  }
  const seconds = (nowMs() - startMs) / 1000;
  const loss = negativeLogLikelihood / tokenCount;
  const bytesPerToken = options.textBytes / tokens.length;
  return {
    windowCount,
    tokenCount,
    loss,
    perplexity: Math.exp(loss),
    bitsPerByte: loss / Math.LN2 / bytesPerToken,
    seconds,
    tokensPerSecond: tokenCount / seconds,
  };
}
