// One sequence on one model, for tests and measuring scripts: feed tokens, look at logits. KV lies in blocks 0, 1, 2 and on.

import { assert } from "../../src/base/assert.ts";
import { ceilDiv } from "../../src/base/units.ts";
import { addRow, addSequence, clearBatch, createBatch, KV_BLOCK_TOKENS } from "../../src/device/batch.ts";
import type { Device, DeviceModel, KvType } from "../../src/device/device.ts";
import { argmax } from "../../src/device/reference/sampler.ts";
import { compileProgram } from "../../src/model/compile.ts";
import type { Program } from "../../src/model/program.ts";
import type { Container } from "../../src/weights/header.ts";

export interface SingleSequence extends Disposable {
  readonly model: DeviceModel;
  /** Feeds tokens from `position` on; afterwards logits(i) belongs to tokens[i]. */
  feed(tokens: ArrayLike<number>, position: number): void;
  /** A view that the next call overwrites. */
  logits(row: number): Float32Array;
}

/** Loads a container for sequences of at most `tokenMax` tokens, fed in one batch each. */
export function openSingleSequence(
  device: Device,
  container: Container,
  kvType: KvType,
  tokenMax: number,
  program: Program = compileProgram(container),
): SingleSequence {
  const kvBlockCount = ceilDiv(tokenMax, KV_BLOCK_TOKENS);
  const model = device.load(container, program, { kvType, kvBlockCount, rowMax: tokenMax, logitRowMax: tokenMax });
  const batch = createBatch({ rowMax: tokenMax, sequenceMax: 1, blocksPerSequenceMax: kvBlockCount });
  const blockTable = Array.from({ length: kvBlockCount }, (_, block) => block);
  const logits = new Float32Array(container.header.shape.vocabularySize);
  return {
    model,
    feed(tokens, position) {
      clearBatch(batch);
      addSequence(batch, blockTable);
      for (let i = 0; i < tokens.length; i++) addRow(batch, tokens[i] as number, position + i, true);
      assert(model.run(batch) === "ok", "the step is not cancelled");
    },
    logits(row) {
      model.readLogits(row, logits);
      return logits;
    },
    [Symbol.dispose]: () => model.close(),
  };
}

/** The best logit's token, and how far the second best is behind. */
export function topTwo(logits: Float32Array): { token: number; gap: number } {
  const token = argmax(logits);
  let second = -Infinity;
  for (let id = 0; id < logits.length; id++) if (id !== token) second = Math.max(second, logits[id] as number);
  return { token, gap: (logits[token] as number) - second };
}

/** Greedy tokens after a prompt, and the top-two gap of each. `onLogits` sees every row, prompt rows first. */
export function generateGreedy(
  sequence: SingleSequence,
  prompt: readonly number[],
  count: number,
  onLogits: (logits: Float32Array) => void = () => {},
): { tokens: number[]; gaps: number[] } {
  const tokens: number[] = [];
  const gaps: number[] = [];
  let fed: readonly number[] = prompt;
  for (let position = 0; tokens.length < count;) {
    sequence.feed(fed, position);
    position += fed.length;
    let best = { token: -1, gap: NaN };
    for (let row = 0; row < fed.length; row++) {
      const logits = sequence.logits(row);
      onLogits(logits);
      if (row === fed.length - 1) best = topTwo(logits);
    }
    tokens.push(best.token);
    gaps.push(best.gap);
    fed = [best.token];
  }
  return { tokens, gaps };
}
