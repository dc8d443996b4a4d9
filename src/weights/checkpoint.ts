// A Hugging Face checkpoint folder: its shape, tokenizer texts and tensors, and which checkpoint tensors make up each
// container tensor. The only place that knows checkpoint tensor names. Writes nothing.

import { existsSync } from "node:fs";
import { unreachable } from "../base/assert.ts";
import { DuetError } from "../base/errors.ts";
import { MIB } from "../base/units.ts";
import { headRanges, type TensorSpec } from "./expected-tensors.ts";
import { openRegularFile, readAt } from "./files.ts";
import type { TokenizerFiles } from "./header.ts";
import { endTokenIdsFrom, type JsonObject, shapeFromConfig } from "./manifest.ts";
import { openSafetensors, type SourceTensor, type SourceTensors } from "./safetensors.ts";
import type { ModelShape } from "./shape.ts";
import { type DieSplit, dieRange } from "./split.ts";
import { rowTileBytes } from "./tensor.ts";

const TEXT_BYTES_MAX = 128 * MIB;
const NEXT = "name a folder with a complete Hugging Face checkpoint";
/** Buffers that older exports carry and that every runtime computes itself. */
const IGNORED_TENSORS = /\.rotary_emb\.inv_freq$/;

/** Dispose closes its files. */
export interface Checkpoint extends Disposable {
  readonly folder: string;
  readonly shape: ModelShape;
  readonly endTokenIds: readonly number[];
  readonly tokenizer: TokenizerFiles;
  readonly tensors: SourceTensors;
  /** Every file that was read, in name order: what the source digest covers. */
  readonly filePaths: readonly string[];
}

/** Rows [firstRow, +rowCount) × columns [firstColumn, +columnCount) of a checkpoint tensor of dims rows × columns. */
export interface Segment {
  readonly tensorName: string;
  readonly rows: number;
  readonly columns: number;
  readonly firstRow: number;
  readonly rowCount: number;
  readonly firstColumn: number;
  readonly columnCount: number;
}

/**
 * A tiled matrix inside a container tensor: its rows are the segments' rows in turn, and its rowTile t lies at
 * offset + t × tileStride rowTiles. A vector is one piece whose segments are joined along their columns.
 */
export interface Piece {
  readonly offset: number;
  readonly tileStride: 1 | 2;
  readonly segments: readonly Segment[];
}

function readText(path: string, what: string): string {
  using file = openRegularFile(path, what, NEXT);
  if (file.bytes > TEXT_BYTES_MAX) {
    throw new DuetError("checkpoint_invalid", `the ${what} is too large`, {
      where: path,
      expected: `at most ${TEXT_BYTES_MAX} bytes`,
      got: `${file.bytes}`,
      next: NEXT,
    });
  }
  const bytes = new Uint8Array(file.bytes);
  return new TextDecoder().decode(bytes.subarray(0, readAt(file, bytes, 0)));
}

function parseJson(text: string, path: string): JsonObject {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as JsonObject;
  } catch (error) {
    throw new DuetError("checkpoint_invalid", "the file is not JSON", { where: path, got: String(error), next: NEXT });
  }
  throw new DuetError("checkpoint_invalid", "the file is not a JSON object", { where: path, next: NEXT });
}

interface TokenizerFolder {
  readonly tokenizer: TokenizerFiles;
  readonly generationConfig: JsonObject;
  /** Every file that was read. */
  readonly filePaths: readonly string[];
}

function readTokenizerFiles(folder: string): TokenizerFolder {
  const path = (name: string) => `${folder}/${name}`;
  const filePaths = [path("tokenizer.json")];
  const optionalText = (name: string, what: string) => {
    try {
      const text = readText(path(name), what);
      filePaths.push(path(name));
      return text;
    } catch (error) {
      if (error instanceof DuetError && error.code === "file_missing") return "{}";
      throw error;
    }
  };
  const tokenizer: TokenizerFiles = {
    tokenizerJson: readText(path("tokenizer.json"), "tokenizer"),
    tokenizerConfigJson: optionalText("tokenizer_config.json", "tokenizer config"),
    generationConfigJson: optionalText("generation_config.json", "generation config"),
  };
  parseJson(tokenizer.tokenizerJson, path("tokenizer.json"));
  parseJson(tokenizer.tokenizerConfigJson, path("tokenizer_config.json"));
  const generationConfig = parseJson(tokenizer.generationConfigJson, path("generation_config.json"));
  return { tokenizer, generationConfig, filePaths };
}

