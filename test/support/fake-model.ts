// A DeviceModel without weights: the logits of a row are a pure function of the tokens that the row can reach through its block
// table. It keeps token and position per kvSlot and refuses to read what was not written there, so that a wrong block table,
// a wrong frontier or a block used twice fails the test or changes the tokens.

import { assert, defined } from "../../src/base/assert.ts";
import { type Batch, KV_BLOCK_TOKENS } from "../../src/device/batch.ts";
import type { DeviceModel, ModelOptions, StepOutcome, StepStats } from "../../src/device/device.ts";
import { draftWith } from "../../src/device/reference/draft.ts";
import { createSampler } from "../../src/device/reference/sampler.ts";
import type { SampleRequest, SampleResult } from "../../src/device/sampling.ts";
import type { Program } from "../../src/model/program.ts";

export const FAKE_VOCABULARY = 40;

export interface FakeModelOptions extends Omit<ModelOptions, "kvType"> {
  /** Added noise, so that a second fake agrees with the first only sometimes. */
  readonly noise?: number;
  /** Called before each run; may set the abort word or throw. */
  readonly onRun?: (batch: Batch) => void;
}

function mix(hash: number, value: number): number {
  const mixed = Math.imul(hash ^ value, 0x9e3779b1);
  return (mixed ^ (mixed >>> 15)) >>> 0;
}

export class FakeModel implements DeviceModel {
  readonly options: ModelOptions;
  readonly program = {} as Program;
  readonly kvBytes = 0;
  readonly scratchBytes = 0;
  runCount = 0;
  readonly #tokens: Int32Array;
  readonly #positions: Int32Array;
  readonly #logits: Float32Array;
  readonly #sampler = createSampler(FAKE_VOCABULARY);
  readonly #noise: number;
  readonly #onRun: (batch: Batch) => void;

  constructor(options: FakeModelOptions) {
    this.options = { ...options, kvType: "f32" };
    this.#noise = options.noise ?? 0;
    this.#onRun = options.onRun ?? (() => {});
    this.#tokens = new Int32Array(options.kvBlockCount * KV_BLOCK_TOKENS).fill(-1);
    this.#positions = new Int32Array(options.kvBlockCount * KV_BLOCK_TOKENS).fill(-1);
    this.#logits = new Float32Array(options.logitRowMax * FAKE_VOCABULARY);
  }

  run(batch: Batch, stats?: StepStats): StepOutcome {
    this.runCount++;
    this.#onRun(batch);
    assert(batch.rowCount <= this.options.rowMax, "the batch has at most rowMax rows");
    assert(batch.logitRowCount <= this.options.logitRowMax, "the batch has at most logitRowMax logit rows");
    for (let row = 0; row < batch.rowCount; row++) {
      // A cancelled run may have written some rows, as a real one does.
      if (row * 2 > batch.rowCount && isAborted(batch)) return "cancelled";
      this.#tokens[batch.kvSlots[row]!] = batch.tokenIds[row]!;
      this.#positions[batch.kvSlots[row]!] = batch.positions[row]!;
    }
    if (isAborted(batch)) return "cancelled";
    for (let i = 0; i < batch.logitRowCount; i++) this.#writeLogits(batch, batch.logitRows[i]!, i);
    if (stats !== undefined)
      Object.assign(stats, { weightBytes: 1, integerOps: 1, distinctExperts: 1, expertLayers: 1 });
    return "ok";
  }

  sample(requests: readonly SampleRequest[], results: readonly SampleResult[]): void {
    for (const [i, request] of requests.entries()) this.#sampler.sample(this.#logits, request, defined(results[i]));
  }

  draft(
    batch: Batch,
    requests: readonly SampleRequest[],
    stepCounts: Uint32Array,
    stepStride: number,
    draftTokens: Int32Array,
    draftProbs: Float32Array,
  ): StepOutcome {
    return draftWith(this, batch, requests, stepCounts, stepStride, draftTokens, draftProbs);
  }

  score(tokenIds: Int32Array, out: Float32Array): void {
    for (let row = 0; row < tokenIds.length; row++) {
      const logits = this.#logits.subarray(row * FAKE_VOCABULARY, (row + 1) * FAKE_VOCABULARY);
      const sum = logits.reduce((total, logit) => total + Math.exp(logit), 0);
      out[row] = logits[tokenIds[row]!]! - Math.log(sum);
    }
  }

  readLogits(): void {
    throw new Error("the fake model shows no logits");
  }

  readSlot(): void {}
  writeSlot(): void {}
  close(): void {}

  #writeLogits(batch: Batch, row: number, logitRow: number): void {
    const table = batch.sequenceIndex[row]! * batch.blockTableStride;
    let context = 7;
    let recent = 7;
    const position = batch.positions[row]!;
    for (let p = 0; p <= position; p++) {
      const block = batch.blockTables[table + Math.floor(p / KV_BLOCK_TOKENS)]!;
      const slot = block * KV_BLOCK_TOKENS + (p % KV_BLOCK_TOKENS);
      assert(this.#positions[slot] === p, `kvSlot ${slot} holds position ${p}`);
      context = mix(context, this.#tokens[slot]!);
      if (p > position - 2) recent = mix(recent, this.#tokens[slot]!);
    }
    for (let id = 0; id < FAKE_VOCABULARY; id++) {
      // Mostly the last two tokens decide, so that n-grams recur; the whole context has its say, so that no token can be wrong.
      const own = (mix(mix(recent, id), 3) / 2 ** 32) * 6;
      const whole = mix(mix(context, id), 5) / 2 ** 32;
      const noise = (mix(mix(context, id), 11) / 2 ** 32) * this.#noise;
      this.#logits[logitRow * FAKE_VOCABULARY + id] = own + whole + noise;
    }
  }
}

function isAborted(batch: Batch): boolean {
  return batch.abortWord !== null && Atomics.load(batch.abortWord, 0) !== 0;
}
