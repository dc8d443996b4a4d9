// One forward of the target over a plan: fills the Batch with known tokens and drafts, runs it, and samples. A decoding
// sequence has the rows anchor, draft 1 .. draft k, and one sample request over all of them: its result is the accepted
// drafts and one more token. Changes no sequence.

import { addRow, addSequence, type Batch, clearBatch, createBatch } from "../device/batch.ts";
import type { DeviceModel, StepOutcome, StepStats } from "../device/device.ts";
import {
  createSampleResult,
  SAMPLE_PURPOSE_OUTPUT,
  type SampleRequest,
  type SampleResult,
} from "../device/sampling.ts";
import type { Drafts } from "../speculative/proposer.ts";
import type { Sequence } from "./sequence.ts";
import type { StepPlan } from "./step-plan.ts";

export interface VerifierOptions {
  readonly model: DeviceModel;
  readonly sequenceMax: number;
  readonly blocksPerSequenceMax: number;
  readonly drafts: Drafts;
  readonly abortWord: Int32Array | null;
}

export class Verifier {
  /** By plan index; null where nothing was sampled. Valid until the next run. */
  readonly results: (SampleResult | null)[] = [];
  readonly stats: StepStats = { weightBytes: 0, integerOps: 0, distinctExperts: 0, expertLayers: 0 };
  readonly #model: DeviceModel;
  readonly #batch: Batch;
  readonly #abortWord: Int32Array | null;
  readonly #drafts: Drafts;
  /** Kept for reuse, by sample index; the lists handed to the device hold the first of them. */
  readonly #requestPool: SampleRequest[] = [];
  readonly #resultPool: SampleResult[];
  readonly #requests: SampleRequest[] = [];
  readonly #results: SampleResult[] = [];
  readonly #draftViews: readonly Int32Array[];

  constructor(options: VerifierOptions) {
    const { model, sequenceMax, blocksPerSequenceMax, drafts } = options;
    this.#model = model;
    this.#drafts = drafts;
    this.#abortWord = options.abortWord;
    this.#batch = createBatch({ rowMax: model.options.rowMax, sequenceMax, blocksPerSequenceMax }, options.abortWord);
    this.#resultPool = Array.from({ length: sequenceMax }, () => createSampleResult(drafts.stride + 1));
    this.#draftViews = Array.from({ length: sequenceMax }, (_, i) =>
      drafts.tokens.subarray(i * drafts.stride, (i + 1) * drafts.stride),
    );
  }

  /** Rows of the last run. */
  get rowCount(): number {
    return this.#batch.rowCount;
  }

  /** `cancelled`: nothing was sampled. isAbortable: whether the abort word is heeded. */
  run(plan: StepPlan, isAbortable: boolean): StepOutcome {
    this.#fill(plan);
    this.#batch.abortWord = isAbortable ? this.#abortWord : null;
    this.stats.weightBytes = 0;
    this.stats.integerOps = 0;
    this.stats.distinctExperts = 0;
    this.stats.expertLayers = 0;
    if (this.#model.run(this.#batch, this.stats) === "cancelled") return "cancelled";
    if (this.#requests.length > 0) this.#model.sample(this.#requests, this.#results);
    return "ok";
  }

  #fill(plan: StepPlan): void {
    clearBatch(this.#batch);
    this.#requests.length = 0;
    this.#results.length = 0;
    this.results.length = 0;
    for (let i = 0; i < plan.sequences.length; i++) {
      const sequence = plan.sequences[i]!;
      const isSampled = plan.isSampled(i);
      const draftCount = i < plan.decodeCount ? this.#drafts.counts[i]! : 0;
      this.results.push(isSampled ? this.#addRequest(sequence, i, draftCount) : null);
      this.#addRows(sequence, plan.rowCounts[i]!, isSampled, this.#draftViews[i]!, draftCount);
    }
  }

  #addRows(sequence: Sequence, rowCount: number, isSampled: boolean, drafts: Int32Array, draftCount: number): void {
    const { blocks, blockCount } = sequence.blockTable;
    addSequence(this.#batch, blocks, blockCount);
    const end = sequence.kvFrontier + rowCount;
    for (let position = sequence.kvFrontier; position < end; position++) {
      addRow(this.#batch, sequence.tokens[position]!, position, isSampled && position === end - 1);
    }
    for (let k = 0; k < draftCount; k++) addRow(this.#batch, drafts[k]!, end + k, true);
  }

  /** The sample request for the rows that are about to be added; returns where its result will be. */
  #addRequest(sequence: Sequence, planIndex: number, draftCount: number): SampleResult {
    const index = this.#requests.length;
    let request = this.#requestPool[index];
    if (request === undefined) this.#requestPool[index] = request = createRequest(sequence);
    request.params = sequence.params;
    request.choiceIndex = sequence.choiceIndex;
    request.firstLogitRow = this.#batch.logitRowCount;
    request.rowCount = draftCount + 1;
    request.position = sequence.tokenCount;
    request.history = sequence.tokens;
    request.historyCount = sequence.tokenCount;
    request.promptCount = sequence.promptCount;
    request.draftTokens = this.#draftViews[planIndex]!;
    const result = this.#resultPool[index]!;
    this.#requests.push(request);
    this.#results.push(result);
    return result;
  }
}

function createRequest(sequence: Sequence): SampleRequest {
  return {
    params: sequence.params,
    choiceIndex: 0,
    purpose: SAMPLE_PURPOSE_OUTPUT,
    firstLogitRow: 0,
    rowCount: 0,
    position: 0,
    history: sequence.tokens,
    historyCount: 0,
    promptCount: 0,
    draftTokens: sequence.tokens,
    draftSharpness: 1,
  };
}
