// What quantising costs, on held-out text: KV in fp16 against float32, and the recipes against float16. A subset of the windows
// that scripts/measure-quantisation.ts prints in full.

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { defined } from "../../src/base/assert.ts";
import { evaluatePerplexity } from "../../src/bench/evaluate.ts";
import type { Device, KvType } from "../../src/device/device.ts";
import { readContainer } from "../../src/weights/container.ts";
import type { RecipeName } from "../../src/weights/header.ts";
import { measureAgreement, windowsOf } from "../support/agreement.ts";
import { fastCpu, skippedCpu } from "../support/devices.ts";
import {
  containerPath,
  createPackedModels,
  hasCheckpoints,
  NEEDS_CHECKPOINT,
  validationTokens,
} from "../support/fable.ts";
import { openSingleSequence } from "../support/single-sequence.ts";

setDefaultTimeout(60_000);

const WINDOW_TOKENS = 512;
const WINDOW_MAX = 24;

const reason = skippedCpu === null ? (hasCheckpoints ? null : NEEDS_CHECKPOINT) : `(skipped: ${skippedCpu})`;
const suite = reason === null ? describe : describe.skip;

suite(`fidelity of quantised fable on held-out text ${reason ?? ""}`, () => {
  let device: Device;
  let packed: ReturnType<typeof createPackedModels>;
  let tokens: number[];
  beforeAll(() => {
    device = defined(fastCpu).create();
    packed = createPackedModels();
    tokens = validationTokens(readContainer(containerPath("fable")));
  });
  afterAll(() => {
    packed[Symbol.dispose]();
    device.close();
  });

  const open = (recipe: RecipeName, kvType: KvType) =>
    openSingleSequence(device, packed.container("fable", recipe), kvType, WINDOW_TOKENS);

  const agreement = (first: [RecipeName, KvType], second: [RecipeName, KvType]) => {
    using a = open(...first);
    using b = open(...second);
    return measureAgreement(a, b, windowsOf(tokens, WINDOW_TOKENS, WINDOW_MAX));
  };

  test("fp16 KV keeps the best token of float32 KV", () => {
    expect(agreement(["f16", "f32"], ["f16", "f16"]).overall).toBeGreaterThanOrEqual(0.995);
  });

  test("q8 keeps the best token of float16", () => {
    const { overall, whereClear } = agreement(["f16", "f16"], ["q8", "f16"]);
    expect(overall).toBeGreaterThanOrEqual(0.975);
    expect(whereClear).toBeGreaterThanOrEqual(0.995);
  });

  test("perplexity: q8 within 0.5 %, the shipped recipe within 1 % of float16", async () => {
    const perplexityOf = async (recipe: RecipeName) => {
      using sequence = open(recipe, "f16");
      const options = { windowTokens: WINDOW_TOKENS, windowMax: WINDOW_MAX, textBytes: 1 };
      return (await evaluatePerplexity(sequence.model, Int32Array.from(tokens), options)).perplexity;
    };
    const f16 = await perplexityOf("f16");
    expect(Math.abs((await perplexityOf("q8")) / f16 - 1)).toBeLessThan(0.005);
    expect(Math.abs((await perplexityOf("q4")) / f16 - 1)).toBeLessThan(0.01);
  });
});
