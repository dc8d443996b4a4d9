// `duet serve`: the engine in its worker, the HTTP server in front of it, the lines that say what runs where, and an orderly end.

import { relative } from "node:path";
import { createLog } from "../base/log.ts";
import { formatBytes, formatCount, formatMs } from "../base/units.ts";
import { VERSION } from "../config.ts";
import type { ServeCommand } from "../config.ts";
import type { EngineClient } from "../engine/client.ts";
import type { EngineStatus } from "../engine/messages.ts";
import { createApp } from "../server/app.ts";
import { startServer } from "../server/serve.ts";
import type { RunningServer } from "../server/serve.ts";
import { readContainer } from "../weights/container.ts";
import type { Container } from "../weights/header.ts";
import { inspectContainer } from "../weights/inspect.ts";
import { startEngine } from "./start-engine.ts";
import { bold, dim, print } from "./terminal.ts";

/** The exit status for a supervisor: the engine is gone and only a fresh process helps (EX_SOFTWARE). */
const EXIT_ENGINE_FAILED = 70;

function announce(container: Container, status: EngineStatus, server: RunningServer, startMs: number): void {
  const { parameters, recipe } = inspectContainer(container);
  const { device } = status;
  const file = relative(process.cwd(), container.path) || container.path;
  const draft = status.draftModelName === null ? "no draft model" : `draft model ${status.draftModelName}`;
  const size = `${formatCount(parameters.total)} parameters, ${formatCount(parameters.active)} active, ${recipe}`;
  print(`${bold(`Duet ${VERSION}`)}`);
  print(`  model    ${status.modelName} (${size}); ${draft}`);
  print(`  file     ${file} (${formatBytes(container.fileBytes)}, memory-mapped)`);
  print(`  device   ${device.summary}`);
  for (const [dieIndex, place] of device.dies.entries()) print(`  die ${dieIndex}    ${place}`);
  print(
    `  context  ${status.contextMax} tokens; KV ${status.kvType}, ${status.kvBlockCount} blocks of 32 tokens (${formatBytes(status.kvBytes)})`,
  );
  for (const warning of device.warnings) print(`  ${bold("WARNING")}  ${warning}`);
  print(`  ready    in ${formatMs(performance.now() - startMs)}, listening on ${bold(server.url)}`);
  print();
  print(dim("Try it (or open the address in a browser):"));
  print(`  curl ${server.url}/v1/chat/completions -H 'content-type: application/json' \\`);
  print(`    -d '{"messages":[{"role":"user","content":"Tell me a story about a fox and a wolf."}],"max_tokens":120}'`);
}

/** Resolves with the exit status when a signal or a failed engine ends the server. */
export async function serve(command: ServeCommand): Promise<number> {
  const startMs = performance.now();
  const log = createLog(command.log.level, command.log.format);
  const container = readContainer(command.engine.containerPath);
  const { engine, text } = await startEngine(container, command.engine);
  const app = createApp({
    engine,
    tokenizer: text.tokenizer,
    chatTemplate: text.chatTemplate,
    modelName: engine.lastStatus.modelName,
    contextMax: engine.lastStatus.contextMax,
    defaults: text.defaults,
    endTokenIds: container.header.endTokenIds,
    log,
    listenHost: command.host,
    keys: command.apiKeys,
    allowedHosts: command.allowedHosts,
    corsOrigins: command.corsOrigins,
  });
  let server: RunningServer;
  try {
    server = startServer(app, { host: command.host, port: command.port });
  } catch (error) {
    await engine.close();
    throw error;
  }
  // Signals count from before anybody is told that the server is there.
  const ended = untilEnd(command, engine, server, log);
  announce(container, engine.lastStatus, server, startMs);
  return ended;
}

function untilEnd(
  command: ServeCommand,
  engine: EngineClient,
  server: RunningServer,
  log: ReturnType<typeof createLog>,
): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<number>();
  let isStopping = false;
  const stop = async (signal: string) => {
    if (isStopping) {
      log.warn("stopping at once", { signal });
      resolve(1);
      return;
    }
    isStopping = true;
    log.info("finishing what runs; a second signal stops at once", { signal, drainMs: command.drainMs });
    await server.stop(command.drainMs);
    await engine.close();
    resolve(0);
  };
  process.on("SIGTERM", () => void stop("SIGTERM"));
  process.on("SIGINT", () => void stop("SIGINT"));
  engine.onFailure((message) => {
    log.error("the engine has failed", { message, exitStatus: EXIT_ENGINE_FAILED });
    // Answers in flight end with their error first.
    void server.stop(0).then(() => resolve(EXIT_ENGINE_FAILED));
  });
  return promise;
}
