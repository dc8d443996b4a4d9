// The structs of a step's native calls, made once per model and refilled each time: the Batch, the sampling requests and
// their results. They hold addresses of the caller's arrays, which the caller keeps alive during the call.

import { assert } from "../../base/assert.ts";
import { BATCH_STRUCT, CONSTANTS, SAMPLE_REQUEST_STRUCT, SAMPLE_RESULT_STRUCT } from "../../native/binding.ts";
import { addressOf, StructArray } from "../../native/struct.ts";
import type { Batch } from "../batch.ts";
import { type SampleRequest, type SampleResult, TOP_LOGPROBS_MAX } from "../sampling.ts";

export class BatchStruct {
  readonly #struct = new StructArray(BATCH_STRUCT, 1);
  /** Whose arrays the struct points at; its addresses are only looked up anew for another one. */
  #bound: Batch | null = null;

  get address(): number {
    return this.#struct.address;
  }

  fill(batch: Batch): void {
    const { rowCount, sequenceCount, logitRowCount, blockTableStride } = batch;
    assert(rowCount <= batch.tokenIds.length && logitRowCount <= batch.logitRows.length, "the batch's rows have room");
    assert(sequenceCount * blockTableStride <= batch.blockTables.length, "the batch's block tables have room");
    if (this.#bound !== batch) this.#bind(batch);
    const { fields } = BATCH_STRUCT;
    this.#struct.setU32(0, fields.rowCount, rowCount);
    this.#struct.setU32(0, fields.sequenceCount, sequenceCount);
    this.#struct.setU32(0, fields.logitRowCount, logitRowCount);
    this.#struct.setU32(0, fields.blockTableStride, blockTableStride);
  }

  #bind(batch: Batch): void {
    const rowMax = batch.tokenIds.length;
    const isEven = [batch.positions, batch.kvSlots, batch.sequenceIndex].every((array) => array.length >= rowMax);
    assert(isEven && rowMax > 0, "the batch's arrays are of one length");
    const names = [
      "tokenIds",
      "positions",
      "kvSlots",
      "sequenceIndex",
      "blockTables",
      "logitRows",
      "abortWord",
    ] as const;
    for (const name of names) this.#struct.setU64(0, BATCH_STRUCT.fields[name], addressOf(batch[name]));
    this.#bound = batch;
  }
}

export class RequestStructs {
  readonly #struct: StructArray;

  constructor(readonly requestMax: number) {
    this.#struct = new StructArray(SAMPLE_REQUEST_STRUCT, requestMax);
  }

  get address(): number {
    return this.#struct.address;
  }

  /** `mask`: a bit for each token that a grammar allows, [row][ceil(vocabulary / 32)]. */
  fill(index: number, request: SampleRequest, mask: Uint32Array | null = null): void {
    const { params } = request;
    assert(index < this.requestMax, `a call samples at most ${this.requestMax} requests`);
    assert(request.historyCount <= request.history.length, "the history has its tokens");
    assert(request.rowCount - 1 <= request.draftTokens.length, "there is a draft token for every row but the last");
    assert(params.biasIds.length === params.biasValues.length, "every bias has a value");
    const struct = this.#struct;
    const { fields } = SAMPLE_REQUEST_STRUCT;
    struct.setU32(index, fields.firstLogitRow, request.firstLogitRow);
    struct.setU32(index, fields.rowCount, request.rowCount);
    struct.setU32(index, fields.position, request.position);
    struct.setU32(index, fields.choiceIndex, request.choiceIndex);
    struct.setU32(index, fields.seedLow, params.seedLow);
    struct.setU32(index, fields.seedHigh, params.seedHigh);
    struct.setU32(index, fields.purpose, request.purpose);
    struct.setU32(index, fields.promptCount, request.promptCount);
    struct.setU32(index, fields.historyCount, request.historyCount);
    struct.setU32(index, fields.biasCount, params.biasIds.length);
    struct.setU32(index, fields.bannedCount, params.bannedIds.length);
    struct.setU32(index, fields.bannedUntil, Math.min(params.bannedUntil, CONSTANTS.none));
    struct.setF32(index, fields.temperature, params.temperature);
    struct.setF32(index, fields.topP, params.topP);
    struct.setF32(index, fields.minP, params.minP);
    struct.setF32(index, fields.repetitionPenalty, params.repetitionPenalty);
    struct.setF32(index, fields.presencePenalty, params.presencePenalty);
    struct.setF32(index, fields.frequencyPenalty, params.frequencyPenalty);
    struct.setU32(index, fields.topK, params.topK);
    struct.setU32(index, fields.topLogprobs, params.topLogprobs ?? CONSTANTS.none);
    struct.setF32(index, fields.draftSharpness, request.draftSharpness);
    struct.setU64(index, fields.history, addressOf(request.history));
    struct.setU64(index, fields.draftTokens, addressOf(request.draftTokens));
    struct.setU64(index, fields.biasIds, addressOf(params.biasIds));
    struct.setU64(index, fields.biasValues, addressOf(params.biasValues));
    struct.setU64(index, fields.bannedIds, addressOf(params.bannedIds));
    struct.setU64(index, fields.mask, addressOf(mask));
  }
}

export class ResultStructs {
  readonly #struct: StructArray;

  constructor(requestMax: number) {
    this.#struct = new StructArray(SAMPLE_RESULT_STRUCT, requestMax);
  }

  get address(): number {
    return this.#struct.address;
  }

  fill(index: number, result: SampleResult, rowCount: number): void {
    const hasRoom =
      result.tokens.length >= rowCount &&
      result.logprobs.length >= rowCount &&
      result.topIds.length >= rowCount * TOP_LOGPROBS_MAX &&
      result.topLogprobs.length >= rowCount * TOP_LOGPROBS_MAX;
    assert(hasRoom, "a result has room for its request's rows");
    const { fields } = SAMPLE_RESULT_STRUCT;
    this.#struct.setU64(index, fields.tokens, addressOf(result.tokens));
    this.#struct.setU64(index, fields.logprobs, addressOf(result.logprobs));
    this.#struct.setU64(index, fields.topIds, addressOf(result.topIds));
    this.#struct.setU64(index, fields.topLogprobs, addressOf(result.topLogprobs));
  }

  emittedCount(index: number): number {
    return this.#struct.u32(index, SAMPLE_RESULT_STRUCT.fields.emittedCount);
  }
}
