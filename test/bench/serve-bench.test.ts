// The load generator against a server of a few lines: what it sends, how it reads what comes back, and every way to fail.
import { afterAll, describe, expect, test } from "bun:test";
import { askServed, preparePrompts, type RequestForm, type Served } from "../../src/bench/load-client.ts";
import { parseMix } from "../../src/bench/load-schedule.ts";
import { planRequests, runServeBench, type ServeBenchOptions } from "../../src/bench/serve-bench.ts";

// eslint-disable-next-line @typescript-eslint/no-explicit-any
type Loose = any;

const TEXT = "Once upon a time there was a fox who lived in a wood. ".repeat(60);
const OTHER: Served = { modelName: "other", isDuet: false, contextTokens: null };
const signal = new AbortController().signal;

interface Seen {
  readonly path: string;
  readonly headers: Headers;
  readonly body: Loose;
}

/** A server whose answers the test decides; `seen` has every request. */
function startMock(respond: (seen: Seen) => Response | Promise<Response>) {
  const seen: Seen[] = [];
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      const body: Loose = request.method === "POST" ? await request.json() : null;
      const each = { path: new URL(request.url).pathname, headers: request.headers, body };
      seen.push(each);
      return respond(each);
    },
  });
  open.push(server);
  return { target: { url: `http://127.0.0.1:${server.port}`, apiKey: null }, seen };
}

const open: { stop(force: boolean): Promise<void> }[] = [];
afterAll(() => Promise.all(open.map((server) => server.stop(true))));

const events = (...values: unknown[]) =>
  new Response(
    values.map((value) => `data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`).join(""),
    {
      headers: { "content-type": "text/event-stream; charset=utf-8" },
    },
  );
const piece = (text: string, finish: string | null = null) => ({ choices: [{ text, finish_reason: finish }] });
const usage = (prompt: number, output: number) => ({
  choices: [],
  usage: { prompt_tokens: prompt, completion_tokens: output },
});
const wholeAnswer = () => events(piece("a"), piece("b"), piece("c", "length"), usage(8, 3), "[DONE]");

function options(fields: Pick<ServeBenchOptions, "target"> & Partial<ServeBenchOptions>): ServeBenchOptions {
  return {
    form: { api: "completions", served: OTHER, temperature: null, isEventPerToken: false },
    prompts: { description: "", draw: (count) => "x".repeat(count) },
    mix: parseMix("fixed:8/3")!,
    rates: [100],
    seconds: 0.2,
    warmUpSeconds: 0.05,
    drainSeconds: 30,
    connectionMax: 16,
    slo: { ttftMs: null, tpotMs: null, endToEndMs: null },
    seed: 1,
    signal,
    onProgress: () => {},
    ...fields,
  };
}

describe("a run", () => {
  test("counts what arrived in the window and sends OpenAI's fields only", async () => {
    const { target, seen } = startMock(wholeAnswer);
    const [slow, fast] = await runServeBench(options({ target, rates: [40, 100] }));
    const expected = [40, 100].map((rate) => planRequests(parseMix("fixed:8/3")!, rate, 250, 1, Infinity));
    expect(seen).toHaveLength(expected[0]!.length + expected[1]!.length);
    for (const [line, planned] of [
      [slow, expected[0]],
      [fast, expected[1]],
    ] as const) {
      const count = planned!.filter(({ arrivalMs }) => arrivalMs >= 50).length;
      expect(count).toBeGreaterThan(0);
      expect(line).toMatchObject({
        arrivedCount: count,
        wholeCount: count,
        withinSloCount: count,
        failures: [],
        promptTokensMean: 8,
        outputTokensMean: 3,
        cachedTokensMean: null,
        tokensPerChunk: 1,
      });
      expect(line!.requests).toHaveLength(count);
      for (const each of line!.requests)
        expect(each.ttftMs).toBeGreaterThanOrEqual(each.sentMs! - each.arrivalMs - 0.05);
    }
    const fields = ["max_tokens", "model", "prompt", "seed", "stream", "stream_options"];
    for (const { path, body, headers } of seen) {
      expect([path, Object.keys(body).sort()]).toEqual(["/v1/completions", fields]);
      expect(body).toMatchObject({ max_tokens: 3, model: "other", stream_options: { include_usage: true } });
      expect(headers.get("authorization")).toBeNull();
    }
  });

  test("Duet gets its own fields, chat its messages, a key its header", async () => {
    const { target, seen } = startMock(() =>
      events({ choices: [{ delta: { content: "a" }, finish_reason: "stop" }] }, "[DONE]"),
    );
    const served = { ...OTHER, isDuet: true };
    const form: RequestForm = { api: "chat", served, temperature: 0, isEventPerToken: true };
    const [line] = await runServeBench(options({ target: { ...target, apiKey: "secret" }, form }));
    expect(line!.wholeCount).toBeGreaterThan(0);
    expect(line!.wholeCount).toBe(line!.arrivedCount);
    const { path, body, headers } = seen[0]!;
    expect(path).toBe("/v1/chat/completions");
    expect(headers.get("authorization")).toBe("Bearer secret");
    expect(body).toMatchObject({
      messages: [{ role: "user", content: "xxxxxxxx" }],
      temperature: 0,
      ignore_eos: true,
      stream_options: { event_per_token: true },
    });
  });

  test("the same seed sends the same, another seed something else", async () => {
    const bodies = async (seed: number) => {
      const { target, seen } = startMock(wholeAnswer);
      await runServeBench(options({ target, seed, mix: parseMix("chat")! }));
      return seen.map(({ body }) => JSON.stringify(body)).sort();
    };
    const [first, again, another] = [await bodies(3), await bodies(3), await bodies(4)];
    expect(first).toEqual(again);
    expect(first).not.toEqual(another);
  });

  test("ends when told, with what is there", async () => {
    const user = new AbortController();
    let answered = 0;
    const { target } = startMock(() => {
      if (++answered === 30) user.abort();
      return wholeAnswer();
    });
    const lines = await runServeBench(options({ target, seconds: 3600, rates: [200, 200], signal: user.signal }));
    expect(lines).toHaveLength(1);
    expect(lines[0]!.windowSeconds).toBeLessThan(3600);
    expect(lines[0]!.arrivedCount).toBeGreaterThan(0);
    expect(lines[0]!.failures).toEqual([]);
  });
});

