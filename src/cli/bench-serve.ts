// `duet bench serve`: load on a running server, or on the shipped model served by this process; a table, JSON, a figure. Ctrl-C ends
// it early and prints what is there.

import { accessSync, constants, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { DuetError } from "../base/errors.ts";
import { silentLog } from "../base/log.ts";
import { askServed, preparePrompts, type RequestForm } from "../bench/load-client.ts";
import { describeMachine } from "../bench/machine.ts";
import { runServeBench } from "../bench/serve-bench.ts";
import {
  failureLines,
  formatSlo,
  latencyRows,
  SERVE_FORMAT,
  servePanels,
  type ServeReport,
  throughputRow,
} from "../bench/serve-report.ts";
import { renderChart } from "../bench/svg-chart.ts";
import { VERSION } from "../config.ts";
import type { BenchServeCommand } from "../config/bench-serve.ts";
import type { EngineOptions } from "../engine/client.ts";
import { startWorkerEngine } from "../engine/worker-client.ts";
import { isNativeAvailable, openNative } from "../native/library.ts";
import { createApp } from "../server/app.ts";
import { startServer } from "../server/serve.ts";
import { readContainer } from "../weights/container.ts";
import { openServedText } from "./served-text.ts";
import { createProgress, formatTable, print } from "./terminal.ts";

/** Characters of a text that prompts are cut from: enough for any length, and one call of /tokenize. */
const TEXT_CHARACTERS_MAX = 400_000;
/** As shells report a process that Ctrl-C ended. */
const EXIT_INTERRUPTED = 130;

interface OwnServer {
  readonly url: string;
  close(): Promise<void>;
}

async function startOwnServer(options: EngineOptions, apiKey: string | null): Promise<OwnServer> {
  const container = readContainer(options.containerPath);
  const loading = createProgress("reading weights");
  const engine = await startWorkerEngine(options, (done, total) => loading.update(done, total)).finally(() =>
    loading.stop(),
  );
  try {
    const { tokenizer, chatTemplate, defaults } = openServedText(container);
    const app = createApp({
      engine,
      tokenizer,
      chatTemplate,
      defaults,
      modelName: engine.lastStatus.modelName,
      contextMax: engine.lastStatus.contextMax,
      endTokenIds: container.header.endTokenIds,
      log: silentLog,
      keys: apiKey === null ? [] : [apiKey],
    });
    const server = startServer(app, { host: "127.0.0.1", port: 0 });
    process.stderr.write(
      `no address given: serving ${engine.lastStatus.modelName} in this process on ${server.url} (${engine.lastStatus.device.summary})\n`,
    );
    return {
      url: server.url,
      async close() {
        await server.stop(0);
        await engine.close();
      },
    };
  } catch (error) {
    await engine.close();
    throw error;
  }
}

function readText(path: string): string {
  let text: string;
  try {
    text = readFileSync(path, "utf8").slice(0, TEXT_CHARACTERS_MAX).toWellFormed();
  } catch (cause) {
    const next = "give another file with --text";
    throw new DuetError("file_unreadable", "the text for prompts cannot be read", {
      where: path,
      got: String(cause),
      next,
    });
  }
  if (text.trim() !== "") return text;
  throw new DuetError("file_unreadable", "the text for prompts is empty", { where: path });
}

function unwritable(path: string, got: unknown): DuetError {
  const detail = { where: path, got: String(got), next: "give another file with --plot" };
  return new DuetError("file_unwritable", "the figure cannot be written", detail);
}

/** In front of a measurement that may take an hour. */
function checkWritable(path: string): void {
  try {
    accessSync(dirname(path), constants.W_OK);
  } catch (error) {
    throw unwritable(path, error);
  }
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() === true) throw unwritable(path, "a folder");
}

function notesFor(form: RequestForm, isOwnServer: boolean): string[] {
  const notes: string[] = [];
  if (isOwnServer) notes.push("server and load generator share this process and its cores");
  if (!form.served.isDuet) {
    notes.push("not Duet: only OpenAI's own fields are sent, so that answers may end before their drawn length");
    if (form.isEventPerToken) notes.push("--event-per-token has no effect on this server");
  }
  return notes;
}

