// Where a mapped container's pages are: brought in by the first use, all brought in at start, or locked in memory. Owns
// neither mapping nor pages; no weight is ever copied.

import { DuetError } from "../../base/errors.ts";
import { formatBytes, MIB } from "../../base/units.ts";
import type { Slab } from "../../native/slab.ts";

/** `mmap`: the first use of a page brings it; `resident`: all are there before the first step; `locked`: and stay there. */
export type Residency = "mmap" | "resident" | "locked";

/** Hears how much of a container is in memory, while it is brought there. */
export type LoadingListener = (bytesDone: number, bytesTotal: number) => void;

/** Brought in at once; progress is reported after each. A multiple of the huge page. */
const PIECE_BYTES = 64 * MIB;
/** Weights beyond this share of memory would push each other out again. */
const MEMORY_SHARE = 0.9;
/**
 * Below this share of huge pages the container is read from disk once more: small pages in the page cache, as single faults
 * or a file written into fragmented memory leave them, cost a tenth to a quarter of the read rate for as long as they stay.
 */
const HUGE_SHARE_MIN = 0.5;

/** DuetError `out_of_memory` for weights that memory can't hold, or that the system refuses to lock. */
export function makeResident(
  slab: Slab,
  residency: Residency,
  memoryBytes: number,
  onLoading: LoadingListener = () => {},
): void {
  if (residency === "mmap") return;
  if (slab.bytes > memoryBytes * MEMORY_SHARE) {
    throw new DuetError("out_of_memory", `the weights are too large to be ${residency}`, {
      where: slab.path,
      expected: `at most ${formatBytes(memoryBytes * MEMORY_SHARE)}, as memory is ${formatBytes(memoryBytes)}`,
      got: formatBytes(slab.bytes),
      next: "choose --weights mmap",
    });
  }
  // What the system refuses is found out before minutes of reading.
  if (residency === "locked") slab.lock(0, Math.min(PIECE_BYTES, slab.bytes));
  populate(slab, onLoading);
  if (slab.bytes > PIECE_BYTES && (slab.hugeBytes() ?? Infinity) < HUGE_SHARE_MIN * slab.bytes && canBeHuge(slab)) {
    slab.advise(0, slab.bytes, "pageOut");
    populate(slab, onLoading);
  }
  if (residency === "locked") slab.lock(0, slab.bytes);
}

/** Whether the page cache holds this file in huge pages at all: some file systems and kernels don't. Tries with one piece. */
function canBeHuge(slab: Slab): boolean {
  if (slab.hugeBytes() !== 0) return true;
  slab.advise(0, PIECE_BYTES, "pageOut");
  slab.advise(0, PIECE_BYTES, "populate");
  return slab.hugeBytes() !== 0;
}

function populate(slab: Slab, onLoading: LoadingListener): void {
  for (let offset = 0; offset < slab.bytes; offset += PIECE_BYTES) {
    const bytes = Math.min(PIECE_BYTES, slab.bytes - offset);
    slab.advise(offset, bytes, "populate");
    onLoading(offset + bytes, slab.bytes);
  }
}