describe("failures", () => {
  const cases: [string, () => Response, string][] = [
    ["a full queue", () => Response.json({ error: { message: "full" } }, { status: 429 }), "HTTP 429"],
    ["no JSON", () => new Response("<html>", { status: 502 }), "HTTP 502"],
    ["a redirect is not followed", () => Response.redirect("http://127.0.0.1:1/"), "HTTP 302"],
    ["not a stream", () => Response.json({ choices: [] }), "no event stream"],
    ["cut off", () => events(piece("a")), "an answer that broke off"],
    ["an error on the way", () => events(piece("a"), { error: { message: "x" } }), "an error in the stream"],
    ["garbage", () => events("garbage"), "an event that is not JSON"],
    ["no text", () => events(piece("", "stop"), "[DONE]"), "an answer without text"],
  ];
  test.each(cases)("%s", async (_name, respond, kind) => {
    const mock = startMock(respond);
    const [line] = await runServeBench(options({ target: mock.target }));
    expect(line!.arrivedCount).toBeGreaterThan(0);
    expect(line!.wholeCount).toBe(0);
    expect(line!.failures.map((failure) => [failure.kind, failure.count])).toEqual([[kind, line!.arrivedCount]]);
    expect(line).toMatchObject({ ttftMs: null, goodputPerSecond: 0, requestsPerSecond: 0 });
  });

  test("a server that is not there, or goes in the middle of an answer", async () => {
    const [gone] = await runServeBench(options({ target: { url: "http://127.0.0.1:1", apiKey: null } }));
    expect(gone!.failures.map(({ kind }) => kind)).toEqual(["connection: ECONNREFUSED"]);
    const cutting = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      socket: {
        data(socket) {
          socket.write(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:\r\n",
          );
          socket.end();
        },
      },
    });
    try {
      const [cut] = await runServeBench(options({ target: { url: `http://127.0.0.1:${cutting.port}`, apiKey: null } }));
      expect(cut!.failures.map(({ kind }) => kind)).toEqual(["connection: ECONNRESET"]);
    } finally {
      cutting.stop(true);
    }
  });

  test("a server that never answers is given up at the end of the drain", async () => {
    const { target } = startMock(() => new Promise<Response>(() => {}));
    const [line] = await runServeBench(options({ target, drainSeconds: 0.05, connectionMax: 2 }));
    expect(line!.failures).toEqual([{ kind: "unfinished", count: line!.arrivedCount, message: null }]);
    expect(line!.requests.filter(({ sentMs }) => sentMs !== null).length).toBeLessThanOrEqual(2);
  });
});

describe("asking the server", () => {
  const list = (...data: object[]) => startMock(() => Response.json({ object: "list", data })).target;

  test("what it serves", async () => {
    const duet = list({ id: "fable", owned_by: "duet", max_model_len: 512 }, { id: "b" });
    expect(await askServed(duet, null, signal)).toEqual({ modelName: "fable", isDuet: true, contextTokens: 512 });
    expect(await askServed(duet, "b", signal)).toEqual({ modelName: "b", isDuet: false, contextTokens: null });
    expect(askServed(duet, "c", signal)).rejects.toThrow("expected: c; got: fable, b");
  });

  test("one that is no such server is one clear error", async () => {
    const { target: key } = startMock(() => Response.json({ error: { message: "a key" } }, { status: 401 }));
    expect(askServed(key, null, signal)).rejects.toThrow(/HTTP 401: a key; next: .*--api-key/);
    const { target: page } = startMock(() => new Response("<html>"));
    expect(askServed(page, null, signal)).rejects.toThrow("<html>");
    expect(askServed(list(), null, signal)).rejects.toThrow("got: none");
    expect(askServed({ url: "http://127.0.0.1:1", apiKey: null }, null, signal)).rejects.toThrow("ECONNREFUSED");
  });

  test("the length of a token is learned from usage, and Duet cuts tokens itself", async () => {
    const form: RequestForm = { api: "completions", served: OTHER, temperature: null, isEventPerToken: false };
    const { target, seen } = startMock(({ path }) =>
      path === "/tokenize" ? Response.json({ tokens: [4, 5, 6] }) : Response.json({ usage: { prompt_tokens: 200 } }),
    );
    const text = await preparePrompts(target, form, TEXT, false, signal);
    expect(text.draw(10, () => 0)).toBe(TEXT.slice(0, 50));
    expect(seen[0]!.body).toEqual({ model: "other", max_tokens: 1, prompt: TEXT.slice(0, 1000) });
    const duet = { ...form, served: { ...OTHER, isDuet: true } };
    expect((await preparePrompts(target, duet, TEXT, false, signal)).draw(4, () => 0)).toEqual([4, 5, 6, 4]);
    expect((await preparePrompts(target, duet, TEXT, true, signal)).draw(2, () => 0.99)).toEqual([6, 6]);
    expect(preparePrompts(target, form, TEXT, true, signal)).rejects.toThrow("random token ids");
  });
});
