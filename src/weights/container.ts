// Reading a container: the preamble and header are checked against the file before anything is mapped, and nothing that
// they say is trusted. Also the header's encoding, so that both directions lie side by side. Tensor bytes are read only by
// readTensor and verifyTensors (reference device, inspection); devices map the file themselves.

import { Packr } from "msgpackr";
import { z } from "zod";
import { assert, defined } from "../base/assert.ts";
import { DuetError, type DuetErrorCode } from "../base/errors.ts";
import { MIB } from "../base/units.ts";
import { alignmentOf, expectedTensors } from "./expected-tensors.ts";
import { type OpenFile, openRegularFile, readAt } from "./files.ts";
import { type Container, CONTAINER_MAGIC, CONTAINER_VERSION, type ContainerHeader, PREAMBLE_BYTES } from "./header.ts";
import { decodePlainMsgpack, MsgpackError } from "../base/plain-msgpack.ts";
import { parseModelShape } from "./shape.ts";
import { dieSplitSchema, splitProblem } from "./split.ts";
import { QUANT_TYPES, type TensorEntry } from "./tensor.ts";

const HEADER_BYTES_MAX = 256 * MIB;
const NEXT = "pack the model again, or copy the container again";

const quantTypeSchema = z.enum(QUANT_TYPES as [(typeof QUANT_TYPES)[number]]);
const tensorEntrySchema = z.strictObject({
  name: z.string().max(256),
  kind: z.enum(["matrix", "vector", "expert"]),
  class: z.enum(["embedding", "attention", "router", "shared", "experts", "head", "norm", "mtp"]),
  quantType: quantTypeSchema,
  rows: z.int().min(1),
  columns: z.int().min(1),
  offset: z.int().min(0),
  bytes: z.int().min(1),
  downOffset: z.int().min(0),
  checksum: z.string().regex(/^[0-9a-f]{16}$/),
});

const headerSchema = z.strictObject({
  layout: z.enum(["cpu-x16", "ascend-nz"]),
  recipe: z.strictObject({
    name: z.enum(["q4", "q8", "f16"]),
    types: z.strictObject({
      embedding: quantTypeSchema,
      attention: quantTypeSchema,
      router: z.literal("f32"),
      shared: quantTypeSchema,
      experts: quantTypeSchema,
      head: quantTypeSchema,
      norm: z.literal("f32"),
      mtp: quantTypeSchema,
    }),
  }),
  shape: z.unknown(),
  split: dieSplitSchema,
  inverseFrequencies: z.array(z.number().positive()),
  endTokenIds: z.array(z.int().min(0)),
  tokenizer: z.strictObject({
    tokenizerJson: z.string(),
    tokenizerConfigJson: z.string(),
    generationConfigJson: z.string(),
  }),
  provenance: z.strictObject({
    modelName: z.string(),
    license: z.string(),
    source: z.string(),
    packedBy: z.string(),
    sourceDigest: z.string(),
  }),
  tensors: z.array(tensorEntrySchema),
});

const packr = new Packr({ useRecords: false, variableMapSize: true });

/** XXH64 (seed 0) as 16 hex digits. */
export function checksumOf(bytes: Uint8Array): string {
  return Bun.hash.xxHash64(bytes).toString(16).padStart(16, "0");
}

/** The header's bytes. The same header gives the same bytes. */
export function encodeHeader(header: ContainerHeader): Uint8Array {
  return packr.pack(header);
}

/** The preamble in front of `headerBytes`. */
export function encodePreamble(headerBytes: Uint8Array): Uint8Array {
  const preamble = new Uint8Array(PREAMBLE_BYTES);
  preamble.set(new TextEncoder().encode(CONTAINER_MAGIC));
  const view = new DataView(preamble.buffer);
  view.setUint32(8, CONTAINER_VERSION, true);
  view.setUint32(12, 0, true);
  view.setBigUint64(16, BigInt(headerBytes.byteLength), true);
  view.setBigUint64(24, Bun.hash.xxHash64(headerBytes), true);
  return preamble;
}

function refuse(code: DuetErrorCode, path: string, what: string, expected?: string, got?: string): DuetError {
  return new DuetError(code, what, {
    where: path,
    ...(expected === undefined ? {} : { expected }),
    ...(got === undefined ? {} : { got }),
    next: code === "container_version" ? "pack the model with this version of Duet" : NEXT,
  });
}

