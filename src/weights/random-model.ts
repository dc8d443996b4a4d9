// How large a random model's weights are: deviations under which activations stay finite at any depth, experts are chosen
// evenly, and logits are neither flat nor one-sided. Turns a tensor's role into bytes; writes no file.

import { assert, unreachable } from "../base/assert.ts";
import type { TensorSpec } from "./expected-tensors.ts";
import { clearPadding, RandomTensors } from "./random-tensors.ts";
import type { ModelShape } from "./shape.ts";
import { type DieSplit, dieRange } from "./split.ts";
import { COLUMN_MULTIPLE, rowTileBytes, TILE_ROWS } from "./tensor.ts";

/** Root mean square of silu(g) × u for independent g and u of unit variance. */
const SWIGLU_RMS = 0.596;
/** All branches together add this variance to a residual stream that begins with the embedding's 1. */
const BRANCH_VARIANCE = 4;
const NORM_DEVIATION = 0.1;
const BIAS_DEVIATION = 0.02;
/** Head rows that no token has are this much smaller, as rows that were never trained are: they are rarely chosen. */
const PADDING_ROW_SHARE = 0.2;

/** Random bytes of a model's tensors. `idCount`: ids that the tokenizer has; the vocabulary may be larger. */
export class RandomModel {
  readonly #tensors: RandomTensors;
  readonly #buffer: Uint8Array;

  constructor(
    readonly shape: ModelShape,
    readonly split: DieSplit,
    specs: readonly TensorSpec[],
    readonly idCount: number,
    seed: number,
  ) {
    const bytes = specs.map((spec) => spec.bytes);
    const pairs = bytes.reduce((sum, one) => sum + one, 0) / rowTileBytes("q4", COLUMN_MULTIPLE);
    const tileMax = Math.max(...specs.map((spec) => spec.rows)) / TILE_ROWS;
    this.#tensors = new RandomTensors(seed, Math.max(tileMax, pairs / 8));
    this.#buffer = new Uint8Array(Math.max(...bytes));
  }

  /** A tensor's bytes in a buffer that the next call reuses. */
  encode(spec: TensorSpec): Uint8Array {
    const out = this.#buffer.subarray(0, spec.bytes);
    if (spec.kind === "vector") this.#fillVector(spec, out);
    else if (spec.kind === "expert") this.#fillExpert(spec, out);
    else this.#fillMatrix(spec, out);
    return out;
  }

  #fillVector(spec: TensorSpec, out: Uint8Array): void {
    const { shape } = this;
    const values = new Float32Array(out.buffer, out.byteOffset, spec.columns);
    const isBias = spec.role === "attnQkvBias" || spec.role === "attnOutputBias";
    // Scores of a softmax over all experts are small; a model that doesn't renormalise them learns to scale them up.
    const scale = shape.isRoutingRenormalised ? 1 : shape.routedExpertCount / shape.activeExpertCount;
    const mean = isBias ? 0 : spec.role === "routerScale" ? scale : 1;
    const deviation = isBias ? BIAS_DEVIATION : NORM_DEVIATION * mean;
    this.#tensors.fillVector(spec.name, mean, deviation, values);
  }

  #fillExpert(spec: TensorSpec, out: Uint8Array): void {
    const { shape } = this;
    const { name, quantType, downOffset } = spec;
    const gateUpBytes = 2 * Math.ceil(shape.expertDim / TILE_ROWS) * rowTileBytes(quantType, shape.hiddenDim);
    const gateUp = out.subarray(0, gateUpBytes);
    const down = out.subarray(downOffset);
    this.#tensors.fillTiles(`${name}.gate_up`, quantType, 1 / Math.sqrt(shape.hiddenDim), gateUp);
    clearPadding(gateUp, quantType, shape.expertDim, shape.hiddenDim, 2);
    out.fill(0, gateUpBytes, downOffset);
    this.#tensors.fillTiles(`${name}.down`, quantType, this.#branch(shape.expertDim) / SWIGLU_RMS, down);
    clearPadding(down, quantType, shape.hiddenDim, shape.expertDim, 1);
  }

  #fillMatrix(spec: TensorSpec, out: Uint8Array): void {
    const { name, role, quantType, rows, columns } = spec;
    const deviation = this.#deviation(spec);
    const paddingStart = role === "output" ? this.#paddingStart(spec) : out.byteLength;
    this.#tensors.fillTiles(name, quantType, deviation, out.subarray(0, paddingStart));
    this.#tensors.fillTiles(`${name}.padding`, quantType, deviation * PADDING_ROW_SHARE, out.subarray(paddingStart));
    const isGateUp = role === "ffnGateUp";
    clearPadding(out, quantType, isGateUp ? rows / 2 : rows, columns, isGateUp ? 2 : 1);
  }

  /** Where the rowTiles of a head without any token begin, in bytes. */
  #paddingStart({ die, quantType, columns, bytes }: TensorSpec): number {
    const { first } = dieRange(this.split.vocabularyBoundary, this.shape.vocabularySize, die);
    const tiles = Math.ceil(Math.max(0, this.idCount - first) / TILE_ROWS);
    return Math.min(bytes, tiles * rowTileBytes(quantType, columns));
  }

  #deviation({ role, block }: TensorSpec): number {
    const { hiddenDim, queryHeadCount, headDim, ffnDim, mtpFfnDim, vocabularySize, isEmbeddingTied } = this.shape;
    // Normal logits of variance ln V have an entropy of about half of ln V.
    const head = Math.sqrt(Math.max(1, Math.log(vocabularySize)) / hiddenDim);
    switch (role) {
      case "tokenEmbedding":
        assert(!isEmbeddingTied, "a tied embedding is the head");
        return 1;
      case "output":
        return head;
      case "attnQkv":
      case "ffnGateUp":
      case "router":
        return 1 / Math.sqrt(hiddenDim);
      case "attnOutput":
        return this.#branch(queryHeadCount * headDim);
      case "ffnDown":
        return this.#branch(block?.kind === "mtp" ? mtpFfnDim : ffnDim) / SWIGLU_RMS;
      case "mtpProjection":
        return 1 / Math.sqrt(2 * hiddenDim);
      case "expert":
      case "attnNorm":
      case "attnQkvBias":
      case "attnOutputBias":
      case "ffnNorm":
      case "routerScale":
      case "outputNorm":
      case "mtpEmbeddingNorm":
      case "mtpHiddenNorm":
      case "mtpNorm":
        throw new RangeError(`${role} is no plain matrix`);
      default:
        return unreachable(role, "tensor role");
    }
  }

  /** Deviation of the last matrix of a branch, over all `inputs` of both dies: deeper models add less in each layer. */
  #branch(inputs: number): number {
    return Math.sqrt(BRANCH_VARIANCE / (2 * this.shape.layerCount) / inputs);
  }
}
