import { describe, expect, test } from "bun:test";
import type { RequestError } from "../../src/base/errors.ts";
import { Lifecycle, withTimeout } from "../../src/server/lifecycle.ts";
import { FakeEngine } from "./fake-engine.ts";
import { createFixture, json } from "./fixture.ts";

function refusal(lifecycle: Lifecycle): RequestError | null {
  try {
    lifecycle.checkReady();
    return null;
  } catch (error) {
    return error as RequestError;
  }
}

test("ready while the engine is", () => {
  const engine = new FakeEngine();
  const lifecycle = new Lifecycle(engine);
  expect([lifecycle.unreadyReason, refusal(lifecycle)]).toEqual([null, null]);
  engine.state = "draining";
  expect(lifecycle.unreadyReason).toBe("the engine is draining");
  engine.state = "unhealthy";
  expect(refusal(lifecycle)).toMatchObject({
    httpStatus: 503,
    code: "engine_unhealthy",
    message: "the engine is unhealthy: scripted",
  });
});

test("a failed engine ends every running answer with its message and stays failed", () => {
  const engine = new FakeEngine();
  const lifecycle = new Lifecycle(engine);
  const messages: string[] = [];
  const answers = [0, 1].map(() => ({
    fail(message: string) {
      messages.push(message);
      lifecycle.leave(this);
    },
  }));
  for (const answer of answers) lifecycle.enter(answer);
  expect(lifecycle.activeCount).toBe(2);
  engine.fail("die 1 hangs");
  expect([messages, lifecycle.activeCount]).toEqual([["die 1 hangs", "die 1 hangs"], 0]);
  engine.state = "ready";
  expect(lifecycle.unreadyReason).toBe("the engine has failed: die 1 hangs");
});

describe("drain", () => {
  test("refuses new work at once and waits for what runs", async () => {
    const engine = new FakeEngine();
    const lifecycle = new Lifecycle(engine);
    const answer = { fail: () => {} };
    lifecycle.enter(answer);
    let isDrained = false;
    const drained = lifecycle.drain(60_000).then(() => (isDrained = true));
    expect(refusal(lifecycle)).toMatchObject({ httpStatus: 503, code: "draining" });
    await Bun.sleep(20);
    expect(isDrained).toBe(false);
    lifecycle.leave(answer);
    await drained;
    expect(lifecycle.activeCount).toBe(0);
  });

  test("with nothing running ends at once, even when the engine's own drain fails", async () => {
    const engine = new FakeEngine();
    engine.drain = () => Promise.reject(new Error("gone"));
    await new Lifecycle(engine).drain(60_000);
    expect(engine.liveCount).toBe(0);
  });

  test("an answer that outlives the deadline is cancelled and still whole", async () => {
    const fixture = createFixture({ engine: new FakeEngine(() => [{ text: "part", tokenIds: [1] }]) });
    const pending = fixture.post("/v1/completions", { prompt: "x" });
    await Bun.sleep(1);
    await fixture.app.lifecycle.drain(5);
    const response = await pending;
    expect([response.status, (await json(response)).choices[0]]).toMatchObject([
      200,
      { text: "part", finish_reason: "cancelled" },
    ]);
    const refused = await fixture.post("/v1/completions", { prompt: "x" });
    expect([refused.status, refused.headers.get("retry-after"), refused.headers.get("connection")]).toEqual([
      503,
      "5",
      "close",
    ]);
    expect((await json(refused)).error).toMatchObject({ code: "draining", type: "server_error" });
    expect((await fixture.get("/health/live")).status).toBe(200);
    expect(await json(await fixture.get("/health/ready"))).toEqual({
      status: "not_ready",
      reason: "the server is shutting down",
    });
  });
});

test("withTimeout resolves with the promise, or without it", async () => {
  await withTimeout(Promise.resolve(), 60_000);
  await withTimeout(new Promise(() => {}), 1);
  expect(withTimeout(Promise.reject(new Error("x")), 60_000)).rejects.toThrow("x");
});
