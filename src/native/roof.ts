// Timing of the machine's limits through the kernel library: lanes of its own, and runs of one task after another on them.
// What to run, and what the numbers mean, is bench/roof.ts's.

import type { Pointer } from "bun:ffi";
import { assert } from "../base/assert.ts";
import { ISA, KV_TYPE, QUANT_TYPE, ROOF_KIND, ROOF_RESULT_STRUCT, ROOF_TASK_STRUCT } from "./binding.ts";
import { checkStatus, HandleOut, type IsaName, type Native } from "./library.ts";
import type { Slab } from "./slab.ts";
import { StructArray } from "./struct.ts";

/** One thing to time; fields as in kernels.h (duet_roof_task), 0 or absent where a kind has no use for them. */
export interface RoofTask {
  readonly kind: keyof typeof ROOF_KIND;
  readonly quantType?: "q4" | "q8";
  readonly kvType?: keyof typeof KV_TYPE;
  readonly rowCount?: number;
  readonly columnCount?: number;
  readonly queryHeadCount?: number;
  readonly headDim?: number;
  readonly keyCount?: number;
  readonly isPrefetched?: boolean;
  /** Of each lane. */
  readonly bytes?: number;
  /** Reads from here instead of anonymous memory. */
  readonly slab?: Slab;
}

/** One timed run; bytes and operations are those of all lanes and passes. */
export interface RoofRun {
  readonly nanoseconds: number;
  readonly bytes: number;
  readonly operations: number;
  readonly passCount: number;
}

/** The lanes of one device, for timing only. */
export class RoofLanes {
  #device: Pointer | null;

  constructor(
    private readonly native: Native,
    readonly laneCount: number,
    readonly isa: IsaName,
    isPinned: boolean,
  ) {
    const out = new HandleOut();
    const { symbols } = native;
    const status = symbols.duet_device_create(laneCount, ISA[isa], isPinned ? 1 : 0, out.address);
    checkStatus(symbols, status, `start ${laneCount} lanes`);
    this.#device = out.value;
  }

  /** `repeatCount` runs of at least half of `runMs` each, after one that warms up and finds how many passes that takes. */
  measure(task: RoofTask, repeatCount: number, runMs: number): RoofRun[] {
    assert(this.#device !== null, "the lanes run");
    const { symbols } = this.native;
    const out = new HandleOut();
    const struct = encodeTask(task);
    const status = symbols.duet_roof_open(this.#device, struct.address as Pointer, out.address);
    checkStatus(symbols, status, `prepare the measurement of ${task.kind}`);
    const roof = out.value;
    try {
      let passCount = 1;
      for (let first = this.#run(roof, passCount); first.nanoseconds < runMs * 5e5;) {
        const wanted = Math.ceil((passCount * runMs * 1e6) / Math.max(first.nanoseconds, 1));
        passCount = Math.min(Math.max(wanted, passCount * 2), passCount * 1000);
        first = this.#run(roof, passCount);
      }
      return Array.from({ length: repeatCount }, () => this.#run(roof, passCount));
    } finally {
      checkStatus(symbols, symbols.duet_roof_close(roof), "end a measurement");
    }
  }

  /** A second call does nothing. */
  close(): void {
    if (this.#device === null) return;
    const device = this.#device;
    this.#device = null;
    checkStatus(this.native.symbols, this.native.symbols.duet_device_destroy(device), "stop the lanes");
  }

  #run(roof: Pointer, passCount: number): RoofRun {
    const { fields } = ROOF_RESULT_STRUCT;
    const result = new StructArray(ROOF_RESULT_STRUCT, 1);
    const { symbols } = this.native;
    checkStatus(symbols, symbols.duet_roof_run(roof, passCount, result.address as Pointer), "measure");
    return {
      nanoseconds: result.u64(0, fields.nanoseconds),
      bytes: result.u64(0, fields.bytes),
      operations: result.u64(0, fields.operations),
      passCount,
    };
  }
}

function encodeTask(task: RoofTask): StructArray {
  const { fields } = ROOF_TASK_STRUCT;
  const struct = new StructArray(ROOF_TASK_STRUCT, 1);
  struct.setU32(0, fields.kind, ROOF_KIND[task.kind]);
  struct.setU32(0, fields.quantType, QUANT_TYPE[task.quantType ?? "q4"]);
  struct.setU32(0, fields.kvType, KV_TYPE[task.kvType ?? "f16"]);
  struct.setU32(0, fields.rowCount, task.rowCount ?? 0);
  struct.setU32(0, fields.columnCount, task.columnCount ?? 0);
  struct.setU32(0, fields.queryHeadCount, task.queryHeadCount ?? 0);
  struct.setU32(0, fields.headDim, task.headDim ?? 0);
  struct.setU32(0, fields.keyCount, task.keyCount ?? 0);
  struct.setU32(0, fields.isPrefetched, task.isPrefetched === true ? 1 : 0);
  struct.setU64(0, fields.bytes, task.bytes ?? 0);
  struct.setU64(0, fields.slab, task.slab?.handle ?? 0);
  return struct;
}

/** Asks the system to drop a file from the page cache; what another process maps stays. DuetError `file_unreadable`. */
export function evictFile(native: Native, path: string): void {
  // `cstring` arguments take strings, which the types of bun:ffi do not say.
  checkStatus(native.symbols, native.symbols.duet_file_evict(path as unknown as Pointer), `evict ${path}`);
}
