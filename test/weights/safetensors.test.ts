import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openSafetensors, sourceTensor, TensorReader } from "../../src/weights/safetensors.ts";
import { expectDuetError } from "./expect-duet-error.ts";
import { temporaryFolder } from "./temporary-folder.ts";
import { encodeSafetensors, joinSafetensors, writeTinyCheckpoint } from "./tiny-checkpoint.ts";

const root = temporaryFolder("safetensors");
let folderCount = 0;

function folderWith(files: Record<string, string | Uint8Array>): string {
  const folder = join(root, `${folderCount++}`);
  mkdirSync(folder);
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content);
  return folder;
}

test.each(["BF16", "F16", "F32"] as const)(
  "%s: every tensor reads back as stored, from one file and from three",
  (dtype) => {
    for (const partCount of [1, 3]) {
      const folder = join(root, `${dtype}-${partCount}`);
      const { tensors } = writeTinyCheckpoint(folder, { dtype, partCount });
      using source = openSafetensors(folder);
      const reader = new TensorReader();
      expect(source.files.length).toBe(partCount);
      expect([...source.byName.keys()].toSorted()).toEqual([...tensors.keys()].toSorted());
      for (const [name, { dims, values }] of tensors) {
        const columns = dims.at(-1) ?? 1;
        const out = new Float32Array(values.length);
        reader.readRows(sourceTensor(source, name), columns, 0, values.length / columns, 0, columns, out, 0, columns);
        expect(Bun.deepEquals(out, values)).toBe(true);
      }
    }
  },
);

test("ranges of rows and columns, ascending, descending and larger than the window", () => {
  const [rows, columns] = [700, 4099]; // 11 MiB of F32: the 4 MiB window moves
  const values = Float32Array.from({ length: rows * columns }, (_, i) => i);
  const folder = folderWith({
    "model.safetensors": encodeSafetensors(new Map([["w", { dims: [rows, columns], values }]]), "F32"),
  });
  using source = openSafetensors(folder);
  const reader = new TensorReader();
  const tensor = sourceTensor(source, "w");
  const out = new Float32Array(2 * 8).fill(-1);
  for (const firstRow of [0, 300, 698, 5]) {
    reader.readRows(tensor, columns, firstRow, 2, 4090, 7, out, 1, 8);
    for (let r = 0; r < 2; r++) {
      const start = (firstRow + r) * columns + 4090;
      expect([...out.subarray(r * 8 + 1, r * 8 + 8)]).toEqual([...values.subarray(start, start + 7)]);
    }
    expect(out[0]).toBe(-1);
  }
  expect(() => reader.readRows(tensor, columns, 699, 2, 0, 1, out, 0, 1)).toThrow("rows must lie in the tensor");
});

const four = new Uint8Array(16);
const entry = (fields: object) => ({ dtype: "F32", shape: [2, 2], data_offsets: [0, 16], ...fields });

test.each<[string, unknown, string]>([
  ["unknown dtype", { w: entry({ dtype: "I64" }) }, "tensor w has an unsupported dtype"],
  ["a dtype from the prototype", { w: entry({ dtype: "constructor" }) }, "tensor w has an unsupported dtype"],
  ["negative dim", { w: entry({ shape: [-2, -2] }) }, "tensor w has an invalid shape"],
  ["fractional dim", { w: entry({ shape: [1.5] }) }, "tensor w has an invalid shape"],
  ["no shape", { w: entry({ shape: undefined }) }, "tensor w has an invalid shape"],
  ["three offsets", { w: entry({ data_offsets: [0, 8, 16] }) }, "tensor w has invalid data_offsets"],
  ["product unlike the range", { w: entry({ shape: [2, 3] }) }, "tensor w: shape and data_offsets disagree"],
  ["end before begin", { w: entry({ data_offsets: [16, 0] }) }, "tensor w: shape and data_offsets disagree"],
  ["past the end", { w: entry({ shape: [8], data_offsets: [0, 32] }) }, "tensor w lies past the end of the file"],
  ["beyond 2^53", { w: entry({ data_offsets: [2 ** 60, 2 ** 60 + 16] }) }, "tensor w has invalid data_offsets"],
  ["overlap", { v: entry({}), w: entry({}) }, "overlaps the tensor before it"],
  ["hole", { w: entry({ shape: [2], data_offsets: [8, 16] }) }, "leaves a hole before it"],
  ["data left over", { w: entry({ shape: [2], data_offsets: [0, 8] }) }, "the tensors do not fill the file"],
  ["entry is null", { w: null }, "tensor w has an unsupported dtype"],
  ["not an object", [1, 2], "the safetensors header is not a JSON object"],
])("a header with %s is refused by name", (_, header, message) => {
  const folder = folderWith({ "model.safetensors": joinSafetensors(header, [four]) });
  expectDuetError(() => openSafetensors(folder), "checkpoint_invalid", message, "model.safetensors", "next:");
});

test("a file too short for its header, or whose header is not JSON", () => {
  const whole = joinSafetensors({ w: entry({}) }, [four]);
  const open = (bytes: Uint8Array) => () => openSafetensors(folderWith({ "model.safetensors": bytes }));
  expectDuetError(open(whole.subarray(0, 5)), "checkpoint_invalid", "too short");
  expectDuetError(open(whole.subarray(0, 20)), "checkpoint_invalid", "impossible size");
  const huge = whole.slice();
  huge.fill(255, 0, 8);
  expectDuetError(open(huge), "checkpoint_invalid", "impossible size");
  const notJson = whole.slice();
  notJson[8] = 0x7d;
  expectDuetError(open(notJson), "checkpoint_invalid", "is not JSON");
});

test("an index that names a stray file, a missing tensor, or nothing", () => {
  const weights = encodeSafetensors(new Map([["w", { dims: [1], values: new Float32Array(1) }]]), "F32");
  const open = (weightMap: unknown) => () =>
    openSafetensors(
      folderWith({
        "a.safetensors": weights,
        "model.safetensors.index.json": JSON.stringify({ weight_map: weightMap }),
      }),
    );
  expectDuetError(open({ w: "../a.safetensors" }), "checkpoint_invalid", "the file of tensor w is invalid");
  expectDuetError(open({ w: "b.safetensors" }), "file_missing", "b.safetensors");
  expectDuetError(open({ w: "a.safetensors", v: "a.safetensors" }), "checkpoint_invalid", "tensor v of the index");
  expectDuetError(open({ v: "a.safetensors" }), "checkpoint_invalid", "tensor w is not where the index says");
  expectDuetError(open(undefined), "checkpoint_invalid", "the index has no weight_map");
  expectDuetError(() => openSafetensors(folderWith({})), "file_missing", "model.safetensors");
});
