// The engine in its worker, over the small shipped model on the reference device: what crosses the boundary, how it starts,
// fails, is cancelled and ends.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DuetError, RequestError } from "../../src/base/errors.ts";
import type { EngineClient } from "../../src/engine/client.ts";
import { startLocalEngine } from "../support/local-engine.ts";
import { startWorkerEngine } from "../../src/engine/worker-client.ts";
import { readContainer } from "../../src/weights/container.ts";
import { GREEDY, request, SAMPLED } from "../support/fake-engine.ts";
import { complete, engineOptions, FABLE, FABLE_DRAFT, fableTokens } from "../support/shipped.ts";

const options = engineOptions({
  containerPath: FABLE_DRAFT,
  draftContainerPath: null,
  deviceKind: "reference",
  sequenceMax: 2,
  queueMax: 4,
  prefillChunkMax: 64,
});
const prompt = [...fableTokens("Once upon a time there was a king")];
const long = [
  ...fableTokens("Once upon a time there was a king who had three daughters, and so on. ".repeat(20)),
].slice(0, 400);

async function failureOf(promise: Promise<unknown>): Promise<Error> {
  return promise.then(
    () => new Error("nothing failed"),
    (error: Error) => error,
  );
}

describe("a running worker", () => {
  let engine: EngineClient;
  beforeAll(async () => {
    engine = await startWorkerEngine(options);
  });
  afterAll(() => engine.close());

  test("is ready with a status, and answers as an engine on this thread does", async () => {
    expect(engine.lastStatus.state).toBe("ready");
    expect(engine.lastStatus.contextMax).toBe(512);
    expect(engine.lastStatus.kvBlockCount).toBe(32);
    const steps: number[] = [];
    engine.onStep((report) => steps.push(report.rowCount));
    const local = await startLocalEngine(options);
    for (const params of [GREEDY, SAMPLED]) {
      const fields = { params, outputTokenMax: 12, choiceCount: 2 };
      const [there, here] = [
        await complete(engine, request(prompt, fields)),
        await complete(local, request(prompt, fields)),
      ];
      expect(there.map((answer) => answer.tokens)).toEqual(here.map((answer) => answer.tokens));
      expect(there.map((answer) => answer.text)).toEqual(here.map((answer) => answer.text));
      expect(there.map((answer) => answer.logprobs)).toEqual(here.map((answer) => answer.logprobs));
      expect(there[0]!.text.length).toBeGreaterThan(0);
      expect(there[0]!.last?.usage?.outputTokenCount).toBe(12);
    }
    expect(steps.length).toBeGreaterThan(0);
    await local.close();
  });

  test("refuses with the engine's own error", async () => {
    const tooLong = (await failureOf(complete(engine, request(long, { outputTokenMax: 400 })))) as RequestError;
    expect(tooLong).toBeInstanceOf(RequestError);
    expect([tooLong.httpStatus, tooLong.param, tooLong.code]).toEqual([400, "max_tokens", "context_length_exceeded"]);
  });

  test("cancels in prefill, in decode and in the queue, and releases the blocks at once", async () => {
    const requests = [1, 2, 3].map((i) => request([i, ...long], { outputTokenMax: 100 }));
    const answers = requests.map((each) => complete(engine, each));
    const before = await engine.status();
    expect(before.runningCount + before.waitingCount).toBe(3);
    for (const each of requests) engine.cancel(each.requestId);
    for (const [answer] of await Promise.all(answers)) expect(answer?.last?.finishReason).toBe("cancelled");
    const status = await engine.status();
    expect([status.runningCount, status.waitingCount, status.kvBlocksUsed]).toEqual([0, 0, 0]);
    // A cancellation must not stop what comes later.
    const [next] = await complete(engine, request(prompt, { outputTokenMax: 2 }));
    expect(next?.tokens.length).toBe(2);
  });
});

