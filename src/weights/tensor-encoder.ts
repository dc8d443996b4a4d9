// One container tensor at a time: gathers its pieces from the checkpoint, rowTile by rowTile, and encodes them. Owns the
// buffer that the encoded bytes come in; knows no file layout.

import { assert, defined } from "../base/assert.ts";
import { DuetError } from "../base/errors.ts";
import { alignUp, ceilDiv } from "../base/units.ts";
import { type Checkpoint, type Piece, piecesOf, type Segment } from "./checkpoint.ts";
import type { TensorSpec } from "./expected-tensors.ts";
import { TENSOR_ALIGNMENT } from "./header.ts";
import { encodeRowTile } from "./quantise.ts";
import { sourceTensor, TensorReader } from "./safetensors.ts";
import type { DieSplit } from "./split.ts";
import { COLUMN_MULTIPLE, rowTileBytes, TILE_ROWS } from "./tensor.ts";

/** `encode` returns a tensor's bytes in a buffer that the next call reuses. DuetError `checkpoint_invalid` for unfit values. */
export class TensorEncoder {
  readonly #reader = new TensorReader();
  readonly #buffer: Uint8Array;
  #tile = new Float32Array(0);

  constructor(
    readonly checkpoint: Checkpoint,
    readonly split: DieSplit,
    largestBytes: number,
  ) {
    this.#buffer = new Uint8Array(alignUp(largestBytes, TENSOR_ALIGNMENT));
  }

  encode(spec: TensorSpec): Uint8Array {
    const out = this.#buffer.subarray(0, spec.bytes);
    out.fill(0);
    for (const piece of piecesOf(spec, this.checkpoint.shape, this.split)) {
      if (spec.kind === "vector") this.#encodeVector(spec, piece, out);
      else this.#encodePiece(spec, piece, out);
    }
    return out;
  }

  #encodeVector(spec: TensorSpec, piece: Piece, out: Uint8Array): void {
    const values = new Float32Array(out.buffer, out.byteOffset, spec.columns);
    let at = 0;
    for (const segment of piece.segments) {
      this.#read(segment, 0, 1, values, at, segment.columnCount);
      at += segment.columnCount;
    }
    assert(at === spec.columns, "a vector's segments must fill it");
    if (!values.every(Number.isFinite)) throw unfit(spec, defined(piece.segments[0]));
  }

  #encodePiece(spec: TensorSpec, piece: Piece, out: Uint8Array): void {
    const columns = defined(piece.segments[0]).columnCount;
    const rows = piece.segments.reduce((sum, segment) => sum + segment.rowCount, 0);
    const padded = alignUp(columns, COLUMN_MULTIPLE);
    const tileBytes = rowTileBytes(spec.quantType, columns);
    if (this.#tile.length < TILE_ROWS * padded) this.#tile = new Float32Array(TILE_ROWS * padded);
    const tile = this.#tile.subarray(0, TILE_ROWS * padded);
    for (let t = 0; t < ceilDiv(rows, TILE_ROWS); t++) {
      tile.fill(0);
      this.#gather(piece.segments, t * TILE_ROWS, tile, padded);
      if (!encodeRowTile(spec.quantType, tile, padded, out, piece.offset + t * piece.tileStride * tileBytes)) {
        throw unfit(spec, defined(piece.segments[0]));
      }
    }
  }

  /** Rows [firstRow, firstRow + 16) of the segments' rows taken together; those past the end are left alone. */
  #gather(segments: readonly Segment[], firstRow: number, tile: Float32Array, stride: number): void {
    let segmentStart = 0;
    for (const segment of segments) {
      const first = Math.max(firstRow, segmentStart);
      const end = Math.min(firstRow + TILE_ROWS, segmentStart + segment.rowCount);
      if (first < end)
        this.#read(segment, first - segmentStart, end - first, tile, (first - firstRow) * stride, stride);
      segmentStart += segment.rowCount;
    }
  }

  #read(segment: Segment, row: number, rowCount: number, out: Float32Array, outOffset: number, stride: number): void {
    const { columns, firstColumn, columnCount } = segment;
    const tensor = sourceTensor(this.checkpoint.tensors, segment.tensorName);
    this.#reader.readRows(
      tensor,
      columns,
      segment.firstRow + row,
      rowCount,
      firstColumn,
      columnCount,
      out,
      outOffset,
      stride,
    );
  }
}

function unfit(spec: TensorSpec, segment: Segment): DuetError {
  return new DuetError("checkpoint_invalid", `a value is not finite, or too large for ${spec.quantType}`, {
    where: `${spec.name}, from ${segment.tensorName} on`,
    next: "check the checkpoint",
  });
}
