// A random model behaves like a model: finite at any depth, experts chosen evenly, logits neither flat nor one-sided.

import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { defined } from "../../src/base/assert.ts";
import { createUniform } from "../../src/base/prng.ts";
import { addRow, addSequence, clearBatch, createBatch } from "../../src/device/batch.ts";
import { compileProgram } from "../../src/model/compile.ts";
import { readContainer } from "../../src/weights/container.ts";
import type { RecipeName } from "../../src/weights/header.ts";
import type { ModelShape } from "../../src/weights/shape.ts";
import { synthesise } from "../../src/weights/synth.ts";
import { testMogeShape } from "../support/containers.ts";
import { oneOfEach } from "../support/devices.ts";
import { generateGreedy, openSingleSequence } from "../support/single-sequence.ts";
import { temporaryFolder } from "./temporary-folder.ts";

const root = temporaryFolder("random-model");
const device = defined(oneOfEach.at(-1));

const shape = testMogeShape({
  vocabularySize: 512,
  hiddenDim: 128,
  layerCount: 6,
  routedExpertCount: 32,
  expertGroupCount: 4,
  activeExpertCount: 4,
  expertDim: 32,
  ffnDim: 128,
  isEmbeddingTied: false,
});

function containerOf(fields: Partial<ModelShape>, recipe: RecipeName = "q4") {
  const outPath = join(root, "model.duet");
  const made = { ...shape, ...fields };
  synthesise({ shape: made, recipe, outPath, modelName: "random", seed: 3, tokenizer: null });
  return readContainer(outPath);
}

function entropyOf(logits: Float32Array): number {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const shares = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = shares.reduce((sum, share) => sum + share, 0);
  return shares.reduce((sum, share) => sum - (share / total) * Math.log(share / total || 1), 0);
}

describe(`on ${device.name}`, () => {
  test.each([
    ["q4", {}],
    ["q8", {}],
    ["f16", {}],
    ["q4", { isEmbeddingTied: true }],
    ["q4", { layerCount: 60 }],
    ["q4", { isRoutingRenormalised: true, hasRouterScale: false }],
  ] as const)("%s %j: greedy text varies, and logits have a moderate entropy", (recipe, fields) => {
    const opened = device.create();
    const sequence = openSingleSequence(opened, containerOf(fields, recipe), "f16", 96);
    const entropies: number[] = [];
    const { tokens } = generateGreedy(sequence, [1, 2, 3], 60, (logits) => {
      expect(logits.every(Number.isFinite)).toBe(true);
      entropies.push(entropyOf(logits));
    });
    sequence[Symbol.dispose]();
    opened.close();
    expect(new Set(tokens).size).toBeGreaterThan(30);
    const mean = entropies.reduce((sum, one) => sum + one, 0) / entropies.length;
    // ln 512 is 6.24.
    expect(mean).toBeWithin(2, 4.5);
  });

  test("16 tokens choose as many distinct experts as chance would", () => {
    const opened = device.create();
    const container = containerOf({});
    const options = { kvType: "f16", kvBlockCount: 16, rowMax: 16, logitRowMax: 1 } as const;
    const model = opened.load(container, compileProgram(container), options);
    const batch = createBatch({ rowMax: 16, sequenceMax: 16, blocksPerSequenceMax: 1 });
    const draw = createUniform(1);
    const stats = { weightBytes: 0, integerOps: 0, distinctExperts: 0, expertLayers: 0 };
    let [distinct, layers] = [0, 0];
    for (let position = 0; position < 8; position++) {
      clearBatch(batch);
      for (let sequence = 0; sequence < 16; sequence++) {
        addSequence(batch, [sequence]);
        addRow(batch, Math.floor(draw() * 512), position, sequence === 0);
      }
      expect(model.run(batch, stats)).toBe("ok");
      distinct += stats.distinctExperts;
      layers += stats.expertLayers;
    }
    model.close();
    opened.close();
    const expected = 32 * (1 - (1 - 4 / 32) ** 16);
    expect(layers).toBe(8 * 6);
    expect(distinct / layers / expected).toBeWithin(0.94, 1.04);
  });
});
