import { describe, expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { defined } from "../../src/base/assert.ts";
import { readContainer, readTensor, verifyTensors } from "../../src/weights/container.ts";
import type { WriteProgress } from "../../src/weights/container-writer.ts";
import { headRanges } from "../../src/weights/expected-tensors.ts";
import type { Container } from "../../src/weights/header.ts";
import { packCheckpoint } from "../../src/weights/packer.ts";
import { decodeGateUp, decodeMatrix } from "../../src/weights/quantise.ts";
import { RECIPE_NAMES } from "../../src/weights/recipe.ts";
import { type DieIndex, dieRange, DIES } from "../../src/weights/split.ts";
import { anyShape } from "./any-shape.ts";
import { expectDuetError } from "./expect-duet-error.ts";
import { temporaryFolder } from "./temporary-folder.ts";
import { TINY_DENSE, type TinyCheckpoint, writeTinyCheckpoint } from "./tiny-checkpoint.ts";

const root = temporaryFolder("packer");
const outPath = join(root, "out.duet");

interface Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly values: Float32Array;
}

/** What a checkpoint says that each tensor of its container holds, written apart from the packer's own tables. */
function* contents({ shape, tensors }: TinyCheckpoint, container: Container): Generator<[string, Matrix[]]> {
  const { split } = container.header;
  const source = (name: string): Matrix => {
    const { dims, values } = defined(tensors.get(name), name);
    const columns = dims.at(-1) ?? 1;
    return { rows: values.length / columns, columns, values };
  };
  const slice = (m: Matrix, firstRow: number, rows: number, firstColumn: number, columns: number): Matrix => {
    const values = new Float32Array(rows * columns);
    for (let i = 0; i < values.length; i++) {
      const [row, column] = [firstRow + Math.floor(i / columns), firstColumn + (i % columns)];
      values[i] = defined(m.values[row * m.columns + column]);
    }
    return { rows, columns, values };
  };
  const rowsOf = (m: Matrix, first: number, count: number) => slice(m, first, count, 0, m.columns);
  const columnsOf = (m: Matrix, first: number, count: number) => slice(m, 0, m.rows, first, count);
  const stack = (parts: Matrix[]): Matrix => ({
    rows: parts.reduce((sum, part) => sum + part.rows, 0),
    columns: parts[0]?.columns ?? 0,
    values: Float32Array.from(parts.flatMap((part) => [...part.values])),
  });
  const asColumn = (m: Matrix): Matrix => ({ rows: m.columns, columns: 1, values: m.values });
  const asRow = (m: Matrix): Matrix => ({ rows: 1, columns: m.values.length, values: m.values });
  const d = shape.headDim;

  function* block(
    out: string,
    hf: string,
    ffnHf: string,
    ffnDim: number,
    boundary: number,
  ): ReturnType<typeof contents> {
    yield [`${out}.attn_norm`, [source(`${hf}.input_layernorm.weight`)]];
    yield [`${out}.ffn_norm`, [source(`${hf}.post_attention_layernorm.weight`)]];
    if (shape.hasAttentionBias) yield [`${out}.attn_output_bias`, [source(`${hf}.self_attn.o_proj.bias`)]];
    for (const die of DIES) {
      const { query, kv } = headRanges(shape, split, die);
      if (kv.count > 0) {
        const parts = [
          ["q", query],
          ["k", kv],
          ["v", kv],
        ] as const;
        const of = (suffix: string, as: (m: Matrix) => Matrix) =>
          stack(
            parts.map(([p, r]) => rowsOf(as(source(`${hf}.self_attn.${p}_proj.${suffix}`)), r.first * d, r.count * d)),
          );
        yield [`${out}.attn_qkv.die${die}`, [of("weight", (m) => m)]];
        if (shape.hasAttentionBias) yield [`${out}.attn_qkv_bias.die${die}`, [asRow(of("bias", asColumn))]];
        const output = source(`${hf}.self_attn.o_proj.weight`);
        yield [`${out}.attn_output.die${die}`, [columnsOf(output, query.first * d, query.count * d)]];
      }
      const { first, count } = dieRange(boundary, ffnDim, die);
      if (count > 0) {
        const gateUp = ["gate", "up"].map((name) => rowsOf(source(`${ffnHf}.${name}_proj.weight`), first, count));
        yield [`${out}.ffn_gate_up.die${die}`, gateUp];
        yield [`${out}.ffn_down.die${die}`, [columnsOf(source(`${ffnHf}.down_proj.weight`), first, count)]];
      }
    }
  }

  if (!shape.isEmbeddingTied) yield ["token_embd", [source("model.embed_tokens.weight")]];
  const isDense = shape.routedExpertCount === 0;
  for (let layer = 0; layer < shape.layerCount; layer++) {
    const [out, hf] = [`layers.${layer}`, `model.layers.${layer}`];
    yield* block(out, hf, isDense ? `${hf}.mlp` : `${hf}.mlp.shared_expert`, shape.ffnDim, split.ffnBoundary);
    if (!isDense) yield [`${out}.ffn_gate_inp`, [source(`${hf}.mlp.gate.weight`)]];
    if (shape.hasRouterScale) yield [`${out}.ffn_gate_scale`, [source(`${hf}.mlp.router_scale`)]];
    for (let expert = 0; expert < shape.routedExpertCount; expert++) {
      const parts = ["gate", "up", "down"].map((name) => source(`${hf}.mlp.experts.${expert}.${name}_proj.weight`));
      yield [`${out}.ffn_exps.${expert}`, parts];
    }
  }
  yield ["output_norm", [source("model.norm.weight")]];
  const head = source(shape.isEmbeddingTied ? "model.embed_tokens.weight" : "lm_head.weight");
  for (const die of DIES as DieIndex[]) {
    const { first, count } = dieRange(split.vocabularyBoundary, shape.vocabularySize, die);
    if (count > 0) yield [`output.die${die}`, [rowsOf(head, first, count)]];
  }
  for (let index = 0; index < shape.mtpLayerCount; index++) {
    const [out, hf] = [`mtp.${index}`, `model.mtp.${index}`];
    for (const name of ["enorm", "hnorm", "norm"]) yield [`${out}.${name}`, [source(`${hf}.${name}.weight`)]];
    yield [`${out}.eh_proj`, [source(`${hf}.eh_proj.weight`)]];
    yield* block(out, hf, `${hf}.mlp`, shape.mtpFfnDim, split.mtpFfnBoundary);
  }
}

