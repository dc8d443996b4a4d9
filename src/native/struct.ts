// Arrays of C structs in TypeScript: bytes that native code reads and writes, addressed by the layouts of binding.ts.
// Filling one allocates nothing. A struct borrows the arrays that its pointers name: the owner keeps them alive until the
// native call is over (memory of typed arrays does not move).

import { ptr } from "bun:ffi";
import { assert } from "../base/assert.ts";
import type { Field } from "./binding.ts";

export interface StructLayout {
  readonly bytes: number;
  readonly fields: Readonly<Record<string, Field>>;
}

/** The address of a typed array's first element; 0 (null) for an absent or empty one. */
export function addressOf(array: NodeJS.TypedArray | null): number {
  return array === null || array.byteLength === 0 ? 0 : ptr(array);
}

/** Holds on to what native code borrowed until here: addresses alone keep nothing from the garbage collector. */
export function keepAlive(_borrowed: object): void {}

/** `count` structs of one layout, zeroed. Fields are given by their layout; `element` indexes array fields. */
export class StructArray {
  readonly memory: Uint8Array<ArrayBuffer>;
  readonly address: number;
  readonly #bytes: number;
  readonly #u32: Uint32Array;
  readonly #f32: Float32Array;

  constructor(
    layout: StructLayout,
    readonly count: number,
  ) {
    assert(layout.bytes % 8 === 0 && count > 0, "a struct array has structs of whole words");
    this.#bytes = layout.bytes;
    const buffer = new ArrayBuffer(layout.bytes * count);
    this.memory = new Uint8Array(buffer);
    this.#u32 = new Uint32Array(buffer);
    this.#f32 = new Float32Array(buffer);
    this.address = ptr(this.memory);
  }

  setU32(index: number, field: Field, value: number, element = 0): void {
    this.#u32[this.#word(index, field) + element] = value;
  }

  setF32(index: number, field: Field, value: number): void {
    this.#f32[this.#word(index, field)] = value;
  }

  /** A pointer or another unsigned number below 2^53. */
  setU64(index: number, field: Field, value: number): void {
    const word = this.#word(index, field);
    this.#u32[word] = value;
    this.#u32[word + 1] = value / 4294967296;
  }

  u32(index: number, field: Field): number {
    return this.#u32[this.#word(index, field)] ?? 0;
  }

  /** Exact below 2^53. */
  u64(index: number, field: Field): number {
    const word = this.#word(index, field);
    return (this.#u32[word] ?? 0) + (this.#u32[word + 1] ?? 0) * 4294967296;
  }

  /** A NUL-terminated text. */
  text(index: number, field: Field): string {
    const start = index * this.#bytes + field.offset;
    const bytes = this.memory.subarray(start, start + field.count);
    const end = bytes.indexOf(0);
    return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
  }

  #word(index: number, field: Field): number {
    return (index * this.#bytes + field.offset) >>> 2;
  }
}
