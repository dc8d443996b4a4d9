import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { expectedTensors, type TensorSpec } from "../../src/weights/expected-tensors.ts";
import { parameterCountOf } from "../../src/weights/inspect.ts";
import { RECIPES } from "../../src/weights/recipe.ts";
import { type ModelShape, parseModelShape } from "../../src/weights/shape.ts";
import { splitForShape } from "../../src/weights/split.ts";
import { anyShape } from "./any-shape.ts";
import { TINY_SHAPE } from "./tiny-checkpoint.ts";

const listFor = (shape: ModelShape, recipe = RECIPES.q4): TensorSpec[] => [
  ...expectedTensors(shape, splitForShape(shape), recipe),
];
const parameters = (specs: readonly TensorSpec[]) =>
  specs.reduce((sum, spec) => sum + parameterCountOf({ ...spec, offset: 0, checksum: "" }), 0);

test("the list of a small mixture, in file order", () => {
  const shape = { ...TINY_SHAPE, layerCount: 1, isEmbeddingTied: false, mtpLayerCount: 1, mtpFfnDim: 40 };
  const experts = Array.from({ length: 8 }, (_, id) => `layers.0.ffn_exps.${id}`);
  const attention = (prefix: string) =>
    ["attn_norm", "attn_qkv.die0", "attn_qkv.die1", "attn_qkv_bias.die0", "attn_qkv_bias.die1"]
      .concat("attn_output.die0", "attn_output.die1", "attn_output_bias", "ffn_norm")
      .map((name) => `${prefix}.${name}`);
  const ffn = (prefix: string) =>
    ["ffn_gate_up.die0", "ffn_gate_up.die1", "ffn_down.die0", "ffn_down.die1"].map((name) => `${prefix}.${name}`);
  expect(listFor(shape).map((spec) => spec.name)).toEqual([
    "token_embd",
    ...attention("layers.0"),
    "layers.0.ffn_gate_inp",
    "layers.0.ffn_gate_scale",
    ...ffn("layers.0"),
    ...experts,
    "output_norm",
    "output.die0",
    "output.die1",
    "mtp.0.enorm",
    "mtp.0.hnorm",
    "mtp.0.eh_proj",
    ...attention("mtp.0"),
    ...ffn("mtp.0"),
    "mtp.0.norm",
  ]);
  const classes = new Set(listFor(shape).map((spec) => spec.class));
  expect([...classes].toSorted()).toEqual([
    "attention",
    "embedding",
    "experts",
    "head",
    "mtp",
    "norm",
    "router",
    "shared",
  ]);
});

test("types follow the recipe; sizes and names are sound for any shape", () => {
  fc.assert(
    fc.property(anyShape, fc.constantFrom(...Object.values(RECIPES)), (shape, recipe) => {
      const specs = listFor(shape, recipe);
      expect(new Set(specs.map((spec) => spec.name)).size).toBe(specs.length);
      for (const spec of specs) {
        expect(spec.quantType).toBe(recipe.types[spec.class]);
        expect(spec.rows * spec.columns).toBeGreaterThan(0);
        if (spec.kind !== "vector") expect(spec.bytes % 64).toBe(0);
        if (spec.kind === "expert") expect(spec.downOffset % 64).toBe(0);
        const bits = { q4: 4, q8: 8, f16: 16, f32: 32 }[spec.quantType];
        expect(spec.bytes * 8).toBeGreaterThanOrEqual(spec.rows * spec.columns * bits);
      }
      const { hiddenDim: h, headDim, layerCount, mtpLayerCount } = shape;
      const qkvo = 2 * h * headDim * (shape.queryHeadCount + shape.kvHeadCount);
      const biases = shape.hasAttentionBias ? headDim * (shape.queryHeadCount + 2 * shape.kvHeadCount) + h : 0;
      const layer =
        qkvo +
        biases +
        2 * h +
        3 * h * shape.ffnDim +
        shape.routedExpertCount * (h + (shape.hasRouterScale ? 1 : 0) + 3 * h * shape.expertDim);
      const mtp = qkvo + biases + 2 * h + 3 * h * shape.mtpFfnDim + 2 * h * h + 3 * h;
      const vocabulary = (shape.isEmbeddingTied ? 1 : 2) * shape.vocabularySize * h;
      expect(parameters(specs)).toBe(layerCount * layer + mtpLayerCount * mtp + vocabulary + h);
    }),
  );
});

test("Pangu Pro MoE 72B has 71.99B parameters, 16.50B of them active", () => {
  const path = join(import.meta.dir, "../../models/pangu-pro-moe-72b/manifest.json");
  const manifest: { shape: unknown } = JSON.parse(readFileSync(path, "utf8"));
  const shape = parseModelShape(manifest.shape, path);
  const specs = listFor(shape);
  const total = parameters(specs);
  const experts = parameters(specs.filter((spec) => spec.class === "experts"));
  expect((total / 1e9).toFixed(2)).toBe("71.99");
  expect(((total - experts * (1 - shape.activeExpertCount / shape.routedExpertCount)) / 1e9).toFixed(2)).toBe("16.50");
});
