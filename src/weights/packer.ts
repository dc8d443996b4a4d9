// Packs a Hugging Face checkpoint into a container: lays the file out, streams every tensor through the quantiser in file
// order, writes the header last, and renames a finished file into place. Holds one tensor and a few windows in memory.
// Deterministic: the same checkpoint and options give the same bytes.

import { closeSync, fsyncSync, openSync, renameSync, statSync, unlinkSync, writeSync } from "node:fs";
import { basename, dirname } from "node:path";
import packageJson from "../../package.json";
import { assert, defined } from "../base/assert.ts";
import { DuetError } from "../base/errors.ts";
import { alignUp, ceilDiv, MIB } from "../base/units.ts";
import { type Checkpoint, checkTensors, openCheckpoint, type Piece, piecesOf, type Segment } from "./checkpoint.ts";
import { checksumOf, encodeHeader, encodePreamble } from "./container.ts";
import { alignmentOf, expectedTensors, type TensorSpec } from "./expected-tensors.ts";
import { openRegularFile, readAt, unwritable } from "./files.ts";
import { type ContainerHeader, EXPERT_ALIGNMENT, PREAMBLE_BYTES, type RecipeName, TENSOR_ALIGNMENT } from "./header.ts";
import { encodeRowTile } from "./quantise.ts";
import { RECIPES } from "./recipe.ts";
import { sourceTensor, TensorReader } from "./safetensors.ts";
import type { ModelShape } from "./shape.ts";
import { type DieSplit, splitForShape } from "./split.ts";
import { COLUMN_MULTIPLE, rowTileBytes, type TensorEntry, TILE_ROWS } from "./tensor.ts";

/** Aligned pieces of this size are written at once, so that the page cache can use large folios. */
const WRITE_BYTES = 4 * MIB;
const NO_CHECKSUM = "0".repeat(16);

export interface PackProgress {
  readonly bytesDone: number;
  readonly bytesTotal: number;
  /** What was just packed. */
  readonly tensorName: string;
}

export interface PackOptions {
  /** A Hugging Face checkpoint. */
  readonly folder: string;
  readonly recipe: RecipeName;
  readonly outPath: string;
  /** Default: the checkpoint folder's name. */
  readonly modelName?: string;
  /** Default: "unspecified". */
  readonly license?: string;
  /** Default: the checkpoint folder's name. */
  readonly source?: string;
  readonly onProgress?: (progress: PackProgress) => void;
}

export interface PackResult {
  readonly path: string;
  readonly fileBytes: number;
  readonly tensorCount: number;
  /** The container's fingerprint. */
  readonly fingerprint: string;
}

/** Packs a checkpoint. DuetError `checkpoint_invalid`, `file_*`; on any error no file is left behind. */
export function packCheckpoint(options: PackOptions): PackResult {
  using checkpoint = openCheckpoint(options.folder);
  const { shape } = checkpoint;
  const split = splitForShape(shape);
  const recipe = RECIPES[options.recipe];
  const specs = [...expectedTensors(shape, split, recipe)];
  checkTensors(checkpoint, segmentsOf(specs, shape, split));

  const draft: ContainerHeader = {
    layout: "cpu-x16",
    recipe,
    shape,
    split,
    inverseFrequencies: inverseFrequencies(shape),
    endTokenIds: checkpoint.endTokenIds,
    tokenizer: checkpoint.tokenizer,
    provenance: {
      modelName: options.modelName ?? basename(options.folder),
      license: options.license ?? "unspecified",
      source: options.source ?? basename(options.folder),
      packedBy: `duet ${packageJson.version}`,
      sourceDigest: digestFiles(checkpoint.filePaths),
    },
    tensors: [],
  };
  const { entries, fileBytes } = layOut(specs, draft);
  const header = { ...draft, tensors: entries };
  return writeContainer(options, checkpoint, specs, header, split, fileBytes);
}

/** [headDim / 2] of ropeTheta^(−2i / headDim). */
export function inverseFrequencies(shape: ModelShape): number[] {
  return Array.from({ length: shape.headDim / 2 }, (_, i) => shape.ropeTheta ** ((-2 * i) / shape.headDim));
}

function* segmentsOf(specs: readonly TensorSpec[], shape: ModelShape, split: DieSplit): Generator<Segment> {
  for (const spec of specs) for (const piece of piecesOf(spec, shape, split)) yield* piece.segments;
}

/** SHA-256 over each file's base name, length and bytes, in name order. */
function digestFiles(paths: readonly string[]): string {
  const hasher = new Bun.CryptoHasher("sha256");
  const window = new Uint8Array(WRITE_BYTES);
  for (const path of paths) {
    using file = openRegularFile(path, "checkpoint file", "keep the checkpoint in place while it is packed");
    hasher.update(`${basename(path)}\0${file.bytes}\0`);
    for (let at = 0; ;) {
      const got = readAt(file, window, at);
      if (got === 0) break;
      hasher.update(window.subarray(0, got));
      at += got;
    }
  }
  return hasher.digest("hex");
}

/**
 * Places every tensor. Where the data starts depends on the header's size and the header holds the offsets, so the start
 * moves up until the header fits; checksums are of fixed width and change nothing.
 */
