// A container file mapped by native code. TypeScript never holds a view of the weights: it names ranges by offset and bytes.

import { type Pointer, ptr } from "bun:ffi";
import { readFileSync, realpathSync } from "node:fs";
import { assert } from "../base/assert.ts";
import { DuetError } from "../base/errors.ts";
import { STATUS } from "./binding.ts";
import { checkStatus, HandleOut, lastError, type Native } from "./library.ts";

/** What the kernel is told about a range's use. */
export const ADVICE = {
  normal: 0,
  willNeed: 1,
  random: 2,
  sequential: 3,
  dontNeed: 4,
  hugePages: 5,
  /** Reads the range into the page cache before it returns. */
  populate: 6,
  /** Keeps the range in memory until the slab is unmapped. */
  lock: 7,
  /** Takes the range out of the page cache, so that the next use reads the disk. */
  pageOut: 8,
} as const;

export class Slab {
  #handle: Pointer | null;

  private constructor(
    private readonly native: Native,
    readonly path: string,
    readonly bytes: number,
    handle: Pointer,
  ) {
    this.#handle = handle;
  }

  /** Maps a file of exactly `bytes` bytes. DuetError `file_unreadable` when it cannot be opened or has another length. */
  static map(native: Native, path: string, bytes: number): Slab {
    const out = new HandleOut();
    const { symbols } = native;
    // `cstring` arguments take strings, which the types of bun:ffi do not say.
    checkStatus(symbols, symbols.duet_slab_map(path as unknown as Pointer, bytes, out.address), `map ${path}`);
    return new Slab(native, path, bytes, out.value);
  }

  get handle(): Pointer {
    assert(this.#handle !== null, "the slab is mapped");
    return this.#handle;
  }

  /** Faults that were repaired with zero pages; above 0 the file has shrunk and what was computed is void. */
  get faultCount(): number {
    return this.native.symbols.duet_slab_fault_count(this.handle);
  }

  /** XXH64 (seed 0) of a range. DuetError `device_fault` when the mapping was lost. */
  hash(offset: number, bytes: number): bigint {
    const out = new BigUint64Array(1);
    const { symbols } = this.native;
    checkStatus(symbols, symbols.duet_slab_hash(this.handle, offset, bytes, ptr(out)), `hash ${this.path}`);
    return out[0] ?? 0n;
  }

  advise(offset: number, bytes: number, advice: keyof typeof ADVICE): void {
    const { symbols } = this.native;
    checkStatus(symbols, symbols.duet_slab_advise(this.handle, offset, bytes, ADVICE[advice]), `advise ${this.path}`);
  }

  /** Locks a range in memory until the slab is unmapped. DuetError `out_of_memory` where the system refuses. */
  lock(offset: number, bytes: number): void {
    const { symbols } = this.native;
    const status = symbols.duet_slab_advise(this.handle, offset, bytes, ADVICE.lock);
    if (status === STATUS.noMemory) {
      throw new DuetError("out_of_memory", "the system refuses to lock the weights in memory", {
        where: this.path,
        expected: `a limit on locked memory (RLIMIT_MEMLOCK) of at least ${this.bytes} bytes`,
        got: lastError(symbols),
        next:
          "raise it (ulimit -l unlimited; LimitMEMLOCK=infinity in a systemd unit; --ulimit memlock=-1 for a container), " +
          "or choose --weights resident",
      });
    }
    checkStatus(symbols, status, `lock ${this.path}`);
  }

  /** Bytes of the file that this process maps by huge pages; null where the system doesn't say. */
  hugeBytes(): number | null {
    try {
      return hugeBytesOf(readFileSync("/proc/self/smaps", "utf8"), realpathSync(this.path));
    } catch {
      return null;
    }
  }

  /** Bytes of a range that are in the page cache. */
  residentBytes(offset: number, bytes: number): number {
    const out = new BigUint64Array(1);
    const { symbols } = this.native;
    checkStatus(symbols, symbols.duet_slab_resident(this.handle, offset, bytes, ptr(out)), `inspect ${this.path}`);
    return Number(out[0] ?? 0n);
  }

  /** No model may use it any more. A second call does nothing. */
  unmap(): void {
    if (this.#handle === null) return;
    const { symbols } = this.native;
    const handle = this.#handle;
    this.#handle = null;
    checkStatus(symbols, symbols.duet_slab_unmap(handle), `unmap ${this.path}`);
  }
}

/** The sum of FilePmdMapped over a file's mappings in a text like /proc/self/smaps; null when it isn't there. */
export function hugeBytesOf(smaps: string, path: string): number | null {
  let isOurs = false;
  let bytes: number | null = null;
  for (const line of smaps.split("\n")) {
    if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) isOurs = line.endsWith(` ${path}`);
    const kib = isOurs ? /^FilePmdMapped:\s+(\d+) kB$/.exec(line)?.[1] : undefined;
    if (kib !== undefined) bytes = (bytes ?? 0) + Number(kib) * 1024;
  }
  return bytes;
}
