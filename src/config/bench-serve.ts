// The command line of `duet bench serve`: which server, how much load, what counts as good. Like config.ts it opens nothing.

import { type Command as Cli, InvalidArgumentError, Option } from "commander";
import type { Api } from "../bench/load-client.ts";
import { type LengthMix, NAMED_MIXES, parseMix } from "../bench/load-schedule.ts";
import type { Slo } from "../bench/load-summary.ts";
import type { EngineOptions } from "../engine/client.ts";
import {
  engineOptions,
  integerBetween,
  numberBetween,
  SHIPPED_EVAL_TEXT,
  splitList,
  withEngineOptions,
} from "./options.ts";

export interface BenchServeCommand {
  readonly name: "bench serve";
  /** null: the shipped model, in this process. */
  readonly url: string | null;
  readonly engine: EngineOptions;
  readonly apiKey: string | null;
  /** null: the first that the server has. */
  readonly modelName: string | null;
  readonly api: Api;
  readonly mix: LengthMix;
  readonly textPath: string;
  readonly isRandomPrompt: boolean;
  readonly temperature: number | null;
  readonly isEventPerToken: boolean;
  /** Requests a second, one after the other. */
  readonly rates: readonly number[];
  readonly seconds: number;
  readonly warmUpSeconds: number;
  readonly drainSeconds: number;
  readonly connectionMax: number;
  readonly slo: Slo;
  readonly seed: number;
  readonly isJson: boolean;
  readonly plotPath: string | null;
}

const RATE_MAX = 1000;
const RATES_MAX = 64;
/** Bun's fetch opens no more at once. */
const CONNECTIONS_MAX = 256;
const SLO_FIELDS: Readonly<Record<string, keyof Slo>> = { ttft: "ttftMs", tpot: "tpotMs", e2e: "endToEndMs" };