/** The matrices in a container's tensor: one; or gate, up; or gate, up, down. */
function decodeTensor(container: Container, index: number): Float32Array[] {
  const entry = defined(container.header.tensors[index]);
  const { kind, quantType, rows, columns, name, downOffset } = entry;
  const bytes = readTensor(container, index);
  if (kind === "vector") return [new Float32Array(bytes.buffer, 0, columns)];
  if (kind === "matrix" && !name.includes("gate_up")) return [decodeMatrix(bytes, quantType, rows, columns)];
  const { gate, up } = decodeGateUp(bytes, quantType, rows / 2, columns);
  if (kind === "matrix") return [gate, up];
  return [gate, up, decodeMatrix(bytes.subarray(downOffset), quantType, columns, rows / 2)];
}

/** Largest error as a share of the largest value, by quant type: half a step, or for q4 a step and the clipped end. */
const SHARE = { f32: 0, f16: 2 ** -11, q8: 1 / 250, q4: 0.2 } as const;

function expectContents(checkpoint: TinyCheckpoint, container: Container): void {
  const seen = new Set<string>();
  for (const [name, matrices] of contents(checkpoint, container)) {
    const index = defined(container.tensorIndex.get(name), name);
    const decoded = decodeTensor(container, index);
    const { quantType } = defined(container.header.tensors[index]);
    seen.add(name);
    expect(decoded.length).toBe(matrices.length);
    for (const [m, { values }] of matrices.entries()) {
      const got = defined(decoded[m]);
      const bound = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0) * SHARE[quantType];
      const miss = values.reduce((a, value, i) => Math.max(a, Math.abs(value - (got[i] ?? NaN))), 0);
      expect(got.length).toBe(values.length);
      if (!(miss <= bound)) throw new Error(`${name} (${quantType}): off by ${miss}, at most ${bound} allowed`);
    }
  }
  expect(container.header.tensors.filter(({ name }) => !seen.has(name))).toEqual([]);
}

