// The reference device: a Program run in plain TypeScript. It defines what is meant (docs/arithmetic.md); other devices are
// compared with it, and it stands in where no kernel library can be built. It owns a model's run state and the step's
// bookkeeping; the ops are in ops.ts.

/* oxlint-disable typescript/no-non-null-assertion -- indices are bounded by the shape and the checked batch */

import { assert } from "../../base/assert.ts";
import { OP_CODES, type Program, slotColumns, type SlotIndex } from "../../model/program.ts";
import type { Container } from "../../weights/header.ts";
import type { DieIndex } from "../../weights/split.ts";
import { type Batch, KV_BLOCK_TOKENS } from "../batch.ts";
import type { Device, DeviceDescription, DeviceModel, ModelOptions, StepOutcome, StepStats } from "../device.ts";
import type { SampleRequest, SampleResult } from "../sampling.ts";
import { draftWith } from "./draft.ts";
import { runOp } from "./ops.ts";
import { createRunState, type RunState } from "./run-state.ts";
import { createSampler, logNormaliser, logprobOf } from "./sampler.ts";

export function createReferenceDevice(): Device {
  return {
    kind: "reference",
    describe,
    load: (container, program, options) => new ReferenceModel(container, program, options),
    close() {},
  };
}

function describe(): DeviceDescription {
  const place = "plain TypeScript";
  return {
    kind: "reference",
    summary: "reference (plain TypeScript, 1 lane runs both dies)",
    isa: "none",
    laneCount: 1,
    dies: [place, place],
    ops: Object.fromEntries(Object.keys(OP_CODES).map((name) => [name, place])),
    warnings: ["the reference device is for checking, not for speed: install a C compiler for the cpu device"],
  };
}

class ReferenceModel implements DeviceModel {
  readonly kvBytes: number;
  readonly scratchBytes: number;
  readonly #state: RunState;
  readonly #sampler;
  #logitRowCount = 0;
  #isClosed = false;

  constructor(
    container: Container,
    readonly program: Program,
    readonly options: ModelOptions,
  ) {
    this.#state = createRunState(container, program, options);
    this.#sampler = createSampler(this.#state.vocabularySize);
    this.kvBytes = this.#state.kv.bytes;
    const arrays = [...this.#state.slots.flat(), this.#state.logits, ...Object.values(this.#state.scratch)];
    this.scratchBytes = [...new Set(arrays)].reduce((sum: number, array) => sum + array.byteLength, 0);
  }

  run(batch: Batch, stats?: StepStats): StepOutcome {
    this.#checkOpen();
    this.#checkBatch(batch);
    this.#logitRowCount = 0;
    Object.assign(this.#state.stats, { weightBytes: 0, integerOps: 0, distinctExperts: 0, expertLayers: 0 });
    for (const op of this.program.ops) {
      if (batch.abortWord !== null && Atomics.load(batch.abortWord, 0) !== 0) return "cancelled";
      runOp(this.#state, op, batch);
    }
    this.#logitRowCount = batch.logitRowCount;
    if (stats !== undefined) Object.assign(stats, this.#state.stats);
    return "ok";
  }

  sample(requests: readonly SampleRequest[], results: readonly SampleResult[]): void {
    this.#checkOpen();
    assert(requests.length <= results.length, "every request has a result");
    for (const [index, request] of requests.entries()) {
      const lastRow = request.firstLogitRow + request.rowCount;
      assert(lastRow <= this.#logitRowCount, `logit row ${lastRow - 1} exists after the last run`);
      this.#sampler.sample(this.#state.logits, request, results[index]!);
    }
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
    this.#checkOpen();
    assert(tokenIds.length <= this.#logitRowCount, "there is a logit row for every scored token");
    for (const [row, tokenId] of tokenIds.entries()) {
      const logits = this.#logitsOf(row);
      out[row] = logprobOf(logits[tokenId]!, logNormaliser(logits));
    }
  }

  readLogits(logitRow: number, out: Float32Array): void {
    this.#checkOpen();
    assert(logitRow < this.#logitRowCount, `logit row ${logitRow} exists after the last run`);
    out.set(this.#logitsOf(logitRow));
  }

  readSlot(slot: SlotIndex, die: DieIndex, rowCount: number, out: Float32Array): void {
    out.set(this.#slotRows(slot, die, rowCount));
  }

  writeSlot(slot: SlotIndex, die: DieIndex, rowCount: number, values: Float32Array): void {
    const rows = this.#slotRows(slot, die, rowCount);
    rows.set(values.subarray(0, rows.length));
  }

  close(): void {
    this.#isClosed = true;
  }

  #logitsOf(row: number): Float32Array {
    const { logits, vocabularySize } = this.#state;
    return logits.subarray(row * vocabularySize, (row + 1) * vocabularySize);
  }

  #slotRows(slot: SlotIndex, die: DieIndex, rowCount: number): Float32Array {
    this.#checkOpen();
    const definition = this.program.slots[slot];
    const values = this.#state.slots[slot]?.[definition?.isPerDie ? die : 0];
    assert(definition !== undefined && values !== undefined, `slot ${slot} exists`);
    assert(rowCount <= this.options.rowMax, "a slot has rowMax rows");
    return values.subarray(0, rowCount * slotColumns(definition, die));
  }

  #checkOpen(): void {
    assert(!this.#isClosed, "the model is open");
  }

  /** The caller's contract (batch.ts); one pass over the rows. */
  #checkBatch(batch: Batch): void {
    const { vocabularySize, kv } = this.#state;
    const reach = Math.min(this.program.shape.contextMax, batch.blockTableStride * KV_BLOCK_TOKENS);
    assert(batch.rowCount <= this.options.rowMax, `a batch has at most ${this.options.rowMax} rows`);
    assert(batch.logitRowCount <= this.options.logitRowMax, `at most ${this.options.logitRowMax} logit rows`);
    for (let row = 0; row < batch.rowCount; row++) {
      const tokenId = batch.tokenIds[row]!;
      const position = batch.positions[row]!;
      const kvSlot = batch.kvSlots[row]!;
      assert(tokenId >= 0 && tokenId < vocabularySize, `row ${row}: token ${tokenId} is in the vocabulary`);
      assert(position >= 0 && position < reach, `row ${row}: position ${position} is below ${reach}`);
      assert(kvSlot >= 0 && kvSlot < kv.slotCount, `row ${row}: kvSlot ${kvSlot} exists`);
      assert(batch.sequenceIndex[row]! < batch.sequenceCount, `row ${row} belongs to a sequence`);
    }
    for (let i = 0; i < batch.logitRowCount; i++) {
      assert(batch.logitRows[i]! < batch.rowCount, `logit row ${i} is a row of the batch`);
    }
  }
}
