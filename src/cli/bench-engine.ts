// `duet bench engine`: a model's start-up, prefill, decode and verify speed, and its share of what this machine can do.

import os from "node:os";
import { fileURLToPath } from "node:url";
import { runEngineBench, type StepTimes } from "../bench/engine-bench.ts";
import { type EnginePlan, enginePlan } from "../bench/engine-plan.ts";
import { describeMachine, type Machine } from "../bench/machine.ts";
import { ENGINE_FORMAT, type EngineLine, engineRow, type EngineReport, stepLine } from "../bench/report.ts";
import { chooseDramBytes, shortRoofItems } from "../bench/roof-items.ts";
import { measureRoof, type RoofLine } from "../bench/roof.ts";
import { roofRates } from "../bench/roof-share.ts";
import { measureStartUp } from "../bench/start-up.ts";
import { median, rounded } from "../bench/statistics.ts";
import { VERSION } from "../config.ts";
import type { BenchEngineCommand } from "../config/bench.ts";
import { kvBlockBytes } from "../engine/kv-budget.ts";
import { compileProgram } from "../model/compile.ts";
import { isNativeAvailable, ISA_NAMES, type Native, openNative } from "../native/library.ts";
import { readContainer } from "../weights/container.ts";
import type { Container } from "../weights/header.ts";
import { openModel } from "./open-model.ts";
import { createProgress, formatTable, print } from "./terminal.ts";

const KV_MEMORY_SHARE = 0.35;
const ROOF_RUN_MS = 10;
const QUICK_RUN_MS = 2;
const LINE_MS = 400;
const QUICK_LINE_MS = 20;

interface Measured {
  readonly device: { readonly summary: string; readonly isa: string; readonly laneCount: number };
  readonly steps: readonly StepTimes[];
  readonly roof: readonly RoofLine[];
}

/** The short roof in front of the steps and behind them: what a shared machine does in between is in both. */
async function measureSteps(
  command: BenchEngineCommand,
  container: Container,
  plan: EnginePlan,
  blockBytes: number,
  native: Native | null,
  machine: Machine,
): Promise<Measured> {
  const { engine, isQuick, repeatCount } = command;
  const { rowMax, logitRowMax, kvBlockCount } = plan;
  using open = await openModel(container, engine, { rowMax, logitRowMax, kvBlockCount });
  const device = open.device.describe();
  const progress = createProgress("measuring");
  const total = plan.steps.length + 2;
  const isa = ISA_NAMES.find((name) => name === device.isa);
  const measureShortRoof = async (): Promise<RoofLine[]> => {
    if (native === null || isa === undefined || open.device.kind !== "cpu" || plan.steps.length === 0) return [];
    const dramBytes = chooseDramBytes(machine.cacheBytes, os.freemem(), isQuick);
    const options = {
      laneCount: device.laneCount,
      isa,
      isPinned: engine.isPinned,
      cacheBytes: machine.cacheBytes,
      repeatCount,
      runMs: isQuick ? QUICK_RUN_MS : ROOF_RUN_MS,
      dramBytes,
      mappedPath: container.fileBytes >= dramBytes ? container.path : null,
      mappedBytes: container.fileBytes,
    };
    return measureRoof(native, options, shortRoofItems(options), () => {});
  };
  try {
    const runs = {
      repeatCount,
      lineMs: isQuick ? QUICK_LINE_MS : LINE_MS,
      vocabularySize: container.header.shape.vocabularySize,
      kvBlockBytes: blockBytes,
    };
    progress.update(0, total, "the machine's limits");
    const before = await measureShortRoof();
    let done = 1;
    const steps = await runEngineBench(open.model, plan, runs, ({ step }) => progress.update(++done, total, step.id));
    progress.update(total - 1, total, "the machine's limits");
    const after = await measureShortRoof();
    return { device, steps, roof: [...before, ...after] };
  } finally {
    progress.stop();
  }
}

