// Many at once: every request is answered, with the tokens that it gets alone, and what doesn't fit the queue is told so.

import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { RateLimitError } from "openai";
import { createUniform } from "../../src/base/prng.ts";
import { SHIPPED_EVAL_TEXT } from "../../src/config.ts";
import { DEVICE_KIND, type Loose, type ShippedServer, startShippedServer } from "../support/shipped-server.ts";

setDefaultTimeout(60_000);

/** Fewer on the reference, which is slow. */
const REQUESTS = DEVICE_KIND === "cpu" ? 64 : 16;
const QUEUE = 4;
const SEQUENCES = 8;

/** Mixed in everything: prompts of 1 to 400 tokens, 1 to 60 output tokens, ways to draft, streamed or not. */
function mixedBodies(server: ShippedServer) {
  const uniform = createUniform(64);
  const pick = (limit: number) => Math.floor(uniform() * limit);
  const tokens = server.tokenizer.encode(readFileSync(SHIPPED_EVAL_TEXT, "utf8").slice(0, 60_000), {
    allowSpecial: false,
  });
  return Array.from({ length: REQUESTS }, () => {
    const start = pick(tokens.length - 400);
    return {
      prompt: tokens.slice(start, start + 1 + pick(400)),
      max_tokens: 1 + pick(60),
      temperature: 0,
      logprobs: 1,
      return_token_ids: true,
      speculation: { mode: ["off", "draft", "ngram", "auto"][pick(4)] },
    };
  });
}

/** What an answer says, apart from its name, its times and how it was drafted. */
const essence = ({ choices, usage }: Loose) => ({ choices, completionTokens: usage.completion_tokens });

let server: ShippedServer;
beforeAll(async () => {
  server = await startShippedServer({ sequenceMax: SEQUENCES, queueMax: REQUESTS });
});
afterAll(() => server.close());

test(`${REQUESTS} requests at once are all answered`, async () => {
  const bodies = mixedBodies(server);
  const together = await Promise.all(bodies.map((body) => server.ask("/v1/completions", body)));
  for (const [i, { choices, usage }] of together.entries()) {
    const { token_ids, finish_reason } = choices[0];
    expect(usage.prompt_tokens).toBe(bodies[i]!.prompt.length);
    expect(token_ids).toHaveLength(usage.completion_tokens);
    if (finish_reason === "length") expect(token_ids).toHaveLength(bodies[i]!.max_tokens);
    else expect(finish_reason).toBe("stop");
  }
  const { kvBlocksUsed, runningCount, waitingCount, totals } = await server.status();
  expect([kvBlocksUsed, runningCount, waitingCount]).toEqual([0, 0, 0]);
  expect(totals.finishedCount).toBe(REQUESTS);
  // The reference device does not promise the bits that this compares.
  if (DEVICE_KIND === "reference") return;
  const alone: Loose[] = [];
  for (const body of bodies) alone.push(await server.ask("/v1/completions", body));
  expect(together.map(essence)).toEqual(alone.map(essence));
});

test("a full queue is a 429 with Retry-After, and all that it took is answered", async () => {
  const small = await startShippedServer({ sequenceMax: SEQUENCES, queueMax: QUEUE });
  try {
    const body = { prompt: "Once upon a time", max_tokens: 100, ignore_eos: true };
    const answers = await Promise.all(Array.from({ length: REQUESTS }, () => small.post("/v1/completions", body)));
    const statuses = answers.map(({ status }) => status);
    const refused = answers.filter(({ status }) => status === 429);
    expect(new Set(statuses)).toEqual(new Set([200, 429]));
    expect(statuses.length - refused.length).toBeGreaterThanOrEqual(SEQUENCES + QUEUE);
    for (const { headers } of refused) expect(Number(headers.get("retry-after"))).toBeGreaterThanOrEqual(1);
    for (const answer of answers) {
      const json: Loose = await answer.json();
      if (answer.status === 200) expect(json.usage.completion_tokens).toBe(100);
      else expect(json.error).toMatchObject({ type: "rate_limit_error", code: "queue_full" });
    }
    // More prompts than the queue ever takes: what OpenAI's client makes of it.
    const prompt = new Array<string>(SEQUENCES + QUEUE + 1).fill("Once");
    const error: Loose = await small.client.completions
      .create({ model: "fable", prompt })
      .catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(RateLimitError);
    expect(error.code).toBe("queue_full");
    await small.until(({ sequences, kvBlocksUsed }) => sequences.length === 0 && kvBlocksUsed === 0);
  } finally {
    await small.close();
  }
});
