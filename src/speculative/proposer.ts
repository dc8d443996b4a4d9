// The seam for drafting: a Proposer guesses a sequence's next tokens. n-gram lookup and draft model are siblings behind it. A
// proposal affects speed only: the target's own keyed samples decide (acceptance, docs/arithmetic.md section 9).

import type { StepOutcome } from "../device/device.ts";
import type { SamplingParams } from "../device/sampling.ts";
import type { BlockTable } from "../memory/block-table.ts";

export type ProposerName = "draft" | "ngram";

/** What a proposer may see of a running sequence. */
export interface DraftSequence {
  /** Dense index from 0 to sequenceMax − 1 while the sequence runs: where per-sequence state is kept. */
  readonly runIndex: number;
  /** Prompt and output; the first tokenCount entries count, the last of them is the anchor. */
  readonly tokens: Int32Array;
  readonly tokenCount: number;
  readonly promptCount: number;
  /** Tokens when the output is as long as it may become. */
  readonly tokenMax: number;
  readonly choiceIndex: number;
  readonly params: SamplingParams;
  readonly blockTable: BlockTable;
  /** Which proposers may be used. */
  readonly speculation: "auto" | "off" | "draft" | "ngram";
}

/** Drafts of several sequences: tokens as [index][stride], counts by index. */
export interface Drafts {
  readonly stride: number;
  readonly tokens: Int32Array;
  readonly counts: Int32Array;
}

export interface Proposer {
  readonly name: ProposerName;
  /** Rows of the last propose besides one per drafted token: known tokens that it had missed. */
  readonly catchUpRows: number;
  /** Its drafts are of so many kinds, whose acceptance is estimated apart. */
  readonly kindCount: number;
  /** How many tokens it could propose now, at most `lengthMax`; 0: nothing. Cheap; no forward. */
  available(sequence: DraftSequence, lengthMax: number): number;
  /** The kind of the draft that the last `available` promised for this sequence: 0 to kindCount − 1. */
  kind(sequence: DraftSequence): number;
  /** Known tokens besides the anchor that it would have to run before it can propose. */
  missedRows(sequence: DraftSequence): number;
  /**
   * Proposes lengths[i] tokens for sequences[i], i < count, wherever it is positive, into drafts (tokens and counts of those i only);
   * none where it has missed too many tokens to run in one step.
   * Blocks for the drafted positions are in the sequence's table. `cancelled`: the abort word was set, nothing was proposed.
   */
  propose(sequences: readonly DraftSequence[], count: number, lengths: Int32Array, drafts: Drafts): StepOutcome;
  /** After a step that added tokens to the sequence. */
  observe(sequence: DraftSequence): void;
  /** A sequence starts (or starts again after preemption) with this runIndex. */
  start(sequence: DraftSequence): void;
}
