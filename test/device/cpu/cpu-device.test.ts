// The cpu device beside what the device contract covers: what it says about itself, its lifetime, and that every number which
// a caller can get wrong is refused with a text and never reaches a kernel.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AssertionError, defined } from "../../../src/base/assert.ts";
import { DuetError } from "../../../src/base/errors.ts";
import { addRow, addSequence, type Batch, clearBatch, createBatch } from "../../../src/device/batch.ts";
import { createCpuDevice } from "../../../src/device/cpu/cpu-device.ts";
import type { Device, DeviceModel, ModelOptions } from "../../../src/device/device.ts";
import { compileProgram } from "../../../src/model/compile.ts";
import type { Op, Program, ProgramShape, Slot } from "../../../src/model/program.ts";
import { isNativeAvailable } from "../../../src/native/library.ts";
import type { Container } from "../../../src/weights/header.ts";
import { RECIPES } from "../../../src/weights/recipe.ts";
import type { TensorEntry } from "../../../src/weights/tensor.ts";
import { randomValues, testMogeShape, writeModel } from "../../support/containers.ts";

const folder = mkdtempSync(join(tmpdir(), "duet-cpu-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const OPTIONS: ModelOptions = { kvType: "f16", kvBlockCount: 3, rowMax: 8, logitRowMax: 4 };

function messageOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    if (error instanceof DuetError) return `${error.code}: ${error.message}`;
    throw error;
  }
  throw new Error("expected a DuetError");
}

