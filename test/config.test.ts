import { describe, expect, test } from "bun:test";
import { parseCommand, SHIPPED_CONTAINER, SHIPPED_DRAFT } from "../src/config.ts";
import type { DuetCommand } from "../src/config.ts";

function parse<Name extends DuetCommand["name"]>(name: Name, argv: string[], env: Record<string, string> = {}) {
  const command = parseCommand(argv, env);
  if (command.name !== name) throw new Error(`expected the command ${name}, got ${command.name}`);
  return command as Extract<DuetCommand, { name: Name }>;
}

describe("serve", () => {
  test("without arguments serves the shipped model with its draft model on loopback", () => {
    const command = parse("serve", []);
    expect(command.engine.containerPath).toBe(SHIPPED_CONTAINER);
    expect(command.engine.draftContainerPath).toBe(SHIPPED_DRAFT);
    expect([command.host, command.port]).toEqual(["127.0.0.1", 8080]);
  });

  test("options without a command are serve's", () => {
    expect(parse("serve", ["--port", "9000", "--threads", "4"]).engine.threadCount).toBe(4);
  });

  test("an option goes before the environment, and the environment before the default", () => {
    const env = { PORT: "7000", HOST: "0.0.0.0", DUET_API_KEYS: "one, two" };
    const fromEnv = parse("serve", [], env);
    expect([fromEnv.host, fromEnv.port, fromEnv.apiKeys]).toEqual(["0.0.0.0", 7000, ["one", "two"]]);
    const fromArgv = parse("serve", ["--port", "7001", "--host", "::1", "--api-key", "three"], env);
    expect([fromArgv.host, fromArgv.port, fromArgv.apiKeys]).toEqual(["::1", 7001, ["three"]]);
  });

  test("another model has no draft model unless one is named", () => {
    expect(parse("serve", ["serve", "other.duet"]).engine.draftContainerPath).toBeNull();
    expect(parse("serve", ["serve", "other.duet", "--draft", "d.duet"]).engine.draftContainerPath).toBe("d.duet");
  });

  test("engine options reach the engine", () => {
    const { engine } = parse(
      "serve",
      "serve --kv int8 --speculation ngram --no-prefix-cache --prefill-chunk 7".split(" "),
    );
    expect(engine.kvType).toBe("int8");
    expect(engine.speculation).toBe("ngram");
    expect(engine.isPrefixCached).toBe(false);
    expect(engine.prefillChunkMax).toBe(7);
  });
});

test("run takes one prompt or none", () => {
  expect(parse("run", ["run"]).prompt).toBeNull();
  const command = parse("run", ["run", "hello", "-t", "0", "--seed", "5", "-n", "3", "--raw"]);
  expect(command).toMatchObject({ prompt: "hello", temperature: 0, seed: 5, outputTokenMax: 3, isRaw: true });
});

test("pack, synth, inspect, eval, bench and doctor carry what they were given", () => {
  expect(parse("pack", ["pack", "folder", "-o", "x.duet", "--recipe", "q8"])).toMatchObject({
    folder: "folder",
    outPath: "x.duet",
    recipe: "q8",
    modelName: null,
  });
  expect(parse("synth", ["synth", "--shape", "tiny", "-o", "x.duet"])).toMatchObject({
    shape: "tiny",
    recipe: "q4",
    tokenizerPath: SHIPPED_CONTAINER,
    seed: 1,
  });
  expect(parse("synth", "synth --shape tiny -o x --tokenizer none".split(" ")).tokenizerPath).toBeNull();
  expect(parse("inspect", ["inspect", "--json", "--verify"])).toMatchObject({
    containerPath: SHIPPED_CONTAINER,
    isJson: true,
    isVerified: true,
  });
  expect(parse("eval", ["eval", "text.txt", "-m", "m.duet", "--windows", "3"])).toMatchObject({
    textPath: "text.txt",
    windowMax: 3,
    windowTokens: 512,
  });
  expect(parse("bench engine", ["bench", "--repeat", "2"]).repeatCount).toBe(2);
  expect(parse("doctor", ["doctor"]).containerPath).toBe(SHIPPED_CONTAINER);
});
