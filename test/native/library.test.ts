// Opening the kernel library, and mapping files through it: errors that say what is wrong, checksums, the page cache, and a
// file that shrinks under the mapping.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { DuetError } from "../../src/base/errors.ts";
import { isNativeAvailable, ISA_NAMES, openNative } from "../../src/native/library.ts";
import { Slab } from "../../src/native/slab.ts";

const folder = mkdtempSync(join(tmpdir(), "duet-native-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function errorOf(action: () => unknown): DuetError {
  try {
    action();
  } catch (error) {
    if (error instanceof DuetError) return error;
    throw error;
  }
  throw new Error("expected a DuetError");
}

function write(name: string, bytes: Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

test("a library that isn't there is missing, with what to run", () => {
  const error = errorOf(() => openNative(join(folder, "libnothing.so")));
  expect(error.code).toBe("native_missing");
  expect(error.message).toContain("build-native");
});

test("a file that is no library doesn't open", () => {
  expect(errorOf(() => openNative(write("libtext.so", Buffer.from("text")))).code).toBe("native_abi");
});

describe.skipIf(!isNativeAvailable())(`kernel library${isNativeAvailable() ? "" : " (not built)"}`, () => {
  const map = (path: string, bytes: number) => Slab.map(openNative(), path, bytes);

  test("opens once, and says what the CPU can run", () => {
    const native = openNative();
    expect(openNative()).toBe(native);
    expect(native.cpu.isas).toContain("plain");
    expect(native.cpu.isas).toContain(native.cpu.bestIsa);
    expect(ISA_NAMES).toEqual(expect.arrayContaining([...native.cpu.isas]));
    expect(native.cpu.onlineCpus).toBeGreaterThan(0);
    expect(native.cpu.compiler).toMatch(/^(gcc|clang) \d/);
    expect(native.cpu.cpuName.length).toBeGreaterThan(0);
  });

  test("a file that isn't there or has another length is not mapped", () => {
    const missing = errorOf(() => map(join(folder, "nothing"), 4096));
    expect(missing.code).toBe("file_unreadable");
    expect(missing.message).toContain("No such file");
    const path = write("short", new Uint8Array(1000));
    expect(errorOf(() => map(path, 1001)).message).toContain("expected a file of 1001 bytes, got 1000");
    expect(errorOf(() => map(folder, 4096)).code).toBe("file_unreadable");
    expect(errorOf(() => map(path, 0)).code).toBe("native_failed");
  });

  test("hashes are XXH64 of any range", () => {
    const bytes = new Uint8Array(10_000).map((_, i) => (i * 2654435761) >>> 24);
    const slab = map(write("hashed", bytes), bytes.length);
    fc.assert(
      fc.property(fc.nat(bytes.length), fc.nat(200), fc.boolean(), (offset, short, isShort) => {
        const length = isShort ? Math.min(short, bytes.length - offset) : bytes.length - offset;
        const want = Bun.hash.xxHash64(bytes.subarray(offset, offset + length));
        expect(slab.hash(offset, length)).toBe(want);
      }),
      { numRuns: 300 },
    );
    expect(errorOf(() => slab.hash(9000, 1001)).message).toContain("outside the slab of 10000 bytes");
    slab.unmap();
    slab.unmap();
    expect(() => slab.hash(0, 1)).toThrow("the slab is mapped");
  });

  test("ranges are resident after they were populated", () => {
    const bytes = new Uint8Array(3 * 4096 + 17).fill(7);
    const slab = map(write("resident", bytes), bytes.length);
    for (const advice of ["normal", "random", "sequential", "willNeed"] as const) slab.advise(100, 9000, advice);
    slab.hash(0, bytes.length);
    expect(slab.residentBytes(0, bytes.length)).toBe(bytes.length);
    expect(slab.residentBytes(5, 4096)).toBe(4096);
    expect(slab.residentBytes(4090, 10)).toBe(10);
    expect(slab.residentBytes(77, 0)).toBe(0);
    expect(errorOf(() => slab.advise(1, bytes.length, "normal")).code).toBe("native_failed");
    slab.unmap();
  });

  test("more files than there is room for are refused, and their places come back", () => {
    const path = write("many", new Uint8Array(4096));
    const slabs: Slab[] = [];
    const fill = () => {
      for (let i = 0; i < 80; i++) slabs.push(map(path, 4096));
    };
    expect(errorOf(fill).code).toBe("out_of_memory");
    for (const slab of slabs.splice(0)) slab.unmap();
    map(path, 4096).unmap();
  });

  test("a mapped file that shrinks is a device fault, and the process lives on", () => {
    const child = Bun.spawnSync([process.execPath, join(import.meta.dirname, "truncate-mapped.ts"), folder], {
      timeout: 30_000,
      killSignal: "SIGKILL",
    });
    expect(child.stderr.toString()).toBe("");
    expect(child.exitCode).toBe(0);
    expect(JSON.parse(child.stdout.toString())).toEqual({
      intact: "ok",
      shrunk: "device_fault",
      faultCount: 1,
      otherSlab: "ok",
      otherFaultCount: 0,
      step: "ok",
      stepAfterLoss: "device_fault",
      stepOfAnotherModel: "ok",
    });
  });

  test("a bus error elsewhere still ends the process", () => {
    const child = Bun.spawnSync(
      [process.execPath, join(import.meta.dirname, "truncate-mapped.ts"), folder, "foreign"],
      {
        timeout: 30_000,
        killSignal: "SIGKILL",
      },
    );
    expect(child.stdout.toString()).toBe("before\n");
    expect(child.exitCode).not.toBe(0);
  });

  test("truncating a file that is no longer mapped is nobody's concern", () => {
    const path = write("gone", new Uint8Array(8192));
    const slab = map(path, 8192);
    slab.unmap();
    truncateSync(path, 0);
    expect(errorOf(() => map(path, 8192)).code).toBe("file_unreadable");
  });
});
