// Containers for tests, made without the packer: any tensors with any values, encoded by the quantiser and laid out as
// docs/container.md says. The header exists in memory only; devices read a container's tensors by offset, never its header.

import { writeFileSync } from "node:fs";
import { createUniform } from "../../src/base/prng.ts";
import { alignUp, ceilDiv } from "../../src/base/units.ts";
import { expectedTensors, type TensorSpec } from "../../src/weights/expected-tensors.ts";
import type { Container, ContainerHeader, Recipe } from "../../src/weights/header.ts";
import { encodeRowTile } from "../../src/weights/quantise.ts";
import { RECIPES } from "../../src/weights/recipe.ts";
import { modelShapeSchema, type ModelShape } from "../../src/weights/shape.ts";
import { type DieSplit, splitForShape } from "../../src/weights/split.ts";
import {
  COLUMN_MULTIPLE,
  matrixBytes,
  type QuantType,
  rowTileBytes,
  type TensorEntry,
  TILE_ROWS,
} from "../../src/weights/tensor.ts";

/** A dense model of a few numbers; tests name what they care about. */
export function testShape(fields: Partial<ModelShape> = {}): ModelShape {
  return modelShapeSchema.parse({
    architecture: "pangu-pro-moe",
    vocabularySize: 80,
    hiddenDim: 96,
    layerCount: 2,
    queryHeadCount: 4,
    kvHeadCount: 2,
    headDim: 16,
    contextMax: 512,
    rmsNormEps: 1e-5,
    ropeTheta: 10000,
    routedExpertCount: 0,
    expertGroupCount: 0,
    activeExpertCount: 0,
    expertDim: 0,
    ffnDim: 96,
    isRoutingRenormalised: false,
    hasRouterScale: false,
    hasAttentionBias: true,
    isEmbeddingTied: true,
    mtpLayerCount: 0,
    mtpFfnDim: 0,
    ...fields,
  });
}

/** The grouped mixture that most tests take. */
export function testMogeShape(fields: Partial<ModelShape> = {}): ModelShape {
  return testShape({
    routedExpertCount: 16,
    expertGroupCount: 4,
    activeExpertCount: 4,
    expertDim: 48,
    hasRouterScale: true,
    ...fields,
  });
}

export function testHeader(shape: ModelShape, recipe: Recipe, tensors: readonly TensorEntry[]): ContainerHeader {
  return {
    layout: "cpu-x16",
    recipe,
    shape,
    split: splitForShape(shape),
    inverseFrequencies: Array.from(
      { length: shape.headDim / 2 },
      (_, i) => shape.ropeTheta ** ((-2 * i) / shape.headDim),
    ),
    endTokenIds: [0],
    tokenizer: { tokenizerJson: "{}", tokenizerConfigJson: "{}", generationConfigJson: "{}" },
    provenance: { modelName: "test", license: "none", source: "random", packedBy: "a test", sourceDigest: "" },
    tensors,
  };
}

export function testContainer(path: string, fileBytes: number, header: ContainerHeader): Container {
  return {
    path,
    fileBytes,
    header,
    fingerprint: Bun.hash(path).toString(16),
    tensorIndex: new Map(header.tensors.map((tensor, index) => [tensor.name, index])),
  };
}

/** A container that has a header and no file: enough to compile. */
export function headerOnlyContainer(shape: ModelShape, recipe: Recipe = RECIPES.q4): Container {
  const entries = Array.from(expectedTensors(shape, splitForShape(shape), recipe), (spec) => entryOf(spec, 0));
  return testContainer("(no file)", 0, testHeader(shape, recipe, entries));
}

function entryOf(spec: TensorSpec, offset: number): TensorEntry {
  const { name, kind, class: tensorClass, quantType, rows, columns, bytes, downOffset } = spec;
  return { name, kind, class: tensorClass, quantType, rows, columns, offset, bytes, downOffset, checksum: "" };
}

