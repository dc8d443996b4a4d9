// Writes random Hugging Face checkpoints of any small shape for tests, with a tokenizer that works. Lists the checkpoint's
// tensors by itself, so that it is an oracle for src/weights/checkpoint.ts and not its echo.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createUniform } from "../../src/base/prng.ts";
import { readContainer } from "../../src/weights/container.ts";
import { type ModelShape, modelShapeSchema } from "../../src/weights/shape.ts";

const FABLE_CONTAINER = join(import.meta.dir, "../../models/fable/fable.duet");

export type CheckpointDtype = "BF16" | "F16" | "F32";

export interface TinyOptions extends Partial<ModelShape> {
  readonly dtype?: CheckpointDtype;
  /** More than 1: several safetensors files and an index. */
  readonly partCount?: number;
  /** Changes to config.json; a key with undefined is left out. */
  readonly config?: Readonly<Record<string, unknown>>;
  readonly generationConfig?: Readonly<Record<string, unknown>>;
}

export interface TinyTensor {
  readonly dims: readonly number[];
  /** Row-major, exactly as stored in the checkpoint's dtype. */
  readonly values: Float32Array;
}

export interface TinyCheckpoint {
  readonly folder: string;
  readonly shape: ModelShape;
  readonly tensors: ReadonlyMap<string, TinyTensor>;
}

/** A small mixture of 8 experts in 2 groups with everything that a Pangu Pro MoE has; dims that need padding. */
export const TINY_SHAPE: ModelShape = Object.freeze({
  architecture: "pangu-pro-moe",
  vocabularySize: 300,
  hiddenDim: 48,
  layerCount: 2,
  queryHeadCount: 4,
  kvHeadCount: 2,
  headDim: 12,
  contextMax: 128,
  rmsNormEps: 1e-5,
  ropeTheta: 10000,
  routedExpertCount: 8,
  expertGroupCount: 2,
  activeExpertCount: 2,
  expertDim: 24,
  ffnDim: 40,
  isRoutingRenormalised: false,
  hasRouterScale: true,
  hasAttentionBias: true,
  isEmbeddingTied: true,
  mtpLayerCount: 0,
  mtpFfnDim: 0,
});

/** Changes to TINY_SHAPE that make it a dense model. */
export const TINY_DENSE = {
  routedExpertCount: 0,
  expertGroupCount: 0,
  activeExpertCount: 0,
  expertDim: 0,
  hasRouterScale: false,
} as const;

/** Writes the folder (created if need be). The same arguments give the same bytes. */
export function writeTinyCheckpoint(folder: string, options: TinyOptions = {}, seed = 1): TinyCheckpoint {
  const { dtype = "BF16", partCount = 1, config = {}, generationConfig = {}, ...fields } = options;
  const shape = modelShapeSchema.parse({ ...TINY_SHAPE, ...fields });
  const uniform = createUniform(seed);
  const tensors = new Map<string, TinyTensor>();
  for (const [name, dims, spread, centre] of listTensors(shape)) {
    const count = dims.reduce((a, b) => a * b, 1);
    const values = Float32Array.from({ length: count }, () => centre + (2 * uniform() - 1) * spread);
    tensors.set(name, { dims, values: roundTo(dtype, values) });
  }
  mkdirSync(folder, { recursive: true });
  const write = (name: string, content: string | Uint8Array) => writeFileSync(join(folder, name), content);
  writeWeights(write, tensors, dtype, partCount);
  write("config.json", JSON.stringify({ ...hfConfig(shape, dtype), ...config }, null, 1));
  write("generation_config.json", JSON.stringify({ eos_token_id: 0, temperature: 0.7, ...generationConfig }, null, 1));
  const { tokenizerJson, tokenizerConfigJson } = tokenizerFor(shape.vocabularySize);
  write("tokenizer.json", tokenizerJson);
  write("tokenizer_config.json", tokenizerConfigJson);
  return { folder, shape, tensors };
}

