// Drafting with a second, smaller model. Its KV lies in the same kvBlocks as the target's (same block ids, its own layers);
// each kvBlock remembers how many of its rows hold draft KV (KvBlockPool.draftFrontier), so that a prefix hit spares the draft
// model's work too. It samples with the sequence's own parameters, seed and positions, so that at a temperature its tokens
// coincide with the target's as often as the two distributions allow.

import { assert } from "../base/assert.ts";
import { addRow, addSequence, type Batch, clearBatch, createBatch, KV_BLOCK_TOKENS } from "../device/batch.ts";
import type { DeviceModel, StepOutcome } from "../device/device.ts";
import { SAMPLE_PURPOSE_OUTPUT, type SampleRequest } from "../device/sampling.ts";
import type { KvBlockPool } from "../memory/kv-block-pool.ts";
import type { Drafts, DraftSequence, Proposer } from "./proposer.ts";

const UNKNOWN = -1;
const NO_DRAFT = new Int32Array(0);

export interface DraftModelOptions {
  readonly model: DeviceModel;
  readonly pool: KvBlockPool;
  readonly sequenceMax: number;
  readonly draftTokenMax: number;
  /** Positions that the draft model has. */
  readonly contextMax: number;
  readonly blocksPerSequenceMax: number;
  /** The same word as the target's Batch. */
  readonly abortWord: Int32Array | null;
}

export class DraftModelProposer implements Proposer {
  readonly name = "draft";
  readonly kindCount = 1;
  catchUpRows = 0;

  readonly #model: DeviceModel;
  readonly #pool: KvBlockPool;
  readonly #batch: Batch;
  readonly #rowMax: number;
  readonly #contextMax: number;
  readonly #stride: number;
  /** Per runIndex: rows with valid draft KV; and how far the last propose wrote, valid as far as its drafts are accepted. */
  readonly #frontiers: Int32Array;
  readonly #written: Int32Array;
  /** Compact, over the sequences that draft in this step. */
  readonly #all: SampleRequest[] = [];
  readonly #requests: SampleRequest[] = [];
  readonly #members: Int32Array;
  readonly #stepCounts: Uint32Array;
  readonly #tokens: Int32Array;
  readonly #probs: Float32Array;