function layOut(specs: readonly TensorSpec[], draft: ContainerHeader): { entries: TensorEntry[]; fileBytes: number } {
  for (let dataStart = EXPERT_ALIGNMENT; ;) {
    let end = dataStart;
    const entries = specs.map((spec): TensorEntry => {
      const { name, kind, quantType, rows, columns, bytes, downOffset } = spec;
      const offset = alignUp(end, alignmentOf(kind));
      end = offset + bytes;
      return {
        name,
        kind,
        class: spec.class,
        quantType,
        rows,
        columns,
        offset,
        bytes,
        downOffset,
        checksum: NO_CHECKSUM,
      };
    });
    const headerEnd = PREAMBLE_BYTES + encodeHeader({ ...draft, tensors: entries }).byteLength;
    if (headerEnd <= dataStart) return { entries, fileBytes: alignUp(end, EXPERT_ALIGNMENT) };
    dataStart = alignUp(headerEnd, EXPERT_ALIGNMENT);
  }
}

function writeContainer(
  options: PackOptions,
  checkpoint: Checkpoint,
  specs: readonly TensorSpec[],
  header: ContainerHeader,
  split: DieSplit,
  fileBytes: number,
): PackResult {
  const { outPath } = options;
  const temporaryPath = `${outPath}.${process.pid}.partial`;
  const writer = new AlignedWriter(temporaryPath);
  try {
    if (statSync(outPath, { throwIfNoEntry: false })?.isDirectory()) {
      throw unwritable(outPath, "the container's path is a folder", "a folder");
    }
    const encoder = new TensorEncoder(checkpoint, split, Math.max(...specs.map((spec) => spec.bytes)));
    const tensors = header.tensors.map((entry, index): TensorEntry => {
      const bytes = encoder.encode(defined(specs[index]));
      writer.writeAt(entry.offset, bytes);
      options.onProgress?.({
        bytesDone: entry.offset + entry.bytes,
        bytesTotal: fileBytes,
        tensorName: entry.name,
      });
      return { ...entry, checksum: checksumOf(bytes) };
    });
    const headerBytes = encodeHeader({ ...header, tensors });
    assert(
      PREAMBLE_BYTES + headerBytes.byteLength <= defined(tensors[0]).offset,
      "checksums must not change the header's size",
    );
    writer.finish(fileBytes, encodePreamble(headerBytes), headerBytes);
    writer.renameTo(outPath);
    return { path: outPath, fileBytes, tensorCount: tensors.length, fingerprint: checksumOf(headerBytes) };
  } catch (error) {
    writer.abandon();
    throw error;
  }
}

/** Encodes one container tensor at a time into a buffer that the next call reuses. */
class TensorEncoder {
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

/** Writes a new file front to back in aligned pieces; bytes that are skipped are zero. The front is patched at the end. */
class AlignedWriter {
  readonly #fd: number;
  readonly #piece = new Uint8Array(WRITE_BYTES);
  #pieceStart = 0;
  #filled = 0;
  #isOpen = true;

  constructor(readonly path: string) {
    try {
      this.#fd = openSync(path, "wx");
    } catch (error) {
      throw unwritable(path, "the container cannot be created", error);
    }
  }

  /** Appends `bytes` at `offset`, which must not lie before what was written. */
  writeAt(offset: number, bytes: Uint8Array): void {
    assert(offset >= this.#pieceStart + this.#filled, "writes must ascend");
    this.#zeroTo(offset);
    for (let from = 0; from < bytes.byteLength;) {
      const count = Math.min(WRITE_BYTES - this.#filled, bytes.byteLength - from);
      this.#piece.set(bytes.subarray(from, from + count), this.#filled);
      this.#filled += count;
      from += count;
      if (this.#filled === WRITE_BYTES) this.#flush();
    }
  }

  /** Pads to `fileBytes`, writes preamble and header to the front, and makes all of it durable. */
  finish(fileBytes: number, preamble: Uint8Array, header: Uint8Array): void {
    this.#zeroTo(fileBytes);
    this.#flush();
    this.#write(preamble, 0);
    this.#write(header, preamble.byteLength);
    try {
      fsyncSync(this.#fd);
    } catch (error) {
      throw unwritable(this.path, "the container cannot be made durable", error);
    }
  }

  renameTo(path: string): void {
    this.#close();
    try {
      renameSync(this.path, path);
      const folder = openSync(dirname(path), "r");
      fsyncSync(folder);
      closeSync(folder);
    } catch (error) {
      throw unwritable(path, "the finished container cannot be put in place", error);
    }
  }

  /** Removes the unfinished file. */
  abandon(): void {
    this.#close();
    try {
      unlinkSync(this.path);
    } catch {
      // Already renamed, or already gone: nothing is left to remove.
    }
  }

  #zeroTo(offset: number): void {
    while (this.#pieceStart + this.#filled < offset) {
      const count = Math.min(WRITE_BYTES - this.#filled, offset - this.#pieceStart - this.#filled);
      this.#piece.fill(0, this.#filled, this.#filled + count);
      this.#filled += count;
      if (this.#filled === WRITE_BYTES) this.#flush();
    }
  }

  #flush(): void {
    this.#write(this.#piece.subarray(0, this.#filled), this.#pieceStart);
    this.#pieceStart += this.#filled;
    this.#filled = 0;
  }

  #write(bytes: Uint8Array, position: number): void {
    try {
      for (let written = 0; written < bytes.byteLength;) {
        written += writeSync(this.#fd, bytes, written, bytes.byteLength - written, position + written);
      }
    } catch (error) {
      throw unwritable(this.path, "writing the container failed", error);
    }
  }

  #close(): void {
    if (this.#isOpen) closeSync(this.#fd);
    this.#isOpen = false;
  }
}