/** Name, dims, half-width and centre of every tensor. */
function* listTensors(shape: ModelShape): Generator<[string, number[], number, number]> {
  const h = shape.hiddenDim;
  const q = shape.queryHeadCount * shape.headDim;
  const kv = shape.kvHeadCount * shape.headDim;
  const matrix = (name: string, rows: number, columns: number): [string, number[], number, number] => [
    name,
    [rows, columns],
    Math.sqrt(3 / columns),
    0,
  ];
  const norm = (name: string): [string, number[], number, number] => [name, [h], 0.25, 1];
  function* attention(prefix: string): ReturnType<typeof listTensors> {
    yield norm(`${prefix}.input_layernorm.weight`);
    yield norm(`${prefix}.post_attention_layernorm.weight`);
    for (const [name, rows, columns] of [
      ["q", q, h],
      ["k", kv, h],
      ["v", kv, h],
      ["o", h, q],
    ] as const) {
      yield matrix(`${prefix}.self_attn.${name}_proj.weight`, rows, columns);
      if (shape.hasAttentionBias) yield [`${prefix}.self_attn.${name}_proj.bias`, [rows], 0.1, 0];
    }
  }
  function* feedForward(prefix: string, dim: number): ReturnType<typeof listTensors> {
    yield matrix(`${prefix}.gate_proj.weight`, dim, h);
    yield matrix(`${prefix}.up_proj.weight`, dim, h);
    yield matrix(`${prefix}.down_proj.weight`, h, dim);
  }
  yield ["model.embed_tokens.weight", [shape.vocabularySize, h], 1, 0];
  for (let layer = 0; layer < shape.layerCount; layer++) {
    const prefix = `model.layers.${layer}`;
    yield* attention(prefix);
    if (shape.routedExpertCount === 0) {
      yield* feedForward(`${prefix}.mlp`, shape.ffnDim);
      continue;
    }
    if (shape.ffnDim > 0) yield* feedForward(`${prefix}.mlp.shared_expert`, shape.ffnDim);
    yield matrix(`${prefix}.mlp.gate.weight`, shape.routedExpertCount, h);
    if (shape.hasRouterScale) yield [`${prefix}.mlp.router_scale`, [1, shape.routedExpertCount], 0.5, 2];
    for (let expert = 0; expert < shape.routedExpertCount; expert++) {
      yield* feedForward(`${prefix}.mlp.experts.${expert}`, shape.expertDim);
    }
  }
  yield norm("model.norm.weight");
  if (!shape.isEmbeddingTied) yield matrix("lm_head.weight", shape.vocabularySize, h);
  for (let index = 0; index < shape.mtpLayerCount; index++) {
    const prefix = `model.mtp.${index}`;
    yield norm(`${prefix}.enorm.weight`);
    yield norm(`${prefix}.hnorm.weight`);
    yield matrix(`${prefix}.eh_proj.weight`, h, 2 * h);
    yield* attention(prefix);
    yield* feedForward(`${prefix}.mlp`, shape.mtpFfnDim);
    yield norm(`${prefix}.norm.weight`);
  }
}

function roundTo(dtype: CheckpointDtype, values: Float32Array): Float32Array {
  if (dtype === "F16") return Float32Array.from(Float16Array.from(values));
  if (dtype === "BF16") {
    const bits = new Uint32Array(values.buffer);
    for (let i = 0; i < bits.length; i++) bits[i] = (bits[i] ?? 0) & 0xffff0000;
  }
  return values;
}

function encodeAs(dtype: CheckpointDtype, values: Float32Array): Uint8Array {
  if (dtype === "F32") return new Uint8Array(values.slice().buffer);
  if (dtype === "F16") return new Uint8Array(Float16Array.from(values).buffer);
  const bits = new Uint32Array(values.slice().buffer);
  return new Uint8Array(Uint16Array.from(bits, (word) => word >>> 16).buffer);
}

/** A safetensors file of these tensors, in their order. */
export function encodeSafetensors(tensors: ReadonlyMap<string, TinyTensor>, dtype: CheckpointDtype): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  const parts: Uint8Array[] = [];
  let at = 0;
  for (const [name, { dims, values }] of tensors) {
    const bytes = encodeAs(dtype, values);
    header[name] = { dtype, shape: dims, data_offsets: [at, at + bytes.byteLength] };
    parts.push(bytes);
    at += bytes.byteLength;
  }
  return joinSafetensors(header, parts);
}

/** Length, header, data: whatever the header says. */
export function joinSafetensors(header: unknown, parts: readonly Uint8Array[]): Uint8Array {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const length = new Uint8Array(new BigUint64Array([BigInt(text.byteLength)]).buffer);
  return new Uint8Array(Buffer.concat([length, text, ...parts]));
}

