// Safetensors files: header parsing that trusts nothing, and reading of row and column ranges as float32 through one
// reusable window. A file is never held whole; nothing here knows what the tensors mean.

import { assert, defined } from "../base/assert.ts";
import { DuetError } from "../base/errors.ts";
import { MIB } from "../base/units.ts";
import { type OpenFile, openRegularFile, readAt } from "./files.ts";

const HEADER_BYTES_MAX = 100 * MIB; // the format's own limit
const WINDOW_BYTES = 4 * MIB;
const INDEX_FILE = "model.safetensors.index.json";
const SINGLE_FILE = "model.safetensors";

const DTYPE_BYTES = { BF16: 2, F16: 2, F32: 4 } as const;
type Dtype = keyof typeof DTYPE_BYTES;

/** A tensor of a checkpoint: where its row-major elements lie. */
export interface SourceTensor {
  readonly name: string;
  readonly file: OpenFile;
  readonly dtype: Dtype;
  readonly dims: readonly number[];
  /** From the start of the file. */
  readonly offset: number;
  readonly bytes: number;
}

const NEXT = "download the checkpoint again, or name a folder with a Hugging Face checkpoint";

function invalid(file: string, what: string, expected?: string, got?: string): DuetError {
  return new DuetError("checkpoint_invalid", what, {
    where: file,
    ...(expected === undefined ? {} : { expected }),
    ...(got === undefined ? {} : { got }),
    next: NEXT,
  });
}

function parseObject(text: string, file: string, what: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw invalid(file, `${what} is not JSON`, "a JSON object", String(error));
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw invalid(file, `${what} is not a JSON object`, "an object", Array.isArray(value) ? "an array" : typeof value);
  }
  return value as Record<string, unknown>;
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

