// A Program as people read it: one line an op. For `doctor`, the documentation and failing tests.

import type { Container } from "../weights/header.ts";
import type { Op, PerDie, Program, SlotIndex, TensorIndex } from "./program.ts";

/** The op table of a Program, its slots first. Equal neighbouring layers are not folded: the list is what runs. */
export function describeProgram(program: Program, container: Container): string {
  const slotName = (index: SlotIndex | null) =>
    index === null ? "-" : (program.slots[index]?.name ?? `slot ${index}`);
  const tensorName = (index: TensorIndex) => container.header.tensors[index]?.name ?? `tensor ${index}`;
  const pair = (tensors: PerDie<TensorIndex | null>): string[] => {
    const names = tensors.flatMap((index) => (index === null ? [] : [tensorName(index)]));
    const [first, second] = names;
    if (first === undefined) return [];
    const base = first.replace(/\.die0$/, "");
    return second === `${base}.die1` ? [`${base}.die0/1`] : names;
  };
  const opRow = (op: Op, index: number): string[] => [
    String(index),
    op.name +
      Object.keys(op.flags)
        .map((flag) => ` +${flag}`)
        .join(""),
    String(op.layer),
    slotName(op.input),
    slotName(op.output),
    [...pair(op.weight), ...pair(op.weight2), ...pair(op.bias)].join(" "),
  ];
  const slots = program.slots.map((slot) => [
    slot.name,
    slot.isPerDie ? `${slot.columns[0]} + ${slot.columns[1]}` : String(slot.columns[0]),
    slot.isQuantised ? "float32 and int8" : "float32",
  ]);
  const slotTable = columnsOf([["slot", "columns", "held as"], ...slots]);
  const opTable = columnsOf([["#", "op", "layer", "input", "output", "tensors"], ...program.ops.map(opRow)]);
  return `${slotTable}\n\n${opTable}`;
}

function columnsOf(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => (row[column] ?? "").length)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
