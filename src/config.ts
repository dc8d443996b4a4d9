// The only reader of environment and argv: the `duet` command line as one typed, frozen Command. Nothing here opens files or
// starts work. Precedence: option, then environment, then default.

import { Command as Cli, InvalidArgumentError, Option } from "commander";
import type { LogLevel } from "./base/log.ts";
import { addBenchCommands, type BenchCommand } from "./config/bench.ts";
import {
  engineOptions,
  integerBetween,
  numberBetween,
  SHIPPED_CONTAINER,
  SHIPPED_EVAL_TEXT,
  splitList,
  withEngineOptions,
} from "./config/options.ts";
import type { EngineOptions } from "./engine/client.ts";
import type { RecipeName } from "./weights/header.ts";

export { SHIPPED_CONTAINER, SHIPPED_DRAFT, SHIPPED_EVAL_TEXT } from "./config/options.ts";

export const VERSION = "0.1.0";

export interface LogConfig {
  readonly level: LogLevel;
  readonly format: "text" | "json";
}

export interface ServeCommand {
  readonly name: "serve";
  readonly engine: EngineOptions;
  readonly host: string;
  readonly port: number;
  readonly apiKeys: readonly string[];
  readonly allowedHosts: readonly string[];
  readonly corsOrigins: readonly string[];
  readonly drainMs: number;
  readonly log: LogConfig;
}

export interface RunCommand {
  readonly name: "run";
  readonly engine: EngineOptions;
  /** null: an interactive chat. */
  readonly prompt: string | null;
  readonly isRaw: boolean;
  readonly outputTokenMax: number;
  readonly temperature: number | null;
  readonly seed: number | null;
}

export interface PackCommand {
  readonly name: "pack";
  readonly folder: string;
  readonly recipe: RecipeName;
  readonly outPath: string;
  readonly modelName: string | null;
}

export interface SynthCommand {
  readonly name: "synth";
  /** A named shape, JSON, or the path of a file with JSON. */
  readonly shape: string;
  readonly recipe: RecipeName;
  readonly outPath: string;
  /** A container or a Hugging Face folder; null: no tokenizer. */
  readonly tokenizerPath: string | null;
  readonly modelName: string | null;
  readonly seed: number;
}

export interface InspectCommand {
  readonly name: "inspect";
  readonly containerPath: string;
  readonly isJson: boolean;
  readonly isVerified: boolean;
  readonly listsTensors: boolean;
  /** The forward pass as ops, and what each die holds. */
  readonly listsProgram: boolean;
}

export interface EvalCommand {
  readonly name: "eval";
  readonly engine: EngineOptions;
  readonly textPath: string;
  readonly windowTokens: number;
  readonly windowMax: number | null;
  readonly isJson: boolean;
}

export interface DoctorCommand {
  readonly name: "doctor";
  readonly containerPath: string;
  readonly isJson: boolean;
}

export type DuetCommand =
  ServeCommand | RunCommand | PackCommand | SynthCommand | InspectCommand | EvalCommand | DoctorCommand | BenchCommand;

type Environment = Readonly<Record<string, string | undefined>>;

const append = (text: string, before: readonly string[] | undefined) => [...(before ?? []), text];

/** HOST and PORT as a clear error instead of a listening surprise. */
function portFrom(env: Environment): number {
  const text = env.PORT;
  if (text === undefined || text === "") return 8080;
  try {
    return integerBetween(0, 65535)(text);
  } catch {
    throw new InvalidArgumentError(`environment variable PORT: expected an integer from 0 to 65535, got '${text}'.`);
  }
}

