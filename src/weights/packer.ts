// Packs a Hugging Face checkpoint into a container: checks the checkpoint, then hands the writer every tensor through the
// quantiser, in file order. Holds one tensor and a few windows in memory. Deterministic: the same checkpoint and options
// give the same bytes.

import { basename } from "node:path";
import packageJson from "../../package.json";
import { MIB } from "../base/units.ts";
import { checkTensors, openCheckpoint, piecesOf, type Segment } from "./checkpoint.ts";
import { inverseFrequencies, writeContainer, type WriteProgress, type WriteResult } from "./container-writer.ts";
import { expectedTensors, type TensorSpec } from "./expected-tensors.ts";
import { openRegularFile, readAt } from "./files.ts";
import type { RecipeName } from "./header.ts";
import { RECIPES } from "./recipe.ts";
import type { ModelShape } from "./shape.ts";
import { type DieSplit, splitForShape } from "./split.ts";
import { TensorEncoder } from "./tensor-encoder.ts";

const DIGEST_WINDOW_BYTES = 4 * MIB;

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
  readonly onProgress?: (progress: WriteProgress) => void;
}

/** Packs a checkpoint. DuetError `checkpoint_invalid`, `file_*`; on any error no file is left behind. */
export function packCheckpoint(options: PackOptions): WriteResult {
  using checkpoint = openCheckpoint(options.folder);
  const { shape } = checkpoint;
  const split = splitForShape(shape);
  const recipe = RECIPES[options.recipe];
  const specs = [...expectedTensors(shape, split, recipe)];
  checkTensors(checkpoint, segmentsOf(specs, shape, split));
  const encoder = new TensorEncoder(checkpoint, split, Math.max(...specs.map((spec) => spec.bytes)));
  return writeContainer({
    outPath: options.outPath,
    header: {
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
    },
    specs,
    encode: (spec) => encoder.encode(spec),
    onProgress: options.onProgress,
  });
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
