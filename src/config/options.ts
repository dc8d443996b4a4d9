// What several commands have in common: parsers of option values, and the options that say which model runs where. Like
// config.ts it opens nothing and starts nothing; it reads neither environment nor argv.

import { fileURLToPath } from "node:url";
import { type Command as Cli, InvalidArgumentError, Option } from "commander";
import type { EngineOptions } from "../engine/client.ts";

export const SHIPPED_CONTAINER = fileURLToPath(new URL("../../models/fable/fable.duet", import.meta.url));
export const SHIPPED_DRAFT = fileURLToPath(new URL("../../models/fable-draft/fable-draft.duet", import.meta.url));
export const SHIPPED_EVAL_TEXT = fileURLToPath(new URL("../../models/fable/validation.txt", import.meta.url));

export function integerBetween(minimum: number, maximum: number) {
  return (text: string): number => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < minimum || value > maximum) {
      throw new InvalidArgumentError(`expected an integer from ${minimum} to ${maximum}.`);
    }
    return value;
  };
}

export function numberBetween(minimum: number, maximum: number) {
  return (text: string): number => {
    const value = Number(text);
    if (!(value >= minimum && value <= maximum)) {
      throw new InvalidArgumentError(`expected a number from ${minimum} to ${maximum}.`);
    }
    return value;
  };
}

export const splitList = (text: string | undefined) =>
  (text ?? "")
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "");

export const threadsOption = () =>
  new Option("--threads <count>", "lanes of the cpu device (default: one per core)").argParser(integerBetween(1, 256));
export const isaOption = () =>
  new Option("--isa <name>", "instruction set (default: the best of this CPU)").choices([
    "plain",
    "avx2",
    "avxvnni",
    "avx512",
    "neon",
  ]);

/** The options that say which model runs where; shared by serve, run, eval and bench. */
export function withEngineOptions(cli: Cli): Cli {
  return cli
    .addOption(new Option("--device <kind>", "what computes").choices(["cpu", "reference"]).default("cpu"))
    .addOption(threadsOption())
    .option("--pin", "pin each lane to a core", false)
    .addOption(isaOption())
    .addOption(new Option("--kv <type>", "KV cache type").choices(["f16", "int8", "f32"]).default("f16"))
    .option(
      "--kv-blocks <count>",
      "KV blocks of 32 tokens (default: from context and memory)",
      integerBetween(1, 1 << 24),
    )
    .addOption(
      new Option("--speculation <mode>", "how drafts are made")
        .choices(["auto", "off", "draft", "ngram"])
        .default("auto"),
    )
    .option("--draft <container>", "draft model (default: the shipped one for the shipped model)")
    .option("--draft-tokens <count>", "draft tokens per cycle at most", integerBetween(1, 64), 4)
    .option("--sequences <count>", "sequences that run at once", integerBetween(1, 256), 16)
    .option("--queue <count>", "waiting requests before 429", integerBetween(0, 1 << 20), 256)
    .option("--prefill-chunk <tokens>", "prompt tokens per step at most", integerBetween(1, 4096), 256)
    .option("--step-ms <ms>", "time budget of a mixed step", numberBetween(1, 60_000), 50)
    .option("--no-prefix-cache", "never reuse the KV of equal prompt beginnings")
    .addOption(
      new Option("--verify <when>", "check the container's checksums")
        .choices(["eager", "background", "off"])
        .default("background"),
    )
    .addOption(
      new Option("--weights <where>", "weights come with their first use, all at start, or are locked in memory")
        .choices(["mmap", "resident", "locked"])
        .default("mmap"),
    );
}

interface RawEngineOptions {
  device: "cpu" | "reference";
  threads?: number;
  pin: boolean;
  isa?: string;
  kv: "f16" | "int8" | "f32";
  kvBlocks?: number;
  speculation: EngineOptions["speculation"];
  draft?: string;
  draftTokens: number;
  sequences: number;
  queue: number;
  prefillChunk: number;
  stepMs: number;
  prefixCache: boolean;
  verify: EngineOptions["verify"];
  weights: EngineOptions["residency"];
}

export function engineOptions(containerPath: string | undefined, raw: RawEngineOptions): EngineOptions {
  const shippedDraft = containerPath === undefined ? SHIPPED_DRAFT : null;
  return Object.freeze({
    containerPath: containerPath ?? SHIPPED_CONTAINER,
    draftContainerPath: raw.draft ?? shippedDraft,
    deviceKind: raw.device,
    threadCount: raw.threads ?? null,
    isPinned: raw.pin,
    isa: raw.isa ?? null,
    kvType: raw.kv,
    kvBlockCount: raw.kvBlocks ?? null,
    sequenceMax: raw.sequences,
    queueMax: raw.queue,
    prefillChunkMax: raw.prefillChunk,
    speculation: raw.speculation,
    draftTokenMax: raw.draftTokens,
    isPrefixCached: raw.prefixCache,
    stepMsTarget: raw.stepMs,
    verify: raw.verify,
    residency: raw.weights,
  });
}
