// Clients that vanish: in prefill, in decode, in the queue, at any moment. The engine must let go of their sequences and kvBlocks
// at once, and go on as if nothing had happened. Seen from outside, through /v1/status.

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createUniform } from "../../src/base/prng.ts";
import type { EngineStatus } from "../../src/engine/messages.ts";
import { openCutClient } from "../support/cut-client.ts";
import { type Loose, type ShippedServer, startShippedServer } from "../support/shipped-server.ts";

setDefaultTimeout(60_000);

const COMPLETIONS = "/v1/completions";
const PROMPT_TOKENS = 500;
const HOW = ["close", "reset"] as const;

/** Prompts that share no beginning, so that no prefix cache shortens their prefill. */
let promptCount = 0;
const freshPrompts = (count: number, length = PROMPT_TOKENS) =>
  Array.from({ length: count }, () => [300 + promptCount++, ...new Array<number>(length - 1).fill(263)]);

const isIdle = (status: EngineStatus) =>
  status.sequences.length === 0 && status.kvBlocksUsed === 0 && status.runningCount === 0 && status.waitingCount === 0;
const isInPrefill = ({ sequences }: EngineStatus) =>
  sequences.some((one) => one.kvFrontier > 0 && one.kvFrontier < one.promptTokenCount);
const isInDecode = ({ sequences }: EngineStatus) => sequences.some((one) => one.outputTokenCount > 0);

const SAMPLE = { prompt: "Once upon a time", max_tokens: 24, temperature: 0, ignore_eos: true, return_token_ids: true };
const sampleTokens = async (server: ShippedServer) =>
  ((await server.ask(COMPLETIONS, SAMPLE)) as Loose).choices[0].token_ids as number[];

describe("a client killed", () => {
  const SEQUENCES = 2;
  const QUEUE = 8;
  let server: ShippedServer;
  let tokens: number[];

  // One prompt token a step: a prefill takes hundreds of steps.
  beforeAll(async () => {
    server = await startShippedServer({ prefillChunkMax: 1, sequenceMax: SEQUENCES, queueMax: QUEUE });
    tokens = await sampleTokens(server);
  });
  afterAll(() => server.close());

  const open = (body: object) => openCutClient({ port: server.port, path: COMPLETIONS, body });
  const longAnswer = (fields: object) => ({ ...SAMPLE, prompt: "Once upon a time", max_tokens: 480, ...fields });

  for (const stream of [true, false]) {
    for (const how of HOW) {
      const manner = `${stream ? "streaming" : "waiting for it whole"}, ${how}`;

      test(`in the middle of prefill is gone at once (${manner})`, async () => {
        const before = (await server.status()).totals;
        // Eight prompts, two of which run: thousands of steps.
        const client = open({ prompt: freshPrompts(8), max_tokens: 4, stream });
        const { kvBlocksUsed } = await server.until(isInPrefill);
        expect(kvBlocksUsed).toBeGreaterThan(0);
        client.kill(how);
        const { totals } = await server.until(isIdle);
        expect(totals.cancelledCount).toBe(before.cancelledCount + 8);
        expect(totals.prefillTokenCount - before.prefillTokenCount).toBeLessThan(8 * PROMPT_TOKENS);
        expect(client.received()).not.toContain("text_completion");
        expect(await sampleTokens(server)).toEqual(tokens);
      });

      test(`in the middle of decode is gone at once (${manner})`, async () => {
        const before = (await server.status()).totals;
        const client = open(longAnswer({ n: 8, stream }));
        await server.until(isInDecode);
        client.kill(how);
        const { totals } = await server.until(isIdle);
        expect(totals.cancelledCount).toBe(before.cancelledCount + 1);
        expect(totals.outputTokenCount - before.outputTokenCount).toBeLessThan(8 * 480);
        expect(await sampleTokens(server)).toEqual(tokens);
      });

      test(`in the queue is gone at once, and those that run go on (${manner})`, async () => {
        const before = (await server.status()).totals;
        const running = server.ask(COMPLETIONS, longAnswer({ n: 2 }));
        await server.until(({ runningCount }) => runningCount === SEQUENCES);
        const client = open(longAnswer({ stream, seed: 5 }));
        await server.until(({ waitingCount }) => waitingCount === 1);
        client.kill(how);
        const status = await server.until(({ waitingCount }) => waitingCount === 0);
        expect([status.runningCount, status.totals.cancelledCount]).toEqual([SEQUENCES, before.cancelledCount + 1]);
        const { choices, usage } = await running;
        expect(usage.completion_tokens).toBe(2 * 480);
        expect(choices[0].token_ids.slice(0, tokens.length)).toEqual(tokens);
        await server.until(isIdle);
      });
    }
  }

  test("as a process (SIGKILL) is gone at once", async () => {
    const script = `await (await fetch("${server.url}${COMPLETIONS}", { method: "POST",
      headers: { "content-type": "application/json" }, body: process.argv.at(-1) })).text()`;
    const child = Bun.spawn([process.execPath, "-e", script, JSON.stringify(longAnswer({ n: 8 }))], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "inherit",
    });
    const before = (await server.until(isInDecode)).totals;
    child.kill("SIGKILL");
    const { totals } = await server.until(isIdle);
    expect(totals.cancelledCount).toBe(before.cancelledCount + 1);
    await child.exited;
    expect(await sampleTokens(server)).toEqual(tokens);
  });

  test("is gone at once when it is the OpenAI client that stops reading", async () => {
    const before = (await server.status()).totals;
    const stream = await server.client.completions.create({ model: "fable", ...longAnswer({ n: 8 }), stream: true });
    for await (const chunk of stream) if ((chunk.choices[0]?.text.length ?? 0) > 0) break;
    await server.until(isIdle);
    const controller = new AbortController();
    const whole = server.client.completions
      .create({ model: "fable", ...longAnswer({ n: 8 }), stream: false }, { signal: controller.signal })
      .catch((error: unknown) => error);
    await server.until(isInDecode);
    controller.abort();
    expect(await whole).toBeInstanceOf(Error);
    const { totals } = await server.until(isIdle);
    expect(totals.cancelledCount).toBe(before.cancelledCount + 2);
  });

  test("leaves room in a full queue, which answers 429 with Retry-After until then", async () => {
    const full = { ...SAMPLE, prompt: freshPrompts(SEQUENCES + QUEUE), stream: true };
    const holder = open(full);
    await holder.answering;
    const refused = await server.post(COMPLETIONS, SAMPLE);
    expect(refused.status).toBe(429);
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(((await refused.json()) as Loose).error).toMatchObject({ type: "rate_limit_error", code: "queue_full" });
    const before = (await server.status()).totals;
    holder.kill("close");
    const { totals } = await server.until(isIdle);
    expect(totals.cancelledCount).toBe(before.cancelledCount + SEQUENCES + QUEUE);
    expect(await sampleTokens(server)).toEqual(tokens);
  });

  test("no part of a call that is too much for the queue stays behind", async () => {
    for (const stream of [true, false]) {
      const prompt = freshPrompts(SEQUENCES + QUEUE + 1);
      const refused = await server.post(COMPLETIONS, { ...SAMPLE, prompt, stream });
      expect(refused.status).toBe(429);
      await server.until(isIdle);
    }
    expect(await sampleTokens(server)).toEqual(tokens);
  });
});