const corrupt = (path: string, what: string, expected?: string, got?: string) =>
  refuse("container_corrupt", path, what, expected, got);

/** Opens, checks and closes a container. DuetError `file_*` or `container_*`. */
export function readContainer(path: string): Container {
  using file = openRegularFile(path, "container", "name a *.duet file, or make one with `duet pack`");
  const { headerBytes, fingerprint } = readHeaderBytes(file);
  const header = parseHeader(headerBytes, path);
  checkTensorTable(header, path, PREAMBLE_BYTES + headerBytes.byteLength, file.bytes);
  const tensorIndex = new Map(header.tensors.map((tensor, index) => [tensor.name, index]));
  assert(tensorIndex.size === header.tensors.length, "the names of expected tensors are distinct");
  return { path, fileBytes: file.bytes, header, fingerprint, tensorIndex };
}

function readHeaderBytes(file: OpenFile): { headerBytes: Uint8Array; fingerprint: string } {
  const { path } = file;
  const preamble = new Uint8Array(PREAMBLE_BYTES);
  if (readAt(file, preamble, 0) < PREAMBLE_BYTES) {
    throw refuse("container_truncated", path, "the file is too short", `${PREAMBLE_BYTES} bytes`, `${file.bytes}`);
  }
  const magic = new TextDecoder("latin1").decode(preamble.subarray(0, 8));
  if (magic !== CONTAINER_MAGIC) {
    throw corrupt(path, "the file is not a Duet container", CONTAINER_MAGIC, JSON.stringify(magic));
  }
  const view = new DataView(preamble.buffer);
  const version = view.getUint32(8, true);
  if (version !== CONTAINER_VERSION) {
    throw refuse(
      "container_version",
      path,
      "the container's version is not known",
      `${CONTAINER_VERSION}`,
      `${version}`,
    );
  }
  const flags = view.getUint32(12, true);
  if (flags !== 0) throw refuse("container_unsupported", path, "the container has unknown flags", "0", `${flags}`);
  const headerBytesWide = view.getBigUint64(16, true);
  if (headerBytesWide > HEADER_BYTES_MAX) {
    throw corrupt(path, "the header is impossibly large", `at most ${HEADER_BYTES_MAX} bytes`, `${headerBytesWide}`);
  }
  const byteCount = Number(headerBytesWide);
  if (PREAMBLE_BYTES + byteCount > file.bytes) {
    throw refuse(
      "container_truncated",
      path,
      "the header runs past the end of the file",
      `${PREAMBLE_BYTES + byteCount} bytes at least`,
      `${file.bytes}`,
    );
  }
  const headerBytes = new Uint8Array(byteCount);
  if (readAt(file, headerBytes, PREAMBLE_BYTES) < byteCount) {
    throw refuse("container_truncated", path, "the file shrank while its header was read");
  }
  const wanted = view.getBigUint64(24, true).toString(16).padStart(16, "0");
  const fingerprint = checksumOf(headerBytes);
  if (fingerprint !== wanted) throw corrupt(path, "the header's checksum differs", wanted, fingerprint);
  return { headerBytes, fingerprint };
}

function parseHeader(bytes: Uint8Array, path: string): ContainerHeader {
  let plain: unknown;
  try {
    plain = decodePlainMsgpack(bytes);
  } catch (error) {
    if (error instanceof MsgpackError) throw corrupt(path, `the header is not plain msgpack: ${error.message}`);
    throw error;
  }
  const parsed = headerSchema.safeParse(plain);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw corrupt(path, `the header is invalid: ${issue?.path.join(".") || "top"}: ${issue?.message ?? "unknown"}`);
  }
  const { layout, split, inverseFrequencies, endTokenIds } = parsed.data;
  if (layout !== "cpu-x16") {
    throw refuse("container_unsupported", path, "this build does not read the container's layout", "cpu-x16", layout);
  }
  const shape = parseModelShape(parsed.data.shape, path);
  const problem = splitProblem(shape, split);
  if (problem !== null) throw corrupt(path, `the die split is invalid: ${problem}`);
  if (inverseFrequencies.length !== shape.headDim / 2) {
    throw corrupt(
      path,
      "inverseFrequencies has the wrong length",
      `${shape.headDim / 2}`,
      `${inverseFrequencies.length}`,
    );
  }
  const strayId = endTokenIds.find((id) => id >= shape.vocabularySize);
  if (strayId !== undefined) {
    throw corrupt(path, "an end token is not in the vocabulary", `below ${shape.vocabularySize}`, `${strayId}`);
  }
  return { ...parsed.data, shape };
}

