import { describe, expect, test } from "bun:test";
import { defined } from "../../src/base/assert.ts";
import { DuetError } from "../../src/base/errors.ts";
import { compileProgram } from "../../src/model/compile.ts";
import { describeProgram } from "../../src/model/describe.ts";
import type { Program } from "../../src/model/program.ts";
import { RECIPES } from "../../src/weights/recipe.ts";
import type { Container } from "../../src/weights/header.ts";
import { headerOnlyContainer, testMogeShape, testShape } from "../support/containers.ts";

const opNames = (program: Program) => program.ops.map((op) => op.name);
const slotNamed = (program: Program, name: string) =>
  defined(
    program.slots.find((slot) => slot.name === name),
    name,
  );

function withoutTensor(container: Container, name: string): Container {
  const tensors = container.header.tensors.filter((tensor) => tensor.name !== name);
  return {
    ...container,
    header: { ...container.header, tensors },
    tensorIndex: new Map(tensors.map((tensor, index) => [tensor.name, index])),
  };
}

describe("the op order", () => {
  const attention = ["rmsNorm", "matmul", "ropeAndStore", "attention", "matmul", "exchangeAdd"];
  const ends = (layers: string[]) => ["embed", ...layers, "rmsNorm", "logits"];

  test("a grouped mixture with shared experts routes, runs them, and adds the chosen experts", () => {
    const program = compileProgram(headerOnlyContainer(testMogeShape({ layerCount: 1 })));
    expect(opNames(program)).toEqual(
      ends([...attention, "rmsNorm", "route", "ffn", "expertFfn", "exchangeAdd"]) as never,
    );
    expect(program.ops.find((op) => op.name === "expertFfn")?.flags).toEqual({ accumulate: true });
  });

  test("a dense model has neither router nor experts", () => {
    const program = compileProgram(headerOnlyContainer(testShape({ layerCount: 1 })));
    expect(opNames(program)).toEqual(ends([...attention, "rmsNorm", "ffn", "exchangeAdd"]) as never);
  });

  test("without shared experts the chosen ones begin from zero", () => {
    const program = compileProgram(headerOnlyContainer(testMogeShape({ layerCount: 1, ffnDim: 0 })));
    expect(opNames(program)).toEqual(ends([...attention, "rmsNorm", "route", "expertFfn", "exchangeAdd"]) as never);
    expect(program.ops.find((op) => op.name === "expertFfn")?.flags).toEqual({});
    expect(program.shape.ffnColumns).toEqual([0, 0]);
  });

  test("each layer has its own KV layer, and a prefix stops after the layers that it names", () => {
    const container = headerOnlyContainer(testMogeShape({ layerCount: 3 }));
    const kvLayers = (program: Program) => program.ops.filter((op) => op.name === "attention").map((op) => op.layer);
    expect(kvLayers(compileProgram(container))).toEqual([0, 1, 2]);
    expect(kvLayers(compileProgram(container, { layerCount: 1 }))).toEqual([0]);
    expect(compileProgram(container, { layerCount: 1 }).shape.kvLayerCount).toBe(1);
    expect(opNames(compileProgram(container, { layerCount: 0 }))).toEqual(["embed", "rmsNorm", "logits"]);
  });

  test("only the last norm gathers the wanted rows, and renormalising is a flag of the router", () => {
    const program = compileProgram(headerOnlyContainer(testMogeShape({ isRoutingRenormalised: true })));
    const gathering = program.ops.flatMap((op, index) => (op.flags.logitRows ? [index] : []));
    expect(gathering).toEqual([program.ops.length - 2]);
    expect(program.ops.filter((op) => op.name === "route").every((op) => op.flags.renormalise === true)).toBe(true);
  });
});

