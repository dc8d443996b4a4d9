import { describe, expect, test } from "bun:test";
import { EventStream } from "../../src/server/event-stream.ts";
import type { EventStreamOptions } from "../../src/server/event-stream.ts";
import { decodeMsgpack } from "../../src/server/msgpack.ts";

function open(options: Partial<EventStreamOptions> = {}) {
  let goneCount = 0;
  const stream = new EventStream({
    format: "json",
    heartbeatMs: 60_000,
    waitingBytesMax: 1024,
    stallMs: 60_000,
    onGone: () => (goneCount += 1),
    ...options,
  });
  return { stream, gone: () => goneCount };
}

const read = (stream: EventStream) => new Response(stream.body).text();

test("begins at once, carries events, ends with [DONE]", async () => {
  const { stream, gone } = open();
  stream.send({ a: "x\ny" });
  stream.send([1]);
  stream.end();
  stream.end();
  stream.send("late");
  expect(await read(stream)).toBe(': ping\n\ndata: {"a":"x\\ny"}\n\ndata: [1]\n\ndata: [DONE]\n\n');
  expect([stream.isClosed, gone()]).toEqual([true, 0]);
});

test("as msgpack: nil as heartbeat, then maps, and the end of the stream", async () => {
  const { stream } = open({ format: "msgpack" });
  stream.send({ a: 1 });
  stream.end();
  const bytes = await new Response(stream.body).bytes();
  expect(bytes[0]).toBe(0xc0);
  expect(decodeMsgpack(bytes.subarray(1))).toEqual({ a: 1 });
});

test("silence is filled with heartbeats", async () => {
  const { stream } = open({ heartbeatMs: 1 });
  const reader = stream.body.getReader();
  for (let i = 0; i < 3; i++) {
    expect(new TextDecoder().decode((await reader.read()).value)).toBe(": ping\n\n");
  }
  stream.end();
});

describe("a reader that", () => {
  test("goes is reported once", async () => {
    const { stream, gone } = open();
    await stream.body.cancel();
    expect([stream.isClosed, gone()]).toEqual([true, 1]);
    stream.abandon();
    stream.end();
    expect(gone()).toBe(1);
  });

  test("takes nothing is given up when too much waits for it", () => {
    const { stream, gone } = open();
    let sentCount = 0;
    while (!stream.isClosed && sentCount < 1000) {
      stream.send("x".repeat(1000));
      sentCount += 1;
    }
    expect(gone()).toBe(1);
    // The stream's own 64 KiB and waitingBytesMax.
    expect(sentCount).toBeGreaterThan(60);
    expect(sentCount).toBeLessThan(70);
    expect(read(stream)).rejects.toThrow("has gone or does not read");
  });

  test("takes nothing for too long is given up", async () => {
    const gone = Promise.withResolvers<void>();
    const { stream } = open({ stallMs: 1, waitingBytesMax: 2 ** 30, onGone: gone.resolve });
    stream.send("x".repeat(100_000));
    await gone.promise;
    expect(stream.isClosed).toBe(true);
  });

  test("takes everything in time is not given up", async () => {
    const { stream, gone } = open();
    const text = read(stream);
    for (let i = 0; i < 300; i++) {
      stream.send("x".repeat(1000));
      await new Promise((resolve) => setImmediate(resolve));
    }
    stream.end();
    expect((await text).match(/x{1000}/g)?.length).toBe(300);
    expect(gone()).toBe(0);
  });
});
