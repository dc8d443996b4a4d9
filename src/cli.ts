// The `duet` command: parses, then hands over to one file per command. Every failure ends as one clear line and a non-zero exit.

import { DuetError, RequestError } from "./base/errors.ts";
import { parseCommand } from "./config.ts";
import type { DuetCommand } from "./config.ts";

/** Commands load on demand, so that `duet --help` and `duet serve` start without what they do not use. Returns the exit status. */
async function execute(command: DuetCommand): Promise<number> {
  switch (command.name) {
    case "serve":
      return (await import("./cli/serve.ts")).serve(command);
    case "run":
      return (await import("./cli/run.ts")).run(command);
    case "pack":
      return (await import("./cli/pack.ts")).pack(command);
    case "synth":
      return (await import("./cli/synth.ts")).synth(command);
    case "inspect":
      return (await import("./cli/inspect.ts")).inspect(command);
    case "eval":
      return (await import("./cli/eval.ts")).evaluate(command);
    case "doctor":
      return (await import("./cli/doctor.ts")).doctor(command);
    case "bench engine":
      return (await import("./cli/bench-engine.ts")).benchEngine(command);
    case "bench roof":
      return (await import("./cli/bench-roof.ts")).benchRoof(command);
    case "bench serve":
      return (await import("./cli/bench-serve.ts")).benchServe(command);
    case "bench compare":
      return (await import("./cli/bench-compare.ts")).benchCompare(command);
  }
}

/** A report may be larger than what a pipe takes at once, and exiting would drop the rest. A reader that has gone ends it too. */
function flushed(): Promise<void> {
  return new Promise((resolve) => {
    process.stdout.on("error", () => resolve());
    process.stdout.end(() => resolve());
  });
}

try {
  const status = await execute(parseCommand(process.argv.slice(2), process.env));
  await flushed();
  process.exit(status);
} catch (error) {
  const isExpected = error instanceof DuetError || error instanceof RequestError;
  process.stderr.write(`duet: ${isExpected ? error.message : Bun.inspect(error)}\n`);
  process.exit(1);
}
