// A Program bound to a mapped container, slots and a KV cache in native memory. One native call per step; between calls it
// holds two handles and the structs that calls are filled into.

import { assert, defined } from "../../base/assert.ts";
import { STATUS, STEP_STATS_STRUCT } from "../../native/binding.ts";
import { checkStatus, HandleOut, type Native, type Pointer } from "../../native/library.ts";
import type { Slab } from "../../native/slab.ts";
import { addressOf, keepAlive, StructArray } from "../../native/struct.ts";
import { type Program, slotColumns, type SlotIndex } from "../../model/program.ts";
import type { TensorEntry } from "../../weights/tensor.ts";
import type { DieIndex } from "../../weights/split.ts";
import type { Batch } from "../batch.ts";
import type { DeviceModel, ModelOptions, StepOutcome, StepStats } from "../device.ts";
import type { SampleRequest, SampleResult } from "../sampling.ts";
import { BatchStruct, RequestStructs, ResultStructs } from "./call-structs.ts";
import { encodeProgram } from "./encode.ts";

const pointer = (address: number) => address as Pointer;

export class CpuModel implements DeviceModel {
  readonly kvBytes: number;
  readonly scratchBytes: number;
  readonly #symbols: Native["symbols"];
  #handle: Pointer | null;
  readonly #batch = new BatchStruct();
  readonly #stats = new StructArray(STEP_STATS_STRUCT, 1);
  readonly #requests: RequestStructs;
  readonly #results: ResultStructs;
  readonly #vocabularySize: number;

  /** Takes the slab over: close() unmaps it. */
  constructor(
    native: Native,
    device: Pointer,
    private readonly slab: Slab,
    readonly program: Program,
    tensors: readonly TensorEntry[],
    readonly options: ModelOptions,
    private readonly onClose: () => void,
  ) {
    const { symbols } = native;
    this.#symbols = symbols;
    const encoded = encodeProgram(program, tensors, options);
    const out = new HandleOut();
    const status = symbols.duet_model_create(
      device,
      slab.handle,
      pointer(encoded.shape.address),
      pointer(encoded.tensors.address),
      encoded.tensors.count,
      pointer(encoded.slots.address),
      encoded.slots.count,
      pointer(encoded.ops.address),
      encoded.ops.count,
      pointer(encoded.options.address),
      out.address,
    );
    keepAlive(encoded);
    checkStatus(symbols, status, `load ${slab.path}`);
    this.#handle = out.value;
    this.kvBytes = Number(symbols.duet_model_kv_bytes(out.value));
    this.scratchBytes = Number(symbols.duet_model_scratch_bytes(out.value));
    this.#vocabularySize = program.shape.vocabularyRows[0] + program.shape.vocabularyRows[1];
    const requestMax = Math.max(1, options.logitRowMax);
    this.#requests = new RequestStructs(requestMax);
    this.#results = new ResultStructs(requestMax);
  }