async function startUpLines(
  command: BenchEngineCommand,
  container: Container,
  native: Native | null,
): Promise<{ lines: EngineLine[]; notes: readonly string[] }> {
  if (!command.kinds.includes("start-up")) return { lines: [], notes: [] };
  if (native === null || command.engine.deviceKind !== "cpu")
    return { lines: [], notes: ["start-up: measured on the cpu device only"] };
  const progress = createProgress("starting");
  const duet = [process.execPath, fileURLToPath(new URL("../cli.ts", import.meta.url))];
  const { threadCount, isa, isPinned, kvType, residency } = command.engine;
  const settings = [
    ...["--speculation", "off", "--kv", kvType, "--weights", residency],
    ...(threadCount === null ? [] : ["--threads", String(threadCount)]),
    ...(isa === null ? [] : ["--isa", isa]),
    ...(isPinned ? ["--pin"] : []),
  ];
  const times = await measureStartUp({
    native,
    containerPath: container.path,
    containerBytes: container.fileBytes,
    command: [...duet, "run", "--model", container.path, ...settings, "--raw", "--max-tokens", "1", "Once"],
    repeatCount: command.repeatCount,
    onRun: (done, total, what) => progress.update(done, total, what),
  }).finally(() => progress.stop());
  const line = (id: string, values: readonly number[]): EngineLine[] =>
    values.length === 0
      ? []
      : [{ id, kind: "start-up", unit: "ms", values, median: rounded(median(values)), step: null }];
  return {
    lines: [
      ...line("start-up/bun", times.bunMs),
      ...line("start-up/warm", times.warmMs),
      ...line("start-up/cold", times.coldMs),
    ],
    notes: times.notes,
  };
}

export async function benchEngine(command: BenchEngineCommand): Promise<number> {
  const { engine } = command;
  const container = readContainer(engine.containerPath);
  const { shape, provenance, recipe, tensors } = container.header;
  const native = isNativeAvailable() ? openNative() : null;
  const machine = describeMachine(native, new Date());
  const blockBytes = kvBlockBytes(compileProgram(container).shape, engine.kvType);
  const plan = enginePlan({
    kinds: command.kinds,
    isQuick: command.isQuick,
    contextMax: shape.contextMax,
    kvBlockBytes: blockBytes,
    kvBytesMax: os.freemem() * KV_MEMORY_SHARE,
  });
  // In front of the model: pages that this process maps could not be dropped from the page cache.
  const startUp = await startUpLines(command, container, native);
  const { device, steps, roof } = await measureSteps(command, container, plan, blockBytes, native, machine);
  const rates = roof.length === 0 ? null : roofRates(roof, device.laneCount, device.isa, machine.cacheBytes);
  const cost = {
    shape,
    weightBytes: tensors.reduce((sum, tensor) => sum + tensor.bytes, 0),
    expertType: recipe.types.experts,
    denseType: recipe.types.attention,
  };
  const report: EngineReport = {
    format: ENGINE_FORMAT,
    duet: VERSION,
    machine,
    lanes: device.laneCount,
    isa: device.isa,
    isPinned: engine.isPinned,
    repeatCount: command.repeatCount,
    notes: [...startUp.notes, ...plan.skipped.map((reason) => `left out: ${reason}`)],
    model: {
      name: provenance.modelName,
      recipe: recipe.name,
      fingerprint: container.fingerprint,
      fileBytes: container.fileBytes,
    },
    device: device.summary,
    kvType: engine.kvType,
    roof,
    lines: [...startUp.lines, ...steps.map((times) => stepLine(times, cost, rates))],
  };
  if (command.isJson) print(JSON.stringify(report, null, 1));
  else printReport(report, rates);
  return 0;
}

function printReport(report: EngineReport, rates: ReturnType<typeof roofRates> | null): void {
  const { model, machine } = report;
  print(
    `${model.name}, recipe ${model.recipe}, KV ${report.kvType}; ${report.device}; ${machine.cpu}, ${machine.compiler}`,
  );
  if (rates !== null) {
    const peak = rates.int8PeakGops === null ? "" : `, int8 peak ${rates.int8PeakGops.toFixed(0)} GOPS`;
    print(`roof of this run: DRAM ${rates.dramGBps.toFixed(1)} GB/s, L3 ${rates.l3GBps.toFixed(1)} GB/s${peak}`);
  }
  for (const note of report.notes) print(`note: ${note}`);
  print();
  print(formatTable(report.lines.map(engineRow)));
}
