// Start-up as a user meets it: from the start of a process to the first token on its output, with the container in the page cache
// and without. It starts processes and times them; it touches no model itself.

import { evictFile } from "../native/roof.ts";
import type { Native } from "../native/library.ts";
import { Slab } from "../native/slab.ts";
import { rounded } from "./statistics.ts";

export interface StartUpOptions {
  readonly native: Native;
  readonly containerPath: string;
  readonly containerBytes: number;
  /** Writes one token to its output and ends. */
  readonly command: readonly string[];
  readonly repeatCount: number;
  readonly onRun: (done: number, total: number, what: string) => void;
}

export interface StartUpTimes {
  /** A Bun process that does nothing, start to end. */
  readonly bunMs: readonly number[];
  readonly warmMs: readonly number[];
  /** Empty where the container could not be made cold. */
  readonly coldMs: readonly number[];
  readonly notes: readonly string[];
}

/** More than this share of the file in the page cache is not cold. */
const COLD_SHARE_MAX = 0.02;

async function timeProcess(command: readonly string[]): Promise<number> {
  const startMs = performance.now();
  const child = Bun.spawn([...command], { stdout: "pipe", stderr: "pipe" });
  const reader = child.stdout.getReader();
  await reader.read();
  const firstMs = performance.now() - startMs;
  reader.releaseLock();
  const [status, errors] = await Promise.all([child.exited, new Response(child.stderr).text()]);
  if (status !== 0) throw new Error(`${command.join(" ")} ended with status ${status}: ${errors.trim()}`);
  return rounded(firstMs);
}

/** Drops the file from the page cache and returns which share of it stayed. */
function makeCold({ native, containerPath, containerBytes }: StartUpOptions): number {
  evictFile(native, containerPath);
  const slab = Slab.map(native, containerPath, containerBytes);
  try {
    return slab.residentBytes(0, containerBytes) / containerBytes;
  } finally {
    slab.unmap();
  }
}

/** The container must not be mapped by this process: mapped pages cannot be dropped. */
export async function measureStartUp(options: StartUpOptions): Promise<StartUpTimes> {
  const { command, repeatCount } = options;
  const total = 3 * repeatCount + 1;
  let done = 0;
  const repeat = async (what: string, run: () => Promise<number>): Promise<number[]> => {
    const times: number[] = [];
    for (let i = 0; i < repeatCount; i++) {
      options.onRun(done++, total, what);
      times.push(await run());
    }
    return times;
  };
  options.onRun(done++, total, "reads the container once");
  await timeProcess(command);
  const bunMs = await repeat("Bun alone", () => timeProcess([process.execPath, "-e", "process.stdout.write('.')"]));
  const warmMs = await repeat("page cache warm", () => timeProcess(command));
  const share = makeCold(options);
  if (share > COLD_SHARE_MAX) {
    const kept = `${(share * 100).toFixed(0)} % of the container stayed in the page cache`;
    return { bunMs, warmMs, coldMs: [], notes: [`start-up with a cold page cache could not be measured: ${kept}`] };
  }
  const coldMs = await repeat("page cache cold", () => {
    makeCold(options);
    return timeProcess(command);
  });
  return { bunMs, warmMs, coldMs, notes: [] };
}
