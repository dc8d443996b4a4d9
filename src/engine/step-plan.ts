// The plan of one step: which sequences run, and how many rows each. Decoding sequences come first; indices of the step's
// drafts, sample requests and results are indices here. Refilled each step.

import type { Sequence } from "./sequence.ts";

export class StepPlan {
  /** In the order of the Batch. */
  readonly sequences: Sequence[] = [];
  /** Known tokens to run: 1 for a decoding sequence. Drafts come on top. */
  readonly rowCounts: Int32Array;
  decodeCount = 0;
  /** Rows without drafts. */
  rowCount = 0;

  constructor(sequenceMax: number) {
    this.rowCounts = new Int32Array(sequenceMax);
  }

  get isEmpty(): boolean {
    return this.sequences.length === 0;
  }

  clear(): void {
    this.sequences.length = 0;
    this.decodeCount = 0;
    this.rowCount = 0;
  }

  /** Before any addPrefill. */
  addDecode(sequence: Sequence): void {
    this.#add(sequence, 1);
    this.decodeCount++;
  }

  addPrefill(sequence: Sequence, rowCount: number): void {
    this.#add(sequence, rowCount);
  }

  /** Whether sequence i's last known token is among its rows, so that its next token is sampled. */
  isSampled(i: number): boolean {
    return this.rowCounts[i] === this.sequences[i]!.missingCount;
  }

  #add(sequence: Sequence, rowCount: number): void {
    this.rowCounts[this.sequences.length] = rowCount;
    this.sequences.push(sequence);
    this.rowCount += rowCount;
  }
}
