// Where weights are: brought in at start with progress, locked as far as the system lets, refused clearly where it doesn't.

import { describe, expect, test } from "bun:test";
import { readFileSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { makeResident } from "../../../src/device/cpu/residency.ts";
import { isNativeAvailable, openNative } from "../../../src/native/library.ts";
import { hugeBytesOf, Slab } from "../../../src/native/slab.ts";
import { expectDuetError } from "../../weights/expect-duet-error.ts";
import { temporaryFolder } from "../../weights/temporary-folder.ts";

const SOURCE = join(import.meta.dir, "../../../src");
const CLI = join(SOURCE, "cli.ts");
const folder = temporaryFolder("residency");
/** A file in tmpfs has nowhere to be paged out to. */
const isInMemory = statfsSync(folder).type === 0x01021994;
const isRoot = process.getuid?.() === 0;
/** A command in front that takes away root's right to lock what it likes; null when that can't be done here. */
const unprivileged = !isRoot ? [] : Bun.which("setpriv") === null ? null : ["setpriv", "--bounding-set=-ipc_lock"];

test("huge pages of a file are summed over its mappings only", () => {
  const smaps = [
    "7f0000000000-7f0000200000 r--s 00000000 fe:00 12 /models/a.duet",
    "Rss: 2048 kB",
    "FilePmdMapped:      2048 kB",
    "7f0000200000-7f0000400000 r--s 00200000 fe:00 13 /models/b.duet",
    "FilePmdMapped:      4096 kB",
    "7f0000400000-7f0000600000 r--s 00200000 fe:00 12 /models/a.duet",
    "FilePmdMapped:      6144 kB",
    "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 ",
    "FilePmdMapped:      8 kB",
  ].join("\n");
  expect(hugeBytesOf(smaps, "/models/a.duet")).toBe(8 << 20);
  expect(hugeBytesOf(smaps, "/models/b.duet")).toBe(4 << 20);
  expect(hugeBytesOf(smaps, "/models/c.duet")).toBeNull();
});

describe.skipIf(!isNativeAvailable())(`weights in memory${isNativeAvailable() ? "" : " (not built)"}`, () => {
  const bytes = (70 << 20) + 4096 * 3;
  const path = join(folder, "weights");

  function map(): Slab {
    writeFileSync(path, new Uint8Array(bytes).fill(5));
    return Slab.map(openNative(), path, bytes);
  }

  const lockedKib = () => Number(/VmLck:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))?.[1]);

  test("mmap brings nothing; resident brings all, piece by piece, though it was paged out", () => {
    const slab = map();
    const seen: number[] = [];
    makeResident(slab, "mmap", 1e12, (done) => void seen.push(done));
    expect(seen).toEqual([]);
    if (!isInMemory) {
      Bun.spawnSync(["sync", path]); // only clean pages can leave
      slab.advise(0, bytes, "populate"); // and only mapped ones are told to
      slab.advise(0, bytes, "pageOut");
      expect(slab.residentBytes(0, bytes)).toBeLessThan(bytes);
    }
    makeResident(slab, "resident", 1e12, (done, total) => {
      expect(total).toBe(bytes);
      seen.push(done);
    });
    expect(slab.residentBytes(0, bytes)).toBe(bytes);
    expect(seen.slice(0, 2)).toEqual([64 << 20, bytes]);
    expect(slab.hash(0, bytes)).toBe(Bun.hash.xxHash64(new Uint8Array(bytes).fill(5)));
    slab.unmap();
  });

  test("weights larger than memory are refused, whichever way they should stay", () => {
    const slab = map();
    for (const residency of ["resident", "locked"] as const) {
      expectDuetError(() => makeResident(slab, residency, bytes), "out_of_memory", residency, "--weights mmap");
    }
    slab.unmap();
  });

  test.skipIf(!isRoot)(
    `locked weights are locked, until unmapped${isRoot ? "" : " (the limit is the system's)"}`,
    () => {
      const slab = map();
      const before = lockedKib();
      makeResident(slab, "locked", 1e12);
      expect(lockedKib() - before).toBe(Math.ceil(bytes / 4096) * 4);
      slab.unmap();
      expect(lockedKib()).toBe(before);
    },
  );

  test.skipIf(unprivileged === null)(
    `a limit on locked memory is one clear line${unprivileged === null ? " (no setpriv)" : ""}`,
    () => {
      const argv = [process.execPath, CLI, "run", "--weights", "locked", "-n", "1", "hello"];
      const child = Bun.spawnSync([
        "bash",
        "-c",
        'ulimit -l 64 && exec "$@"',
        "bash",
        ...(unprivileged ?? []),
        ...argv,
      ]);
      const text = child.stderr.toString();
      expect(child.exitCode).toBe(1);
      expect(text).toContain("refuses to lock the weights");
      expect(text).toContain("RLIMIT_MEMLOCK");
      expect(text).toContain("--weights resident");
      expect(text.trimEnd().split("\n").length).toBe(1);
    },
  );

  test("the command line runs with resident weights", () => {
    const child = Bun.spawnSync([process.execPath, CLI, "run", "--weights", "resident", "-n", "3", "hello"]);
    expect(child.exitCode).toBe(0);
    expect(child.stdout.toString().trim()).not.toBe("");
  });
});
