import { expect, test } from "bun:test";
import { endTokenIdsFrom, type JsonObject, shapeFromConfig } from "../../src/weights/manifest.ts";
import { expectDuetError } from "./expect-duet-error.ts";

/** The published config of Pangu Pro MoE 72B, as far as it bears on the shape. */
const PANGU: JsonObject = {
  architectures: ["PanguProMoEForCausalLM"],
  vocab_size: 153376,
  hidden_size: 5120,
  num_hidden_layers: 48,
  num_attention_heads: 40,
  num_key_value_heads: 8,
  moe_intermediate_size: 1344,
  shared_expert_intermediate_size: 5376,
  num_experts: 64,
  num_experts_per_tok: 8,
  max_position_embeddings: 131072,
  rms_norm_eps: 1e-5,
  rope_theta: 16000000,
  tie_word_embeddings: false,
};
const NAMES = new Set(["model.layers.0.mlp.router_scale", "model.layers.0.self_attn.q_proj.bias"]);
const shapeOf = (changes: JsonObject = {}, names: ReadonlySet<string> = NAMES) =>
  shapeFromConfig({ ...PANGU, ...changes }, "config.json", (name) => names.has(name));

test("Pangu Pro MoE: one active expert a group, biases and router_scale by the tensors", async () => {
  const manifest = await import("../../models/pangu-pro-moe-72b/manifest.json");
  expect(shapeOf()).toEqual(manifest.shape as ReturnType<typeof shapeOf>);
  const bare = shapeOf({}, new Set());
  expect(bare.hasRouterScale).toBe(false);
  expect(bare.hasAttentionBias).toBe(false);
});

test("explicit keys win over what the architecture implies", () => {
  const shape = shapeOf({
    num_groups: 1,
    norm_topk_prob: true,
    head_dim: 64,
    num_experts_per_tok: 6,
    attention_bias: false,
  });
  expect(shape).toMatchObject({
    expertGroupCount: 1,
    activeExpertCount: 6,
    isRoutingRenormalised: true,
    headDim: 64,
    hasAttentionBias: false,
  });
});

test("no experts: a dense model of intermediate_size", () => {
  const shape = shapeOf({ num_experts: 0, intermediate_size: 9728, num_mtp_layers: 1 });
  expect(shape).toMatchObject({
    routedExpertCount: 0,
    expertGroupCount: 0,
    activeExpertCount: 0,
    expertDim: 0,
    ffnDim: 9728,
    hasRouterScale: false,
    mtpLayerCount: 1,
    mtpFfnDim: 9728,
  });
});

test.each<[string, JsonObject, string]>([
  ["another architecture", { architectures: ["LlamaForCausalLM"] }, "architectures"],
  ["no architecture", { architectures: undefined }, "architectures"],
  ["a missing key", { hidden_size: undefined }, "hidden_size"],
  ["text for a number", { num_hidden_layers: "48" }, "num_hidden_layers"],
  ["a head width that is no integer", { num_attention_heads: 39 }, "head_dim"],
  ["another activation", { hidden_act: "gelu" }, "hidden_act"],
  ["scaled positions", { rope_scaling: { type: "yarn" } }, "rope_scaling"],
  ["mixed layers", { mlp_only_layers: [0] }, "mlp_only_layers"],
  ["a flag that is no boolean", { tie_word_embeddings: "yes" }, "tie_word_embeddings"],
  ["an infinite eps", { rms_norm_eps: Infinity }, "rms_norm_eps"],
  ["groups that don't divide", { num_groups: 7 }, "expertGroupCount"],
  ["heads that don't divide", { num_key_value_heads: 7 }, "kvHeadCount"],
  ["too many layers", { num_hidden_layers: 5000 }, "layerCount"],
])("%s is refused by name", (_, changes, name) => {
  expectDuetError(() => shapeOf(changes), "checkpoint_invalid", name, "config.json", "next:");
});

test("end tokens: a number or a list, of the generation config first", () => {
  expect(endTokenIdsFrom({ eos_token_id: [5, 7, 5] }, { eos_token_id: 1 }, 10, "x")).toEqual([5, 7]);
  expect(endTokenIdsFrom({}, { eos_token_id: 1 }, 10, "x")).toEqual([1]);
  expect(endTokenIdsFrom({}, {}, 10, "x")).toEqual([]);
  for (const id of [10, -1, 1.5, "a"]) {
    expectDuetError(() => endTokenIdsFrom({ eos_token_id: id }, {}, 10, "x"), "checkpoint_invalid", "eos_token_id");
  }
});