/** `http://host:port`, with or without /v1; loopback only unless `isRemoteAllowed`. */
export function parseServerUrl(text: string, isRemoteAllowed: boolean): string {
  const url = URL.parse(text);
  const isHttp = url !== null && (url.protocol === "http:" || url.protocol === "https:");
  if (!isHttp || url.search !== "" || url.hash !== "" || url.username !== "" || url.password !== "") {
    throw new InvalidArgumentError(`expected an address as http://127.0.0.1:8080, got '${text}'.`);
  }
  // URL has already written 127.1, 0x7f000001 and the like as four decimal numbers.
  const isLoopback = /^(?:localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(url.hostname);
  if (!isLoopback && !isRemoteAllowed) {
    throw new InvalidArgumentError(
      `${url.hostname} is not this machine: add --allow-remote to put load on another one (expected localhost, 127.0.0.1 or [::1]).`,
    );
  }
  return url.origin + url.pathname.replace(/\/+$/, "").replace(/\/v1$/, "");
}

/** `ttft=500ms,tpot=50ms,e2e=10s`, each at most once. */
export function parseSlo(text: string): Slo {
  const slo = { ttftMs: null, tpotMs: null, endToEndMs: null } as Record<keyof Slo, number | null>;
  const limits = splitList(text);
  for (const limit of limits) {
    const match = /^(\w+)=(\d+(?:\.\d+)?)(ms|s)$/.exec(limit);
    const field = SLO_FIELDS[match?.[1] ?? ""];
    const ms = Number(match?.[2]) * (match?.[3] === "s" ? 1000 : 1);
    if (field === undefined || !(ms > 0) || slo[field] !== null) {
      throw new InvalidArgumentError("expected limits as ttft=500ms,tpot=50ms,e2e=10s.");
    }
    slo[field] = ms;
  }
  if (limits.length === 0) throw new InvalidArgumentError("expected limits as ttft=500ms,tpot=50ms,e2e=10s.");
  return slo;
}

function parseRates(text: string): readonly number[] {
  const rates = splitList(text).map(numberBetween(0.01, RATE_MAX));
  if (rates.length === 0 || rates.length > RATES_MAX) {
    throw new InvalidArgumentError(`expected 1 to ${RATES_MAX} rates as 1,2,4,8.`);
  }
  return rates;
}

function parseMixOption(text: string): LengthMix {
  const mix = parseMix(text);
  if (mix !== null) return mix;
  const names = NAMED_MIXES.map(({ name }) => name).join(", ");
  throw new InvalidArgumentError(`expected ${names}, or fixed:IN/OUT in tokens.`);
}

const DEFAULT_SLO = "ttft=500ms,tpot=50ms";

/** Options of a server that this command starts have no effect on another one: naming both is a mistake. */
function refuseEngineOptions(command: Cli, engineNames: ReadonlySet<string>): void {
  const given = command.options.find(
    (option) =>
      engineNames.has(option.long ?? "") &&
      command.getOptionValueSource(option.attributeName()) !== "default" &&
      command.getOptionValueSource(option.attributeName()) !== undefined,
  );
  if (given === undefined) return;
  throw new InvalidArgumentError(`option '${given.long}' is for the server that is started without an address.`);
}

export function addBenchServe(bench: Cli, done: (command: BenchServeCommand) => void): void {
  const cli = withEngineOptions(
    bench
      .command("serve")
      .description("put load on a running OpenAI-compatible server: latency, goodput and throughput at several rates")
      .argument(
        "[url]",
        "its address (default: starts the shipped model in this process; the engine's options are for that)",
      ),
  );
  const engineNames = new Set(cli.options.map((option) => option.long ?? ""));
  cli
    .option("--rates <list>", "requests a second, one after the other", parseRates, [1, 2, 4, 8])
    .option("--seconds <count>", "measured time of each rate", numberBetween(0.1, 86_400), 10)
    .option("--warm-up <seconds>", "load in front of it that does not count", numberBetween(0, 3600), 2)
    .option("--drain <seconds>", "how long answers may take after it", numberBetween(0, 3600), 30)
    .addOption(
      new Option("--mix <name>", `lengths: ${NAMED_MIXES.map(({ name }) => name).join(", ")}, fixed:IN/OUT`)
        .argParser(parseMixOption)
        .default(parseMix("chat"), "chat"),
    )
    .addOption(
      new Option("--slo <limits>", "what counts as good: ttft, tpot, e2e")
        .argParser(parseSlo)
        .default(parseSlo(DEFAULT_SLO), DEFAULT_SLO),
    )
    .addOption(new Option("--api <name>", "which route").choices(["completions", "chat"]).default("completions"))
    .option(
      "--text <file>",
      "where prompts are cut from (default: the shipped model's held-out text)",
      SHIPPED_EVAL_TEXT,
    )
    .addOption(
      new Option("--prompts <kind>", "slices of the text, or random token ids (Duet only)")
        .choices(["text", "random"])
        .default("text"),
    )
    .option("--temperature <value>", "0 is greedy (default: the server's)", numberBetween(0, 100))
    .option("--event-per-token", "one event for each token (Duet only; default: what comes together)", false)
    .option("--connections <count>", "open at once, at most", integerBetween(1, CONNECTIONS_MAX), 128)
    .option("--model <name>", "which model (default: the server's first)")
    .option("--api-key <key>", "the server's bearer key")
    .option("--allow-remote", "put load on another machine than this one", false)
    .option("--seed <number>", "the same seed sends the same at the same times", integerBetween(0, 1_000_000), 1)
    .option("--json", "machine-readable, with every request", false)
    .option("--plot <file>", "write a figure (SVG)")
    .addHelpText(
      "after",
      `
Examples:
  $ duet bench serve                                    the shipped model
  $ duet bench serve http://127.0.0.1:8080 --rates 1,2,4,8,16 --seconds 60 --plot load.svg
  $ duet bench serve http://127.0.0.1:8000 --mix fixed:512/128 --slo ttft=1s,tpot=100ms`,
    )
    .action((address: string | undefined, raw) => {
      if (address !== undefined) refuseEngineOptions(cli, engineNames);
      done({
        name: "bench serve",
        url: address === undefined ? null : parseServerUrl(address, raw.allowRemote),
        engine: engineOptions(undefined, raw),
        apiKey: raw.apiKey ?? null,
        modelName: raw.model ?? null,
        api: raw.api,
        mix: raw.mix,
        textPath: raw.text,
        isRandomPrompt: raw.prompts === "random",
        temperature: raw.temperature ?? null,
        isEventPerToken: raw.eventPerToken,
        rates: raw.rates,
        seconds: raw.seconds,
        warmUpSeconds: raw.warmUp,
        drainSeconds: raw.drain,
        connectionMax: raw.connections,
        slo: raw.slo,
        seed: raw.seed,
        isJson: raw.json,
        plotPath: raw.plot ?? null,
      });
    });
}
