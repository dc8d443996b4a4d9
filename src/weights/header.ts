// The container header as data (docs/container.md), and what a reader of an open container holds. Reading, checking and
// writing live in container.ts; this file is types and constants only.

import type { ModelShape } from "./shape.ts";
import type { DieSplit } from "./split.ts";
import type { QuantType, TensorClass, TensorEntry } from "./tensor.ts";

/** "DUETCNTR" at byte 0. */
export const CONTAINER_MAGIC = "DUETCNTR";
export const CONTAINER_VERSION = 1;
/** magic[8], version u32, flags u32 (0), headerBytes u64, headerChecksum u64 (XXH64 of the header bytes). */
export const PREAMBLE_BYTES = 32;
export const TENSOR_ALIGNMENT = 64;
export const EXPERT_ALIGNMENT = 4096;

export type ContainerLayout = "cpu-x16" | "ascend-nz";
export type RecipeName = "q4" | "q8" | "f16";

/** Which quant type each tensor class gets. Norms, biases and the router are always f32. */
export type Recipe = Readonly<{ name: RecipeName; types: Readonly<Record<TensorClass, QuantType>> }>;

export interface Provenance {
  /** What `/v1/models` calls it. */
  readonly modelName: string;
  readonly license: string;
  readonly source: string;
  readonly packedBy: string;
  /** SHA-256 of the source checkpoint's files, in name order. */
  readonly sourceDigest: string;
}

/** Raw texts of the Hugging Face files; parsed by tokenizer/ and engine defaults. */
export interface TokenizerFiles {
  readonly tokenizerJson: string;
  readonly tokenizerConfigJson: string;
  /** "{}" when the checkpoint has none. */
  readonly generationConfigJson: string;
}

export interface ContainerHeader {
  readonly layout: ContainerLayout;
  readonly recipe: Recipe;
  readonly shape: ModelShape;
  readonly split: DieSplit;
  /** [headDim / 2] float64: ropeTheta^(−2i / headDim). */
  readonly inverseFrequencies: readonly number[];
  readonly endTokenIds: readonly number[];
  readonly tokenizer: TokenizerFiles;
  readonly provenance: Provenance;
  /** In file order: layer order, then expert-group order. */
  readonly tensors: readonly TensorEntry[];
}

/** A container whose header was read and checked against the file's length. Nothing is mapped yet. */
export interface Container {
  readonly path: string;
  readonly fileBytes: number;
  readonly header: ContainerHeader;
  /** Hex XXH64 of the header: identifies the container (it covers every tensor's checksum). */
  readonly fingerprint: string;
  /** Index into header.tensors by name. */
  readonly tensorIndex: ReadonlyMap<string, number>;
}
