// Peers that break the rules of HTTP, or use them against the server: raw bytes over a real socket, a scripted engine behind it.
// Every case ends with the next request being answered and nothing left in the engine.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { connect } from "node:net";
import type { Socket } from "node:net";
import { startServer } from "../../src/server/serve.ts";
import type { RunningServer } from "../../src/server/serve.ts";
import { FakeEngine, says } from "../server/fake-engine.ts";
import { createFixture, json, MODEL, parseEvents, USER_HI } from "../server/fixture.ts";

const MIB = 1024 * 1024;
const BODY_BYTES_MAX = 256 * 1024;
/** Bounds every wait; only a hang gets there. */
const WAIT_MS = 10_000;
const CHAT = JSON.stringify({ messages: USER_HI });
const STREAM = JSON.stringify({ messages: USER_HI, stream: true });

const engine = new FakeEngine();
let server: RunningServer;

beforeAll(() => {
  const { app } = createFixture({
    engine,
    bodyBytesMax: BODY_BYTES_MAX,
    streamLimits: { heartbeatMs: 50, waitingBytesMax: MIB, stallMs: 300 },
  });
  server = startServer(app, { host: "127.0.0.1", port: 0 });
});
afterAll(() => server.stop(0));

/** A connection that keeps what it gets. */
class Peer {
  received = "";
  isClosed = false;
  readonly socket: Socket;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (bytes) => (this.received += bytes.toString("latin1")));
    socket.on("close", () => (this.isClosed = true));
    // A reset is what some of these tests provoke; it shows as closed.
    socket.on("error", () => (this.isClosed = true));
  }

  get statuses(): number[] {
    return [...this.received.matchAll(/HTTP\/1\.1 (\d{3})/g)].map((match) => Number(match[1]));
  }

  send(text: string): void {
    this.socket.write(text);
  }
}

async function openPeer(port = server.port): Promise<Peer> {
  const socket = connect({ host: "127.0.0.1", port });
  const peer = new Peer(socket);
  await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  return peer;
}

async function waitFor(what: string, isDone: () => boolean): Promise<void> {
  const endMs = performance.now() + WAIT_MS;
  while (!isDone()) {
    if (performance.now() > endMs) throw new Error(`waited in vain: ${what}`);
    await Bun.sleep(2);
  }
}

const ended = (peer: Peer) =>
  waitFor("an answer or the end of the connection", () => peer.isClosed || peer.statuses.length > 0);

function head(path: string, lines: readonly string[], method = "POST"): string {
  return [`${method} ${path} HTTP/1.1`, `host: 127.0.0.1:${server.port}`, ...lines, "", ""].join("\r\n");
}

function request(path: string, body: string, more: readonly string[] = []): string {
  return head(path, ["content-type: application/json", `content-length: ${Buffer.byteLength(body)}`, ...more]) + body;
}

