// A container's tensors as float32 arrays, [rows][columns] without padding: read and decoded at first use, then kept. The
// reference device is the only one that holds weights in JavaScript; it is for small models (an ArrayBuffer stops at 4 GiB).

import { assert, defined } from "../../base/assert.ts";
import type { TensorIndex } from "../../model/program.ts";
import { readTensor } from "../../weights/container.ts";
import type { Container } from "../../weights/header.ts";
import { decodeGateUp, decodeMatrix } from "../../weights/quantise.ts";
import type { QuantType, TensorEntry } from "../../weights/tensor.ts";

export interface DecodedMatrix {
  readonly values: Float32Array;
  readonly rows: number;
  readonly columns: number;
  /** In the container. */
  readonly bytes: number;
  readonly isQuantised: boolean;
}

export interface FeedForwardParts {
  readonly gate: DecodedMatrix;
  readonly up: DecodedMatrix;
  readonly down: DecodedMatrix;
}

/** Decoded tensors by their index in the table. Reading errors are DuetErrors of the container reader. */
export interface DecodedTensors {
  matrix(index: TensorIndex): DecodedMatrix;
  vector(index: TensorIndex): Float32Array;
  /** A shared or dense FFN on one die. */
  ffn(gateUp: TensorIndex, down: TensorIndex): FeedForwardParts;
  expert(index: TensorIndex): FeedForwardParts;
}

export function createDecodedTensors(container: Container): DecodedTensors {
  const matrices = new Map<TensorIndex, DecodedMatrix>();
  const vectors = new Map<TensorIndex, Float32Array>();
  const parts = new Map<TensorIndex, FeedForwardParts>();
  const entryOf = (index: TensorIndex): TensorEntry => defined(container.header.tensors[index], "a Program's tensor");

  const matrix = (index: TensorIndex) =>
    remembered(matrices, index, () => {
      const { kind, quantType, rows, columns, bytes, name } = entryOf(index);
      assert(kind === "matrix", `${name} is a matrix`);
      return decoded(
        decodeMatrix(readTensor(container, index), quantType, rows, columns),
        rows,
        columns,
        bytes,
        quantType,
      );
    });

  return {
    matrix,
    vector: (index) =>
      remembered(vectors, index, () => {
        const { columns } = entryOf(index);
        const bytes = readTensor(container, index);
        const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
        return Float32Array.from({ length: columns }, (_, i) => view.getFloat32(4 * i, true));
      }),
    ffn: (gateUp, down) =>
      remembered(parts, gateUp, () => {
        const entry = entryOf(gateUp);
        return { ...decodedGateUp(readTensor(container, gateUp), entry, entry.bytes), down: matrix(down) };
      }),
    expert: (index) =>
      remembered(parts, index, () => {
        const entry = entryOf(index);
        const { quantType, columns, downOffset } = entry;
        const dim = entry.rows / 2;
        const bytes = readTensor(container, index);
        const down = decodeMatrix(bytes.subarray(downOffset), quantType, columns, dim);
        return {
          ...decodedGateUp(bytes, entry, downOffset),
          down: decoded(down, columns, dim, entry.bytes - downOffset, quantType),
        };
      }),
  };
}

function decodedGateUp(bytes: Uint8Array, entry: TensorEntry, gateUpBytes: number) {
  const { quantType, columns } = entry;
  const dim = entry.rows / 2;
  const { gate, up } = decodeGateUp(bytes, quantType, dim, columns);
  return {
    gate: decoded(gate, dim, columns, gateUpBytes / 2, quantType),
    up: decoded(up, dim, columns, gateUpBytes / 2, quantType),
  };
}

function decoded(
  values: Float32Array,
  rows: number,
  columns: number,
  bytes: number,
  quantType: QuantType,
): DecodedMatrix {
  return { values, rows, columns, bytes, isQuantised: quantType === "q4" || quantType === "q8" };
}

function remembered<T>(cache: Map<TensorIndex, T>, index: TensorIndex, create: () => T): T {
  let value = cache.get(index);
  if (value === undefined) {
    value = create();
    cache.set(index, value);
  }
  return value;
}
