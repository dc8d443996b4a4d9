// Writes a container whose tensors come from a function: lays the file out, streams every tensor in file order, writes the
// header last, and renames a finished file into place. Knows nothing of where values come from.

import { statSync } from "node:fs";
import { assert, defined } from "../base/assert.ts";
import { alignUp } from "../base/units.ts";
import { AlignedWriter } from "./aligned-writer.ts";
import { checksumOf, encodeHeader, encodePreamble } from "./container.ts";
import { alignmentOf, type TensorSpec } from "./expected-tensors.ts";
import { unwritable } from "./files.ts";
import { type ContainerHeader, EXPERT_ALIGNMENT, PREAMBLE_BYTES } from "./header.ts";
import type { ModelShape } from "./shape.ts";
import type { TensorEntry } from "./tensor.ts";

const NO_CHECKSUM = "0".repeat(16);

export interface WriteProgress {
  readonly bytesDone: number;
  readonly bytesTotal: number;
  /** What was just written. */
  readonly tensorName: string;
}

export interface WriteResult {
  readonly path: string;
  readonly fileBytes: number;
  readonly tensorCount: number;
  /** The container's fingerprint. */
  readonly fingerprint: string;
}

/** A container before its tensors have places and checksums. */
export interface ContainerPlan {
  readonly outPath: string;
  readonly header: Omit<ContainerHeader, "tensors">;
  /** expectedTensors of the header's shape, split and recipe. */
  readonly specs: readonly TensorSpec[];
  /** A tensor's bytes, in a buffer that the next call may reuse. */
  readonly encode: (spec: TensorSpec) => Uint8Array;
  readonly onProgress?: ((progress: WriteProgress) => void) | undefined;
}

/** [headDim / 2] of ropeTheta^(−2i / headDim). */
export function inverseFrequencies(shape: ModelShape): number[] {
  return Array.from({ length: shape.headDim / 2 }, (_, i) => shape.ropeTheta ** ((-2 * i) / shape.headDim));
}

/** Writes the whole file. DuetError `file_unwritable`, and what `encode` throws; on any error no file is left behind. */
export function writeContainer(plan: ContainerPlan): WriteResult {
  const { outPath } = plan;
  const { entries, fileBytes } = layOut(plan);
  const writer = new AlignedWriter(`${outPath}.${process.pid}.partial`);
  try {
    if (statSync(outPath, { throwIfNoEntry: false })?.isDirectory()) {
      throw unwritable(outPath, "the container's path is a folder", "a folder");
    }
    const tensors = entries.map((entry, index): TensorEntry => {
      const bytes = plan.encode(defined(plan.specs[index]));
      assert(bytes.byteLength === entry.bytes, `${entry.name} must have the bytes that were planned`);
      writer.writeAt(entry.offset, bytes);
      plan.onProgress?.({ bytesDone: entry.offset + entry.bytes, bytesTotal: fileBytes, tensorName: entry.name });
      return { ...entry, checksum: checksumOf(bytes) };
    });
    const headerBytes = encodeHeader({ ...plan.header, tensors });
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

/**
 * Places every tensor. Where the data starts depends on the header's size and the header holds the offsets, so the start
 * moves up until the header fits; checksums are of fixed width and change nothing.
 */
function layOut({ specs, header }: ContainerPlan): { entries: TensorEntry[]; fileBytes: number } {
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
    const headerEnd = PREAMBLE_BYTES + encodeHeader({ ...header, tensors: entries }).byteLength;
    if (headerEnd <= dataStart) return { entries, fileBytes: alignUp(end, EXPERT_ALIGNMENT) };
    dataStart = alignUp(headerEnd, EXPERT_ALIGNMENT);
  }
}