/** The server answers an ordinary request, and nothing is left of the one before. */
async function expectWell(): Promise<void> {
  engine.script = says("well");
  const response = await fetch(`${server.url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: CHAT,
  });
  expect(response.status).toBe(200);
  expect((await json(response)).choices[0].message.content).toBe("well");
  await waitFor("an empty engine", () => engine.liveCount === 0);
}

/** A stream whose first event has arrived and whose script never ends. */
async function openStream(): Promise<Peer> {
  engine.script = () => [{ text: "first", tokenIds: [1] }];
  const peer = await openPeer();
  peer.send(request("/v1/chat/completions", STREAM));
  await waitFor("the first event", () => peer.received.includes("first"));
  expect(engine.liveCount).toBe(1);
  return peer;
}

describe("requests that come in pieces", () => {
  test("a header and a body sent slowly are a request like any other", async () => {
    engine.script = says("slow");
    const peer = await openPeer();
    const bytes = request("/v1/completions", JSON.stringify({ prompt: "x" }));
    for (const piece of bytes.match(/[^]{1,9}/g) ?? []) {
      peer.send(piece);
      await Bun.sleep(1);
    }
    await ended(peer);
    expect(peer.statuses).toEqual([200]);
    expect(peer.received).toContain('"text":"slow"');
    peer.socket.destroy();
    await expectWell();
  });

  test("a header that never ends and a body that never comes hold up nobody", async () => {
    const peers = [await openPeer(), await openPeer()];
    peers[0]!.send("POST /v1/completions HTTP/1.1\r\nhost: loc");
    peers[1]!.send(request("/v1/completions", "x".repeat(100)).slice(0, -50));
    await expectWell();
    expect(peers.map((peer) => peer.statuses)).toEqual([[], []]);
    for (const peer of peers) peer.socket.destroy();
    await expectWell();
  });

  test("pipelined requests that need no waiting are answered in order", async () => {
    const peer = await openPeer();
    peer.send(["A", "B", "C"].map((prompt) => request("/tokenize", JSON.stringify({ prompt }))).join(""));
    await waitFor("three answers", () => peer.received.includes('"tokens":[67]'));
    expect(peer.statuses).toEqual([200, 200, 200]);
    expect([...peer.received.matchAll(/"tokens":(\[\d+\])/g)].map((match) => match[1])).toEqual([
      "[65]",
      "[66]",
      "[67]",
    ]);
    peer.socket.destroy();
    await expectWell();
  });

  test("a request pipelined behind one that still runs ends the connection and the running one", async () => {
    // Bun's server has no queue for these; it closes.
    engine.script = () => [{ text: "first", tokenIds: [1] }];
    const peer = await openPeer();
    peer.send(request("/v1/chat/completions", CHAT) + request("/v1/chat/completions", CHAT));
    await waitFor("the end of the connection", () => peer.isClosed);
    await expectWell();
  });
});

describe("lengths", () => {
  const chunk = (bytes: number) => `${bytes.toString(16)}\r\n${"x".repeat(bytes)}\r\n`;

  test("a chunked body over the limit is 413, though it never states its length", async () => {
    const peer = await openPeer();
    peer.send(head("/v1/completions", ["content-type: application/json", "transfer-encoding: chunked"]));
    for (let sent = 0; sent <= BODY_BYTES_MAX && peer.statuses.length === 0; sent += 65536) peer.send(chunk(65536));
    await ended(peer);
    expect(peer.statuses).toEqual([413]);
    expect(peer.received).toContain('"code":"body_too_large"');
    peer.socket.destroy();
    await expectWell();
  });

  test("a stated length over the limit is 413 before the body comes", async () => {
    const peer = await openPeer();
    peer.send(head("/v1/completions", ["content-type: application/json", `content-length: ${2 ** 30}`]));
    await ended(peer);
    expect(peer.statuses).toEqual([413]);
    peer.socket.destroy();
    await expectWell();
  });

  test.each([
    ["negative", ["content-length: -5"]],
    ["not a number", ["content-length: five"]],
    ["beyond 64 bits", ["content-length: 99999999999999999999999"]],
    ["two that differ", ["content-length: 5", "content-length: 50"]],
    ["beside chunked", ["content-length: 5", "transfer-encoding: chunked"]],
  ])("a content-length that is %s is refused", async (_name, lines) => {
    const peer = await openPeer();
    peer.send(`${head("/v1/completions", ["content-type: application/json", ...lines])}hello`);
    peer.socket.end();
    await ended(peer);
    expect(peer.statuses).toEqual([400]);
    peer.socket.destroy();
    await expectWell();
  });

  test("a body shorter than stated, then the end: no answer that took it for whole", async () => {
    const before = engine.submitted.length;
    const peer = await openPeer();
    peer.send(head("/v1/completions", ["content-type: application/json", "content-length: 1000"]) + CHAT);
    peer.socket.end();
    await ended(peer);
    await waitFor("the end of the connection", () => peer.isClosed);
    expect(peer.statuses.filter((status) => status < 400)).toEqual([]);
    expect(engine.submitted.length).toBe(before);
    peer.socket.destroy();
    await expectWell();
  });

  test("a malformed chunk is refused", async () => {
    const peer = await openPeer();
    peer.send(
      `${head("/v1/completions", ["content-type: application/json", "transfer-encoding: chunked"])}zz\r\nhello\r\n`,
    );
    await ended(peer);
    expect(peer.statuses).toEqual([400]);
    peer.socket.destroy();
    await expectWell();
  });

  test("a large upload to a route that does not read it costs no memory", async () => {
    const before = process.memoryUsage.rss();
    const peer = await openPeer();
    const uploadBytes = 96 * MIB;
    peer.send(head("/v1/nothing", ["content-type: application/json", `content-length: ${uploadBytes}`]));
    const piece = Buffer.alloc(MIB, 120);
    let peakBytes = 0;
    for (let sent = 0; sent < uploadBytes && !peer.isClosed; sent += MIB) {
      await new Promise<void>((resolve) => peer.socket.write(piece, () => resolve()));
      peakBytes = Math.max(peakBytes, process.memoryUsage.rss() - before);
    }
    await ended(peer);
    expect(peer.statuses).toEqual([404]);
    expect(peakBytes).toBeLessThan(64 * MIB);
    peer.socket.destroy();
    await expectWell();
  });
});

describe("heads", () => {
  const own = () => `host: 127.0.0.1:${server.port}`;
  const manyLines = Array.from({ length: 10_000 }, (_, i) => `x-${i}: 1`);

  test.each<[string, number, () => string]>([
    ["a header of 1 MB", 431, () => request("/v1/chat/completions", CHAT, [`x-long: ${"a".repeat(MIB)}`])],
    ["10,000 headers", 431, () => request("/v1/chat/completions", CHAT, manyLines)],
    ["a path of 1 MB", 431, () => head(`/${"a".repeat(MIB)}`, [], "GET")],
    ["no HTTP at all", 400, () => "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not http\r\n\r\n"],
    ["a line that folds", 400, () => head("/health/live", ["x-folded: a\r\n b: c"], "GET")],
    ["a header without a name", 400, () => head("/health/live", [": nothing"], "GET")],
    ["NUL in a header", 400, () => head("/health/live", ["x-nul: a\0b"], "GET")],
    ["a carriage return in the request id", 400, () => head("/health/live", ["x-request-id: a\rb: c"], "GET")],
    ["no Host", 400, () => "GET /v1/models HTTP/1.1\r\n\r\n"],
    ["another server's Host", 403, () => "GET /v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n"],
    ["another server's address", 403, () => "GET http://evil.example/ HTTP/1.1\r\nhost: evil.example\r\n\r\n"],
    ["two Hosts", 403, () => `GET /v1/models HTTP/1.1\r\n${own()}\r\nhost: evil.example\r\n\r\n`],
  ])("%s: %d", async (_name, httpStatus, bytes) => {
    const peer = await openPeer();
    peer.send(bytes());
    await ended(peer);
    expect(peer.statuses).toEqual([httpStatus]);
    peer.socket.destroy();
    await expectWell();
  });
});

describe("clients that leave", () => {
  test("a reset in the middle of a stream cancels the request", async () => {
    const before = engine.cancelled.length;
    const peer = await openStream();
    peer.socket.resetAndDestroy();
    await waitFor("a cancel", () => engine.cancelled.length > before);
    expect(engine.liveCount).toBe(0);
    await expectWell();
  });

  test("a reset while the whole answer is awaited cancels the request", async () => {
    const before = engine.cancelled.length;
    engine.script = () => [{ text: "first", tokenIds: [1] }];
    const peer = await openPeer();
    peer.send(request("/v1/chat/completions", CHAT));
    await waitFor("a live request", () => engine.liveCount === 1);
    peer.socket.resetAndDestroy();
    await waitFor("a cancel", () => engine.cancelled.length > before);
    await expectWell();
  });

  test("50 streams cut at once leave nothing behind", async () => {
    const peers = await Promise.all(
      Array.from({ length: 50 }, async () => {
        const peer = await openPeer();
        engine.script = () => [{ text: "first", tokenIds: [1] }];
        peer.send(request("/v1/chat/completions", STREAM));
        return peer;
      }),
    );
    await waitFor("50 live requests", () => engine.liveCount === 50);
    for (const peer of peers) peer.socket.resetAndDestroy();
    await waitFor("an empty engine", () => engine.liveCount === 0);
    await expectWell();
  });

  test("a client that closes its sending half is answered or let go, never kept", async () => {
    engine.script = says("half");
    const peer = await openPeer();
    peer.send(request("/v1/chat/completions", CHAT));
    peer.socket.end();
    await waitFor("an answer or a close", () => peer.isClosed || peer.received.includes("half"));
    await waitFor("an empty engine", () => engine.liveCount === 0);
    peer.socket.destroy();
    await expectWell();
  });

  test("a stream that its client never reads is given up, with bounded memory", async () => {
    const before = engine.cancelled.length;
    engine.script = () => [];
    const peer = await openPeer();
    peer.socket.pause();
    peer.send(request("/v1/chat/completions", STREAM));
    await waitFor("a live request", () => engine.liveCount === 1);
    const rssBefore = process.memoryUsage.rss();
    const { requestId } = engine.last;
    const text = "y".repeat(64 * 1024);
    let emittedBytes = 0;
    await waitFor("a cancel", () => {
      if (engine.cancelled.length > before) return true;
      engine.emit(requestId, 0, { text, tokenIds: [1] });
      emittedBytes += text.length;
      return false;
    });
    expect(engine.cancelled.at(-1)).toBe(requestId);
    expect(emittedBytes).toBeLessThan(64 * MIB);
    expect(process.memoryUsage.rss() - rssBefore).toBeLessThan(128 * MIB);
    peer.socket.destroy();
    await expectWell();
  });

  test("a slow reader that goes on reading gets everything", async () => {
    engine.script = () => [];
    const response = await fetch(`${server.url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ messages: USER_HI, model: MODEL, stream: true }),
    });
    const { requestId } = engine.last;
    for (let i = 0; i < 8; i++) {
      engine.emit(requestId, 0, { text: `${i}`.repeat(1000), tokenIds: [1] });
      await Bun.sleep(15);
    }
    engine.emit(requestId, 0, { finishReason: "stop", usage: null });
    const events = parseEvents(await response.text());
    const text = events
      .slice(0, -1)
      .map((event) => event.choices[0]?.delta.content ?? "")
      .join("");
    expect(text).toBe(Array.from({ length: 8 }, (_, i) => `${i}`.repeat(1000)).join(""));
    expect(events.at(-1)).toBe("[DONE]");
    await expectWell();
  });
});

test("200 idle connections leave room for the next request, and for the server's end", async () => {
  const { app } = createFixture({ engine: new FakeEngine(says("room")) });
  const own = startServer(app, { host: "127.0.0.1", port: 0 });
  const port = own.port;
  const peers = await Promise.all(Array.from({ length: 200 }, () => openPeer(port)));
  // The kernel hands over connections that have said something.
  for (const peer of peers) peer.send("GET / HT");
  const response = await fetch(`${own.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: "x" }),
  });
  expect((await json(response)).choices[0].text).toBe("room");
  await own.stop(100);
  await waitFor("the end of all connections", () => peers.every((peer) => peer.isClosed));
});