test("a prefill that is one long step ends within it", async () => {
  // The reference takes a second or more for these rows; nothing is committed before all are done.
  const server = await startShippedServer({ deviceKind: "reference", prefillChunkMax: 512, stepMsTarget: 60_000 });
  try {
    const body = { ...SAMPLE, prompt: freshPrompts(1)[0], stream: true };
    const client = openCutClient({ port: server.port, path: COMPLETIONS, body });
    await client.answering;
    await Bun.sleep(100);
    client.kill("close");
    const { totals } = await server.until(isIdle);
    expect(totals).toMatchObject({ prefillTokenCount: 0, cancelledCount: 1 });
    expect((await sampleTokens(server)).length).toBe(SAMPLE.max_tokens);
  } finally {
    await server.close();
  }
});

test("20 clients killed at random moments leave nothing behind", async () => {
  const CLIENTS = 20;
  const server = await startShippedServer({ sequenceMax: 4, prefillChunkMax: 8 });
  try {
    const tokens = await sampleTokens(server);
    for (let seed = 1; seed <= 3; seed++) {
      const uniform = createUniform(seed);
      const pick = (limit: number) => Math.floor(uniform() * limit);
      const survivor = server.ask(COMPLETIONS, { ...SAMPLE, max_tokens: 200 });
      await Promise.all(
        Array.from({ length: CLIENTS }, async () => {
          const body = {
            ...SAMPLE,
            prompt: freshPrompts(1 + pick(2), 1 + pick(PROMPT_TOKENS)),
            max_tokens: 1 + pick(400),
            n: 1 + pick(3),
            stream: uniform() < 0.5,
          };
          const sentShare = uniform() < 0.15 ? uniform() : 1;
          const how = HOW[pick(2)]!;
          const lifeMs = pick(400);
          const client = openCutClient({ port: server.port, path: COMPLETIONS, body, sentShare });
          await Bun.sleep(lifeMs);
          client.kill(how);
        }),
      );
      const { choices } = await survivor;
      expect(choices[0].token_ids.slice(0, tokens.length)).toEqual(tokens);
      const status = await server.until(isIdle);
      expect(status.state).toBe("ready");
      expect(await sampleTokens(server)).toEqual(tokens);
    }
    expect((await server.status()).totals.cancelledCount).toBeGreaterThan(CLIENTS);
  } finally {
    await server.close();
  }
});
