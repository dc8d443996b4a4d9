import { expect, test } from "bun:test";
import { DuetError } from "../../src/base/errors.ts";
import { startServer } from "../../src/server/serve.ts";
import { FakeEngine } from "./fake-engine.ts";
import { createFixture, json, parseEvents } from "./fixture.ts";

const completion = (url: string, body: object) =>
  fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: "x", ...body }),
  });

test("answers over the socket, on the port that it names", async () => {
  const server = startServer(createFixture().app, { host: "127.0.0.1", port: 0 });
  expect(server.url).toBe(`http://127.0.0.1:${server.port}`);
  expect((await json(await completion(server.url, {}))).choices[0].text).toBe("Hello world");
  await server.stop(0);
  expect(fetch(`${server.url}/health/live`)).rejects.toThrow();
});

test("a port in use is an operating failure that says so", async () => {
  const { app } = createFixture();
  const server = startServer(app, { host: "127.0.0.1", port: 0 });
  let thrown: unknown = null;
  try {
    startServer(app, { host: "127.0.0.1", port: server.port });
  } catch (error) {
    thrown = error;
  }
  await server.stop(0);
  expect(thrown).toBeInstanceOf(DuetError);
  expect(thrown).toMatchObject({ code: "port_unavailable", detail: { got: "the port is in use" } });
});

test("an address that is not this machine's is an operating failure", () => {
  expect(() => startServer(createFixture().app, { host: "203.0.113.1", port: 0 })).toThrow(
    "cannot listen on 203.0.113.1 port 0",
  );
});

test("stopping lets a stream finish, refuses what comes meanwhile, and may be asked twice", async () => {
  const engine = new FakeEngine(() => []);
  const server = startServer(createFixture({ engine }).app, { host: "127.0.0.1", port: 0 });
  const stream = await completion(server.url, { stream: true });
  const stopped = server.stop(10_000);
  expect(server.stop(0)).toBe(stopped);
  const refused = await completion(server.url, {});
  expect([refused.status, (await json(refused)).error.code]).toEqual([503, "draining"]);
  engine.emit(engine.last.requestId, 0, { text: "last words", tokenIds: [1], finishReason: "stop" });
  const events = parseEvents(await stream.text());
  expect([events[0].choices[0].text, events.at(-1)]).toEqual(["last words", "[DONE]"]);
  await stopped;
});

test("what does not finish in time is cancelled, and its answer says so", async () => {
  const engine = new FakeEngine(() => [{ text: "so far", tokenIds: [1] }]);
  const server = startServer(createFixture({ engine }).app, { host: "127.0.0.1", port: 0 });
  const answer = completion(server.url, {});
  while (engine.liveCount === 0) await Bun.sleep(1);
  await Promise.all([server.stop(20), answer]);
  expect((await json(await answer)).choices[0]).toMatchObject({ text: "so far", finish_reason: "cancelled" });
  expect(engine.cancelled.length).toBe(1);
});
