// `duet bench`: prefill, decode and verify speed of a model on this machine.

import { benchKvBlocks, benchPlan, benchRow, benchRowMax, runEngineBench } from "../bench/engine-bench.ts";
import type { BenchCommand } from "../config.ts";
import { readContainer } from "../weights/container.ts";
import { openModel } from "./open-model.ts";
import { createProgress, formatTable, print } from "./terminal.ts";

export async function bench(command: BenchCommand): Promise<number> {
  const container = readContainer(command.engine.containerPath);
  const { shape, provenance, recipe } = container.header;
  const plan = benchPlan(shape.contextMax, shape.vocabularySize, command.repeatCount);
  const rowMax = benchRowMax(plan);
  const sizes = { rowMax, logitRowMax: 16, kvBlockCount: benchKvBlocks(plan) };
  using open = await openModel(container, command.engine, sizes);
  const device = open.device.describe();
  const lineCount = plan.prefillTokens.length + plan.decodeBatches.length + plan.verifyRows.length;
  const progress = createProgress("measuring");
  let done = 0;
  const lines = await runEngineBench(open.model, plan, (line) => {
    progress.update(++done, lineCount, `${line.kind} ${line.rows} rows`);
  });
  progress.stop();
  const about = { model: provenance.modelName, recipe: recipe.name, kvType: command.engine.kvType };
  if (command.isJson) {
    print(JSON.stringify({ ...about, device, repeatCount: command.repeatCount, lines }, null, 2));
    return 0;
  }
  print(
    `${about.model}, recipe ${about.recipe}, KV ${about.kvType}; ${device.summary}; median of ${command.repeatCount} runs`,
  );
  for (const warning of device.warnings) print(`WARNING: ${warning}`);
  print();
  print(formatTable(lines.map(benchRow)));
  return 0;
}