function addServe(cli: Cli, env: Environment, done: (command: DuetCommand) => void): void {
  withEngineOptions(
    cli
      .command("serve")
      .description("answer OpenAI-compatible HTTP calls")
      .argument("[container]", "the model (default: the shipped one)"),
  )
    .option("--host <address>", "address to listen on (environment: HOST; default: 127.0.0.1)")
    .option(
      "--port <number>",
      "port to listen on, 0 for any (environment: PORT; default: 8080)",
      integerBetween(0, 65535),
    )
    .option(
      "--api-key <key>",
      "require this bearer key, repeatable (environment: DUET_API_KEYS, comma-separated)",
      append,
    )
    .option("--allow-host <name>", "accept this Host header, repeatable", append)
    .option("--cors-origin <origin>", "answer this browser origin, repeatable", append)
    .option(
      "--drain-ms <ms>",
      "how long running requests may finish after SIGTERM",
      integerBetween(0, 3_600_000),
      30_000,
    )
    .addOption(new Option("--log <level>", "log level").choices(["debug", "info", "warn", "error"]).default("info"))
    .addOption(new Option("--log-format <format>", "log format").choices(["text", "json"]).default("text"))
    .addHelpText(
      "after",
      `
Examples:
  $ duet serve                                   the shipped model on http://127.0.0.1:8080
  $ duet serve --port 9000 --threads 2 --kv int8
  $ duet serve model.duet --draft small.duet     another model with a draft model
  $ HOST=0.0.0.0 DUET_API_KEYS=secret duet serve`,
    )
    .action((containerPath: string | undefined, raw) => {
      done({
        name: "serve",
        engine: engineOptions(containerPath, raw),
        host: raw.host ?? (env.HOST === undefined || env.HOST === "" ? "127.0.0.1" : env.HOST),
        port: raw.port ?? portFrom(env),
        apiKeys: raw.apiKey ?? splitList(env.DUET_API_KEYS),
        allowedHosts: raw.allowHost ?? [],
        corsOrigins: raw.corsOrigin ?? [],
        drainMs: raw.drainMs,
        log: { level: raw.log, format: raw.logFormat },
      });
    });
}

function addRun(cli: Cli, done: (command: DuetCommand) => void): void {
  withEngineOptions(
    cli
      .command("run")
      .description("chat in the terminal, or answer one prompt")
      .argument("[prompt]", "one prompt; without it an interactive chat"),
  )
    .option("-m, --model <container>", "the model (default: the shipped one)")
    .option("--raw", "continue the prompt as plain text, without the chat template", false)
    .option("-n, --max-tokens <count>", "output tokens at most", integerBetween(1, 1 << 20), 256)
    .option("-t, --temperature <value>", "0 is greedy (default: the model's)", numberBetween(0, 100))
    .option("--seed <number>", "the same seed gives the same text", integerBetween(0, Number.MAX_SAFE_INTEGER))
    .addHelpText(
      "after",
      `
Examples:
  $ duet run "Tell me a story about a fox and a wolf."
  $ duet run --raw -t 0 "Once upon a time there was a king who had three daughters, and"
  $ duet run                                      chat; an empty line or Ctrl-D ends it`,
    )
    .action((prompt: string | undefined, raw) => {
      done({
        name: "run",
        engine: engineOptions(raw.model, raw),
        prompt: prompt ?? null,
        isRaw: raw.raw,
        outputTokenMax: raw.maxTokens,
        temperature: raw.temperature ?? null,
        seed: raw.seed ?? null,
      });
    });
}

