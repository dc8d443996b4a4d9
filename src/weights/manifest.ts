// The one map from a Hugging Face config to a ModelShape: this file alone knows the config's keys. Pure: it is given parsed
// JSON and the names of the tensors that exist, and opens nothing.

import { DuetError } from "../base/errors.ts";
import { type ModelShape, modelShapeSchema } from "./shape.ts";

export type JsonObject = Readonly<Record<string, unknown>>;

const ARCHITECTURES = ["PanguProMoEForCausalLM"];
const NEXT = "correct the checkpoint's config, or choose a Pangu Pro MoE checkpoint";

function invalid(where: string, key: string, expected: string, got: unknown): DuetError {
  return new DuetError("checkpoint_invalid", `the config key ${key} is not usable`, {
    where,
    expected,
    got: JSON.stringify(got) ?? "nothing",
    next: NEXT,
  });
}

/** Typed access to a config's keys; every error names file and key. */
class ConfigKeys {
  constructor(
    readonly config: JsonObject,
    readonly where: string,
  ) {}

  integer(key: string, fallback?: number): number {
    const value = this.config[key] ?? fallback;
    if (!Number.isSafeInteger(value)) throw invalid(this.where, key, "an integer", this.config[key]);
    return value as number;
  }

  number(key: string, fallback?: number): number {
    const value = this.config[key] ?? fallback;
    if (typeof value !== "number" || !Number.isFinite(value))
      throw invalid(this.where, key, "a number", this.config[key]);
    return value;
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.config[key] ?? fallback;
    if (typeof value !== "boolean") throw invalid(this.where, key, "true or false", value);
    return value;
  }

  /** Refuses a key whose value asks for something that Duet does not compute. */
  demand(key: string, expected: string, isAccepted: (value: unknown) => boolean): void {
    const value = this.config[key];
    if (value !== undefined && value !== null && !isAccepted(value)) throw invalid(this.where, key, expected, value);
  }
}

/** ModelShape of a config. `hasTensor` answers what the config leaves open: attention biases and router_scale. */
export function shapeFromConfig(config: JsonObject, where: string, hasTensor: (name: string) => boolean): ModelShape {
  const keys = new ConfigKeys(config, where);
  const architecture = Array.isArray(config.architectures) ? config.architectures[0] : config.architectures;
  if (!ARCHITECTURES.includes(architecture)) {
    throw invalid(where, "architectures", ARCHITECTURES.join(" or "), config.architectures);
  }
  keys.demand("hidden_act", '"silu"', (value) => value === "silu");
  keys.demand("rope_scaling", "null (no scaling)", () => false);
  keys.demand("mlp_only_layers", "[] (every layer alike)", (value) => Array.isArray(value) && value.length === 0);
  keys.demand("decoder_sparse_step", "1 (every layer alike)", (value) => value === 1);
  keys.demand("use_sliding_window", "false", (value) => value === false);

  const hiddenDim = keys.integer("hidden_size");
  const queryHeadCount = keys.integer("num_attention_heads");
  const routedExpertCount = keys.integer("num_experts", 0);
  const isDense = routedExpertCount === 0;
  const activeExpertCount = isDense ? 0 : keys.integer("num_experts_per_tok");
  const mtpLayerCount = keys.integer("num_mtp_layers", 0);
  const firstLayer = "model.layers.0";
  const shape = {
    architecture: "pangu-pro-moe" as const,
    vocabularySize: keys.integer("vocab_size"),
    hiddenDim,
    layerCount: keys.integer("num_hidden_layers"),
    queryHeadCount,
    kvHeadCount: keys.integer("num_key_value_heads", queryHeadCount),
    headDim: keys.integer("head_dim", hiddenDim / queryHeadCount),
    contextMax: keys.integer("max_position_embeddings"),
    rmsNormEps: keys.number("rms_norm_eps"),
    ropeTheta: keys.number("rope_theta"),
    routedExpertCount,
    // Pangu Pro MoE takes one expert of every group, so that its group count is its active count.
    expertGroupCount: isDense ? 0 : keys.integer("num_groups", activeExpertCount),
    activeExpertCount,
    expertDim: isDense ? 0 : keys.integer("moe_intermediate_size"),
    ffnDim: isDense ? keys.integer("intermediate_size") : keys.integer("shared_expert_intermediate_size", 0),
    isRoutingRenormalised: keys.boolean("norm_topk_prob", false),
    hasRouterScale: !isDense && hasTensor(`${firstLayer}.mlp.router_scale`),
    hasAttentionBias: keys.boolean("attention_bias", hasTensor(`${firstLayer}.self_attn.q_proj.bias`)),
    isEmbeddingTied: keys.boolean("tie_word_embeddings", false),
    mtpLayerCount,
    mtpFfnDim: mtpLayerCount === 0 ? 0 : keys.integer("intermediate_size"),
  };
  const parsed = modelShapeSchema.safeParse(shape);
  if (parsed.success) return Object.freeze(parsed.data);
  const issue = parsed.error.issues[0];
  throw new DuetError("checkpoint_invalid", `the config gives an invalid shape: ${issue?.message ?? "unknown"}`, {
    where: `${where}, ${issue?.path.join(".") || "shape"}`,
    next: NEXT,
  });
}

/** The ids that end a text, of generation_config.json where it has them, else of config.json: a number or a list. */
export function endTokenIdsFrom(
  generationConfig: JsonObject,
  config: JsonObject,
  vocabularySize: number,
  where: string,
): number[] {
  const value = generationConfig.eos_token_id ?? config.eos_token_id ?? [];
  const ids: unknown[] = Array.isArray(value) ? value : [value];
  for (const id of ids) {
    if (!Number.isSafeInteger(id) || (id as number) < 0 || (id as number) >= vocabularySize) {
      throw invalid(where, "eos_token_id", `token ids from 0 to ${vocabularySize - 1}`, value);
    }
  }
  return [...new Set(ids as number[])];
}