async function measure(
  command: BenchServeCommand,
  text: string,
  own: OwnServer | null,
  signal: AbortSignal,
): Promise<ServeReport> {
  const target = { url: command.url ?? own?.url ?? "", apiKey: command.apiKey };
  const { api, temperature, isEventPerToken, mix, rates, seconds, warmUpSeconds, connectionMax, slo, seed } = command;
  const served = await askServed(target, command.modelName, signal);
  const form = { api, served, temperature, isEventPerToken };
  const prompts = await preparePrompts(target, form, text, command.isRandomPrompt, signal);
  const machine = describeMachine(isNativeAvailable() ? openNative() : null, new Date());
  const progress = createProgress("load");
  const lines = await runServeBench({
    target,
    form,
    prompts,
    mix,
    rates,
    seconds,
    warmUpSeconds,
    drainSeconds: command.drainSeconds,
    connectionMax,
    slo,
    seed,
    signal,
    onProgress: (done, total, note) => progress.update(done, total, note),
  }).finally(() => progress.stop());
  return {
    format: SERVE_FORMAT,
    duet: VERSION,
    machine,
    url: target.url,
    isOwnServer: own !== null,
    served,
    api,
    prompts: prompts.description,
    mix,
    seed,
    seconds,
    warmUpSeconds,
    connectionMax,
    slo,
    isInterrupted: signal.aborted,
    notes: notesFor(form, own !== null),
    rates: lines,
  };
}

function printReport(report: ServeReport): void {
  const { served, mix, rates } = report;
  print(`${served.modelName} at ${report.url}; mix ${mix.name}; prompts: ${report.prompts}; seed ${report.seed}`);
  print(
    `${report.seconds} s a rate after ${report.warmUpSeconds} s of warm-up; good: ${formatSlo(report.slo)}; generator on ${report.machine.cpu}, load ${report.machine.loadBefore}`,
  );
  for (const note of report.notes) print(`note: ${note}`);
  if (report.isInterrupted) print("note: interrupted; this is what was there");
  print();
  print(formatTable(rates.map(throughputRow)));
  print();
  print(formatTable(rates.flatMap(latencyRows)));
  const failures = rates.flatMap(failureLines);
  if (failures.length > 0) print(`\nfailed:\n${failures.map((line) => `  ${line}`).join("\n")}`);
}

export async function benchServe(command: BenchServeCommand): Promise<number> {
  const text = readText(command.textPath);
  if (command.plotPath !== null) checkWritable(command.plotPath);
  const interruption = new AbortController();
  const onSignal = () => {
    // The second one does not wait for anything.
    if (interruption.signal.aborted) process.exit(EXIT_INTERRUPTED);
    interruption.abort();
  };
  process.on("SIGINT", onSignal);
  let own: OwnServer | null = null;
  try {
    own = command.url === null ? await startOwnServer(command.engine, command.apiKey) : null;
    const report = await measure(command, text, own, interruption.signal);
    if (command.isJson) print(JSON.stringify(report, null, 1));
    else printReport(report);
    if (command.plotPath !== null) writePlot(command.plotPath, report);
    if (report.isInterrupted) return EXIT_INTERRUPTED;
    // Nothing but failures is no measurement.
    return report.rates.some(({ wholeCount, arrivedCount }) => wholeCount > 0 || arrivedCount === 0) ? 0 : 1;
  } catch (error) {
    if (!interruption.signal.aborted) throw error;
    process.stderr.write("duet: interrupted before anything was measured\n");
    return EXIT_INTERRUPTED;
  } finally {
    process.off("SIGINT", onSignal);
    await own?.close();
  }
}

function writePlot(path: string, report: ServeReport): void {
  const title = `${report.served.modelName} under load, mix ${report.mix.name}, good: ${formatSlo(report.slo)}`;
  try {
    writeFileSync(path, renderChart(title, servePanels(report.rates), 2));
  } catch (error) {
    throw unwritable(path, error);
  }
  process.stderr.write(`figure: ${path}\n`);
}
