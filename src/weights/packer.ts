// Packs a Hugging Face checkpoint into a container: lays the file out, streams every tensor through the quantiser in file
// order, writes the header last, and renames a finished file into place. Holds one tensor and a few windows in memory.
// Deterministic: the same checkpoint and options give the same bytes.

import { statSync } from "node:fs";
import { basename } from "node:path";
import packageJson from "../../package.json";
import { assert, defined } from "../base/assert.ts";
import { alignUp, MIB } from "../base/units.ts";
import { AlignedWriter } from "./aligned-writer.ts";
import { type Checkpoint, checkTensors, openCheckpoint, piecesOf, type Segment } from "./checkpoint.ts";
import { checksumOf, encodeHeader, encodePreamble } from "./container.ts";
import { alignmentOf, expectedTensors, type TensorSpec } from "./expected-tensors.ts";
import { openRegularFile, readAt, unwritable } from "./files.ts";
import { type ContainerHeader, EXPERT_ALIGNMENT, PREAMBLE_BYTES, type RecipeName } from "./header.ts";
import { RECIPES } from "./recipe.ts";
import type { ModelShape } from "./shape.ts";
import { type DieSplit, splitForShape } from "./split.ts";
import type { TensorEntry } from "./tensor.ts";
import { TensorEncoder } from "./tensor-encoder.ts";

const DIGEST_WINDOW_BYTES = 4 * MIB;
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
  const window = new Uint8Array(DIGEST_WINDOW_BYTES);
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
    writer.finish(fileBytes, Buffer.concat([encodePreamble(headerBytes), headerBytes]));
    writer.renameTo(outPath);
    return { path: outPath, fileBytes, tensorCount: tensors.length, fingerprint: checksumOf(headerBytes) };
  } catch (error) {
    writer.abandon();
    throw error;
  }
}
