import { expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { MIB } from "../../src/base/units.ts";
import { AlignedWriter } from "../../src/weights/aligned-writer.ts";
import { expectDuetError } from "./expect-duet-error.ts";
import { temporaryFolder } from "./temporary-folder.ts";

const root = temporaryFolder("writer");
const [partial, path] = [join(root, "out.partial"), join(root, "out")];

test("what is written lies where it was put; all else is zero; the front comes last", () => {
  const run = fc.record({ gap: fc.nat(5 * MIB), bytes: fc.nat(5 * MIB) });
  fc.assert(
    fc.property(fc.array(run, { maxLength: 3 }), fc.uint8Array({ maxLength: 50 }), (runs, front) => {
      const writer = new AlignedWriter(partial);
      let end = 100;
      const wanted = Buffer.alloc(100 + runs.reduce((sum, { gap, bytes }) => sum + gap + bytes, 0) + 7);
      for (const [i, { gap, bytes }] of runs.entries()) {
        const content = new Uint8Array(bytes).fill(i + 1);
        writer.writeAt(end + gap, content);
        wanted.set(content, end + gap);
        end += gap + bytes;
      }
      wanted.set(front);
      writer.finish(end + 7, front);
      expect(existsSync(partial)).toBe(true);
      writer.renameTo(path);
      expect(existsSync(partial)).toBe(false);
      expect(readFileSync(path).equals(wanted)).toBe(true);
    }),
    { numRuns: 12 },
  );
});

test("writes must ascend; an existing file is not taken over; abandon removes", () => {
  const writer = new AlignedWriter(partial);
  writer.writeAt(10, new Uint8Array(10));
  expect(() => writer.writeAt(19, new Uint8Array(1))).toThrow("writes must ascend");
  expectDuetError(() => new AlignedWriter(partial), "file_unwritable", "EEXIST");
  writer.abandon();
  writer.abandon();
  expect(existsSync(partial)).toBe(false);
});