describe("binding", () => {
  test("every tensor of the container is bound exactly once, but a tied head twice", () => {
    for (const isEmbeddingTied of [true, false]) {
      const container = headerOnlyContainer(
        testMogeShape({ isEmbeddingTied, routedExpertCount: 4, expertGroupCount: 4 }),
      );
      const program = compileProgram(container);
      const bound = program.ops.flatMap((op) => [...op.weight, ...op.weight2, ...op.bias]).filter((t) => t !== null);
      const experts = program.ops
        .filter((op) => op.name === "expertFfn")
        .flatMap((op) => [1, 2, 3].map((id) => defined(op.weight[0]) + id));
      const heads = ["output.die0", "output.die1"].map((name) => defined(container.tensorIndex.get(name)));
      const expected = [...container.header.tensors.keys(), ...(isEmbeddingTied ? heads : [])];
      expect([...bound, ...experts].sort((a, b) => a - b)).toEqual(expected.sort((a, b) => a - b));
    }
  });

  test("a single KV head leaves die 1 without attention tensors and without columns", () => {
    const program = compileProgram(
      headerOnlyContainer(testShape({ queryHeadCount: 4, kvHeadCount: 1, layerCount: 1 })),
    );
    const [qkv, output] = program.ops.filter((op) => op.name === "matmul");
    expect(qkv?.weight[0]).not.toBeNull();
    expect([qkv?.weight[1], qkv?.bias[1], output?.weight[1]]).toEqual([null, null, null]);
    expect(slotNamed(program, "qkv").columns).toEqual([(4 + 2) * 16, 0]);
    expect(slotNamed(program, "attn").columns).toEqual([64, 0]);
    expect(program.shape.kvHeads).toEqual([1, 0]);
  });

  test("the bias of the attention output is added on die 0 only", () => {
    const container = headerOnlyContainer(testShape({ layerCount: 1 }));
    const biases = compileProgram(container)
      .ops.filter((op) => op.name === "matmul")
      .map((op) => op.bias);
    expect(biases[0]?.every((bias) => bias !== null)).toBe(true);
    expect(biases[1]).toEqual([defined(container.tensorIndex.get("layers.0.attn_output_bias")), null]);
  });

  test("one expert group is cut between experts, several between groups", () => {
    const one = testMogeShape({ routedExpertCount: 6, expertGroupCount: 1, activeExpertCount: 2 });
    expect(compileProgram(headerOnlyContainer(one)).shape.expertCount).toEqual([3, 3]);
    const five = testMogeShape({ routedExpertCount: 10, expertGroupCount: 5, activeExpertCount: 5 });
    const { shape } = compileProgram(headerOnlyContainer(five));
    expect([shape.expertFirst, shape.expertCount, shape.activePerGroup]).toEqual([[0, 6], [6, 4], 1]);
  });

  test.each([
    "layers.0.attn_norm",
    "layers.1.attn_qkv.die1",
    "layers.0.ffn_gate_inp",
    "layers.0.ffn_gate_scale",
    "layers.1.ffn_exps.7",
    "layers.0.ffn_down.die0",
    "output_norm",
    "output.die1",
  ])("a container without %s is refused by that name", (name) => {
    const container = withoutTensor(headerOnlyContainer(testMogeShape()), name);
    expect(() => compileProgram(container)).toThrow(DuetError);
    expect(() => compileProgram(container)).toThrow(name);
  });

  test("a tensor of other dims is refused with both dims", () => {
    const container = headerOnlyContainer(testShape());
    const tensors = container.header.tensors.map((tensor) =>
      tensor.name === "layers.0.attn_output.die0" ? { ...tensor, columns: 48 } : tensor,
    );
    const changed = { ...container, header: { ...container.header, tensors } };
    expect(() => compileProgram(changed)).toThrow(/attn_output.die0.*expected: 96 x 32; got: 96 x 48/);
  });
});

describe("slots", () => {
  test("a slot is held as int8 exactly when a q4 or q8 matrix reads it", () => {
    const quantised = (recipe: "q4" | "q8" | "f16") =>
      compileProgram(headerOnlyContainer(testMogeShape(), RECIPES[recipe]))
        .slots.filter((slot) => slot.isQuantised)
        .map((slot) => slot.name);
    expect(quantised("f16")).toEqual([]);
    expect(quantised("q8")).toEqual(["x", "attn", "logit_x"]);
    expect(quantised("q4")).toEqual(["x", "attn", "logit_x"]);
  });

  test("a mixed recipe counts every reader of x", () => {
    const types = { ...RECIPES.f16.types, experts: "q4" } as const;
    const program = compileProgram(headerOnlyContainer(testMogeShape(), { name: "q4", types }));
    expect(program.slots.filter((slot) => slot.isQuantised).map((slot) => slot.name)).toEqual(["x"]);
  });
});

test("describeProgram names every op and tensor", () => {
  const container = headerOnlyContainer(testMogeShape({ layerCount: 1 }));
  const text = describeProgram(compileProgram(container), container);
  const lines = text.split("\n");
  expect(lines).toHaveLength(1 + 6 + 1 + 1 + 14);
  expect(lines.find((line) => line.includes("expertFfn"))).toMatch(
    /^10 +expertFfn \+accumulate +0 +x +partial +layers\.0\.ffn_exps\.0$/,
  );
  expect(lines.find((line) => line.includes("ropeAndStore"))).toMatch(/^3 +ropeAndStore +0 +qkv +qkv$/);
  expect(text).toContain("layers.0.ffn_gate_up.die0/1 layers.0.ffn_down.die0/1");
});