function addFileCommands(cli: Cli, done: (command: DuetCommand) => void): void {
  cli
    .command("pack")
    .description("make a container from a Hugging Face folder")
    .argument("<folder>", "config.json, tokenizer.json, *.safetensors")
    .addOption(new Option("--recipe <name>", "quantisation").choices(["q4", "q8", "f16"]).default("q4"))
    .requiredOption("-o, --out <file>", "the container to write")
    .option("--name <name>", "what the model is called (default: the folder's name)")
    .addHelpText("after", "\nExample:\n  $ duet pack ./pangu-pro-moe --recipe q4 -o pangu.duet")
    .action((folder: string, raw) => {
      done({ name: "pack", folder, recipe: raw.recipe, outPath: raw.out, modelName: raw.name ?? null });
    });
  cli
    .command("synth")
    .description("make a container with random weights, to measure a shape without its weights")
    .requiredOption("--shape <shape>", "pangu-72b, pangu-slice, small, tiny, a JSON file, or JSON")
    .addOption(new Option("--recipe <name>", "quantisation").choices(["q4", "q8", "f16"]).default("q4"))
    .requiredOption("-o, --out <file>", "the container to write")
    .option(
      "--tokenizer <path>",
      "a container or folder to take the tokenizer of, or none (default: the shipped model)",
    )
    .option("--name <name>", "what the model is called (default: the shape's name)")
    .option("--seed <number>", "the same seed gives the same file", integerBetween(0, Number.MAX_SAFE_INTEGER), 1)
    .addHelpText(
      "after",
      `
Examples:
  $ duet synth --shape small --recipe q4 -o small.duet
  $ duet synth --shape '{"hiddenDim": 512, "layerCount": 4}' -o mine.duet    the rest is as in small`,
    )
    .action((raw) => {
      done({
        name: "synth",
        shape: raw.shape,
        recipe: raw.recipe,
        outPath: raw.out,
        tokenizerPath: raw.tokenizer === "none" ? null : (raw.tokenizer ?? SHIPPED_CONTAINER),
        modelName: raw.name ?? null,
        seed: raw.seed,
      });
    });
  cli
    .command("inspect")
    .description("show what a container holds")
    .argument("[container]", "default: the shipped model", SHIPPED_CONTAINER)
    .option("--json", "machine-readable", false)
    .option("--verify", "check every checksum", false)
    .option("--tensors", "list every tensor", false)
    .option("--program", "list the forward pass, and what each die holds", false)
    .addHelpText("after", "\nExample:\n  $ duet inspect models/fable/fable.duet --verify")
    .action((containerPath: string, raw) => {
      done({
        name: "inspect",
        containerPath,
        isJson: raw.json,
        isVerified: raw.verify,
        listsTensors: raw.tensors,
        listsProgram: raw.program,
      });
    });
}

function addMeasureCommands(cli: Cli, done: (command: DuetCommand) => void): void {
  withEngineOptions(
    cli
      .command("eval")
      .description("perplexity of a text file")
      .argument("[text]", "default: the shipped model's held-out text", SHIPPED_EVAL_TEXT),
  )
    .option("-m, --model <container>", "the model (default: the shipped one)")
    .option("--window <tokens>", "tokens per window (default: the context, at most 512)", integerBetween(2, 1 << 20))
    .option("--windows <count>", "only the first windows", integerBetween(1, 1 << 30))
    .option("--json", "machine-readable", false)
    .addHelpText("after", "\nExample:\n  $ duet eval --windows 20 --json")
    .action((textPath: string, raw) => {
      done({
        name: "eval",
        engine: engineOptions(raw.model, raw),
        textPath,
        windowTokens: raw.window ?? 512,
        windowMax: raw.windows ?? null,
        isJson: raw.json,
      });
    });
  cli
    .command("doctor")
    .description("what this machine is, what runs where and why, what is missing")
    .argument("[container]", "default: the shipped model", SHIPPED_CONTAINER)
    .option("--json", "machine-readable", false)
    .action((containerPath: string, raw) => {
      done({ name: "doctor", containerPath, isJson: raw.json });
    });
}

/** `duet` and `duet --port 9000` mean `duet serve …`; a first word that is no command is an error with a suggestion. */
function withDefaultCommand(argv: readonly string[]): string[] {
  const first = argv[0];
  const isGlobal = first !== undefined && ["-h", "--help", "-V", "--version"].includes(first);
  return first === undefined || (first.startsWith("-") && !isGlobal) ? ["serve", ...argv] : [...argv];
}

/** Parses a command line (without the interpreter and script). Prints help or a usage error and exits where commander does. */
export function parseCommand(argv: readonly string[], env: Environment): DuetCommand {
  let command: DuetCommand | null = null;
  const done = (parsed: DuetCommand) => {
    command = Object.freeze(parsed);
  };
  const cli = new Cli("duet")
    .description("Duet: mixture-of-grouped-experts models on two dies, with an OpenAI-compatible endpoint.")
    .version(VERSION)
    .showHelpAfterError("(add --help for the options)")
    .addHelpText(
      "after",
      `\nWithout a command, 'duet' serves the shipped model; 'duet help <command>' shows examples.\n`,
    );
  addServe(cli, env, done);
  addRun(cli, done);
  addFileCommands(cli, done);
  addMeasureCommands(cli, done);
  addBenchCommands(cli, done);
  try {
    cli.parse(withDefaultCommand(argv), { from: "user" });
  } catch (error) {
    if (error instanceof InvalidArgumentError) cli.error(`error: ${error.message}`);
    throw error;
  }
  if (command === null) process.exit(0);
  return command;
}