describe("what a container holds", () => {
  test("every tensor of any shape, in every recipe and dtype, is what the checkpoint says", () => {
    const dtypes = fc.constantFrom("BF16" as const, "F16" as const, "F32" as const);
    fc.assert(
      fc.property(
        anyShape,
        fc.constantFrom(...RECIPE_NAMES),
        dtypes,
        fc.integer({ min: 1, max: 3 }),
        (shape, recipe, dtype, partCount) => {
          const folder = join(root, "any");
          rmSync(folder, { recursive: true, force: true });
          const checkpoint = writeTinyCheckpoint(folder, { ...shape, dtype, partCount });
          const result = packCheckpoint({ folder, recipe, outPath });
          const container = readContainer(outPath);
          expect(container.header.shape).toEqual(shape);
          expect(container.fingerprint).toBe(result.fingerprint);
          expect(container.fileBytes).toBe(result.fileBytes);
          expect(container.fileBytes % 4096).toBe(0);
          expect(verifyTensors(container)).toEqual([]);
          expectContents(checkpoint, container);
        },
      ),
      { numRuns: 60 },
    );
  });

  test("gaps between tensors and the padding of rows and columns are zero bytes or zero weights", () => {
    const { folder } = writeTinyCheckpoint(join(root, "gaps"), { hiddenDim: 48 });
    packCheckpoint({ folder, recipe: "f16", outPath });
    const { header, fileBytes } = readContainer(outPath);
    const file = readFileSync(outPath);
    let end: number | null = null;
    for (const { offset, bytes } of [...header.tensors, { offset: fileBytes, bytes: 0 }]) {
      if (end !== null) expect(file.subarray(end, offset).every((byte) => byte === 0)).toBe(true);
      end = offset + bytes;
    }
    const head = defined(header.tensors.find(({ name }) => name === "layers.0.ffn_gate_inp")); // 8 × 48 in 16 × 64, f32
    const values = new Float32Array(
      file.buffer.slice(file.byteOffset + head.offset, file.byteOffset + head.offset + head.bytes),
    );
    expect(values.length).toBe(16 * 64);
    values.forEach((value, i) => {
      if (i % 16 >= head.rows || i / 16 >= head.columns) expect(value).toBe(0);
    });
  });

  test("header facts: provenance, end tokens, frequencies, tokenizer texts", () => {
    const { folder, shape } = writeTinyCheckpoint(join(root, "facts"), TINY_DENSE);
    packCheckpoint({ folder, recipe: "q4", outPath, modelName: "tiny", license: "Apache-2.0", source: "a test" });
    const { header } = readContainer(outPath);
    expect(header.provenance).toMatchObject({ modelName: "tiny", license: "Apache-2.0", source: "a test" });
    expect(header.provenance.sourceDigest).toMatch(/^[0-9a-f]{64}$/);
    expect(header.endTokenIds).toEqual([0]);
    expect(header.inverseFrequencies).toEqual(
      Array.from({ length: shape.headDim / 2 }, (_, i) => shape.ropeTheta ** ((-2 * i) / shape.headDim)),
    );
    expect(header.tokenizer.tokenizerJson).toBe(readFileSync(join(folder, "tokenizer.json"), "utf8"));
  });
});

