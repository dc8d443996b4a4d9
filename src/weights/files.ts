// Opening and reading regular files with errors that name the path. Nothing here hangs on a FIFO, follows the file's own
// idea of a size, or reads more than it was asked for.

import { closeSync, fstatSync, openSync, readSync, statSync, type Stats } from "node:fs";
import { DuetError } from "../base/errors.ts";

/** A regular file opened for reading; dispose closes it. */
export interface OpenFile extends Disposable {
  readonly path: string;
  readonly fd: number;
  readonly bytes: number;
}

const errnoOf = (error: unknown) => (error as NodeJS.ErrnoException).code ?? String(error);

function describeKind(stats: Stats): string {
  if (stats.isDirectory()) return "a directory";
  if (stats.isFIFO()) return "a FIFO";
  if (stats.isSocket()) return "a socket";
  return "a device";
}

/** Opens a regular file. DuetError `file_missing` or `file_unreadable`; `what` is the noun of the message, `next` its hint. */
export function openRegularFile(path: string, what: string, next: string): OpenFile {
  try {
    const stats = statSync(path); // before open(): opening a FIFO would wait for a writer
    if (!stats.isFile()) {
      throw new DuetError("file_unreadable", `the ${what} is not a regular file`, {
        where: path,
        expected: "a regular file",
        got: describeKind(stats),
        next,
      });
    }
    const fd = openSync(path, "r");
    return { path, fd, bytes: fstatSync(fd).size, [Symbol.dispose]: () => closeSync(fd) };
  } catch (error) {
    if (error instanceof DuetError) throw error;
    const isMissing = errnoOf(error) === "ENOENT" || errnoOf(error) === "ENOTDIR";
    throw new DuetError(
      isMissing ? "file_missing" : "file_unreadable",
      isMissing ? `the ${what} does not exist` : `the ${what} cannot be opened`,
      { where: path, got: errnoOf(error), next },
      { cause: error },
    );
  }
}

/** Fills `out` from `position` on; returns how many bytes the file had there (fewer than asked for at its end). */
export function readAt(file: OpenFile, out: Uint8Array, position: number): number {
  let filled = 0;
  try {
    while (filled < out.byteLength) {
      const got = readSync(file.fd, out, filled, out.byteLength - filled, position + filled);
      if (got === 0) break;
      filled += got;
    }
  } catch (error) {
    throw new DuetError(
      "file_unreadable",
      "reading failed",
      { where: `${file.path}, byte ${position + filled}`, got: errnoOf(error), next: "check the disk" },
      { cause: error },
    );
  }
  return filled;
}

/** DuetError `file_unwritable`: a system call on `path` failed with `error`, or a text says what is in the way. */
export function unwritable(path: string, what: string, error: unknown): DuetError {
  const errno = errnoOf(error);
  return new DuetError(
    "file_unwritable",
    what,
    {
      where: path,
      got: errno,
      next: ["ENOSPC", "EDQUOT", "EFBIG"].includes(errno)
        ? "free disk space or raise the limit, then try again"
        : "choose a folder that you may write to",
    },
    { cause: error },
  );
}