/** values[rows][columns] as a tiled matrix. */
export function encodeMatrix(values: Float32Array, quantType: QuantType, rows: number, columns: number): Uint8Array {
  return encodeTiles([values], quantType, rows, columns);
}

/** Interleaved rowTiles of matrices of one size: gate and up. */
function encodeTiles(
  matrices: readonly Float32Array[],
  quantType: QuantType,
  rows: number,
  columns: number,
): Uint8Array {
  const padded = alignUp(columns, COLUMN_MULTIPLE);
  const tileBytes = rowTileBytes(quantType, columns);
  const tileCount = ceilDiv(rows, TILE_ROWS);
  const out = new Uint8Array(matrices.length * matrixBytes(quantType, rows, columns));
  const tile = new Float32Array(TILE_ROWS * padded);
  for (let t = 0; t < tileCount; t++) {
    for (const [m, values] of matrices.entries()) {
      tile.fill(0);
      for (let row = t * TILE_ROWS; row < Math.min(rows, (t + 1) * TILE_ROWS); row++) {
        tile.set(values.subarray(row * columns, (row + 1) * columns), (row % TILE_ROWS) * padded);
      }
      if (!encodeRowTile(quantType, tile, padded, out, (t * matrices.length + m) * tileBytes)) {
        throw new RangeError("a test's values don't fit their quant type");
      }
    }
  }
  return out;
}

export type TensorValues = (spec: TensorSpec, element: "all" | "gate" | "up" | "down", count: number) => Float32Array;

/** Uniform values that keep activations near 1 through a layer; norms and router_scale near 1. */
export function randomValues(seed: number): TensorValues {
  const uniform = createUniform(seed);
  return (spec, _element, count) => {
    const isAroundOne = spec.kind === "vector" && !spec.role.endsWith("Bias");
    const spread = spec.kind === "vector" ? 0.5 : Math.sqrt(3 / spec.columns);
    return Float32Array.from({ length: count }, () => (isAroundOne ? 1 : 0) + (2 * uniform() - 1) * spread);
  };
}

/** Writes a whole model with `valuesOf` as its weights. */
export function writeModel(
  path: string,
  shape: ModelShape,
  recipe: Recipe,
  valuesOf: TensorValues,
  split: DieSplit = splitForShape(shape),
): Container {
  const pieces: { offset: number; bytes: Uint8Array }[] = [];
  const entries: TensorEntry[] = [];
  let end = 4096;
  for (const spec of expectedTensors(shape, split, recipe)) {
    const bytes = encodeTensor(spec, valuesOf);
    const offset = alignUp(end, spec.kind === "expert" ? 4096 : 64);
    pieces.push({ offset, bytes });
    entries.push({ ...entryOf(spec, offset), bytes: bytes.byteLength });
    end = offset + bytes.byteLength;
  }
  const file = new Uint8Array(alignUp(end, 4096));
  for (const { offset, bytes } of pieces) file.set(bytes, offset);
  writeFileSync(path, file);
  return testContainer(path, file.byteLength, { ...testHeader(shape, recipe, entries), split });
}

function encodeTensor(spec: TensorSpec, valuesOf: TensorValues): Uint8Array {
  const { kind, role, quantType, rows, columns } = spec;
  if (kind === "vector") return new Uint8Array(valuesOf(spec, "all", columns).buffer);
  if (kind === "matrix" && role !== "ffnGateUp") {
    return encodeMatrix(valuesOf(spec, "all", rows * columns), quantType, rows, columns);
  }
  const dim = rows / 2;
  const gate = valuesOf(spec, "gate", dim * columns);
  const up = valuesOf(spec, "up", dim * columns);
  const gateUp = encodeTiles([gate, up], quantType, dim, columns);
  if (kind === "matrix") return gateUp;
  const out = new Uint8Array(spec.bytes);
  out.set(gateUp);
  out.set(encodeMatrix(valuesOf(spec, "down", columns * dim), quantType, columns, dim), spec.downOffset);
  return out;
}