  run(batch: Batch, stats?: StepStats): StepOutcome {
    this.#batch.fill(batch);
    const statsAddress = stats === undefined ? 0 : this.#stats.address;
    const status = this.#symbols.duet_model_run(this.#open(), pointer(this.#batch.address), pointer(statsAddress));
    if (status === STATUS.cancelled) return "cancelled";
    checkStatus(this.#symbols, status, `run a step of ${this.slab.path}`);
    if (stats !== undefined) this.#readStats(stats);
    return "ok";
  }

  sample(requests: readonly SampleRequest[], results: readonly SampleResult[]): void {
    assert(requests.length <= results.length, "every request has a result");
    if (requests.length === 0) return;
    for (let i = 0; i < requests.length; i++) {
      const request = defined(requests[i]);
      this.#requests.fill(i, request);
      this.#results.fill(i, defined(results[i]), request.rowCount);
    }
    const status = this.#symbols.duet_model_sample(
      this.#open(),
      pointer(this.#requests.address),
      pointer(this.#results.address),
      requests.length,
    );
    checkStatus(this.#symbols, status, "sample");
    for (let i = 0; i < requests.length; i++) defined(results[i]).emittedCount = this.#results.emittedCount(i);
  }

  draft(
    batch: Batch,
    requests: readonly SampleRequest[],
    stepCounts: Uint32Array,
    stepStride: number,
    draftTokens: Int32Array,
    draftProbs: Float32Array,
  ): StepOutcome {
    const { sequenceCount } = batch;
    assert(requests.length >= sequenceCount && stepCounts.length >= sequenceCount, "every sequence has a request");
    const room = sequenceCount * stepStride;
    assert(draftTokens.length >= room && draftProbs.length >= room, "the drafts have room");
    this.#batch.fill(batch);
    for (let i = 0; i < sequenceCount; i++) this.#requests.fill(i, defined(requests[i]));
    const status = this.#symbols.duet_model_draft(
      this.#open(),
      pointer(this.#batch.address),
      pointer(this.#requests.address),
      pointer(addressOf(stepCounts)),
      stepStride,
      pointer(addressOf(draftTokens)),
      pointer(addressOf(draftProbs)),
    );
    if (status === STATUS.cancelled) return "cancelled";
    checkStatus(this.#symbols, status, `draft with ${this.slab.path}`);
    return "ok";
  }

  score(tokenIds: Int32Array, out: Float32Array): void {
    assert(out.length >= tokenIds.length, "the scores have room");
    if (tokenIds.length === 0) return;
    const [ids, scores] = [addressOf(tokenIds), addressOf(out)];
    const status = this.#symbols.duet_model_score(this.#open(), pointer(ids), tokenIds.length, pointer(scores));
    checkStatus(this.#symbols, status, "score tokens");
  }

  readLogits(logitRow: number, out: Float32Array): void {
    assert(out.length >= this.#vocabularySize, "the logits have room");
    const status = this.#symbols.duet_model_logits(this.#open(), logitRow, pointer(addressOf(out)));
    checkStatus(this.#symbols, status, "read logits");
  }

  readSlot(slot: SlotIndex, die: DieIndex, rowCount: number, out: Float32Array): void {
    assert(out.length >= rowCount * this.#columns(slot, die), "the slot's rows have room");
    const values = pointer(addressOf(out));
    const status = this.#symbols.duet_model_slot_read(this.#open(), slot, this.#slotDie(slot, die), rowCount, values);
    checkStatus(this.#symbols, status, `read slot ${slot}`);
  }

  writeSlot(slot: SlotIndex, die: DieIndex, rowCount: number, values: Float32Array): void {
    assert(values.length >= rowCount * this.#columns(slot, die), "there are values for the slot's rows");
    const from = pointer(addressOf(values));
    const status = this.#symbols.duet_model_slot_write(this.#open(), slot, this.#slotDie(slot, die), rowCount, from);
    checkStatus(this.#symbols, status, `write slot ${slot}`);
  }

  fillKv(kvBlockCount: number): void {
    checkStatus(this.#symbols, this.#symbols.duet_model_kv_fill(this.#open(), kvBlockCount), "fill the KV cache");
  }

  /** A second call does nothing. */
  close(): void {
    if (this.#handle === null) return;
    const handle = this.#handle;
    this.#handle = null;
    checkStatus(this.#symbols, this.#symbols.duet_model_destroy(handle), "free a model");
    this.slab.unmap();
    this.onClose();
  }

  #open(): Pointer {
    assert(this.#handle !== null, "the model is open");
    return this.#handle;
  }

  #columns(slot: SlotIndex, die: DieIndex): number {
    return slotColumns(defined(this.program.slots[slot], `slot ${slot}`), die);
  }

  #slotDie(slot: SlotIndex, die: DieIndex): DieIndex {
    return defined(this.program.slots[slot], `slot ${slot}`).isPerDie ? die : 0;
  }

  #readStats(stats: StepStats): void {
    const { fields } = STEP_STATS_STRUCT;
    stats.weightBytes = this.#stats.u64(0, fields.weightBytes);
    stats.integerOps = this.#stats.u64(0, fields.integerOps);
    stats.distinctExperts = this.#stats.u32(0, fields.distinctExperts);
    stats.expertLayers = this.#stats.u32(0, fields.expertLayers);
  }
}