test("a step doesn't outlive a deadline by more than a layer", async () => {
  // Two prompts in one step of the slow device: several times as long as the watch needs to notice.
  const engine = await startWorkerEngine({ ...options, containerPath: FABLE, prefillChunkMax: 1024 });
  const requests = [1, 2].map((first) =>
    request([first, ...long, ...long].slice(0, 500), { outputTokenMax: 1, deadlineMs: 200 }),
  );
  const answers = await Promise.all(requests.map((each) => complete(engine, each)));
  for (const [answer] of answers) {
    expect([answer?.last?.finishReason, answer?.last?.errorMessage]).toEqual(["cancelled", "deadline exceeded"]);
  }
  const { totals, kvBlocksUsed } = await engine.status();
  expect([totals.prefillTokenCount, kvBlocksUsed]).toEqual([0, 0]);
  await engine.close();
});

test("draining finishes what runs and refuses what comes", async () => {
  const engine = await startWorkerEngine(options);
  const running = complete(engine, request(prompt, { outputTokenMax: 40 }));
  const drained = engine.drain(60_000);
  const refused = (await failureOf(complete(engine, request(prompt)))) as RequestError;
  expect(refused.httpStatus).toBe(503);
  await drained;
  expect((await running)[0]?.last?.finishReason).toBe("length");
  await engine.close();
  expect(((await failureOf(complete(engine, request(prompt)))) as RequestError).httpStatus).toBe(503);
});

test("draining cancels what is left at its deadline", async () => {
  const engine = await startWorkerEngine(options);
  const endless = complete(engine, request(prompt, { outputTokenMax: 450 }));
  await engine.drain(0);
  expect((await endless)[0]?.last?.finishReason).toBe("cancelled");
  await engine.close();
});

test("a bug in the worker is a failure that everybody hears of", async () => {
  const engine = await startWorkerEngine(options);
  const failure = new Promise<string>((resolve) => engine.onFailure(resolve));
  const running = complete(engine, request(prompt, { outputTokenMax: 450 }));
  const broken = { ...request(prompt), promptTokens: undefined as unknown as Int32Array };
  const refused = (await failureOf(complete(engine, broken))) as RequestError;
  expect(refused.httpStatus).toBe(503);
  expect((await running)[0]?.last?.finishReason).toBe("error");
  expect(await failure).toContain("promptTokens");
  expect((await engine.status()).state).toBe("unhealthy");
  await engine.close();
});

describe("a container that does not do", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "duet-engine-"));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  test("missing: the worker says so and ends", async () => {
    const error = (await failureOf(
      startWorkerEngine({ ...options, containerPath: join(folder, "none.duet") }),
    )) as DuetError;
    expect(error).toBeInstanceOf(DuetError);
    expect(error.code).toBe("file_missing");
  });

  test("a bit flipped in a tensor: eager verification refuses, background verification makes the engine unhealthy", async () => {
    const path = join(folder, "flipped.duet");
    const tensor = readContainer(FABLE_DRAFT).header.tensors[5]!;
    const bytes = readFileSync(FABLE_DRAFT);
    bytes[tensor.offset + 40]! ^= 1;
    writeFileSync(path, bytes);
    const eager = (await failureOf(
      startWorkerEngine({ ...options, containerPath: path, verify: "eager" }),
    )) as DuetError;
    expect(eager.code).toBe("container_corrupt");
    expect(eager.message).toContain(tensor.name);

    const engine = await startWorkerEngine({ ...options, containerPath: path, verify: "background" });
    const failure = new Promise<string>((resolve) => engine.onFailure(resolve));
    expect(await failure).toContain(tensor.name);
    expect(engine.lastStatus.state).toBe("unhealthy");
    expect(((await failureOf(complete(engine, request(prompt)))) as RequestError).httpStatus).toBe(503);
    await engine.close();
  });

  test("intact: background verification says so", async () => {
    const path = join(folder, "intact.duet");
    copyFileSync(FABLE_DRAFT, path);
    const engine = await startWorkerEngine({ ...options, containerPath: path, verify: "background" });
    let status = await engine.status();
    while (status.integrity === "pending") status = await engine.status();
    expect(status.integrity).toBe("verified");
    await engine.close();
  });
});
