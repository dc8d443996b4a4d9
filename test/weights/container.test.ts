import { describe, expect, test } from "bun:test";
import { copyFileSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  checksumOf,
  encodeHeader,
  encodePreamble,
  readContainer,
  readTensor,
  verifyTensors,
} from "../../src/weights/container.ts";
import { packCheckpoint } from "../../src/weights/packer.ts";
import { expectDuetError } from "./expect-duet-error.ts";
import { temporaryFolder } from "./temporary-folder.ts";
import { writeTinyCheckpoint } from "./tiny-checkpoint.ts";

const root = temporaryFolder("container");
const path = join(root, "tiny.duet");
const { folder } = writeTinyCheckpoint(join(root, "tiny"), { isEmbeddingTied: false, mtpLayerCount: 1, mtpFfnDim: 40 });
packCheckpoint({ folder, recipe: "q4", outPath: path });
const container = readContainer(path);
const file = readFileSync(path);

/** A file whose bytes were changed. */
function changed(change: (bytes: Buffer) => Buffer | void): string {
  const copy = join(root, "changed.duet");
  const bytes = Buffer.from(file);
  writeFileSync(copy, change(bytes) ?? bytes);
  return copy;
}

describe("reading", () => {
  test("the header is as it was packed, the fingerprint is its checksum", () => {
    const headerBytes = encodeHeader(container.header);
    expect(file.subarray(0, 32).equals(encodePreamble(headerBytes))).toBe(true);
    expect(file.subarray(32, 32 + headerBytes.byteLength).equals(headerBytes)).toBe(true);
    expect(container.fingerprint).toBe(checksumOf(headerBytes));
    expect(container.fileBytes).toBe(file.byteLength);
    expect(container.tensorIndex.size).toBe(container.header.tensors.length);
    for (const [name, index] of container.tensorIndex) expect(container.header.tensors[index]?.name).toBe(name);
  });

  test("what is no file at all", () => {
    expectDuetError(() => readContainer(join(root, "none.duet")), "file_missing", "none.duet", "next:");
    expectDuetError(() => readContainer(join(path, "none.duet")), "file_missing", "none.duet");
    expectDuetError(() => readContainer(root), "file_unreadable", "a directory");
    const fifo = join(root, "fifo");
    expect(Bun.spawnSync(["mkfifo", fifo]).exitCode).toBe(0);
    expectDuetError(() => readContainer(fifo), "file_unreadable", "a FIFO");
    expectDuetError(() => readContainer("/dev/zero"), "file_unreadable", "a device");
  });

  test("magic, version, flags, sizes and checksum of the preamble", () => {
    const open = (change: (bytes: Buffer) => Buffer | void) => () => readContainer(changed(change));
    expectDuetError(
      open(() => Buffer.alloc(0)),
      "container_truncated",
      "too short",
    );
    expectDuetError(
      open((bytes) => bytes.subarray(0, 31)),
      "container_truncated",
      "too short",
    );
    expectDuetError(
      open((bytes) => void bytes.write("GGUF")),
      "container_corrupt",
      "not a Duet container",
    );
    expectDuetError(
      open((bytes) => void bytes.writeUInt32LE(2, 8)),
      "container_version",
      "expected: 1",
      "got: 2",
    );
    expectDuetError(
      open((bytes) => void bytes.writeUInt32LE(1, 12)),
      "container_unsupported",
      "flags",
    );
    expectDuetError(
      open((bytes) => void bytes.fill(255, 16, 24)),
      "container_corrupt",
      "impossibly large",
    );
    expectDuetError(
      open((bytes) => void bytes.writeUInt32LE(2 ** 27, 16)),
      "container_truncated",
      "past the end",
    );
    expectDuetError(
      open((bytes) => bytes.subarray(0, 1000)),
      "container_truncated",
      "past the end",
    );
    expectDuetError(
      open((bytes) => void bytes.writeUInt8(1, 25)),
      "container_corrupt",
      "checksum differs",
    );
    expectDuetError(
      open((bytes) => void bytes.writeUInt8(1, 500)),
      "container_corrupt",
      "checksum differs",
    );
    expectDuetError(
      open((bytes) => bytes.subarray(0, bytes.byteLength - 4096)),
      "container_truncated",
      "ends past the file",
    );
  });
});

describe("tensors", () => {
  test("readTensor gives a tensor's bytes; a file that shrank is an error", () => {
    for (const [index, { offset, bytes }] of container.header.tensors.entries()) {
      expect(file.subarray(offset, offset + bytes).equals(readTensor(container, index))).toBe(true);
    }
    const copy = join(root, "shrank.duet");
    copyFileSync(path, copy);
    const opened = readContainer(copy);
    truncateSync(copy, 8192);
    const last = opened.header.tensors.length - 1;
    expectDuetError(() => readTensor(opened, last), "container_truncated", "mtp.0.norm");
    expectDuetError(() => verifyTensors(opened), "container_truncated", "the file shrank");
  });

  test("verifyTensors names exactly the tensors whose bytes changed", () => {
    expect(verifyTensors(container)).toEqual([]);
    const victims = ["layers.1.ffn_exps.3", "output.die1"];
    const copy = changed((bytes) => {
      for (const name of victims) {
        const entry = container.header.tensors[container.tensorIndex.get(name) ?? -1];
        const at = (entry?.offset ?? 0) + (entry?.bytes ?? 1) - 1;
        bytes[at] = (bytes[at] ?? 0) ^ 1;
      }
    });
    const failures = verifyTensors(readContainer(copy));
    expect(failures.map(({ name }) => name)).toEqual(victims);
    expect(failures.every(({ expected, got }) => expected !== got && /^[0-9a-f]{16}$/.test(got))).toBe(true);
  });

  test("the hash can be given, and progress ends with all bytes", () => {
    const hashed: string[] = [];
    const done: number[] = [];
    const failures = verifyTensors(container, {
      hash: (entry) => {
        hashed.push(entry.name);
        return entry.name === "output_norm" ? "0".repeat(16) : entry.checksum;
      },
      onProgress: ({ bytesDone, bytesTotal }) => done.push(bytesDone / bytesTotal),
    });
    expect(failures.map(({ name }) => name)).toEqual(["output_norm"]);
    expect(hashed).toEqual(container.header.tensors.map(({ name }) => name));
    expect(done.at(-1)).toBe(1);
  });
});