describe.skipIf(!isNativeAvailable())(`cpu device${isNativeAvailable() ? "" : " (library not built)"}`, () => {
  let container: Container;
  let program: Program;
  let device: Device;
  beforeAll(() => {
    container = writeModel(join(folder, "model.duet"), testMogeShape(), RECIPES.q4, randomValues(7));
    program = compileProgram(container);
    device = createCpuDevice({ laneCount: 2 });
  });
  afterAll(() => device.close());

  test.each([
    [1, "1 lane runs both dies", "1 lane, shared with the other die"],
    [2, "2 lanes in 2 teams", "lane 1"],
    [3, "3 lanes in 1 team that runs both dies", "3 lanes, shared with the other die"],
    [4, "4 lanes in 2 teams", "lanes 2 to 3"],
  ])("%d lanes are described", (laneCount, summary, secondDie) => {
    const one = createCpuDevice({ laneCount, isa: "plain" });
    const { dies, isa, ops, summary: got, laneCount: lanes, warnings } = one.describe();
    one.close();
    expect(got).toBe(`cpu (plain C, ${summary})`);
    expect(dies[1]).toBe(`plain C, ${secondDie}`);
    expect({ isa, lanes, matmul: ops["matmul"] }).toEqual({ isa: "plain", lanes: laneCount, matmul: "native plain" });
    expect(warnings[0]).toContain("no vector kernels");
  });

  test("options that cannot be had are refused", () => {
    expect(messageOf(() => createCpuDevice({ isa: "quantum" }))).toContain(
      'config_invalid: the instruction set "quantum"',
    );
    for (const laneCount of [0, -1, 1.5, 257, NaN]) {
      expect(messageOf(() => createCpuDevice({ laneCount }))).toContain("config_invalid: the number of threads");
    }
    expect(messageOf(() => createCpuDevice({ libraryPath: "/nowhere.so" }))).toContain("native_missing");
  });

  test("a pinned device runs", () => {
    const pinned = createCpuDevice({ laneCount: 2, isPinned: true });
    expect(pinned.describe().summary).toEndWith("pinned)");
    pinned.close();
  });

  test("a device in use is not closed, and a closed one is not used", () => {
    const one = createCpuDevice({ laneCount: 1 });
    const model = one.load(container, program, OPTIONS);
    expect(() => one.close()).toThrow(AssertionError);
    model.close();
    model.close();
    expect(() => model.readLogits(0, new Float32Array(4096))).toThrow(AssertionError);
    one.close();
    one.close();
    expect(() => one.load(container, program, OPTIONS)).toThrow(AssertionError);
  });

  test("memory grows with the KV cache only by kvBlocks", () => {
    const small = device.load(container, program, OPTIONS);
    const large = device.load(container, program, { ...OPTIONS, kvBlockCount: 6 });
    expect(large.kvBytes).toBe(2 * small.kvBytes);
    expect(large.scratchBytes).toBe(small.scratchBytes);
    small.close();
    large.close();
  });

  const loadWith = (changed: {
    program?: Program;
    tensors?: readonly TensorEntry[];
    options?: Partial<ModelOptions>;
  }) => {
    const header = { ...container.header, tensors: changed.tensors ?? container.header.tensors };
    const model = device.load({ ...container, header }, changed.program ?? program, { ...OPTIONS, ...changed.options });
    model.close();
  };
  const withShape = (fields: Partial<ProgramShape>): Program => ({
    ...program,
    shape: { ...program.shape, ...fields },
  });
  const withOp = (name: Op["name"], fields: Partial<Op>): Program => {
    const at = program.ops.findIndex((op) => op.name === name);
    return { ...program, ops: program.ops.map((op, i) => (i === at ? { ...op, ...fields } : op)) };
  };
  const withSlot = (name: string, fields: Partial<Slot>): Program => ({
    ...program,
    slots: program.slots.map((slot) => (slot.name === name ? { ...slot, ...fields } : slot)),
  });
  const withTensor = (name: string, fields: Partial<TensorEntry>): TensorEntry[] =>
    container.header.tensors.map((tensor) => (tensor.name === name ? { ...tensor, ...fields } : tensor));

  test("the Program as it is loads", () => {
    expect(() => loadWith({})).not.toThrow();
  });

  test.each([
    ["a slot beyond the last", () => ({ program: withOp("matmul", { input: 99 }) }), "input is slot 99"],
    ["a tensor beyond the last", () => ({ program: withOp("matmul", { weight: [9999, null] }) }), "tensor 9999 of"],
    ["no weight", () => ({ program: withOp("rmsNorm", { weight: [null, null] }) }), "weight is missing"],
    ["in place where it can't be", () => ({ program: withOp("rmsNorm", { output: 0 }) }), "one slot"],
    ["a KV layer beyond the last", () => ({ program: withOp("attention", { layer: 77 }) }), "KV layer 77"],
    ["experts beyond the table", () => ({ program: withOp("expertFfn", { weight: [9998, null] }) }), "tensor 9998"],
    ["a slot of other columns", () => ({ program: withSlot("qkv", { columns: [48, 64] }) }), "op 2 (matmul)"],
    ["a slot that isn't quantised", () => ({ program: withSlot("x", { isQuantised: false }) }), "quantised slot"],
    ["a shared slot per die", () => ({ program: withSlot("x", { isPerDie: true }) }), "must be shared"],
    ["another head count", () => ({ program: withShape({ queryHeads: [6, 2] }) }), "columns on die 0"],
    ["an odd head", () => ({ program: withShape({ headDim: 15, inverseFrequencies: Array(7.5 | 0).fill(1) }) }), ""],
    ["experts that don't add up", () => ({ program: withShape({ expertCount: [3, 1] }) }), "dies hold experts"],
    ["more active experts than there are", () => ({ program: withShape({ activePerGroup: 99 }) }), "99 active"],
    ["no epsilon", () => ({ program: withShape({ rmsNormEps: 0 }) }), "rms_norm_eps"],
    ["no rows", () => ({ options: { rowMax: 0 } }), "row_max"],
    ["more logit rows than rows", () => ({ options: { logitRowMax: 9 } }), "logit_row_max 9"],
    ["no kvBlocks", () => ({ options: { kvBlockCount: 0 } }), "needs kvBlocks"],
    [
      "a tensor beyond the file",
      () => ({ tensors: withTensor("output_norm", { offset: 2 ** 40 }) }),
      "outside the slab",
    ],
    ["a tensor that isn't aligned", () => ({ tensors: withTensor("output_norm", { offset: 4104 }) }), "multiple of 64"],
    ["a tensor of other bytes", () => ({ tensors: withTensor("layers.0.ffn_gate_inp", { bytes: 64 }) }), "must have"],
    ["a vector of other columns", () => ({ tensors: withTensor("output_norm", { columns: 8 }) }), "float32 vector"],
    [
      "an expert without down",
      () => ({ tensors: withTensor("layers.0.ffn_exps.3", { downOffset: 0 }) }),
      "is not an expert",
    ],
    ["a short expert", () => ({ tensors: withTensor("layers.0.ffn_exps.3", { downOffset: 64 }) }), "gate-up must have"],
  ])("a Program with %s is refused", (_, change, text) => {
    const action = () => loadWith(change() as Parameters<typeof loadWith>[0]);
    if (text === "") expect(action).toThrow(AssertionError);
    else expect(messageOf(action)).toContain(text);
  });

  describe("a Batch", () => {
    let model: DeviceModel;
    let batch: Batch;
    beforeAll(() => {
      model = device.load(container, program, OPTIONS);
    });
    afterAll(() => model.close());

    function fill(): void {
      batch = createBatch({ rowMax: 9, sequenceMax: 2, blocksPerSequenceMax: 2 });
      clearBatch(batch);
      addSequence(batch, [0, 1]);
      for (let position = 0; position < 3; position++) addRow(batch, 5, position, position === 2);
      addSequence(batch, [2]);
      addRow(batch, 6, 0, true);
    }

    test("as it should be runs, and runs again to the same bits", () => {
      fill();
      const vocabularySize = program.shape.vocabularyRows[0] + program.shape.vocabularyRows[1];
      const [first, second] = [0, 1].map(() => {
        expect(model.run(batch)).toBe("ok");
        const logits = new Float32Array(vocabularySize);
        model.readLogits(1, logits);
        return logits;
      });
      expect(second).toEqual(defined(first));
      expect(messageOf(() => model.readLogits(2, new Float32Array(vocabularySize)))).toContain("logit row 2 of 2");
    });

    test.each([
      ["no rows", () => (batch.rowCount = 0), "row_count must be 1 to 8, got 0"],
      ["too many rows", () => (batch.rowCount = 9), "row_count must be 1 to 8, got 9"],
      ["a token beyond the vocabulary", () => (batch.tokenIds[1] = 1 << 20), "row 1: token id 1048576"],
      ["a token below 0", () => (batch.tokenIds[2] = -1), "row 2: token id -1"],
      ["a position beyond the context", () => (batch.positions[3] = 1 << 20), "row 3: position 1048576"],
      ["a gap between positions", () => (batch.positions[1] = 2), "row 1: position 2 does not follow 0"],
      ["a kvSlot beyond the cache", () => (batch.kvSlots[0] = 96), "row 0: kvSlot 96"],
      ["a sequence that isn't there", () => (batch.sequenceIndex[3] = 2), "row 3: sequence 2 of 2"],
      ["sequences out of order", () => batch.sequenceIndex.set([1, 1, 1, 0]), "row 3: sequence 0 follows"],
      ["a kvBlock that isn't there", () => (batch.blockTables[0] = 3), "entry 0 is kvBlock 3 of 3"],
      ["a position beyond the block table", () => (batch.positions[3] = 64), "beyond the block table"],
      ["logit rows out of order", () => batch.logitRows.set([3, 2]), "rows must ascend"],
      ["a logit row that isn't there", () => (batch.logitRows[1] = 4), "logit row 1 is row 4"],
    ])("with %s is refused", (_, spoil, text) => {
      fill();
      spoil();
      expect(messageOf(() => model.run(batch))).toContain(text);
    });
  });
});
