// Runs the rows of a contract case through a device in any order and chunking, and gathers what came out by row, so that
// runs that must agree can be compared whatever their batches were.

import { assert, defined } from "../../src/base/assert.ts";
import { addRow, addSequence, type Batch, clearBatch, createBatch } from "../../src/device/batch.ts";
import type { Device, DeviceModel, KvType } from "../../src/device/device.ts";
import { type Program, slotColumns } from "../../src/model/program.ts";
import type { Container } from "../../src/weights/header.ts";
import type { DieIndex } from "../../src/weights/split.ts";

/** One token of one sequence. Rows of a sequence are listed with positions ascending from 0. */
export interface CaseRow {
  readonly sequence: number;
  readonly position: number;
  readonly tokenId: number;
}

export interface SlotRef {
  readonly slot: number;
  readonly die: DieIndex;
}

export interface ContractCase {
  readonly name: string;
  readonly container: Container;
  readonly program: Program;
  readonly kvType: KvType;
  readonly kvBlockCount: number;
  readonly rows: readonly CaseRow[];
  /** kvBlocks of each sequence, in any physical order. */
  readonly blockTables: readonly (readonly number[])[];
  /** Activations that the ops find: values[row][columns]. */
  readonly inputs: readonly (SlotRef & { readonly values: Float32Array })[];
  readonly outputs: readonly SlotRef[];
  readonly hasLogits: boolean;
  /** Largest difference from the reference, relative to the row's largest magnitude. */
  readonly tolerance: number;
}

/** Output rows by name, `attn.die1` or `logits`: [row][columns]. */
export type Outputs = ReadonlyMap<string, { readonly columns: number; readonly values: Float32Array }>;

/** Batches as lists of row indices of the case; each row once, a sequence's rows in order. */
export type Chunking = (case_: ContractCase) => readonly (readonly number[])[];

const allRows = (case_: ContractCase) => [...case_.rows.keys()];

export const chunkings: Readonly<Record<string, Chunking>> = {
  "one batch": (case_) => [allRows(case_)],
  "a row at a time": (case_) => allRows(case_).map((row) => [row]),
  "batches of 3": (case_) => cut(allRows(case_), 3),
  "batches of 7, sequences in reverse order": (case_) => cut(sequencesReversed(case_), 7),
};

function cut(rows: readonly number[], rowCount: number): number[][] {
  return Array.from({ length: Math.ceil(rows.length / rowCount) }, (_, i) =>
    rows.slice(i * rowCount, (i + 1) * rowCount),
  );
}

function sequencesReversed({ rows }: ContractCase): number[] {
  const sequenceOf = (row: number) => defined(rows[row]).sequence;
  return [...rows.keys()].sort((a, b) => sequenceOf(b) - sequenceOf(a) || a - b);
}

export function loadCase(device: Device, case_: ContractCase): DeviceModel {
  const rowMax = case_.rows.length;
  const { kvType, kvBlockCount } = case_;
  return device.load(case_.container, case_.program, { kvType, kvBlockCount, rowMax, logitRowMax: rowMax });
}

export function batchFor(case_: ContractCase): Batch {
  return createBatch({
    rowMax: case_.rows.length,
    sequenceMax: case_.blockTables.length,
    blocksPerSequenceMax: Math.max(...case_.blockTables.map((table) => table.length)),
  });
}

/** Fills a Batch with some rows of a case; all of them want logits when the case has any. */
export function fillBatch(batch: Batch, case_: ContractCase, chunk: readonly number[]): void {
  clearBatch(batch);
  let open: number | null = null;
  for (const index of chunk) {
    const row = defined(case_.rows[index], "a row of the case");
    if (row.sequence !== open) addSequence(batch, defined(case_.blockTables[row.sequence], "a block table"));
    open = row.sequence;
    addRow(batch, row.tokenId, row.position, case_.hasLogits);
  }
}