/** A folder's tokenizer and the ids that end a text, without its weights; config.json may be absent. */
export function readTokenizerFolder(folder: string): { tokenizer: TokenizerFiles; endTokenIds: number[] } {
  const { tokenizer, generationConfig } = readTokenizerFiles(folder);
  const path = `${folder}/config.json`;
  const config = existsSync(path) ? parseJson(readText(path, "model config"), path) : {};
  return { tokenizer, endTokenIds: endTokenIdsFrom(generationConfig, config, Number.MAX_SAFE_INTEGER, path) };
}

/** Opens a checkpoint folder. DuetError names the file and key that is missing or wrong. */
export function openCheckpoint(folder: string): Checkpoint {
  const path = (name: string) => `${folder}/${name}`;
  const config = parseJson(readText(path("config.json"), "model config"), path("config.json"));
  const { tokenizer, generationConfig, filePaths } = readTokenizerFiles(folder);
  const tensors = openSafetensors(folder);
  try {
    const shape = shapeFromConfig(config, path("config.json"), (name) => tensors.byName.has(name));
    const endTokenIds = endTokenIdsFrom(generationConfig, config, shape.vocabularySize, path("config.json"));
    const weightPaths = tensors.files.map((file) => file.path);
    return {
      folder,
      shape,
      endTokenIds,
      tokenizer,
      tensors,
      filePaths: [path("config.json"), ...filePaths, ...weightPaths].toSorted(),
      [Symbol.dispose]: () => tensors[Symbol.dispose](),
    };
  } catch (error) {
    tensors[Symbol.dispose]();
    throw error;
  }
}

const rowRange = (tensorName: string, rows: number, columns: number, firstRow: number, rowCount: number): Segment => ({
  tensorName,
  rows,
  columns,
  firstRow,
  rowCount,
  firstColumn: 0,
  columnCount: columns,
});

const columnRange = (
  tensorName: string,
  rows: number,
  columns: number,
  firstColumn: number,
  columnCount: number,
): Segment => ({ tensorName, rows, columns, firstRow: 0, rowCount: rows, firstColumn, columnCount });

const wholeMatrix = (name: string, rows: number, columns: number) => rowRange(name, rows, columns, 0, rows);

