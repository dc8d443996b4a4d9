// A sequence: tokens and state of one choice of a request. The scheduler moves it between its states, the engine appends its
// tokens. KV is valid for positions below kvFrontier; a decoding sequence has KV for all tokens but the last, the anchor.

import { assert } from "../base/assert.ts";
import type { SamplingParams } from "../device/sampling.ts";
import { BlockTable, blocksFor } from "../memory/block-table.ts";
import type { KvBlockPool } from "../memory/kv-block-pool.ts";
import { ROOT_ENTRY } from "../memory/prefix-index.ts";
import type { DraftSequence } from "../speculative/proposer.ts";
import type { ChoiceUsage, EngineRequest, SpeculationMode } from "./messages.ts";
import type { ChoiceText } from "./choice-text.ts";

export type SequenceState = "waiting" | "running" | "preempted" | "finished";

/** A request in the engine and its choices. */
export interface RequestState {
  readonly request: EngineRequest;
  readonly arrivalIndex: number;
  readonly arrivalMs: number;
  /** Infinity: none. */
  readonly deadlineMs: number;
  readonly sequences: Sequence[];
  /** Choice 0 has KV of the whole prompt (or is finished): the others find its full blocks in the prefix index. */
  isPromptReady: boolean;
  /** Some choice has run. */
  isStarted: boolean;
}

const NOT_RUNNING = -1;
const NO_TOKENS = new Int32Array(0);

export class Sequence implements DraftSequence {
  state: SequenceState = "waiting";
  runIndex = NOT_RUNNING;
  tokenCount: number;
  kvFrontier = 0;
  readonly blockTable: BlockTable;
  /** kvBlocks set aside at admission; those beyond what the table holds are still to be taken. */
  reservedBlocks = 0;
  /** Full blocks already in the prefix index, and the entry of the last. */
  indexedBlockCount = 0;
  prefixEntry = ROOT_ENTRY;

  draftedCount = 0;
  acceptedCount = 0;
  cachedTokenCount = 0;
  /** Milliseconds on the engine's clock; NaN: not yet. */
  startMs = Number.NaN;
  firstTokenMs = Number.NaN;

  #tokens = NO_TOKENS;

  constructor(
    readonly owner: RequestState,
    readonly choiceIndex: number,
    readonly text: ChoiceText,
    readonly draftTokenMax: number,
    pool: KvBlockPool,
  ) {
    this.tokenCount = this.promptCount;
    this.blockTable = new BlockTable(pool, blocksFor(this.tokenMax));
  }

  get params(): SamplingParams {
    return this.owner.request.params;
  }

  get speculation(): SpeculationMode {
    return this.owner.request.speculation;
  }

  get promptCount(): number {
    return this.owner.request.promptTokens.length;
  }

  get outputCount(): number {
    return this.tokenCount - this.promptCount;
  }

  /** Tokens when the output is as long as it may become. */
  get tokenMax(): number {
    return this.promptCount + this.owner.request.outputTokenMax;
  }

  /** The first tokenCount entries count. Before the first admission: the prompt alone. */
  get tokens(): Int32Array {
    return this.#tokens === NO_TOKENS ? this.owner.request.promptTokens : this.#tokens;
  }

  /** Known tokens that have no KV: 1 when decoding. */
  get missingCount(): number {
    return this.tokenCount - this.kvFrontier;
  }

  /** The most tokens that can be drafted: a step emits one more than it accepts. */
  get draftLimit(): number {
    if (this.speculation === "off") return 0;
    return Math.min(this.draftTokenMax, this.tokenMax - this.tokenCount - 1);
  }

  /** Makes room for the output. Called at the first admission, so that waiting requests stay small. */
  allocateTokens(): void {
    if (this.#tokens !== NO_TOKENS) return;
    this.#tokens = new Int32Array(this.tokenMax);
    this.#tokens.set(this.owner.request.promptTokens);
  }

  append(tokenId: number): void {
    assert(this.tokenCount < this.tokenMax, "a sequence does not outgrow its request");
    this.#tokens[this.tokenCount++] = tokenId;
  }

  usage(nowMs: number): ChoiceUsage {
    const started = Number.isNaN(this.startMs) ? nowMs : this.startMs;
    const first = Number.isNaN(this.firstTokenMs) ? nowMs : this.firstTokenMs;
    return {
      outputTokenCount: this.outputCount,
      draftedCount: this.draftedCount,
      acceptedCount: this.acceptedCount,
      cachedTokenCount: this.cachedTokenCount,
      queueMs: started - this.owner.arrivalMs,
      prefillMs: first - started,
      decodeMs: nowMs - first,
    };
  }
}

/** Order of service: higher priority, then earlier arrival, then lower choice. */
export function compareService(a: Sequence, b: Sequence): number {
  return (
    b.owner.request.priority - a.owner.request.priority ||
    a.owner.arrivalIndex - b.owner.arrivalIndex ||
    a.choiceIndex - b.choiceIndex
  );
}
