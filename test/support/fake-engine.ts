// An engine over fake models, stepped by the test, with a clock that the test turns. Token id i is the text "<i> ".

import { expect } from "bun:test";
import { defined } from "../../src/base/assert.ts";
import type { Clock } from "../../src/base/clock.ts";
import type { Batch } from "../../src/device/batch.ts";
import type { SamplingParams } from "../../src/device/sampling.ts";
import { CancelWords } from "../../src/engine/cancel-words.ts";
import { Engine } from "../../src/engine/engine.ts";
import type { EngineLimits } from "../../src/engine/engine-parts.ts";
import type { ChoiceOutput, EngineRequest, FinishReason, StepReport } from "../../src/engine/messages.ts";
import { blocksFor } from "../../src/memory/block-table.ts";
import { KvBlockPool } from "../../src/memory/kv-block-pool.ts";
import { PrefixIndex } from "../../src/memory/prefix-index.ts";
import { DraftModelProposer } from "../../src/speculative/draft-model.ts";
import { NgramProposer } from "../../src/speculative/ngram.ts";
import { FakeModel } from "./fake-model.ts";

export const GREEDY: SamplingParams = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seedLow: 1,
  seedHigh: 2,
  biasIds: new Int32Array(0),
  biasValues: new Float32Array(0),
  topLogprobs: null,
  bannedIds: new Int32Array(0),
  bannedUntil: 0,
};

export const SAMPLED: SamplingParams = { ...GREEDY, temperature: 0.8, seedLow: 123, seedHigh: 456, topLogprobs: 2 };

let requestCount = 0;

export function request(prompt: readonly number[], fields: Partial<EngineRequest> = {}): EngineRequest {
  return {
    requestId: `request-${requestCount++}`,
    promptTokens: Int32Array.from(prompt),
    choiceCount: 1,
    params: GREEDY,
    outputTokenMax: 16,
    stopTokenIds: [],
    stopStrings: [],
    speculation: "auto",
    draftTokenMax: null,
    deadlineMs: null,
    priority: 0,
    keepSpecialTokens: false,
    ...fields,
  };
}

/** A prompt of `count` tokens that repeats itself now and then. */
export function promptOf(count: number, seed = 1): number[] {
  return Array.from({ length: count }, (_, i) => (seed * 7 + (i % 11) * 3 + Math.floor(i / 5)) % 37);
}

export interface FakeEngineOptions extends Partial<EngineLimits> {
  readonly kvBlockCount?: number;
  readonly isPrefixCached?: boolean;
  readonly proposers?: readonly ("draft" | "ngram")[];
  readonly onRun?: (batch: Batch) => void;
  readonly draftNoise?: number;
}

/** What a choice has emitted altogether. */
export interface Emitted {
  tokens: number[];
  logprobs: unknown[];
  text: string;
  finishReason: FinishReason | null;
  last: ChoiceOutput;
}

export class FakeEngine {
  readonly engine: Engine;
  readonly pool: KvBlockPool;
  readonly model: FakeModel;
  readonly words = new CancelWords();
  readonly emitted = new Map<string, Emitted[]>();
  readonly reports: StepReport[] = [];
  readonly failures: string[] = [];
  nowMs = 0;

  constructor(options: FakeEngineOptions = {}) {
    const limits: EngineLimits = {
      sequenceMax: options.sequenceMax ?? 8,
      queueMax: options.queueMax ?? 100,
      prefillChunkMax: options.prefillChunkMax ?? 64,
      contextMax: options.contextMax ?? 512,
      draftTokenMax: options.draftTokenMax ?? 4,
      stepMsTarget: options.stepMsTarget ?? 1e9,
    };
    const { sequenceMax, draftTokenMax } = limits;
    const kvBlockCount = options.kvBlockCount ?? 128;
    const logitRowMax = sequenceMax * (draftTokenMax + 1);
    const sizes = { kvBlockCount, rowMax: limits.prefillChunkMax + logitRowMax, logitRowMax };
    const clock: Clock = { nowMs: () => (this.nowMs += 0.25), wallSeconds: () => 0 };
    this.pool = new KvBlockPool(kvBlockCount);
    this.model = new FakeModel({ ...sizes, ...(options.onRun === undefined ? {} : { onRun: options.onRun }) });
    const makers = {
      ngram: () => new NgramProposer(sequenceMax),
      draft: () =>
        new DraftModelProposer({
          model: new FakeModel({ ...sizes, noise: options.draftNoise ?? 1 }),
          pool: this.pool,
          sequenceMax,
          draftTokenMax,
          contextMax: limits.contextMax,
          blocksPerSequenceMax: blocksFor(limits.contextMax),
          abortWord: this.words.abortWord,
        }),
    };
    this.engine = new Engine(
      {
        model: this.model,
        pool: this.pool,
        prefixIndex: options.isPrefixCached === false ? null : new PrefixIndex(this.pool),
        proposers: (options.proposers ?? ["draft", "ngram"]).map((name) => makers[name]()),
        createDecoder: () => ({ push: (id) => `<${id}> `, flush: () => "" }),
        limits,
        info: {
          device: { kind: "reference", summary: "", isa: "", laneCount: 1, dies: ["", ""], ops: {}, warnings: [] },
          modelName: "fake",
          draftModelName: null,
          containerFingerprint: "",
          kvType: "f32",
          contextMax: limits.contextMax,
          weightBytes: 0,
          kvBytes: 0,
        },
        words: this.words,
        clock,
      },
      {
        onOutputs: (outputs, report) => {
          for (const output of outputs) this.#take(output);
          if (report !== null) this.reports.push(report);
        },
        onFailure: (message) => this.failures.push(message),
      },
    );
  }

  /** Steps until nothing is left to do. */
  finish(stepMax = 20_000): void {
    for (let i = 0; this.engine.hasWork; i++) {
      if (i === stepMax) throw new Error(`the engine still has work after ${stepMax} steps`);
      this.turn();
    }
  }

  turn(): void {
    if (this.words.arm()) this.engine.step();
  }

  /** Submits, runs to the end, and returns what each choice emitted. */
  complete(given: EngineRequest): Emitted[] {
    this.engine.submit(given);
    this.finish();
    return this.of(given);
  }

  of(given: EngineRequest): Emitted[] {
    return defined(this.emitted.get(given.requestId), `output of ${given.requestId}`);
  }

  /** Everything must have been given back. */
  expectIdle(): void {
    const status = this.engine.status();
    expect([status.runningCount, status.waitingCount, status.kvBlocksUsed]).toEqual([0, 0, 0]);
    expect(this.pool.availableCount).toBe(this.pool.blockCount);
  }

  #take(output: ChoiceOutput): void {
    const choices = this.emitted.get(output.requestId) ?? [];
    this.emitted.set(output.requestId, choices);
    const choice = (choices[output.choiceIndex] ??= {
      tokens: [],
      logprobs: [],
      text: "",
      finishReason: null,
      last: output,
    });
    expect(choice.finishReason).toBeNull();
    choice.tokens.push(...output.tokenIds);
    choice.logprobs.push(...(output.logprobs ?? []));
    choice.text += output.text;
    choice.finishReason = output.finishReason;
    choice.last = output;
  }
}
