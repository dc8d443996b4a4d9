// `duet bench serve` as a person meets it, against the shipped model at a low rate. What it says of speed is never asserted.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ServeReport } from "../../src/bench/serve-report.ts";
import { DEVICE_KIND } from "../support/shipped-server.ts";

const CLI = join(import.meta.dir, "../../src/cli.ts");
const folder = mkdtempSync(join(tmpdir(), "duet-bench-serve-test-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A proxy that is not there: whatever asked it would fail. */
const PROXY = { http_proxy: "http://127.0.0.1:1", HTTP_PROXY: "http://127.0.0.1:1", no_proxy: "", NO_PROXY: "" };

const start = (...argv: string[]) =>
  Bun.spawn([process.execPath, CLI, "bench", "serve", ...argv], {
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, ...PROXY },
  });

async function ended(child: ReturnType<typeof start>): Promise<{ status: number; out: string; err: string }> {
  const [out, err] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { status: await child.exited, out, err };
}

test("the shipped model answers every request with the lengths that were asked for", async () => {
  const plotPath = join(folder, "load.svg");
  const load = "--rates 6 --seconds 1 --warm-up 0.3 --mix fixed:40/8 --event-per-token --temperature 0 --json".split(
    " ",
  );
  const { status, out, err } = await ended(start(...load, "--device", DEVICE_KIND, "--plot", plotPath));
  expect([status, err.includes("duet:")]).toEqual([0, false]);
  expect(err).toMatch(/serving fable in this process on http:\/\/127\.0\.0\.1:\d+/);
  const report = JSON.parse(out) as ServeReport;
  expect(report).toMatchObject({ format: "duet-bench-serve/1", isOwnServer: true, isInterrupted: false });
  expect(report.served).toMatchObject({ modelName: "fable", isDuet: true });
  const [line] = report.rates;
  expect(line!.arrivedCount).toBeGreaterThan(0);
  // ignore_eos and token-id prompts: lengths are exact.
  expect(line).toMatchObject({
    wholeCount: line!.arrivedCount,
    failures: [],
    promptTokensMean: 40,
    outputTokensMean: 8,
  });
  for (const { ttftMs, endToEndMs } of line!.requests) expect(endToEndMs!).toBeGreaterThanOrEqual(ttftMs!);
  for (const percentiles of [line!.ttftMs, line!.tpotMs, line!.itlMs, line!.endToEndMs]) {
    expect(percentiles!.count).toBeGreaterThan(0);
    expect(percentiles!.p99).toBeGreaterThanOrEqual(percentiles!.p50);
  }
  expect(readFileSync(plotPath, "utf8")).toStartWith("<svg");
}, 60_000);

describe("against a server of a few lines", () => {
  const model = { data: [{ id: "mock" }] };
  const answer = 'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n';
  let onStreamed = () => {};
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      if (request.method === "GET") return Response.json(model);
      const { stream } = (await request.json()) as { stream?: boolean };
      if (stream !== true) return Response.json({ usage: { prompt_tokens: 250 } });
      onStreamed();
      return new Response(answer, { headers: { "content-type": "text/event-stream" } });
    },
  });
  afterAll(() => server.stop(true));
  const url = `http://127.0.0.1:${server.port}`;

  test("a table, and no proxy of the environment is asked", async () => {
    const { status, out } = await ended(start(url, ..."--rates 20,40 --seconds 0.3 --warm-up 0".split(" ")));
    expect(status).toBe(0);
    expect(out).toContain("note: not Duet");
    expect(out).toMatch(/^rate +arrived +whole +failed/m);
    expect(out).toMatch(/^ +40 +TTFT/m);
  });

  test("Ctrl-C prints what is there", async () => {
    const child = start(url, ..."--rates 50,60 --seconds 3600 --warm-up 0 --json".split(" "));
    let streamed = 0;
    onStreamed = () => {
      if (++streamed === 10) child.kill("SIGINT");
    };
    const { status, out } = await ended(child);
    const report = JSON.parse(out) as ServeReport;
    expect(status).toBe(130);
    expect(report.isInterrupted).toBe(true);
    expect(report.rates).toHaveLength(1);
    expect(report.rates[0]!.wholeCount).toBeGreaterThan(0);
  }, 30_000);
});

test("what cannot be measured is one clear line", async () => {
  const absent = join(folder, "absent");
  const cases: [string[], RegExp][] = [
    [["http://127.0.0.1:1"], /^duet: the server does not answer; where: .*ECONNREFUSED; next: /],
    [["http://127.0.0.1:1", "--text", absent], /^duet: the text for prompts cannot be read; where: /],
    [["http://127.0.0.1:1", "--plot", join(absent, "x.svg")], /^duet: the figure cannot be written; where: /],
    [["http://198.51.100.1"], /^error: 198\.51\.100\.1 is not this machine: add --allow-remote/],
    [["http://127.0.0.1:1", "--threads", "2"], /^error: option '--threads.*' is for the server that is started/],
    [["--mix", "huge"], /^error: .*short, chat, long, or fixed:IN\/OUT/],
    [["--rates", "1,x"], /^error: .*expected a number from 0\.01 to 1000/],
  ];
  await Promise.all(
    cases.map(async ([argv, message]) => {
      const { status, out, err } = await ended(start(...argv));
      const lines = err.trim().split("\n");
      expect([status, out, lines.filter((line) => !line.startsWith("(add --help"))]).toEqual([
        1,
        "",
        [expect.stringMatching(message)],
      ]);
    }),
  );
});
