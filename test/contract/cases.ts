// The cases of the device contract: every op over shapes that are regular, odd and degenerate, every quant type and KV type,
// and whole small models. A case is a slice of a compiled Program with random activations in front of it.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assert } from "../../src/base/assert.ts";
import { createUniform } from "../../src/base/prng.ts";
import { compileProgram } from "../../src/model/compile.ts";
import { type OpName, type Program, slotColumns } from "../../src/model/program.ts";
import type { KvType } from "../../src/device/device.ts";
import type { Container, Recipe } from "../../src/weights/header.ts";
import { RECIPES } from "../../src/weights/recipe.ts";
import type { ModelShape } from "../../src/weights/shape.ts";
import { DIES } from "../../src/weights/split.ts";
import { randomValues, testMogeShape, testShape, writeModel } from "../support/containers.ts";
import type { CaseRow, ContractCase, SlotRef } from "./run-rows.ts";

/** docs/arithmetic.md, last section. */
const FLOAT_TOLERANCE = 1e-5;
const QUANTISED_TOLERANCE = 2e-4;

const SHAPES: Readonly<Record<string, ModelShape>> = {
  "grouped mixture with shared experts": testMogeShape(),
  "dense, one KV head of 80": testShape({
    queryHeadCount: 3,
    kvHeadCount: 1,
    headDim: 80,
    ffnDim: 160,
    hasAttentionBias: false,
  }),
  "one expert group, renormalised, no shared experts": testMogeShape({
    routedExpertCount: 6,
    expertGroupCount: 1,
    activeExpertCount: 2,
    ffnDim: 0,
    hasRouterScale: false,
    isRoutingRenormalised: true,
    isEmbeddingTied: false,
  }),
  "64 experts in 8 groups": testMogeShape({
    vocabularySize: 512,
    hiddenDim: 256,
    layerCount: 1,
    queryHeadCount: 8,
    kvHeadCount: 4,
    headDim: 32,
    routedExpertCount: 64,
    expertGroupCount: 8,
    activeExpertCount: 16,
    expertDim: 64,
    ffnDim: 256,
  }),
  "nothing divides": testMogeShape({
    vocabularySize: 211,
    hiddenDim: 200,
    queryHeadCount: 9,
    kvHeadCount: 3,
    headDim: 22,
    routedExpertCount: 15,
    expertGroupCount: 5,
    activeExpertCount: 10,
    expertDim: 40,
    ffnDim: 100,
    layerCount: 1,
  }),
};

const ALL_Q4: Recipe = {
  name: "q4",
  types: { ...RECIPES.q4.types, embedding: "q4", attention: "q4", shared: "q4", head: "q4", mtp: "q4" },
};
const FLOAT32: Recipe = {
  name: "f16",
  types: { ...RECIPES.f16.types, embedding: "f32", attention: "f32", shared: "f32", experts: "f32", head: "f32" },
};

const RECIPE_CASES: Readonly<Record<string, Recipe>> = {
  f32: FLOAT32,
  f16: RECIPES.f16,
  q8: RECIPES.q8,
  "all q4": ALL_Q4,
};

/** A slice of one layer's ops: `first` to `last` by name (the n-th of that name), with the slots that it reads and leaves. */
interface SliceSpec {
  readonly name: string;
  readonly ops: readonly (readonly [OpName, number])[];
  readonly reads: readonly string[];
  readonly leaves: readonly string[];
  readonly hasLogits?: true;
  readonly needs?: (shape: ModelShape) => boolean;
  /** Its result doesn't depend on the recipe: one recipe is enough. */
  readonly isWithoutMatrices?: true;
}

const SLICES: readonly SliceSpec[] = [
  { name: "embed", ops: [["embed", 0]], reads: [], leaves: ["h"] },
  { name: "rmsNorm", ops: [["rmsNorm", 0]], reads: ["h"], leaves: ["x"], isWithoutMatrices: true },
  { name: "matmul with bias", ops: [["matmul", 0]], reads: ["x"], leaves: ["qkv"] },
  { name: "matmul over heads", ops: [["matmul", 1]], reads: ["attn"], leaves: ["partial"] },
  { name: "exchangeAdd", ops: [["exchangeAdd", 0]], reads: ["partial", "h"], leaves: ["h"], isWithoutMatrices: true },
  { name: "ffn", ops: [["ffn", 0]], reads: ["x"], leaves: ["partial"], needs: (shape) => shape.ffnDim > 0 },
  {
    name: "route and expertFfn",
    ops: [
      ["route", 0],
      ["expertFfn", 0],
    ],
    reads: ["x", "partial"],
    leaves: ["partial"],
    needs: (shape) => shape.routedExpertCount > 0,
  },
  {
    name: "rmsNorm of logit rows and logits",
    ops: [
      ["rmsNorm", -1],
      ["logits", 0],
    ],
    reads: ["h"],
    leaves: [],
    hasLogits: true,
  },
];

const ATTENTION_SLICE: SliceSpec = {
  name: "ropeAndStore and attention",
  ops: [
    ["ropeAndStore", 0],
    ["attention", 0],
  ],
  reads: ["qkv"],
  leaves: ["qkv", "attn"],
};

export interface CaseSet extends Disposable {
  readonly cases: readonly ContractCase[];
}

