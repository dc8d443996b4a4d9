// What a measurement was taken on: written into every report, since a figure without its machine says nothing.

import { readFileSync } from "node:fs";
import os from "node:os";
import { KIB, MIB } from "../base/units.ts";
import type { Native } from "../native/library.ts";

export interface CacheBytes {
  /** Of one core. */
  readonly l2: number;
  /** Shared; as the system states it, of which a virtual machine may own a part. */
  readonly l3: number;
}

export interface Machine {
  readonly cpu: string;
  readonly cpus: number;
  readonly architecture: string;
  readonly system: string;
  readonly memoryBytes: number;
  readonly cacheBytes: CacheBytes;
  readonly compiler: string;
  readonly bun: string;
  readonly date: string;
  /** Runnable threads over the last minute, before the measurement: above 0.5 something else was at work. */
  readonly loadBefore: number;
}

/** "1024K", "32M" as bytes; null for anything else. */
export function parseCacheBytes(text: string): number | null {
  const match = /^(\d+)([KM])$/.exec(text.trim());
  if (match === null) return null;
  return Number(match[1]) * (match[2] === "M" ? MIB : KIB);
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return "";
  }
}

/** Cache sizes of CPU 0 as Linux states them; 1 MiB and 32 MiB where it doesn't. */
export function readCacheBytes(): CacheBytes {
  const found = { l2: MIB, l3: 32 * MIB };
  for (let index = 0; index < 8; index++) {
    const folder = `/sys/devices/system/cpu/cpu0/cache/index${index}`;
    const bytes = parseCacheBytes(readText(`${folder}/size`));
    if (bytes === null || readText(`${folder}/type`) === "Instruction") continue;
    const level = readText(`${folder}/level`);
    if (level === "2") found.l2 = bytes;
    if (level === "3") found.l3 = bytes;
  }
  return found;
}

export function describeMachine(native: Native | null, now: Date): Machine {
  return {
    cpu: native?.cpu.cpuName.trim() ?? os.cpus()[0]?.model.trim() ?? "unknown CPU",
    cpus: native?.cpu.onlineCpus ?? os.availableParallelism(),
    architecture: process.arch,
    system: `${os.type()} ${os.release()}`,
    memoryBytes: os.totalmem(),
    cacheBytes: readCacheBytes(),
    compiler: native?.cpu.compiler ?? "none",
    bun: Bun.version,
    date: now.toISOString(),
    loadBefore: Number((os.loadavg()[0] ?? 0).toFixed(2)),
  };
}
