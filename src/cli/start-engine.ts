// Starts the engine in its worker while this thread builds the tokenizer: what `serve` and `run` have in common.

import type { EngineClient, EngineOptions } from "../engine/client.ts";
import { startWorkerEngine } from "../engine/worker-client.ts";
import type { Container } from "../weights/header.ts";
import { openServedText, type ServedText } from "./served-text.ts";
import { createProgress } from "./terminal.ts";

/** DuetError when container, device or memory don't do. */
export async function startEngine(
  container: Container,
  options: EngineOptions,
): Promise<{ engine: EngineClient; text: ServedText }> {
  const loading = createProgress("reading weights");
  const starting = startWorkerEngine(options, (done, total) => loading.update(done, total)).finally(() =>
    loading.stop(),
  );
  // Should the tokenizer fail first, that is the error to tell.
  starting.catch(() => {});
  const text = openServedText(container);
  return { engine: await starting, text };
}
