import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { defined } from "../../src/base/assert.ts";
import { readContainer, readTensor, verifyTensors } from "../../src/weights/container.ts";
import { inspectContainer } from "../../src/weights/inspect.ts";
import { NAMED_SHAPES } from "../../src/weights/named-shapes.ts";
import { decodeGateUp, decodeMatrix } from "../../src/weights/quantise.ts";
import { RECIPE_NAMES } from "../../src/weights/recipe.ts";
import type { ModelShape } from "../../src/weights/shape.ts";
import { shapeFromText, synthesise, type SynthOptions } from "../../src/weights/synth.ts";
import { TILE_ROWS, COLUMN_MULTIPLE } from "../../src/weights/tensor.ts";
import { testMogeShape } from "../support/containers.ts";
import { anyShape } from "./any-shape.ts";
import { expectDuetError } from "./expect-duet-error.ts";
import { temporaryFolder } from "./temporary-folder.ts";

const root = temporaryFolder("synth");
const outPath = join(root, "out.duet");

function write(shape: ModelShape, fields: Partial<SynthOptions> = {}) {
  return synthesise({ shape, recipe: "q4", outPath, modelName: "random", seed: 1, tokenizer: null, ...fields });
}

const tokenizerOf = (idCount: number) => ({
  files: { tokenizerJson: '{"a":1}', tokenizerConfigJson: "{}", generationConfigJson: "{}" },
  endTokenIds: [2],
  idCount,
  name: "a test's tokenizer",
});

describe("a random container", () => {
  test("of any shape and recipe is accepted, verifies, and pads with zero weights", () => {
    fc.assert(
      fc.property(anyShape, fc.constantFrom(...RECIPE_NAMES), (shape, recipe) => {
        const result = write(shape, { recipe });
        const container = readContainer(outPath);
        expect(container.header.shape).toEqual(shape);
        expect(container.fingerprint).toBe(result.fingerprint);
        expect(inspectContainer(container, { verify: true }).checksums).toBe("ok");
        container.header.tensors.forEach(({ kind, quantType, rows, columns, name, downOffset }, index) => {
          const bytes = readTensor(container, index);
          const padded = (n: number, multiple: number) => Math.ceil(n / multiple) * multiple;
          /** Largest magnitude outside [rows][columns]; weights inside are not all zero. */
          const expectPadding = (values: Float32Array, rowCount: number, columnCount: number) => {
            const stride = padded(columnCount, COLUMN_MULTIPLE);
            const isInside = (at: number) => Math.floor(at / stride) < rowCount && at % stride < columnCount;
            expect(values.every((value, at) => (isInside(at) ? Number.isFinite(value) : value === 0))).toBe(true);
            expect(values.some((value) => value !== 0)).toBe(true);
          };
          if (kind === "vector") {
            expect(new Float32Array(bytes.buffer, 0, columns).every(Number.isFinite)).toBe(true);
            return;
          }
          const wide = padded(columns, COLUMN_MULTIPLE);
          if (kind === "matrix" && !name.includes("gate_up")) {
            expectPadding(decodeMatrix(bytes, quantType, padded(rows, TILE_ROWS), wide), rows, columns);
            return;
          }
          const { gate, up } = decodeGateUp(bytes, quantType, padded(rows / 2, TILE_ROWS), wide);
          for (const values of [gate, up]) expectPadding(values, rows / 2, columns);
          if (kind === "expert") {
            const [high, deep] = [padded(columns, TILE_ROWS), padded(rows / 2, COLUMN_MULTIPLE)];
            expectPadding(decodeMatrix(bytes.subarray(downOffset), quantType, high, deep), columns, rows / 2);
          }
        });
      }),
      { numRuns: 25 },
    );
  });

  test("is the same for the same seed, and another for another", () => {
    const shape = testMogeShape();
    write(shape);
    const first = readFileSync(outPath);
    write(shape);
    expect(readFileSync(outPath).equals(first)).toBe(true);
    const other = write(shape, { seed: 2 ** 40 + 1 });
    expect(other.fileBytes).toBe(first.byteLength);
    const sameLowBits = write(shape, { seed: 1 + 2 ** 33 });
    const fingerprints = [write(shape).fingerprint, other.fingerprint, sameLowBits.fingerprint];
    expect(new Set(fingerprints).size).toBe(3);
  });

  test("has no two equal rowTiles in the head, and no two equal experts", () => {
    const shape = testMogeShape({ vocabularySize: 4000, hiddenDim: 128 });
    write(shape);
    const container = readContainer(outPath);
    const head = container.header.tensors.findIndex(({ name }) => name === "output.die0");
    const bytes = readTensor(container, head);
    const tileBytes = 2 * 1088;
    const tiles = Array.from({ length: bytes.byteLength / tileBytes }, (_, t) =>
      Bun.hash(bytes.subarray(t * tileBytes, (t + 1) * tileBytes)),
    );
    expect(tiles.length).toBe(125);
    expect(new Set(tiles).size).toBe(tiles.length);
    const experts = container.header.tensors.filter(({ kind }) => kind === "expert").map(({ checksum }) => checksum);
    expect(experts.length).toBe(32);
    expect(new Set(experts).size).toBe(experts.length);
  });

  test("weights have mean 0 and the deviation that keeps a unit row at unit variance", () => {
    const shape = testMogeShape({ hiddenDim: 512, vocabularySize: 256, expertDim: 64 });
    for (const recipe of RECIPE_NAMES) {
      write(shape, { recipe });
      const container = readContainer(outPath);
      const index = container.header.tensors.findIndex(({ name }) => name === "layers.0.ffn_exps.3");
      const { quantType } = defined(container.header.tensors[index]);
      const { gate } = decodeGateUp(readTensor(container, index), quantType, 64, 512);
      const variance = gate.reduce((sum, value) => sum + value * value, 0) / gate.length;
      const mean = gate.reduce((sum, value) => sum + value, 0) / gate.length;
      expect(variance * 512).toBeWithin(0.95, 1.08);
      expect(Math.abs(mean) * Math.sqrt(512)).toBeLessThan(0.03);
    }
  });

  test("carries its tokenizer; head rows beyond the tokenizer's ids are small", () => {
    const shape = testMogeShape({ vocabularySize: 96, isEmbeddingTied: false });
    write(shape, { tokenizer: tokenizerOf(40), modelName: "mine" });
    const container = readContainer(outPath);
    expect(container.header.tokenizer.tokenizerJson).toBe('{"a":1}');
    expect(container.header.endTokenIds).toEqual([2]);
    expect(container.header.provenance.modelName).toBe("mine");
    const rowsOf = (name: string) => {
      const index = container.header.tensors.findIndex((tensor) => tensor.name === name);
      const { rows, columns, quantType } = defined(container.header.tensors[index]);
      const values = decodeMatrix(readTensor(container, index), quantType, rows, columns);
      return Array.from({ length: rows }, (_, row) =>
        Math.hypot(...values.subarray(row * columns, (row + 1) * columns)),
      );
    };
    const norms = [...rowsOf("output.die0"), ...rowsOf("output.die1")];
    expect(norms.length).toBe(96);
    expect(Math.min(...norms.slice(0, 48))).toBeGreaterThan(2 * Math.max(...norms.slice(48)));
    const embedding = rowsOf("token_embd");
    expect(Math.min(...embedding.slice(48))).toBeGreaterThan(0.5 * Math.max(...embedding.slice(0, 48)));
  });

  test("a tokenizer with more ids than the vocabulary is refused before a file is made", () => {
    const path = join(root, "too-many.duet");
    expectDuetError(
      () => write(testMogeShape({ vocabularySize: 80 }), { outPath: path, tokenizer: tokenizerOf(81) }),
      "config_invalid",
      "at most 80 ids",
      "got: 81",
    );
    expect(readdirSync(root)).not.toContain("too-many.duet");
  });

  test("progress ends at the file's size; an error leaves nothing behind", () => {
    const seen: number[] = [];
    const { fileBytes } = write(testMogeShape(), { onProgress: ({ bytesDone }) => void seen.push(bytesDone) });
    expect(seen.length).toBeGreaterThan(40);
    expect(seen).toEqual(seen.toSorted((a, b) => a - b));
    expect(fileBytes - defined(seen.at(-1))).toBeLessThan(4096);
    const before = readdirSync(root);
    const onProgress = () => {
      throw new Error("stop");
    };
    expect(() => write(testMogeShape(), { outPath: join(root, "stopped.duet"), onProgress })).toThrow("stop");
    expect(readdirSync(root)).toEqual(before);
    expectDuetError(() => write(testMogeShape(), { outPath: join(root, "absent", "x.duet") }), "file_unwritable");
    expect(verifyTensors(readContainer(outPath))).toEqual([]);
  });
});

