// The tensor table's entries and the byte layouts that they name (docs/container.md). Pure arithmetic on sizes.

import { alignUp, ceilDiv } from "../base/units.ts";

export const TILE_ROWS = 16;
export const QUANT_BLOCK = 32;
export const COLUMN_MULTIPLE = 64;

export type QuantType = "f32" | "f16" | "q8" | "q4";
export const QUANT_TYPES: readonly QuantType[] = ["f32", "f16", "q8", "q4"];

/** What a tensor is: a tiled matrix, a plain float32 vector, or one expert's gate, up and down together. */
export type TensorKind = "matrix" | "vector" | "expert";

/** Tensor classes that a recipe gives a quant type to, and that `inspect` sums bytes over. */
export type TensorClass = "embedding" | "attention" | "router" | "shared" | "experts" | "head" | "norm" | "mtp";

/** One entry of the tensor table. rows and columns are unpadded. An expert has rows = 2 × expertDim, columns = hiddenDim. */
export interface TensorEntry {
  readonly name: string;
  readonly kind: TensorKind;
  readonly class: TensorClass;
  readonly quantType: QuantType;
  readonly rows: number;
  readonly columns: number;
  /** From the start of the file. */
  readonly offset: number;
  readonly bytes: number;
  /** Experts only: where `down` starts, from `offset`. 0 otherwise. */
  readonly downOffset: number;
  /** XXH64, seed 0, of the tensor's bytes, as 16 hex digits. */
  readonly checksum: string;
}

/** Bytes of one rowTile: 16 rows over padded columns. */
export function rowTileBytes(quantType: QuantType, columns: number): number {
  const padded = alignUp(columns, COLUMN_MULTIPLE);
  switch (quantType) {
    case "f32":
      return padded * TILE_ROWS * 4;
    case "f16":
      return padded * TILE_ROWS * 2;
    case "q8":
      return (padded / 64) * 1088;
    case "q4":
      return (padded / 64) * 576;
  }
}

/** Bytes of a tiled matrix. */
export function matrixBytes(quantType: QuantType, rows: number, columns: number): number {
  return ceilDiv(rows, TILE_ROWS) * rowTileBytes(quantType, columns);
}

/**
 * Gate and up of `dim` rows each are stored as one matrix of interleaved rowTiles g0 u0 g1 u1 …; this is its padded row
 * count in rows of the stored matrix.
 */
export function gateUpRows(dim: number): number {
  return 2 * alignUp(dim, TILE_ROWS);
}
