// Writing a new file front to back in large aligned pieces, with its front patched at the end, under a temporary name until
// it is whole. Every failed system call is a DuetError `file_unwritable`. Knows nothing of containers.

import { closeSync, fsyncSync, openSync, renameSync, unlinkSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { assert } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import { unwritable } from "./files.ts";

/** Written at once, at multiples of it, so that the page cache can use large folios. */
const WRITE_BYTES = 4 * MIB;

/** A file being written; bytes that are skipped are zero. End with `renameTo` or `abandon`. */
export class AlignedWriter {
  readonly #fd: number;
  readonly #piece = new Uint8Array(WRITE_BYTES);
  #pieceStart = 0;
  #filled = 0;
  #isOpen = true;

  constructor(readonly path: string) {
    try {
      this.#fd = openSync(path, "wx");
    } catch (error) {
      throw unwritable(path, "the container cannot be created", error);
    }
  }

  /** Appends `bytes` at `offset`, which must not lie before what was written. */
  writeAt(offset: number, bytes: Uint8Array): void {
    assert(offset >= this.#pieceStart + this.#filled, "writes must ascend");
    this.#zeroTo(offset);
    for (let from = 0; from < bytes.byteLength;) {
      const count = Math.min(WRITE_BYTES - this.#filled, bytes.byteLength - from);
      this.#piece.set(bytes.subarray(from, from + count), this.#filled);
      this.#filled += count;
      from += count;
      if (this.#filled === WRITE_BYTES) this.#flush();
    }
  }

  /** Pads to `fileBytes`, writes `front` over the file's start, and makes all of it durable. */
  finish(fileBytes: number, front: Uint8Array): void {
    this.#zeroTo(fileBytes);
    this.#flush();
    this.#write(front, 0);
    try {
      fsyncSync(this.#fd);
    } catch (error) {
      throw unwritable(this.path, "the container cannot be made durable", error);
    }
  }

  renameTo(path: string): void {
    this.#close();
    try {
      renameSync(this.path, path);
      const folder = openSync(dirname(path), "r");
      fsyncSync(folder);
      closeSync(folder);
    } catch (error) {
      throw unwritable(path, "the finished container cannot be put in place", error);
    }
  }

  /** Removes the unfinished file. */
  abandon(): void {
    this.#close();
    try {
      unlinkSync(this.path);
    } catch {
      // Already renamed, or already gone: nothing is left to remove.
    }
  }

  #zeroTo(offset: number): void {
    while (this.#pieceStart + this.#filled < offset) {
      const count = Math.min(WRITE_BYTES - this.#filled, offset - this.#pieceStart - this.#filled);
      this.#piece.fill(0, this.#filled, this.#filled + count);
      this.#filled += count;
      if (this.#filled === WRITE_BYTES) this.#flush();
    }
  }

  #flush(): void {
    this.#write(this.#piece.subarray(0, this.#filled), this.#pieceStart);
    this.#pieceStart += this.#filled;
    this.#filled = 0;
  }

  #write(bytes: Uint8Array, position: number): void {
    try {
      for (let written = 0; written < bytes.byteLength;) {
        written += writeSync(this.#fd, bytes, written, bytes.byteLength - written, position + written);
      }
    } catch (error) {
      throw unwritable(this.path, "writing the container failed", error);
    }
  }

  #close(): void {
    if (this.#isOpen) closeSync(this.#fd);
    this.#isOpen = false;
  }
}
