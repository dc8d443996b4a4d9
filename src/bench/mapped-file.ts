// A file of ones to map, for timing reads from the page cache: made in the system's folder for temporary files, and removed.

import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { MIB } from "../base/units.ts";

/** Written in pieces of this size, as containers are: the page cache then uses large folios. */
const PIECE_BYTES = 2 * MIB;

/** Calls `work` with the path of a file of `bytes` bytes, or with null and the reason where it cannot be written. */
export async function withMappedFile<T>(
  bytes: number,
  work: (path: string | null, reason: string | null) => Promise<T>,
): Promise<T> {
  const folder = mkdtempSync(join(os.tmpdir(), "duet-roof-"));
  try {
    const path = join(folder, "memory");
    const reason = write(path, bytes);
    return reason === null ? await work(path, null) : await work(null, `${os.tmpdir()}: ${reason}`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function write(path: string, bytes: number): string | null {
  const file = openSync(path, "w");
  try {
    const piece = new Uint8Array(PIECE_BYTES).fill(1);
    for (let at = 0; at < bytes;) at += writeSync(file, piece, 0, Math.min(piece.length, bytes - at));
    return null;
  } catch (error) {
    return String(error);
  } finally {
    closeSync(file);
  }
}
