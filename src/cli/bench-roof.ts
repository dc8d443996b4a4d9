// `duet bench roof`: what this machine can do at most.

import os from "node:os";
import { describeMachine } from "../bench/machine.ts";
import { withMappedFile } from "../bench/mapped-file.ts";
import { type RoofReport, ROOF_FORMAT } from "../bench/report.ts";
import { chooseDramBytes, roofItems } from "../bench/roof-items.ts";
import { measureRoof, roofRow } from "../bench/roof.ts";
import { VERSION } from "../config.ts";
import type { BenchRoofCommand } from "../config/bench.ts";
import { chooseIsa, openNative } from "../native/library.ts";
import { createProgress, formatTable, print } from "./terminal.ts";

const RUN_MS = 20;
const QUICK_RUN_MS = 2;

export async function benchRoof(command: BenchRoofCommand): Promise<number> {
  const native = openNative();
  const machine = describeMachine(native, new Date());
  const isa = chooseIsa(native, command.isa);
  const laneCount = command.threadCount ?? native.cpu.onlineCpus;
  const dramBytes = chooseDramBytes(machine.cacheBytes, os.freemem(), command.isQuick);
  const progress = createProgress("measuring");
  const notes: string[] = [];
  const lines = await withMappedFile(dramBytes, (mappedPath, reason) => {
    if (reason !== null) notes.push(`reading from a mapped file could not be measured: ${reason}`);
    const options = {
      laneCount,
      isa,
      isPinned: command.isPinned,
      cacheBytes: machine.cacheBytes,
      repeatCount: command.repeatCount,
      runMs: command.isQuick ? QUICK_RUN_MS : RUN_MS,
      dramBytes,
      mappedPath,
      mappedBytes: dramBytes,
    };
    const items = roofItems(options, native.cpu.isas);
    return measureRoof(native, options, items, (index, item) => progress.update(index, items.length, item.what));
  }).finally(() => progress.stop());
  const report: RoofReport = {
    format: ROOF_FORMAT,
    duet: VERSION,
    machine,
    lanes: laneCount,
    isa,
    isPinned: command.isPinned,
    repeatCount: command.repeatCount,
    notes,
    lines,
  };
  if (command.isJson) {
    print(JSON.stringify(report, null, 1));
    return 0;
  }
  print(`${machine.cpu}, ${laneCount} lanes, ${isa}, ${machine.compiler}; median of ${command.repeatCount} runs`);
  for (const note of notes) print(`note: ${note}`);
  print();
  print(formatTable(lines.map(roofRow)));
  return 0;
}