  constructor(options: DraftModelOptions) {
    const { sequenceMax, draftTokenMax, blocksPerSequenceMax } = options;
    this.#model = options.model;
    this.#pool = options.pool;
    this.#rowMax = options.model.options.rowMax;
    this.#contextMax = options.contextMax;
    assert(this.#rowMax >= sequenceMax, "a draft step has room for a row of every sequence");
    this.#batch = createBatch({ rowMax: this.#rowMax, sequenceMax, blocksPerSequenceMax }, options.abortWord);
    this.#stride = draftTokenMax;
    this.#frontiers = new Int32Array(sequenceMax).fill(UNKNOWN);
    this.#written = new Int32Array(sequenceMax);
    this.#members = new Int32Array(sequenceMax);
    this.#stepCounts = new Uint32Array(sequenceMax);
    this.#tokens = new Int32Array(sequenceMax * draftTokenMax);
    this.#probs = new Float32Array(sequenceMax * draftTokenMax);
  }

  start(sequence: DraftSequence): void {
    this.#frontiers[sequence.runIndex] = UNKNOWN;
  }

  available(sequence: DraftSequence, lengthMax: number): number {
    return Math.max(0, Math.min(lengthMax, this.#contextMax - sequence.tokenCount));
  }

  kind(_sequence: DraftSequence): number {
    return 0;
  }

  missedRows(sequence: DraftSequence): number {
    const known = this.#frontiers[sequence.runIndex]!;
    if (known === UNKNOWN) this.#frontiers[sequence.runIndex] = this.#findFrontier(sequence);
    return Math.max(0, sequence.tokenCount - 1 - this.#frontiers[sequence.runIndex]!);
  }

  propose(
    sequences: readonly DraftSequence[],
    sequenceCount: number,
    lengths: Int32Array,
    drafts: Drafts,
  ): StepOutcome {
    this.catchUpRows = 0;
    const wanted = this.#collect(sequences, sequenceCount, lengths);
    if (wanted === 0) return "ok";
    if (this.#catchUp(sequences, wanted) === "cancelled") return "cancelled";
    const count = this.#keepReady(sequences, wanted);
    if (count === 0) return "ok";
    clearBatch(this.#batch);
    for (let m = 0; m < count; m++) {
      const sequence = sequences[this.#members[m]!]!;
      this.#addRows(sequence, this.#frontiers[sequence.runIndex]!, sequence.tokenCount);
    }
    this.catchUpRows += this.#batch.rowCount - count;
    const outcome = this.#model.draft(
      this.#batch,
      this.#requests,
      this.#stepCounts.subarray(0, count),
      this.#stride,
      this.#tokens,
      this.#probs,
    );
    if (outcome === "cancelled") return outcome;
    for (let m = 0; m < count; m++) {
      const index = this.#members[m]!;
      const sequence = sequences[index]!;
      const length = this.#stepCounts[m]!;
      drafts.counts[index] = length;
      for (let i = 0; i < length; i++) {
        drafts.tokens[index * drafts.stride + i] = this.#tokens[m * this.#stride + i]!;
      }
      this.#setFrontier(sequence, sequence.tokenCount);
      // The last drafted token was sampled, never run.
      this.#written[sequence.runIndex] = sequence.tokenCount + length - 1;
    }
    return "ok";
  }

  observe(sequence: DraftSequence): void {
    const frontier = this.#frontiers[sequence.runIndex]!;
    if (frontier === UNKNOWN) return;
    const written = this.#written[sequence.runIndex]!;
    // All tokens but the new anchor were drafted and accepted, so what was written for them stands.
    this.#setFrontier(sequence, Math.max(frontier, Math.min(written, sequence.tokenCount - 1)));
    this.#written[sequence.runIndex] = 0;
  }

  /** Fills members and stepCounts with the sequences that are to draft; returns how many. */
  #collect(sequences: readonly DraftSequence[], sequenceCount: number, lengths: Int32Array): number {
    let count = 0;
    for (let s = 0; s < sequenceCount; s++) {
      const sequence = sequences[s]!;
      const length = lengths[s]!;
      this.#written[sequence.runIndex] = 0;
      if (length === 0) continue;
      assert(length <= this.#stride, "a draft is not longer than draftTokenMax");
      this.#members[count] = s;
      this.#stepCounts[count] = length;
      const known = this.#frontiers[sequence.runIndex]!;
      // The anchor always runs, also when a cancelled step ran it before.
      const frontier = Math.min(known === UNKNOWN ? this.#findFrontier(sequence) : known, sequence.tokenCount - 1);
      this.#frontiers[sequence.runIndex] = frontier;
      count++;
    }
    return count;
  }

  /**
   * One run, without logits, of known tokens of the sequences whose missing ones are more than their share of a Batch. One run a
   * step and no more: a long prompt must not hold up the others.
   */
  #catchUp(sequences: readonly DraftSequence[], count: number): StepOutcome {
    const share = Math.floor(this.#rowMax / count);
    clearBatch(this.#batch);
    for (let m = 0; m < count; m++) {
      const sequence = sequences[this.#members[m]!]!;
      const from = this.#frontiers[sequence.runIndex]!;
      const room = this.#rowMax - this.#batch.rowCount;
      if (sequence.tokenCount - from > share && room > 0) {
        this.#addRows(sequence, from, Math.min(sequence.tokenCount - 1, from + room));
      }
    }
    if (this.#batch.rowCount === 0) return "ok";
    this.#batch.logitRowCount = 0;
    if (this.#model.run(this.#batch) === "cancelled") return "cancelled";
    this.catchUpRows = this.#batch.rowCount;
    let left = this.#batch.rowCount;
    for (let m = 0; m < count && left > 0; m++) {
      const sequence = sequences[this.#members[m]!]!;
      const from = this.#frontiers[sequence.runIndex]!;
      if (sequence.tokenCount - from <= share) continue;
      const rows = Math.min(left, sequence.tokenCount - 1 - from);
      this.#setFrontier(sequence, from + rows);
      left -= rows;
    }
    return "ok";
  }

  /** Keeps, in order, the members whose missing tokens fit their share of a Batch, and makes their requests; returns how many. */
  #keepReady(sequences: readonly DraftSequence[], count: number): number {
    const share = Math.floor(this.#rowMax / count);
    let kept = 0;
    this.#requests.length = 0;
    for (let m = 0; m < count; m++) {
      const index = this.#members[m]!;
      const sequence = sequences[index]!;
      if (sequence.tokenCount - this.#frontiers[sequence.runIndex]! > share) continue;
      this.#members[kept] = index;
      this.#stepCounts[kept] = this.#stepCounts[m]!;
      this.#requests.push(this.#request(kept, sequence));
      kept++;
    }
    return kept;
  }

  #request(index: number, sequence: DraftSequence): SampleRequest {
    let request = this.#all[index];
    if (request === undefined) {
      request = {
        params: sequence.params,
        choiceIndex: 0,
        purpose: SAMPLE_PURPOSE_OUTPUT,
        firstLogitRow: 0,
        rowCount: 1,
        position: 0,
        history: sequence.tokens,
        historyCount: 0,
        promptCount: 0,
        draftTokens: NO_DRAFT,
        draftSharpness: 1,
      };
      this.#all[index] = request;
    }
    request.params = sequence.params;
    request.choiceIndex = sequence.choiceIndex;
    request.firstLogitRow = index;
    request.position = sequence.tokenCount;
    request.history = sequence.tokens;
    request.historyCount = sequence.tokenCount;
    request.promptCount = sequence.promptCount;
    return request;
  }

  /** Rows [from, to) of a sequence; the last one wants logits. */
  #addRows(sequence: DraftSequence, from: number, to: number): void {
    addSequence(this.#batch, sequence.blockTable.blocks, sequence.blockTable.blockCount);
    for (let position = from; position < to; position++) {
      addRow(this.#batch, sequence.tokens[position]!, position, position === to - 1);
    }
  }

  /** Leading rows of the sequence's blocks that hold draft KV already. */
  #findFrontier(sequence: DraftSequence): number {
    const { blocks, blockCount } = sequence.blockTable;
    let frontier = 0;
    for (let i = 0; i < blockCount; i++) {
      const rows = this.#pool.draftFrontier[blocks[i]!]!;
      frontier += rows;
      if (rows < KV_BLOCK_TOKENS) break;
    }
    return frontier;
  }

  #setFrontier(sequence: DraftSequence, frontier: number): void {
    const { blocks } = sequence.blockTable;
    const from = Math.floor(this.#frontiers[sequence.runIndex]! / KV_BLOCK_TOKENS);
    for (let i = from; i * KV_BLOCK_TOKENS < frontier; i++) {
      const rows = Math.min(KV_BLOCK_TOKENS, frontier - i * KV_BLOCK_TOKENS);
      const block = blocks[i]!;
      // A shared block may have been filled further through another sequence.
      if (rows > this.#pool.draftFrontier[block]!) this.#pool.draftFrontier[block] = rows;
    }
    this.#frontiers[sequence.runIndex] = frontier;
  }
}