function writeWeights(
  write: (name: string, content: string | Uint8Array) => void,
  tensors: ReadonlyMap<string, TinyTensor>,
  dtype: CheckpointDtype,
  partCount: number,
): void {
  if (partCount === 1) return write("model.safetensors", encodeSafetensors(tensors, dtype));
  const weightMap: Record<string, string> = {};
  const all = [...tensors];
  for (let part = 0; part < partCount; part++) {
    const name = `model-${part + 1}-of-${partCount}.safetensors`;
    const some = all.filter((_, index) => index % partCount === part);
    for (const [tensorName] of some) weightMap[tensorName] = name;
    write(name, encodeSafetensors(new Map(some), dtype));
  }
  write("model.safetensors.index.json", JSON.stringify({ metadata: {}, weight_map: weightMap }));
}

function hfConfig(shape: ModelShape, dtype: CheckpointDtype): Record<string, unknown> {
  const isDense = shape.routedExpertCount === 0;
  return {
    architectures: ["PanguProMoEForCausalLM"],
    vocab_size: shape.vocabularySize,
    hidden_size: shape.hiddenDim,
    num_hidden_layers: shape.layerCount,
    num_attention_heads: shape.queryHeadCount,
    num_key_value_heads: shape.kvHeadCount,
    head_dim: shape.headDim,
    hidden_act: "silu",
    intermediate_size: isDense ? shape.ffnDim : shape.mtpFfnDim,
    moe_intermediate_size: shape.expertDim,
    shared_expert_intermediate_size: isDense ? 0 : shape.ffnDim,
    num_experts: shape.routedExpertCount,
    num_experts_per_tok: shape.activeExpertCount,
    num_groups: shape.expertGroupCount,
    norm_topk_prob: shape.isRoutingRenormalised,
    max_position_embeddings: shape.contextMax,
    rms_norm_eps: shape.rmsNormEps,
    rope_theta: shape.ropeTheta,
    tie_word_embeddings: shape.isEmbeddingTied,
    attention_bias: shape.hasAttentionBias,
    num_mtp_layers: shape.mtpLayerCount,
    eos_token_id: 0,
    torch_dtype: { BF16: "bfloat16", F16: "float16", F32: "float32" }[dtype],
  };
}

const SPECIAL_TOKENS = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|pad|>"];
const CHAT_TEMPLATE =
  "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}" +
  "{% if add_generation_prompt %}<|assistant|>{% endif %}";

/** GPT-2's map from bytes to printable characters, in the order of its ids. */
function byteCharacters(): string[] {
  const isPrintable = (byte: number) =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
  const printable: number[] = [];
  const others: number[] = [];
  for (let byte = 0; byte < 256; byte++) (isPrintable(byte) ? printable : others).push(byte);
  return [
    ...printable.map((byte) => String.fromCodePoint(byte)),
    ...others.map((_, i) => String.fromCodePoint(256 + i)),
  ];
}

/** fable's tokenizer for its vocabulary; else the special tokens, single bytes as far as they fit, and unreachable fillers. */
function tokenizerFor(vocabularySize: number): { tokenizerJson: string; tokenizerConfigJson: string } {
  if (vocabularySize === 4096) return readContainer(FABLE_CONTAINER).header.tokenizer;
  const named = [...SPECIAL_TOKENS, ...byteCharacters()];
  const tokens = Array.from({ length: vocabularySize }, (_, id) => named[id] ?? `<filler ${id}>`);
  const special = SPECIAL_TOKENS.slice(0, vocabularySize);
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: special.map((content, id) => ({ id, content, ...flags })),
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: null,
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: "",
      end_of_word_suffix: "",
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: [],
    },
  };
  const tokenizerConfig = {
    tokenizer_class: "PreTrainedTokenizerFast",
    bos_token: special[0],
    eos_token: special[0],
    add_bos_token: false,
    clean_up_tokenization_spaces: false,
    added_tokens_decoder: Object.fromEntries(special.map((content, id) => [id, { content, ...flags }])),
    chat_template: CHAT_TEMPLATE,
  };
  return { tokenizerJson: JSON.stringify(tokenizer), tokenizerConfigJson: JSON.stringify(tokenizerConfig) };
}
