// The whole house in one process: the shipped models in an engine worker, the application and a socket on a free port, wired as
// `duet serve` wires them. On the cpu device, or on the reference where the kernel library is not built. A server is opened
// once for a test file and closed at its end.

import OpenAI from "openai";
import { defined } from "../../src/base/assert.ts";
import { silentLog } from "../../src/base/log.ts";
import { openServedText } from "../../src/cli/served-text.ts";
import type { EngineOptions } from "../../src/engine/client.ts";
import type { EngineStatus } from "../../src/engine/messages.ts";
import { startWorkerEngine } from "../../src/engine/worker-client.ts";
import { isNativeAvailable } from "../../src/native/library.ts";
import { createApp } from "../../src/server/app.ts";
import { startServer } from "../../src/server/serve.ts";
import type { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import { readContainer } from "../../src/weights/container.ts";
import { engineOptions, FABLE } from "./shipped.ts";

/** Bodies and answers are loose in tests. */
// eslint-disable-next-line @typescript-eslint/no-explicit-any
export type Loose = any;

export const DEVICE_KIND = isNativeAvailable() ? "cpu" : "reference";

/** How long a poll waits for what should happen at once; generous, because the machine may be busy. */
const POLL_MS_MAX = 10_000;

export interface ShippedServer {
  readonly url: string;
  readonly port: number;
  /** Never retries: a test sees each answer. */
  readonly client: OpenAI;
  readonly tokenizer: Tokenizer;
  /** POST with a JSON body. */
  post(path: string, body: unknown, init?: RequestInit): Promise<Response>;
  /** The JSON of a POST that must succeed. */
  ask(path: string, body: unknown): Promise<Loose>;
  /** The engine's part of /v1/status. */
  status(): Promise<EngineStatus>;
  /** Polls /v1/status until `holds`; fails with the last status when that takes too long. */
  until(holds: (status: EngineStatus) => boolean): Promise<EngineStatus>;
  close(): Promise<void>;
}

export async function startShippedServer(fields: Partial<EngineOptions> = {}): Promise<ShippedServer> {
  const container = readContainer(FABLE);
  const { tokenizer, chatTemplate, defaults } = openServedText(container);
  const engine = await startWorkerEngine(engineOptions({ deviceKind: DEVICE_KIND, ...fields }));
  const app = createApp({
    engine,
    tokenizer,
    chatTemplate,
    defaults,
    modelName: engine.lastStatus.modelName,
    contextMax: engine.lastStatus.contextMax,
    endTokenIds: container.header.endTokenIds,
    log: silentLog,
  });
  const { url, port, stop } = startServer(app, { host: "127.0.0.1", port: 0 });

  const post = (path: string, body: unknown, init: RequestInit = {}) =>
    fetch(`${url}${path}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      ...init,
    });
  const status = async () => ((await (await fetch(`${url}/v1/status`)).json()) as { engine: EngineStatus }).engine;
  return {
    url,
    port,
    tokenizer,
    client: new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 }),
    post,
    status,
    async ask(path, body) {
      const response = await post(path, body);
      if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
      return (await response.json()) as Loose;
    },
    async until(holds) {
      const endMs = performance.now() + POLL_MS_MAX;
      let last = await status();
      while (!holds(last)) {
        if (performance.now() > endMs) throw new Error(`/v1/status stays at ${JSON.stringify(last)}`);
        await Bun.sleep(1);
        last = await status();
      }
      return last;
    },
    async close() {
      await stop(0);
      await engine.close();
    },
  };
}

/** The data of a stream of server-sent events; the stream must end with [DONE]. */
export function eventsOf(text: string): Loose[] {
  const data = text.split("\n\n").flatMap((event) => (event.startsWith("data: ") ? [event.slice(6)] : []));
  if (data.at(-1) !== "[DONE]") throw new Error(`the stream ends with ${defined(data.at(-1)).slice(0, 200)}`);
  return data.slice(0, -1).map((json) => JSON.parse(json) as Loose);
}
