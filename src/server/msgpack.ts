// msgpack on the wire. Encoding is msgpackr's; decoding a caller's bytes is ours, because it must be bounded: every count is held
// against the bytes that are left before anything is allocated, depth is limited, extension types, binaries, duplicate and
// non-text keys are refused. The values are those that JSON has.

import { Packr } from "msgpackr";
import { RequestError } from "../base/errors.ts";
import { DEPTH_MAX } from "./json-guard.ts";

const packr = new Packr({ useRecords: false, variableMapSize: true });
const textDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** A JSON-like value as msgpack: maps with text keys, no extension types. */
export function encodeMsgpack(value: unknown): Uint8Array {
  return packr.pack(value);
}

/** One msgpack value that fills `bytes`. Throws RequestError 400. */
export function decodeMsgpack(bytes: Uint8Array): unknown {
  const reader = new Reader(bytes);
  const value = reader.value(0);
  if (reader.offset !== bytes.length) refuse(`${bytes.length - reader.offset} bytes follow the value`);
  return value;
}

function refuse(what: string): never {
  throw new RequestError(400, `the body is not acceptable msgpack: ${what}`);
}

class Reader {
  offset = 0;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  value(depth: number): unknown {
    if (depth > DEPTH_MAX) refuse(`nested deeper than ${DEPTH_MAX} levels`);
    const tag = this.#unsigned(1);
    if (tag < 0x80) return tag;
    if (tag < 0x90) return this.#map(tag & 0x0f, depth);
    if (tag < 0xa0) return this.#array(tag & 0x0f, depth);
    if (tag < 0xc0) return this.#text(tag & 0x1f);
    if (tag >= 0xe0) return tag - 0x100;
    switch (tag) {
      case 0xc0:
        return null;
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xca:
        return this.#view.getFloat32(this.#take(4));
      case 0xcb:
        return this.#view.getFloat64(this.#take(8));
      case 0xcc:
        return this.#unsigned(1);
      case 0xcd:
        return this.#unsigned(2);
      case 0xce:
        return this.#unsigned(4);
      case 0xcf:
        return this.#integer64(this.#view.getBigUint64(this.#take(8)));
      case 0xd0:
        return this.#view.getInt8(this.#take(1));
      case 0xd1:
        return this.#view.getInt16(this.#take(2));
      case 0xd2:
        return this.#view.getInt32(this.#take(4));
      case 0xd3:
        return this.#integer64(this.#view.getBigInt64(this.#take(8)));
      case 0xd9:
        return this.#text(this.#unsigned(1));
      case 0xda:
        return this.#text(this.#unsigned(2));
      case 0xdb:
        return this.#text(this.#unsigned(4));
      case 0xdc:
        return this.#array(this.#unsigned(2), depth);
      case 0xdd:
        return this.#array(this.#unsigned(4), depth);
      case 0xde:
        return this.#map(this.#unsigned(2), depth);
      case 0xdf:
        return this.#map(this.#unsigned(4), depth);
      case 0xc4:
      case 0xc5:
      case 0xc6:
        return refuse("binary values have no meaning here; send text and arrays of numbers");
      default:
        return refuse(`type byte 0x${tag.toString(16)} (extension types are not accepted)`);
    }
  }

  /** Moves past `count` bytes and returns where they began. */
  #take(count: number): number {
    const start = this.offset;
    if (count > this.#bytes.length - start) refuse(`it ends at byte ${this.#bytes.length}, in the middle of a value`);
    this.offset = start + count;
    return start;
  }

  #unsigned(byteCount: 1 | 2 | 4): number {
    const at = this.#take(byteCount);
    if (byteCount === 1) return this.#view.getUint8(at);
    return byteCount === 2 ? this.#view.getUint16(at) : this.#view.getUint32(at);
  }

  #integer64(value: bigint): number {
    const number = Number(value);
    if (!Number.isSafeInteger(number)) refuse(`the integer ${value} is beyond 2^53 - 1`);
    return number;
  }

  #text(byteCount: number): string {
    const start = this.#take(byteCount);
    try {
      return textDecoder.decode(this.#bytes.subarray(start, start + byteCount));
    } catch {
      return refuse(`the text at byte ${start} is not UTF-8`);
    }
  }

  #array(count: number, depth: number): unknown[] {
    if (count > this.#bytes.length - this.offset) refuse(`an array of ${count} items does not fit into the body`);
    const items: unknown[] = [];
    for (let i = 0; i < count; i++) items.push(this.value(depth + 1));
    return items;
  }

  #map(count: number, depth: number): Record<string, unknown> {
    if (2 * count > this.#bytes.length - this.offset) refuse(`a map of ${count} entries does not fit into the body`);
    const map: Record<string, unknown> = {};
    for (let i = 0; i < count; i++) {
      const key = this.value(depth + 1);
      if (typeof key !== "string") refuse("a map has a key that is not text");
      if (Object.hasOwn(map, key)) refuse(`the field ${JSON.stringify(key.slice(0, 60))} occurs twice in one map`);
      // defineProperty, so that "__proto__" is a field like any other, and refused as unknown.
      Object.defineProperty(map, key, {
        value: this.value(depth + 1),
        enumerable: true,
        writable: true,
        configurable: true,
      });
    }
    return map;
  }
}