const SPEC_FIELDS = ["name", "kind", "class", "quantType", "rows", "columns", "bytes", "downOffset"] as const;

/** The table must be what the shape requires, in file order, aligned, without overlap and inside the file. */
function checkTensorTable(header: ContainerHeader, path: string, dataStart: number, fileBytes: number): void {
  const { tensors } = header;
  let end = dataStart;
  let count = 0;
  for (const spec of expectedTensors(header.shape, header.split, header.recipe)) {
    const entry = tensors[count++];
    if (entry === undefined)
      throw corrupt(path, "the tensor table is too short", spec.name, `${tensors.length} tensors`);
    for (const field of SPEC_FIELDS) {
      if (entry[field] !== spec[field]) {
        throw corrupt(path, `tensor ${entry.name} has the wrong ${field}`, `${spec[field]}`, `${entry[field]}`);
      }
    }
    if (entry.offset % alignmentOf(entry.kind) !== 0) {
      throw corrupt(
        path,
        `tensor ${entry.name} is misaligned`,
        `a multiple of ${alignmentOf(entry.kind)}`,
        `${entry.offset}`,
      );
    }
    if (entry.offset < end) {
      throw corrupt(path, `tensor ${entry.name} overlaps what is before it`, `from ${end} on`, `${entry.offset}`);
    }
    end = entry.offset + entry.bytes;
    if (end > fileBytes) {
      throw refuse(
        "container_truncated",
        path,
        `tensor ${entry.name} ends past the file`,
        `${end} bytes`,
        `${fileBytes}`,
      );
    }
  }
  if (count !== tensors.length) {
    throw corrupt(path, "the tensor table is too long", `${count} tensors`, `${tensors.length}`);
  }
}

/** A tensor's bytes, read into memory: for the reference device and tests. */
export function readTensor(container: Container, tensorIndex: number): Uint8Array {
  using file = openRegularFile(container.path, "container", NEXT);
  return readEntry(file, defined(container.header.tensors[tensorIndex], `tensor ${tensorIndex}`));
}

function readEntry(file: OpenFile, entry: TensorEntry): Uint8Array {
  const bytes = new Uint8Array(entry.bytes);
  if (readAt(file, bytes, entry.offset) < entry.bytes) {
    throw refuse("container_truncated", file.path, `tensor ${entry.name} ends past the file: the file shrank`);
  }
  return bytes;
}

export interface ChecksumFailure {
  readonly name: string;
  readonly expected: string;
  readonly got: string;
}

export interface VerifyOptions {
  /** Checksum of a tensor's bytes as they are now, 16 hex digits. Default: reads the file, a tensor at a time. */
  readonly hash?: (entry: TensorEntry) => string;
  readonly onProgress?: (progress: { bytesDone: number; bytesTotal: number; tensorName: string }) => void;
}

/** Compares every tensor with its checksum; the failures, none when the container is intact. */
export function verifyTensors(container: Container, options: VerifyOptions = {}): ChecksumFailure[] {
  using file = options.hash === undefined ? openRegularFile(container.path, "container", NEXT) : null;
  const hash = options.hash ?? ((entry: TensorEntry) => checksumOf(readEntry(defined(file), entry)));
  const { tensors } = container.header;
  const bytesTotal = tensors.reduce((sum, entry) => sum + entry.bytes, 0);
  const failures: ChecksumFailure[] = [];
  let bytesDone = 0;
  for (const entry of tensors) {
    const got = hash(entry);
    if (got !== entry.checksum) failures.push({ name: entry.name, expected: entry.checksum, got });
    bytesDone += entry.bytes;
    options.onProgress?.({ bytesDone, bytesTotal, tensorName: entry.name });
  }
  return failures;
}