/** Which checkpoint tensors a container tensor is made of. */
export function piecesOf(spec: TensorSpec, shape: ModelShape, split: DieSplit): Piece[] {
  const { hiddenDim, headDim } = shape;
  const prefix =
    spec.block === null ? "model" : `model.${spec.block.kind === "mtp" ? "mtp" : "layers"}.${spec.block.index}`;
  const isMtp = spec.block?.kind === "mtp";
  const one = (...segments: Segment[]): Piece[] => [{ offset: 0, tileStride: 1, segments }];
  const vector = (name: string, columns: number) => one(columnRange(`${prefix}.${name}`, 1, columns, 0, columns));

  /** q, k and v of a die with the rows that they have there. */
  const qkv = () => {
    const { query, kv } = headRanges(shape, split, spec.die);
    return [
      { name: `${prefix}.self_attn.q_proj`, range: query, heads: shape.queryHeadCount },
      { name: `${prefix}.self_attn.k_proj`, range: kv, heads: shape.kvHeadCount },
      { name: `${prefix}.self_attn.v_proj`, range: kv, heads: shape.kvHeadCount },
    ].map(({ name, range, heads }) => ({
      name,
      total: heads * headDim,
      first: range.first * headDim,
      count: range.count * headDim,
    }));
  };
  const ffnPrefix = `${prefix}.mlp.${shape.routedExpertCount > 0 && !isMtp ? "shared_expert." : ""}`;
  const ffnDim = isMtp ? shape.mtpFfnDim : shape.ffnDim;
  const ffnRange = () => dieRange(isMtp ? split.mtpFfnBoundary : split.ffnBoundary, ffnDim, spec.die);
  const gateUp = (namePrefix: string, dim: number, first: number, count: number): Piece[] => [
    { offset: 0, tileStride: 2, segments: [rowRange(`${namePrefix}gate_proj.weight`, dim, hiddenDim, first, count)] },
    {
      offset: rowTileBytes(spec.quantType, hiddenDim),
      tileStride: 2,
      segments: [rowRange(`${namePrefix}up_proj.weight`, dim, hiddenDim, first, count)],
    },
  ];

  switch (spec.role) {
    case "tokenEmbedding":
      return one(wholeMatrix("model.embed_tokens.weight", shape.vocabularySize, hiddenDim));
    case "output": {
      const name = shape.isEmbeddingTied ? "model.embed_tokens.weight" : "lm_head.weight";
      const { first, count } = dieRange(split.vocabularyBoundary, shape.vocabularySize, spec.die);
      return one(rowRange(name, shape.vocabularySize, hiddenDim, first, count));
    }
    case "outputNorm":
    case "mtpNorm":
      return vector("norm.weight", hiddenDim);
    case "mtpEmbeddingNorm":
      return vector("enorm.weight", hiddenDim);
    case "mtpHiddenNorm":
      return vector("hnorm.weight", hiddenDim);
    case "mtpProjection":
      return one(wholeMatrix(`${prefix}.eh_proj.weight`, hiddenDim, 2 * hiddenDim));
    case "attnNorm":
      return vector("input_layernorm.weight", hiddenDim);
    case "ffnNorm":
      return vector("post_attention_layernorm.weight", hiddenDim);
    case "attnQkv":
      return one(...qkv().map((p) => rowRange(`${p.name}.weight`, p.total, hiddenDim, p.first, p.count)));
    case "attnQkvBias":
      return one(...qkv().map((p) => columnRange(`${p.name}.bias`, 1, p.total, p.first, p.count)));
    case "attnOutput": {
      const { query } = headRanges(shape, split, spec.die);
      const columns = shape.queryHeadCount * headDim;
      const name = `${prefix}.self_attn.o_proj.weight`;
      return one(columnRange(name, hiddenDim, columns, query.first * headDim, query.count * headDim));
    }
    case "attnOutputBias":
      return vector("self_attn.o_proj.bias", hiddenDim);
    case "router":
      return one(wholeMatrix(`${prefix}.mlp.gate.weight`, shape.routedExpertCount, hiddenDim));
    case "routerScale":
      return vector("mlp.router_scale", shape.routedExpertCount);
    case "ffnGateUp": {
      const { first, count } = ffnRange();
      return gateUp(ffnPrefix, ffnDim, first, count);
    }
    case "ffnDown": {
      const { first, count } = ffnRange();
      return one(columnRange(`${ffnPrefix}down_proj.weight`, hiddenDim, ffnDim, first, count));
    }
    case "expert": {
      const expertPrefix = `${prefix}.mlp.experts.${spec.expertIndex}.`;
      const down = wholeMatrix(`${expertPrefix}down_proj.weight`, hiddenDim, shape.expertDim);
      return [
        ...gateUp(expertPrefix, shape.expertDim, 0, shape.expertDim),
        { offset: spec.downOffset, tileStride: 1, segments: [down] },
      ];
    }
    default:
      return unreachable(spec.role, "tensor role");
  }
}

/** DuetError unless the checkpoint has exactly the tensors that the segments name, with the dims that they name. */
export function checkTensors(checkpoint: Checkpoint, segments: Iterable<Segment>): void {
  const { byName } = checkpoint.tensors;
  const unused = new Set(byName.keys());
  const next = "check that config.json belongs to these weights";
  for (const { tensorName, rows, columns } of segments) {
    const tensor = byName.get(tensorName);
    if (tensor === undefined) {
      throw new DuetError("checkpoint_invalid", `tensor ${tensorName} is missing`, {
        where: checkpoint.folder,
        expected: `${rows} × ${columns}`,
        next,
      });
    }
    if (!hasDims(tensor, rows, columns)) {
      throw new DuetError("checkpoint_invalid", `tensor ${tensorName} has the wrong dims`, {
        where: tensor.file.path,
        expected: rows === 1 ? `[${columns}]` : `[${rows}, ${columns}]`,
        got: `[${tensor.dims.join(", ")}]`,
        next,
      });
    }
    unused.delete(tensorName);
  }
  if (checkpoint.shape.isEmbeddingTied) unused.delete("lm_head.weight"); // some exports write the tied head twice
  const unexpected = [...unused].filter((name) => !IGNORED_TENSORS.test(name));
  if (unexpected.length > 0) {
    throw new DuetError("checkpoint_invalid", `tensor ${unexpected[0]} is not part of this model`, {
      where: checkpoint.folder,
      got: `${unexpected.length} unexpected tensor(s)`,
      next,
    });
  }
}

/** Leading dims of 1 don't count: router_scale is [1, experts] in some exports and [experts] in others. */
function hasDims(tensor: SourceTensor, rows: number, columns: number): boolean {
  const significant = (dims: readonly number[]) => {
    const first = dims.findIndex((dim) => dim !== 1);
    return first < 0 ? [] : dims.slice(first);
  };
  const a = significant(tensor.dims);
  const b = significant([rows, columns]);
  return a.length === b.length && a.every((dim, i) => dim === b[i]);
}
