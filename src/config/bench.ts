// The command lines of `duet bench`: a model's speed, the machine's limits, and two reports compared (a server under load: bench-serve.ts).

import { type Command as Cli, InvalidArgumentError, Option } from "commander";
import type { EngineOptions } from "../engine/client.ts";
import { addBenchServe, type BenchServeCommand } from "./bench-serve.ts";
import { engineOptions, integerBetween, isaOption, splitList, threadsOption, withEngineOptions } from "./options.ts";

export const BENCH_KINDS = ["start-up", "prefill", "decode", "verify"] as const;
export type BenchKind = (typeof BENCH_KINDS)[number];

export interface BenchEngineCommand {
  readonly name: "bench engine";
  readonly engine: EngineOptions;
  /** Which lines; all by default. */
  readonly kinds: readonly BenchKind[];
  /** Fewer lines and runs. */
  readonly isQuick: boolean;
  readonly isJson: boolean;
  readonly repeatCount: number;
}

export interface BenchRoofCommand {
  readonly name: "bench roof";
  readonly threadCount: number | null;
  readonly isPinned: boolean;
  readonly isa: string | null;
  readonly isQuick: boolean;
  readonly isJson: boolean;
  readonly repeatCount: number;
}

export interface BenchCompareCommand {
  readonly name: "bench compare";
  readonly beforePath: string;
  readonly afterPath: string;
  readonly isJson: boolean;
}

export type BenchCommand = BenchEngineCommand | BenchRoofCommand | BenchCompareCommand | BenchServeCommand;

const repeatOption = () =>
  new Option("--repeat <count>", "runs per line at least; the median counts (default: 5, quick: 3)").argParser(
    integerBetween(2, 1000),
  );
const quickRepeats = (raw: { repeat?: number; quick: boolean }) => raw.repeat ?? (raw.quick ? 3 : 5);

/** `--only decode,prefill`. */
function benchKinds(text: string): readonly BenchKind[] {
  const kinds = splitList(text);
  const unknown = kinds.find((kind) => !(BENCH_KINDS as readonly string[]).includes(kind));
  if (unknown !== undefined || kinds.length === 0)
    throw new InvalidArgumentError(`expected a list of ${BENCH_KINDS.join(", ")}.`);
  return kinds as BenchKind[];
}

/** `duet bench [container]` means `duet bench engine [container]`. */
export function addBenchCommands(cli: Cli, done: (command: BenchCommand) => void): void {
  const bench = cli
    .command("bench")
    .description("speed: of a model here, of a server under load, of this machine, of one build against another");
  bench.addHelpText(
    "after",
    `
Examples:
  $ duet bench                                   the shipped model (the same as duet bench engine)
  $ duet bench engine model.duet --only decode
  $ duet bench roof
  $ duet bench serve http://127.0.0.1:8080       a server under load
  $ duet bench engine --json > before.json       and, after a change, the same into after.json
  $ duet bench compare before.json after.json`,
  );
  withEngineOptions(
    bench
      .command("engine", { isDefault: true })
      .description("start-up, prefill, decode and verify speed of a model, and its share of this machine's limits")
      .argument("[container]", "default: the shipped model"),
  )
    .option("--only <kinds>", `some lines only: ${BENCH_KINDS.join(",")}`, benchKinds)
    .addOption(repeatOption())
    .option("--quick", "fewer lines and runs", false)
    .option("--json", "machine-readable, with every run", false)
    .addHelpText("after", "\nExample:\n  $ duet bench engine --only decode,prefill --threads 2")
    .action((containerPath: string | undefined, raw) => {
      done({
        name: "bench engine",
        engine: engineOptions(containerPath, raw),
        kinds: raw.only ?? BENCH_KINDS,
        isQuick: raw.quick,
        isJson: raw.json,
        repeatCount: quickRepeats(raw),
      });
    });
  bench
    .command("roof")
    .description("what this machine can do at most: memory, arithmetic, barriers, each kernel")
    .addOption(threadsOption())
    .option("--pin", "pin each lane to a core", false)
    .addOption(isaOption())
    .addOption(repeatOption())
    .option("--quick", "shorter runs over less memory", false)
    .option("--json", "machine-readable, with every run", false)
    .action((raw) => {
      done({
        name: "bench roof",
        threadCount: raw.threads ?? null,
        isPinned: raw.pin,
        isa: raw.isa ?? null,
        isQuick: raw.quick,
        isJson: raw.json,
        repeatCount: quickRepeats(raw),
      });
    });
  addBenchServe(bench, done);
  bench
    .command("compare")
    .description(
      "two reports of `bench engine --json` or `bench roof --json`, line by line, with a test of significance",
    )
    .argument("<before>", "the earlier report")
    .argument("<after>", "the later one")
    .option("--json", "machine-readable", false)
    .action((beforePath: string, afterPath: string, raw) => {
      done({ name: "bench compare", beforePath, afterPath, isJson: raw.json });
    });
}