/** Writes the containers of all cases to a folder of its own, which dispose removes. */
export function createCases(): CaseSet {
  const folder = mkdtempSync(join(tmpdir(), "duet-contract-"));
  const containers = new Map<string, Container>();
  const containerOf = (shapeName: string, recipeName: string): Container => {
    const key = `${shapeName}, ${recipeName}`;
    const shape = SHAPES[shapeName];
    const recipe = RECIPE_CASES[recipeName];
    assert(shape !== undefined && recipe !== undefined, "the case's shape and recipe exist");
    const container =
      containers.get(key) ??
      writeModel(join(folder, `${containers.size}.duet`), shape, recipe, randomValues(containers.size + 1));
    containers.set(key, container);
    return container;
  };

  const cases: ContractCase[] = [];
  const tolerances = (recipeName: string) => (recipeName.startsWith("f") ? FLOAT_TOLERANCE : QUANTISED_TOLERANCE);
  for (const [shapeName, shape] of Object.entries(SHAPES)) {
    for (const recipeName of Object.keys(RECIPE_CASES)) {
      const container = containerOf(shapeName, recipeName);
      for (const slice of SLICES) {
        if (slice.needs?.(shape) === false) continue;
        if (slice.isWithoutMatrices === true && recipeName !== "f16") continue;
        cases.push(
          sliceCase(
            `${slice.name}: ${shapeName}, ${recipeName}`,
            container,
            slice,
            "f32",
            SHORT,
            tolerances(recipeName),
          ),
        );
      }
      cases.push(wholeCase(`whole model: ${shapeName}, ${recipeName}`, container, recipeName));
    }
    for (const kvType of ["f32", "f16", "int8"] as const) {
      for (const [length, sequences] of Object.entries({ short: SHORT, long: LONG })) {
        const name = `${ATTENTION_SLICE.name}: ${shapeName}, ${length}, KV ${kvType}`;
        cases.push(sliceCase(name, containerOf(shapeName, "f16"), ATTENTION_SLICE, kvType, sequences, FLOAT_TOLERANCE));
      }
    }
  }
  return { cases, [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }) };
}

/** Rows per sequence. LONG crosses a chunk of 256 keys and ends inside one. */
const SHORT = [5, 11, 1, 6];
const LONG = [290, 40];

function layRows(sequences: readonly number[], vocabularySize: number, uniform: () => number) {
  const rows: CaseRow[] = [];
  const blockCounts = sequences.map((rowCount) => Math.ceil(rowCount / 32));
  const kvBlockCount = blockCounts.reduce((sum, count) => sum + count, 1);
  const free = shuffled(
    Array.from({ length: kvBlockCount }, (_, i) => i),
    uniform,
  );
  const blockTables = blockCounts.map((count) => free.splice(0, count));
  for (const [sequence, rowCount] of sequences.entries()) {
    for (let position = 0; position < rowCount; position++) {
      rows.push({ sequence, position, tokenId: Math.floor(uniform() * vocabularySize) });
    }
  }
  return { rows, blockTables, kvBlockCount };
}

function shuffled<T>(items: readonly T[], uniform: () => number): T[] {
  return items
    .map((item) => ({ item, key: uniform() }))
    .sort((a, b) => a.key - b.key)
    .map(({ item }) => item);
}

/** Rows of different magnitude, so that a mix-up of rows or scales shows. */
function randomRows(rowCount: number, columns: number, uniform: () => number): Float32Array {
  const values = new Float32Array(rowCount * columns);
  for (let row = 0; row < rowCount; row++) {
    const magnitude = 4 ** (2 * uniform() - 1);
    for (let k = 0; k < columns; k++) values[row * columns + k] = magnitude * (2 * uniform() - 1);
  }
  return values;
}

function sliceCase(
  name: string,
  container: Container,
  slice: SliceSpec,
  kvType: KvType,
  sequences: readonly number[],
  tolerance: number,
): ContractCase {
  const whole = compileProgram(container, { layerCount: 1 });
  const ops = slice.ops.map(([opName, nth]) => {
    const op = whole.ops.filter((candidate) => candidate.name === opName).at(nth);
    assert(op !== undefined, `the Program has ${opName}`);
    return op;
  });
  const program: Program = { ...whole, ops };
  const uniform = createUniform(Number(Bun.hash.xxHash32(name)));
  const laid = layRows(sequences, container.header.shape.vocabularySize, uniform);
  return {
    name,
    container,
    program,
    kvType,
    ...laid,
    inputs: slotRefs(program, slice.reads).map((ref) => {
      const slot = program.slots[ref.slot];
      assert(slot !== undefined, "the slot exists");
      return { ...ref, values: randomRows(laid.rows.length, slotColumns(slot, ref.die), uniform) };
    }),
    outputs: slotRefs(program, slice.leaves),
    hasLogits: slice.hasLogits === true,
    tolerance,
  };
}

/** Every op after every other. With quantised activations one rounding tie moves a step in every row that reads it. */
function wholeCase(name: string, container: Container, recipeName: string): ContractCase {
  const program = compileProgram(container);
  const uniform = createUniform(Number(Bun.hash.xxHash32(name)));
  const laid = layRows(SHORT, container.header.shape.vocabularySize, uniform);
  const outputs = slotRefs(program, ["h"]);
  const rounding = recipeName.startsWith("f")
    ? ({ kvType: "f32", tolerance: 1e-4 } as const)
    : ({ kvType: "f16", tolerance: 3e-2 } as const);
  return { name, container, program, ...laid, inputs: [], outputs, hasLogits: true, ...rounding };
}

function slotRefs(program: Program, names: readonly string[]): SlotRef[] {
  return names.flatMap((name) => {
    const slot = program.slots.findIndex((candidate) => candidate.name === name);
    assert(slot >= 0, `the Program has a slot ${name}`);
    return program.slots[slot]?.isPerDie ? DIES.map((die) => ({ slot, die })) : [{ slot, die: 0 as const }];
  });
}
