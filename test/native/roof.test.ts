// Timing the machine's limits: what a run counts is arithmetic on its task, and a task that makes no sense is refused.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chooseIsa, isNativeAvailable, openNative } from "../../src/native/library.ts";
import { evictFile, RoofLanes, type RoofTask } from "../../src/native/roof.ts";
import { Slab } from "../../src/native/slab.ts";

const folder = mkdtempSync(join(tmpdir(), "duet-roof-test-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe.skipIf(!isNativeAvailable())(`roof${isNativeAvailable() ? "" : " (kernels not built)"}`, () => {
  const LANES = 2;

  function measure(task: RoofTask, isa = openNative().cpu.bestIsa) {
    const lanes = new RoofLanes(openNative(), LANES, isa, false);
    try {
      return lanes.measure(task, 2, 0.01);
    } finally {
      lanes.close();
    }
  }

  test("bytes and operations are those of all lanes and passes", () => {
    const tileBytes = (2048 / 64) * 576;
    const cases: [RoofTask, number, number][] = [
      [{ kind: "read", bytes: 4096 }, 4096, 0],
      [
        { kind: "matmul", quantType: "q4", rowCount: 3, columnCount: 2048, bytes: 5 * tileBytes + 1 },
        5 * tileBytes,
        2 * 3 * 5 * 16 * 2048,
      ],
      [{ kind: "matmul", quantType: "q8", rowCount: 1, columnCount: 64, bytes: 1 }, 1088, 2 * 16 * 64],
      // Rows see 38, 39 and 40 keys.
      [
        { kind: "attention", kvType: "f16", rowCount: 3, queryHeadCount: 2, headDim: 32, keyCount: 40 },
        2 * 40 * 32 * 2,
        4 * (38 + 39 + 40) * 2 * 32,
      ],
      [{ kind: "attention", kvType: "int8", rowCount: 1, queryHeadCount: 1, headDim: 64, keyCount: 1 }, 2 * 64, 4 * 64],
      [{ kind: "barrier" }, 0, 0],
      [{ kind: "handOff" }, 0, 0],
    ];
    for (const [task, bytes, operations] of cases) {
      const runs = measure(task);
      expect(runs).toHaveLength(2);
      for (const run of runs) {
        expect([task.kind, run.bytes / run.passCount / LANES]).toEqual([task.kind, bytes]);
        expect(run.operations / run.passCount / LANES).toBe(operations);
        expect(run.nanoseconds).toBeGreaterThan(0);
      }
    }
  });

  test("every instruction set here reads, multiplies and attends; plain C alone has no peak", () => {
    for (const isa of openNative().cpu.isas) {
      expect(measure({ kind: "read", bytes: 8192, isPrefetched: true }, isa)).toHaveLength(2);
      expect(
        measure({ kind: "matmul", quantType: "q4", rowCount: 2, columnCount: 128, bytes: 4096 }, isa),
      ).toHaveLength(2);
      for (const kind of ["integerDot", "floatFma"] as const) {
        if (isa === "plain") expect(() => measure({ kind }, isa)).toThrow("plain C");
        else expect(measure({ kind }, isa)[0]?.operations).toBeGreaterThan(0);
      }
    }
  });

  test("tasks that make no sense are refused, with what is wrong", () => {
    const attention = { kind: "attention", rowCount: 1, queryHeadCount: 1, headDim: 32, keyCount: 8 } as const;
    const matmul = { kind: "matmul", rowCount: 1, columnCount: 64, bytes: 1 } as const;
    const cases: [RoofTask, string][] = [
      [{ kind: "read", bytes: 0 }, "multiple of 512"],
      [{ kind: "read", bytes: 500 }, "multiple of 512"],
      [{ kind: "read", bytes: 2 ** 41 }, "too many"],
      [{ ...matmul, columnCount: 63 }, "multiple of 64"],
      [{ ...matmul, rowCount: 0 }, "row_count"],
      [{ ...attention, headDim: 20 }, "head_dim"],
      [{ ...attention, queryHeadCount: 0 }, "query_head_count"],
      [{ ...attention, rowCount: 9 }, "row_count"],
    ];
    for (const [task, message] of cases) expect(() => measure(task)).toThrow(message);
  });

  test("a mapped file is read, when it is long enough for all lanes", () => {
    const path = join(folder, "mapped");
    writeFileSync(path, new Uint8Array(8192).fill(1));
    const slab = Slab.map(openNative(), path, 8192);
    expect(measure({ kind: "read", bytes: 4096, slab })).toHaveLength(2);
    expect(() => measure({ kind: "read", bytes: 4608, slab })).toThrow("2 lanes want 4608 each");
    slab.unmap();
  });

  test("evicting a file that isn't there is an error that names it", () => {
    const path = join(folder, "absent");
    expect(() => evictFile(openNative(), path)).toThrow(path);
    writeFileSync(path, "x");
    evictFile(openNative(), path);
  });

  test("an instruction set that isn't here is refused by name", () => {
    expect(() => chooseIsa(openNative(), "sse9")).toThrow("sse9");
    expect(chooseIsa(openNative(), null)).toBe(openNative().cpu.bestIsa);
  });
});