describe("shapes", () => {
  test("have names; pangu-72b is the manifest's", () => {
    expect(Object.keys(NAMED_SHAPES)).toEqual(["pangu-72b", "pangu-slice", "small", "tiny"]);
    const manifest = readFileSync(join(import.meta.dir, "../../models/pangu-pro-moe-72b/manifest.json"), "utf8");
    expect(shapeFromText("pangu-72b", "")).toEqual(JSON.parse(manifest).shape);
    expect(shapeFromText("pangu-slice", "")).toMatchObject({ hiddenDim: 5120, layerCount: 6, vocabularySize: 32768 });
    expect(shapeFromText("small", "").contextMax).toBe(16384);
  });

  test("are read from JSON, of a shape or of a manifest; what is left out is small's", () => {
    const mine = shapeFromText('{"hiddenDim": 128, "layerCount": 3}', "--shape");
    expect(mine).toEqual({ ...defined(NAMED_SHAPES.small), hiddenDim: 128, layerCount: 3 });
    fc.assert(
      fc.property(anyShape, (shape) => {
        expect(shapeFromText(JSON.stringify(shape), "")).toEqual(shape);
        expect(shapeFromText(JSON.stringify({ modelName: "x", shape }), "")).toEqual(shape);
      }),
      { numRuns: 20 },
    );
  });

  test.each([
    ["pangu-73b", "pangu-72b, pangu-slice, small, tiny"],
    ["{", "JSON"],
    ["[]", "no JSON object"],
    ["3", "no JSON object"],
    ['{"hiddenDim": -1}', "hiddenDim"],
    ['{"hiddenDimension": 64}', "hiddenDimension"],
    ['{"activeExpertCount": 3}', "the same number from every group"],
  ])("%s is refused", (text, message) => {
    expectDuetError(() => shapeFromText(text, "--shape"), "config_invalid", "--shape", message);
  });
});