/** Reads and checks one file's header: sizes, dtypes, dims × element bytes = range, ranges adjoining and filling the file. */
export function readSafetensorsHeader(file: OpenFile): SourceTensor[] {
  const { path } = file;
  const prefix = new Uint8Array(8);
  if (readAt(file, prefix, 0) < 8) throw invalid(path, "the file is too short", "at least 8 bytes", `${file.bytes}`);
  const headerBytes = Number(new DataView(prefix.buffer).getBigUint64(0, true));
  const headerMax = Math.min(HEADER_BYTES_MAX, file.bytes - 8);
  if (headerBytes < 2 || headerBytes > headerMax) {
    throw invalid(path, "the safetensors header has an impossible size", `2 to ${headerMax} bytes`, `${headerBytes}`);
  }
  const raw = new Uint8Array(headerBytes);
  if (readAt(file, raw, 8) < headerBytes) throw invalid(path, "the safetensors header is cut off");
  const header = parseObject(new TextDecoder().decode(raw), path, "the safetensors header");
  const dataStart = 8 + headerBytes;

  const tensors: SourceTensor[] = [];
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    tensors.push(parseEntry(file, name, entry, dataStart));
  }
  const inOrder = tensors.toSorted((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  let end = dataStart;
  for (const tensor of inOrder) {
    if (tensor.offset !== end) {
      const what = tensor.offset < end ? "overlaps the tensor before it" : "leaves a hole before it";
      throw invalid(
        path,
        `tensor ${tensor.name} ${what}`,
        `data at ${end - dataStart}`,
        `${tensor.offset - dataStart}`,
      );
    }
    end += tensor.bytes;
  }
  if (end !== file.bytes) throw invalid(path, "the tensors do not fill the file", `${end} bytes`, `${file.bytes}`);
  return tensors;
}

function parseEntry(file: OpenFile, name: string, entry: unknown, dataStart: number): SourceTensor {
  const { dtype, shape, data_offsets: range } = (entry ?? {}) as Record<string, unknown>;
  if (typeof dtype !== "string" || !Object.hasOwn(DTYPE_BYTES, dtype)) {
    throw invalid(file.path, `tensor ${name} has an unsupported dtype`, "BF16, F16 or F32", JSON.stringify(dtype));
  }
  if (!Array.isArray(shape) || !shape.every(isCount)) {
    throw invalid(file.path, `tensor ${name} has an invalid shape`, "an array of counts", JSON.stringify(shape));
  }
  if (!Array.isArray(range) || range.length !== 2 || !range.every(isCount)) {
    throw invalid(file.path, `tensor ${name} has invalid data_offsets`, "[begin, end]", JSON.stringify(range));
  }
  const [begin, end] = range as [number, number];
  const bytes = end - begin;
  const product = (shape as number[]).reduce((a, b) => a * b, 1) * DTYPE_BYTES[dtype as Dtype];
  if (product !== bytes) {
    throw invalid(file.path, `tensor ${name}: shape and data_offsets disagree`, `${product} bytes`, `${bytes}`);
  }
  if (dataStart + end > file.bytes) {
    throw invalid(
      file.path,
      `tensor ${name} lies past the end of the file`,
      `at most ${file.bytes - dataStart}`,
      `${end}`,
    );
  }
  return { name, file, dtype: dtype as Dtype, dims: shape as number[], offset: dataStart + begin, bytes };
}

/** All tensors of a checkpoint folder, of one file or of the files in its index. Dispose closes the files. */
export interface SourceTensors extends Disposable {
  readonly byName: ReadonlyMap<string, SourceTensor>;
  readonly files: readonly OpenFile[];
}

/** Opens `model.safetensors`, or every file that `model.safetensors.index.json` names. */
export function openSafetensors(folder: string): SourceTensors {
  const files: OpenFile[] = [];
  const close = () => {
    for (const file of files) file[Symbol.dispose]();
  };
  try {
    const weightMap = readWeightMap(`${folder}/${INDEX_FILE}`);
    const fileNames = weightMap === null ? [SINGLE_FILE] : [...new Set(weightMap.values())].toSorted();
    const byName = new Map<string, SourceTensor>();
    for (const fileName of fileNames) {
      const file = openRegularFile(`${folder}/${fileName}`, "checkpoint file", NEXT);
      files.push(file);
      for (const tensor of readSafetensorsHeader(file)) {
        if (weightMap !== null && weightMap.get(tensor.name) !== fileName) {
          throw invalid(
            file.path,
            `tensor ${tensor.name} is not where the index says`,
            weightMap.get(tensor.name) ?? "no such tensor",
            fileName,
          );
        }
        byName.set(tensor.name, tensor);
      }
    }
    for (const [name, fileName] of weightMap ?? []) {
      if (!byName.has(name)) throw invalid(`${folder}/${fileName}`, `tensor ${name} of the index is missing`);
    }
    return { byName, files, [Symbol.dispose]: close };
  } catch (error) {
    close();
    throw error;
  }
}

/** Tensor name to file name; null when the folder has no index. */
function readWeightMap(path: string): Map<string, string> | null {
  let file: OpenFile;
  try {
    file = openRegularFile(path, "safetensors index", NEXT);
  } catch (error) {
    if (error instanceof DuetError && error.code === "file_missing") return null;
    throw error;
  }
  using open = file;
  if (open.bytes > HEADER_BYTES_MAX) throw invalid(path, "the index is too large", `${HEADER_BYTES_MAX} bytes at most`);
  const raw = new Uint8Array(open.bytes);
  const index = parseObject(new TextDecoder().decode(raw.subarray(0, readAt(open, raw, 0))), path, "the index");
  const weightMap = index.weight_map;
  if (typeof weightMap !== "object" || weightMap === null) throw invalid(path, "the index has no weight_map");
  const entries = Object.entries(weightMap);
  for (const [name, fileName] of entries) {
    if (typeof fileName !== "string" || !/^[\w.-]+\.safetensors$/.test(fileName)) {
      throw invalid(path, `the file of tensor ${name} is invalid`, "a name in this folder", JSON.stringify(fileName));
    }
  }
  return new Map(entries as [string, string][]);
}

/** Reads element ranges of tensors as float32. Holds one window of at most 4 MiB (or one row where that is longer). */
export class TensorReader {
  #window = new Uint8Array(WINDOW_BYTES);
  #tensor: SourceTensor | null = null;
  #firstRow = 0;
  #endRow = 0;

  /**
   * Rows [firstRow, firstRow + rowCount) and columns [firstColumn, firstColumn + columnCount) of a tensor of `columns` columns,
   * to out[outOffset + row × outStride + column]. Cheap when rows are asked for in ascending order.
   */
  readRows(
    tensor: SourceTensor,
    columns: number,
    firstRow: number,
    rowCount: number,
    firstColumn: number,
    columnCount: number,
    out: Float32Array,
    outOffset: number,
    outStride: number,
  ): void {
    assert((firstRow + rowCount) * columns * DTYPE_BYTES[tensor.dtype] <= tensor.bytes, "rows must lie in the tensor");
    for (let row = firstRow; row < firstRow + rowCount; row++) {
      this.#reach(tensor, columns, row);
      const start = (row - this.#firstRow) * columns + firstColumn;
      convert(this.#window, tensor.dtype, start, columnCount, out, outOffset + (row - firstRow) * outStride);
    }
  }

  /** Makes the window hold `row`, filling it from there on. */
  #reach(tensor: SourceTensor, columns: number, row: number): void {
    if (this.#tensor === tensor && row >= this.#firstRow && row < this.#endRow) return;
    const rowBytes = columns * DTYPE_BYTES[tensor.dtype];
    if (rowBytes > this.#window.byteLength) this.#window = new Uint8Array(rowBytes);
    const rowCount = Math.min(Math.floor(this.#window.byteLength / rowBytes), tensor.bytes / rowBytes - row);
    const wanted = this.#window.subarray(0, rowCount * rowBytes);
    if (readAt(tensor.file, wanted, tensor.offset + row * rowBytes) < wanted.byteLength) {
      throw invalid(tensor.file.path, `tensor ${tensor.name} ends early: the file shrank while it was read`);
    }
    this.#tensor = tensor;
    this.#firstRow = row;
    this.#endRow = row + rowCount;
  }
}

const f32Bits = new Uint32Array(1);
const f32Value = new Float32Array(f32Bits.buffer);

/** Elements [start, start + count) of the window, as float32, exactly. */
function convert(
  bytes: Uint8Array,
  dtype: Dtype,
  start: number,
  count: number,
  out: Float32Array,
  outOffset: number,
): void {
  if (dtype === "F32") {
    out.set(new Float32Array(bytes.buffer, start * 4, count), outOffset);
  } else if (dtype === "F16") {
    out.set(new Float16Array(bytes.buffer, start * 2, count), outOffset);
  } else {
    const halves = new Uint16Array(bytes.buffer, start * 2, count);
    for (let i = 0; i < count; i++) {
      f32Bits[0] = (halves[i] as number) << 16;
      out[outOffset + i] = f32Value[0] as number;
    }
  }
}

/** The tensor, which must exist (checked before, by the checkpoint). */
export function sourceTensor(tensors: SourceTensors, name: string): SourceTensor {
  return defined(tensors.byName.get(name), `checkpoint tensor ${name}`);
}
