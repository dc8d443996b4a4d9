// Hostile containers. Every change to a preamble or header, and every forged header with a correct checksum, is refused with
// a DuetError or reads as an equal header; nothing else may happen.

import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { DuetError } from "../../src/base/errors.ts";
import { encodeHeader, encodePreamble, readContainer } from "../../src/weights/container.ts";
import type { ContainerHeader } from "../../src/weights/header.ts";
import { packCheckpoint } from "../../src/weights/packer.ts";
import { expectDuetError } from "../weights/expect-duet-error.ts";
import { temporaryFolder } from "../weights/temporary-folder.ts";
import { writeTinyCheckpoint } from "../weights/tiny-checkpoint.ts";

const root = temporaryFolder("container-fuzz");
const hostile = join(root, "hostile.duet");
const original = (() => {
  const path = join(root, "tiny.duet");
  const { folder } = writeTinyCheckpoint(join(root, "tiny"), { vocabularySize: 20, isEmbeddingTied: false });
  packCheckpoint({ folder, recipe: "q4", outPath: path });
  return { container: readContainer(path), bytes: readFileSync(path) };
})();
const { header } = original.container;
const headerEnd = 32 + encodeHeader(header).byteLength;

/** Reads the hostile bytes: a DuetError, or exactly the original header. */
function refusedOrEqual(bytes: Uint8Array): "refused" | "equal" {
  writeFileSync(hostile, bytes);
  try {
    expect(readContainer(hostile).header).toEqual(header);
    return "equal";
  } catch (error) {
    if (!(error instanceof DuetError)) throw error;
    expect(error.code).toMatch(/^(container|file)_/);
    expect(error.message).toContain("next:");
    return "refused";
  }
}

/** The original file with another header, preamble and checksum being right for it. */
function forge(forged: unknown): Uint8Array {
  const headerBytes = encodeHeader(forged as ContainerHeader);
  const data = original.bytes.subarray(Math.max(headerEnd, 32 + headerBytes.byteLength));
  const gap = new Uint8Array(Math.max(0, headerEnd - 32 - headerBytes.byteLength));
  return Buffer.concat([encodePreamble(headerBytes), headerBytes, gap, data]);
}

describe("damage", () => {
  test("any flipped bit of preamble or header is refused", () => {
    fc.assert(
      fc.property(fc.nat(headerEnd - 1), fc.nat(7), (at, bit) => {
        const bytes = Buffer.from(original.bytes);
        bytes[at] = (bytes[at] ?? 0) ^ (1 << bit);
        expect(refusedOrEqual(bytes)).toBe("refused");
      }),
      { numRuns: 400 },
    );
    for (let at = 0; at < 32; at++) {
      const bytes = Buffer.from(original.bytes);
      bytes[at] = (bytes[at] ?? 0) ^ 255;
      expect(refusedOrEqual(bytes)).toBe("refused");
    }
  });

  test("random bytes in the header with a right checksum are refused or harmless", () => {
    fc.assert(
      fc.property(fc.nat(headerEnd - 33), fc.uint8Array({ minLength: 1, maxLength: 9 }), (at, junk) => {
        const headerBytes = Uint8Array.from(original.bytes.subarray(32, headerEnd));
        headerBytes.set(junk.subarray(0, headerBytes.byteLength - at), at);
        const bytes = Buffer.concat([encodePreamble(headerBytes), headerBytes, original.bytes.subarray(headerEnd)]);
        writeFileSync(hostile, bytes);
        // Free text (names, licences, tokenizer) may change and still read; whatever reads must be bound to the file.
        try {
          const { header: read, fileBytes } = readContainer(hostile);
          for (const { offset, bytes: count } of read.tensors) expect(offset + count).toBeLessThanOrEqual(fileBytes);
          expect(read.tensors.map(({ name, bytes: count }) => [name, count])).toEqual(
            header.tensors.map(({ name, bytes: count }) => [name, count]),
          );
        } catch (error) {
          if (!(error instanceof DuetError)) throw error;
        }
      }),
      { numRuns: 600 },
    );
  });

  test("a file cut at any 64th is refused; whole it reads", () => {
    const total = original.bytes.byteLength;
    for (let part = 0; part < 64; part++) {
      expect(refusedOrEqual(original.bytes.subarray(0, Math.floor((total * part) / 64)))).toBe("refused");
    }
    expect(refusedOrEqual(original.bytes)).toBe("equal");
    expect(refusedOrEqual(Buffer.concat([original.bytes, Buffer.alloc(4096)]))).toBe("equal");
  });
});

