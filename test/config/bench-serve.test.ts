import { describe, expect, test } from "bun:test";
import { parseCommand } from "../../src/config.ts";
import { parseServerUrl, parseSlo } from "../../src/config/bench-serve.ts";

function parse(...argv: string[]) {
  const command = parseCommand(["bench", "serve", ...argv], {});
  if (command.name !== "bench serve") throw new Error(`got ${command.name}`);
  return command;
}

test("without anything the shipped model is measured; what is given arrives", () => {
  expect(parse()).toMatchObject({
    url: null,
    rates: [1, 2, 4, 8],
    seconds: 10,
    seed: 1,
    plotPath: null,
    api: "completions",
  });
  expect(parse().slo).toEqual({ ttftMs: 500, tpotMs: 50, endToEndMs: null });
  expect(parse("--threads", "2", "--speculation", "off").engine).toMatchObject({ threadCount: 2, speculation: "off" });
  const argv = "--rates 0.5,16 --seconds 60 --warm-up 5 --mix fixed:512/128 --slo ttft=1s,e2e=2.5s --prompts random";
  expect(parse("http://localhost:9000/v1", ...argv.split(" "), "--plot", "x.svg", "--connections", "7")).toMatchObject({
    url: "http://localhost:9000",
    rates: [0.5, 16],
    seconds: 60,
    warmUpSeconds: 5,
    mix: { name: "fixed:512/128" },
    slo: { ttftMs: 1000, tpotMs: null, endToEndMs: 2500 },
    isRandomPrompt: true,
    plotPath: "x.svg",
    connectionMax: 7,
  });
});

describe("an address", () => {
  test("of this machine is taken, in any spelling, with or without /v1", () => {
    for (const [text, url] of [
      ["http://127.0.0.1:8080", "http://127.0.0.1:8080"],
      ["http://127.0.0.1:8080/", "http://127.0.0.1:8080"],
      ["http://localhost:1/v1/", "http://localhost:1"],
      ["http://[::1]:2/v1", "http://[::1]:2"],
      ["http://127.1:3", "http://127.0.0.1:3"],
      ["https://LOCALHOST/proxy/v1", "https://localhost/proxy"],
    ] as const) {
      expect(parseServerUrl(text, false)).toBe(url);
    }
  });

  test("of another machine needs a word, whatever it looks like", () => {
    const others = [
      "http://10.0.0.1",
      "http://0.0.0.0:8080",
      "http://127.0.0.1.example.com",
      "http://localhost.example.com",
    ];
    for (const text of [...others, "http://example.com/127.0.0.1", "http://[::2]", "http://127.example.com"]) {
      expect(() => parseServerUrl(text, false)).toThrow("--allow-remote");
      expect(parseServerUrl(text, true)).toBe(text);
    }
  });

  test("that is none is refused, also where remote ones are allowed", () => {
    const bad = ["", "8080", "localhost:8080", "ftp://127.0.0.1", "file:///etc/passwd", "http://"];
    for (const text of [
      ...bad,
      "http://a:b@127.0.0.1",
      "http://127.0.0.1/?x",
      "http://127.0.0.1/#x",
      "http://127.0.0.1@evil.example",
    ]) {
      for (const isRemoteAllowed of [false, true]) {
        expect(() => parseServerUrl(text, isRemoteAllowed)).toThrow(/expected an address/);
      }
    }
  });
});

test("limits have names and units, each once", () => {
  expect(parseSlo("tpot=0.5ms, ttft=1s")).toEqual({ ttftMs: 1000, tpotMs: 0.5, endToEndMs: null });
  for (const text of [
    "",
    ",",
    "ttft",
    "ttft=5",
    "ttft=ms",
    "ttft=-5ms",
    "ttft=0ms",
    "itl=5ms",
    "ttft=5ms,ttft=6ms",
    "ttft=5m",
  ]) {
    expect(() => parseSlo(text)).toThrow("ttft=500ms,tpot=50ms");
  }
});
