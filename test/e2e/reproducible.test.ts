// The guarantee on the shipped models: the same request gives the same tokens and log-probabilities, bit for bit, however the
// engine got there. The baseline is one request after another on one thread, without speculation, cache or chunks.

import { beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { EngineClient, EngineOptions } from "../../src/engine/client.ts";
import { startLocalEngine } from "../support/local-engine.ts";
import type { EngineRequest, SpeculationMode } from "../../src/engine/messages.ts";
import { isNativeAvailable, openNative } from "../../src/native/library.ts";
import { GREEDY, request, SAMPLED } from "../support/fake-engine.ts";
import { type Answer, complete, engineOptions, fableTokens } from "../support/shipped.ts";

// Lanes that share cores with other work wait for each other: minutes at worst, seconds on a quiet machine.
setDefaultTimeout(120_000);

const OUTPUT_TOKENS = 24;
const PROMPT_COUNT = 20;

const text = readFileSync(fileURLToPath(new URL("../../models/fable/validation.txt", import.meta.url)), "utf8");
/** Lengths from 1 token to over 4 kvBlocks, with ends on and beside block borders. */
const LENGTHS = [1, 2, 7, 20, 31, 32, 33, 40, 48, 63, 64, 65, 70, 80, 96, 97, 110, 128, 130, 140];
const prompts = LENGTHS.map((length, i) => [...fableTokens(text.slice(i * 9_000, i * 9_000 + 1_200))].slice(0, length));
const greedy = { ...GREEDY, topLogprobs: 3 };
const cases = prompts.flatMap((prompt) => [greedy, SAMPLED].map((params) => ({ prompt, params })));

type Fields = Partial<EngineRequest>;

async function withEngine<T>(fields: Partial<EngineOptions>, use: (engine: EngineClient) => Promise<T>): Promise<T> {
  const engine = await startLocalEngine(engineOptions(fields));
  try {
    return await use(engine);
  } finally {
    const status = await engine.status();
    expect([status.state, status.kvBlocksUsed]).toEqual(["ready", 0]);
    await engine.close();
  }
}

/** Every case, one after another. */
async function oneByOne(engine: EngineClient, fields: Fields): Promise<Answer[]> {
  const answers: Answer[] = [];
  for (const { prompt, params } of cases) {
    answers.push((await complete(engine, request(prompt, { params, outputTokenMax: OUTPUT_TOKENS, ...fields })))[0]!);
  }
  return answers;
}

/** The first caseCount cases at once; at most sequenceMax of them run together. */
async function allAtOnce(
  engine: EngineClient,
  modes: readonly SpeculationMode[],
  caseCount = cases.length,
): Promise<Answer[]> {
  const running = cases.slice(0, caseCount).map(({ prompt, params }, i) => {
    const speculation = modes[i % modes.length]!;
    return complete(engine, request(prompt, { params, outputTokenMax: OUTPUT_TOKENS, speculation }));
  });
  return (await Promise.all(running)).map(([answer]) => answer!);
}

const essence = ({ tokens, logprobs, text }: Answer) => ({ tokens, logprobs, text });

function expectSame(got: readonly Answer[], expected: readonly Answer[]): void {
  expect(got.map(essence)).toEqual(expected.map(essence));
}

const drafted = (answers: readonly Answer[]) => answers.reduce((sum, { last }) => sum + last!.usage!.draftedCount, 0);
const cached = (answers: readonly Answer[]) =>
  answers.reduce((sum, { last }) => sum + last!.usage!.cachedTokenCount, 0);

// Without a compiler there is no kernel library, and the reference device promises no such thing.
describe.skipIf(!isNativeAvailable())("the same tokens and logprobs", () => {
  const plain = { threadCount: 1, isPrefixCached: false } as const;
  let baseline: Answer[];

  beforeAll(async () => {
    baseline = await withEngine({ ...plain, speculation: "off" }, (engine) => oneByOne(engine, { speculation: "off" }));
    expect(prompts.length).toBe(PROMPT_COUNT);
    expect(
      baseline.every(({ tokens, logprobs }) => tokens.length === OUTPUT_TOKENS && logprobs.length === OUTPUT_TOKENS),
    ).toBe(true);
    // The temperature must matter, or half of this shows nothing.
    const differing = prompts.filter((_, i) => baseline[2 * i]!.text !== baseline[2 * i + 1]!.text);
    expect(differing.length).toBeGreaterThan(PROMPT_COUNT / 2);
  });

  for (const speculation of ["draft", "ngram", "auto"] as const) {
    test(`with speculation: ${speculation}`, async () => {
      const answers = await withEngine(plain, (engine) => oneByOne(engine, { speculation }));
      expectSame(answers, baseline);
      if (speculation !== "auto") expect(drafted(answers)).toBeGreaterThan(0);
    });
  }

  for (const threadCount of [2, 4]) {
    test(`on ${threadCount} threads`, async () => {
      const fields = { ...plain, threadCount };
      expectSame(await withEngine(fields, (engine) => allAtOnce(engine, ["off", "draft"])), baseline);
    });
  }

  test("on every instruction set of this machine", async () => {
    const { isas } = openNative().cpu;
    expect(isas.length).toBeGreaterThan(0);
    for (const isa of isas) {
      // Plain C is slow.
      const caseCount = isa === "plain" ? 8 : cases.length;
      const answers = await withEngine({ ...plain, isa }, (engine) => allAtOnce(engine, ["off", "draft"], caseCount));
      expectSame(answers, baseline.slice(0, caseCount));
    }
  });

  for (const prefillChunkMax of [1, 7]) {
    test(`in prefill chunks of ${prefillChunkMax}`, async () => {
      const fields = { ...plain, prefillChunkMax };
      expectSame(await withEngine(fields, (engine) => oneByOne(engine, { speculation: "off" })), baseline);
      expectSame(await withEngine(fields, (engine) => allAtOnce(engine, ["draft"])), baseline);
    });
  }

  test("among 19 others, with every kind of speculation in one batch", async () => {
    const answers = await withEngine(plain, (engine) => allAtOnce(engine, ["off", "draft", "ngram", "auto"]));
    expectSame(answers, baseline);
    expect(drafted(answers)).toBeGreaterThan(0);
  });

  test("with the prefix cached", async () => {
    await withEngine({ threadCount: 1 }, async (engine) => {
      const first = await oneByOne(engine, { speculation: "off" });
      const second = await oneByOne(engine, { speculation: "draft" });
      expectSame(first, baseline);
      expectSame(second, baseline);
      expect(cached(second)).toBeGreaterThan(cached(first));
    });
  });

  test("after preemption", async () => {
    // Admission sets 256 output tokens aside; beyond these, two sequences of 11 kvBlocks compete for 21.
    const fields = { outputTokenMax: 300, params: SAMPLED } as const;
    const pair = [prompts[7]!, prompts[8]!];
    const together = async (engine: EngineClient, speculation: SpeculationMode) =>
      (await Promise.all(pair.map((prompt) => complete(engine, request(prompt, { ...fields, speculation }))))).map(
        ([a]) => a!,
      );
    const expected = await withEngine({ ...plain, speculation: "off" }, (engine) => together(engine, "off"));
    for (const speculation of ["off", "draft"] as const) {
      await withEngine({ threadCount: 1, kvBlockCount: 21 }, async (engine) => {
        expectSame(await together(engine, speculation), expected);
        expect((await engine.status()).totals.preemptionCount).toBeGreaterThan(0);
      });
    }
  });
});