describe("packing", () => {
  test("the same checkpoint gives the same bytes; another seed gives another digest", () => {
    const first = writeTinyCheckpoint(join(root, "same"));
    packCheckpoint({ folder: first.folder, recipe: "q4", outPath });
    const bytes = readFileSync(outPath);
    packCheckpoint({ folder: first.folder, recipe: "q4", outPath });
    expect(readFileSync(outPath).equals(bytes)).toBe(true);
    const digest = readContainer(outPath).header.provenance.sourceDigest;
    writeTinyCheckpoint(first.folder, {}, 2);
    packCheckpoint({ folder: first.folder, recipe: "q4", outPath });
    expect(readContainer(outPath).header.provenance.sourceDigest).not.toBe(digest);
  });

  test("progress ascends to the end", () => {
    const { folder } = writeTinyCheckpoint(join(root, "progress"));
    const steps: WriteProgress[] = [];
    const { tensorCount } = packCheckpoint({ folder, recipe: "q8", outPath, onProgress: (step) => steps.push(step) });
    expect(steps.length).toBe(tensorCount);
    expect(steps.every((step, i) => i === 0 || step.bytesDone > (steps[i - 1]?.bytesDone ?? 0))).toBe(true);
    expect(steps.at(-1)?.tensorName).toBe("output.die1");
    expect((steps.at(-1)?.bytesTotal ?? 0) - (steps.at(-1)?.bytesDone ?? 0)).toBeLessThan(4096);
  });

  test("an unwritable place is one error and leaves nothing behind", () => {
    const { folder } = writeTinyCheckpoint(join(root, "unwritable"));
    const pack = (path: string) => () => packCheckpoint({ folder, recipe: "q8", outPath: path });
    expectDuetError(pack(join(root, "no-such-folder/out.duet")), "file_unwritable", "no-such-folder", "next:");
    writeFileSync(join(root, "a-file"), "");
    expectDuetError(pack(join(root, "a-file/out.duet")), "file_unwritable", "a-file");
    const busy = join(root, "busy");
    mkdirSync(join(busy, "out.duet"), { recursive: true });
    expectDuetError(pack(join(busy, "out.duet")), "file_unwritable", "a folder");
    expect(readdirSync(busy)).toEqual(["out.duet"]);
  });

  test("when the disk is full the old container stays and the temporary file goes", () => {
    const { folder } = writeTinyCheckpoint(join(root, "full"));
    const target = join(root, "full-disk");
    mkdirSync(target);
    const path = join(target, "out.duet");
    packCheckpoint({ folder, recipe: "q8", outPath: path });
    const before = readFileSync(path);
    // A limit on file size stands in for the full disk: writes past 64 KiB fail with EFBIG.
    const script = `
      const { packCheckpoint } = await import(${JSON.stringify(join(import.meta.dir, "../../src/weights/packer.ts"))});
      try { packCheckpoint(${JSON.stringify({ folder, recipe: "f16", outPath: path })}); }
      catch (error) { console.log(error.code); }`;
    const run = Bun.spawnSync([
      "bash",
      "-c",
      `ulimit -f 64; trap '' XFSZ; exec "$0" -e "$1"`,
      process.execPath,
      script,
    ]);
    expect(run.stdout.toString().trim()).toBe("file_unwritable");
    expect(readdirSync(target)).toEqual(["out.duet"]);
    expect(readFileSync(path).equals(before)).toBe(true);
  });

  test("an error while packing removes the temporary file", () => {
    const { folder } = writeTinyCheckpoint(join(root, "broken"));
    const target = join(root, "broken-out");
    mkdirSync(target);
    const onProgress = () => {
      throw new Error("stop");
    };
    expect(() => packCheckpoint({ folder, recipe: "q8", outPath: join(target, "out.duet"), onProgress })).toThrow(
      "stop",
    );
    expect(readdirSync(target)).toEqual([]);
  });
});