type Json = Record<string, unknown>;
const withTensor = (index: number, fields: Json): Json => ({
  ...header,
  tensors: header.tensors.map((entry, i) => (i === index ? { ...entry, ...fields } : entry)),
});
const tensorCount = header.tensors.length;
const expertAt = header.tensors.findIndex(({ kind }) => kind === "expert");
const offsetOf = (index: number) => header.tensors[index]?.offset ?? 0;

describe("forged headers with a right checksum", () => {
  test("an unchanged header reads", () => {
    expect(refusedOrEqual(forge(header))).toBe("equal");
  });

  test.each<[string, unknown, string]>([
    ["offset 2^53", withTensor(5, { offset: 2 ** 53 }), "offset"],
    ["offset 2^53 − 64", withTensor(5, { offset: 2 ** 53 - 64 }), "ends past the file"],
    ["negative offset", withTensor(5, { offset: -64 }), "offset"],
    ["fractional offset", withTensor(5, { offset: 4096.5 }), "offset"],
    ["infinite offset", withTensor(5, { offset: Infinity }), "offset"],
    ["NaN offset", withTensor(5, { offset: NaN }), "offset"],
    ["offset in the header", withTensor(0, { offset: 64 }), "overlaps"],
    ["overlap", withTensor(5, { offset: offsetOf(4) }), "overlaps"],
    ["misaligned tensor", withTensor(5, { offset: offsetOf(5) + 4 }), "misaligned"],
    ["misaligned expert", withTensor(expertAt, { offset: offsetOf(expertAt) + 64 }), "misaligned"],
    ["too few bytes", withTensor(5, { bytes: 64 }), "wrong bytes"],
    ["huge bytes", withTensor(5, { bytes: 2 ** 52 }), "wrong bytes"],
    ["zero bytes", withTensor(5, { bytes: 0 }), "bytes"],
    ["huge rows", withTensor(5, { rows: 2 ** 40 }), "wrong rows"],
    ["rows as text", withTensor(5, { rows: "16" }), "rows"],
    ["down outside the expert", withTensor(expertAt, { downOffset: 2 ** 30 }), "wrong downOffset"],
    ["unknown quant type", withTensor(5, { quantType: "q2" }), "quantType"],
    ["another quant type than the recipe's", withTensor(expertAt, { quantType: "q8" }), "wrong quantType"],
    ["unknown kind", withTensor(5, { kind: "scalar" }), "kind"],
    ["another name", withTensor(5, { name: "layers.9.attn_norm" }), "wrong name"],
    ["a name twice", withTensor(5, { name: header.tensors[4]?.name }), "wrong name"],
    ["upper-case checksum", withTensor(5, { checksum: "ABCDEF0123456789" }), "checksum"],
    ["unknown field of a tensor", withTensor(5, { comment: "x" }), "Unrecognized key"],
    ["a tensor is null", { ...header, tensors: [null] }, "tensors.0"],
    ["last tensor missing", { ...header, tensors: header.tensors.slice(0, -1) }, "too short"],
    ["no tensors", { ...header, tensors: [] }, "too short"],
    ["a tensor more", { ...header, tensors: [...header.tensors, header.tensors[0]] }, "too long"],
    ["two tensors exchanged", { ...header, tensors: header.tensors.toReversed() }, "wrong name"],
    ["tensors is a map", { ...header, tensors: { length: 4 } }, "tensors"],
    ["NaN eps", { ...header, shape: { ...header.shape, rmsNormEps: NaN } }, "rmsNormEps"],
    ["negative eps", { ...header, shape: { ...header.shape, rmsNormEps: -1 } }, "rmsNormEps"],
    ["huge hiddenDim", { ...header, shape: { ...header.shape, hiddenDim: 2 ** 24 } }, "token_embd"],
    ["hiddenDim 2^31", { ...header, shape: { ...header.shape, hiddenDim: 2 ** 31 } }, "hiddenDim"],
    ["no heads", { ...header, shape: { ...header.shape, kvHeadCount: 0 } }, "kvHeadCount"],
    [
      "65536 experts in 4096 layers",
      {
        ...header,
        shape: {
          ...header.shape,
          layerCount: 4096,
          routedExpertCount: 65536,
          expertGroupCount: 65536,
          activeExpertCount: 65536,
        },
        split: { ...header.split, expertBoundary: 32768 },
      },
      "wrong rows",
    ],
    ["more layers than tensors", { ...header, shape: { ...header.shape, layerCount: 4096 } }, "wrong name"],
    ["unknown architecture", { ...header, shape: { ...header.shape, architecture: "llama" } }, "architecture"],
    ["shape is null", { ...header, shape: null }, "shape"],
    ["split beyond the heads", { ...header, split: { ...header.split, kvHeadBoundary: 9 } }, "kvHeadBoundary"],
    ["split inside a group", { ...header, split: { ...header.split, expertBoundary: 3 } }, "expertBoundary"],
    ["another valid split than the tensors'", { ...header, split: { ...header.split, kvHeadBoundary: 2 } }, "wrong"],
    ["frequencies missing", { ...header, inverseFrequencies: [1] }, "inverseFrequencies"],
    [
      "a frequency is infinite",
      { ...header, inverseFrequencies: header.inverseFrequencies.map(() => Infinity) },
      "inverseFrequencies",
    ],
    ["end token outside the vocabulary", { ...header, endTokenIds: [20] }, "end token"],
    ["negative end token", { ...header, endTokenIds: [-1] }, "endTokenIds"],
    [
      "4-bit router",
      { ...header, recipe: { ...header.recipe, types: { ...header.recipe.types, router: "q4" } } },
      "router",
    ],
    ["unknown recipe", { ...header, recipe: { ...header.recipe, name: "q1" } }, "recipe"],
    ["unknown layout", { ...header, layout: "gpu" }, "layout"],
    ["no tokenizer", { ...header, tokenizer: null }, "tokenizer"],
    ["unknown field", { ...header, extra: 1 }, "extra"],
    ["a number", 7, "invalid"],
    ["a list", [header], "invalid"],
    ["nothing", null, "invalid"],
  ])("%s", (_, forged, text) => {
    writeFileSync(hostile, forge(forged));
    expectDuetError(
      () => readContainer(hostile),
      text === "ends past the file" ? "container_truncated" : "container_corrupt",
      text,
      "next:",
    );
  });

  test("a layout that this build does not read is unsupported, not corrupt", () => {
    writeFileSync(hostile, forge({ ...header, layout: "ascend-nz" }));
    expectDuetError(() => readContainer(hostile), "container_unsupported", "ascend-nz");
  });

  test("any value in any field of shape, split or a tensor", () => {
    const value = fc.oneof(
      fc.maxSafeNat(),
      fc.integer({ min: -100, max: 5000 }),
      fc.double(),
      fc.constantFrom<unknown>(null, true, "", "q4", [], {}, 2 ** 53, 2 ** 64, -0),
    );
    const place = fc.oneof(
      fc.constantFrom(...Object.keys(header.shape)).map((key) => ["shape", key] as const),
      fc.constantFrom(...Object.keys(header.split)).map((key) => ["split", key] as const),
      fc.tuple(
        fc.nat(tensorCount - 1),
        fc.constantFrom("offset", "bytes", "rows", "columns", "downOffset", "kind", "name"),
      ),
    );
    // These change what the numbers mean, not which tensors there are: such a header is sound, and different.
    const free = new Set([
      "contextMax",
      "rmsNormEps",
      "ropeTheta",
      "isRoutingRenormalised",
      "mtpFfnDim",
      "expertBoundary",
      "activeExpertCount",
      "expertGroupCount",
    ]);
    fc.assert(
      fc.property(place, value, ([where, key], forgedValue) => {
        const forged =
          typeof where === "number"
            ? withTensor(where, { [key]: forgedValue })
            : { ...header, [where]: { ...header[where], [key]: forgedValue } };
        const bytes = forge(forged);
        if (!free.has(key)) return void refusedOrEqualOrPlaced(bytes, where, key);
        writeFileSync(hostile, bytes);
        try {
          readContainer(hostile);
        } catch (error) {
          if (!(error instanceof DuetError)) throw error;
        }
      }),
      { numRuns: 1500 },
    );
  });
});

/** A tensor may move to another aligned place that is free; everything else is refused or equal. */
function refusedOrEqualOrPlaced(bytes: Uint8Array, where: unknown, key: string): void {
  if (typeof where !== "number" || key !== "offset") return void refusedOrEqual(bytes);
  writeFileSync(hostile, bytes);
  try {
    const read = readContainer(hostile);
    let end = 0;
    for (const { offset, bytes: count } of read.header.tensors) {
      expect(offset).toBeGreaterThanOrEqual(end);
      end = offset + count;
    }
    expect(end).toBeLessThanOrEqual(read.fileBytes);
  } catch (error) {
    if (!(error instanceof DuetError)) throw error;
  }
}