export function runRows(model: DeviceModel, case_: ContractCase, chunks: readonly (readonly number[])[]): Outputs {
  const { program, rows } = case_;
  const outputs = new Map<string, { columns: number; values: Float32Array }>();
  const slotOf = (slot: number) => defined(program.slots[slot], "a slot of the case");
  for (const { slot, die } of case_.outputs) {
    const columns = slotColumns(slotOf(slot), die);
    outputs.set(nameOf(case_, slot, die), { columns, values: new Float32Array(rows.length * columns) });
  }
  const vocabularySize = program.shape.vocabularyRows[0] + program.shape.vocabularyRows[1];
  if (case_.hasLogits) {
    outputs.set("logits", { columns: vocabularySize, values: new Float32Array(rows.length * vocabularySize) });
  }
  const scatter = (name: string, chunk: readonly number[], values: Float32Array) => {
    const output = defined(outputs.get(name));
    const { columns } = output;
    for (const [i, row] of chunk.entries()) {
      output.values.set(values.subarray(i * columns, (i + 1) * columns), row * columns);
    }
  };

  const batch = batchFor(case_);
  for (const chunk of chunks) {
    fillBatch(batch, case_, chunk);
    for (const { slot, die, values } of case_.inputs) {
      const columns = slotColumns(slotOf(slot), die);
      const gathered = new Float32Array(chunk.length * columns);
      for (const [i, row] of chunk.entries())
        gathered.set(values.subarray(row * columns, (row + 1) * columns), i * columns);
      if (columns > 0) model.writeSlot(slot, die, chunk.length, gathered);
    }
    assert(model.run(batch) === "ok", "a step of the contract is not cancelled");
    for (const { slot, die } of case_.outputs) {
      const columns = slotColumns(slotOf(slot), die);
      if (columns === 0) continue;
      const values = new Float32Array(chunk.length * columns);
      model.readSlot(slot, die, chunk.length, values);
      scatter(nameOf(case_, slot, die), chunk, values);
    }
    if (case_.hasLogits) {
      const values = new Float32Array(chunk.length * vocabularySize);
      for (const i of chunk.keys()) model.readLogits(i, values.subarray(i * vocabularySize, (i + 1) * vocabularySize));
      scatter("logits", chunk, values);
    }
  }
  return outputs;
}

function nameOf(case_: ContractCase, slot: number, die: DieIndex): string {
  const { name, isPerDie } = defined(case_.program.slots[slot]);
  return isPerDie ? `${name}.die${die}` : name;
}

/** The largest difference of any row, relative to that row's largest magnitude in `expected`. */
export function largestDifference(got: Outputs, expected: Outputs): { relative: number; where: string } {
  let worst = { relative: 0, where: "nowhere" };
  for (const [name, { columns, values }] of expected) {
    const others = defined(got.get(name), name).values;
    for (let start = 0; start < values.length; start += columns) {
      let magnitude = 0;
      let difference = 0;
      for (let i = start; i < start + columns; i++) {
        const value = values[i] ?? NaN;
        magnitude = Math.max(magnitude, Math.abs(value));
        difference = Math.max(difference, Math.abs(value - (others[i] ?? NaN)));
      }
      const relative = difference === 0 ? 0 : difference / magnitude;
      if (!(relative <= worst.relative)) worst = { relative, where: `${name}, row ${start / columns}` };
    }
  }
  return worst;
}

/** Names the first output row whose bits differ; null when all are the same. */
export function firstBitDifference(got: Outputs, expected: Outputs): string | null {
  for (const [name, { columns, values }] of expected) {
    const others = new Uint32Array(defined(got.get(name), name).values.buffer);
    const bits = new Uint32Array(values.buffer);
    const at = bits.findIndex((word, i) => word !== others[i]);
    if (at >= 0) return `${name}, row ${Math.floor(at / columns)}, column ${at % columns}: ${values[at]}`;
  }
  return null;
}
