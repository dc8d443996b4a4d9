// Strict decoding of msgpack that came from outside, whether a file or a caller: the values that JSON has, and nothing else. No
// extension types (msgpackr revives classes from them), no binaries, no repeated keys, bounded depth, and every count is held against
// the bytes that are left before anything is allocated.

const DEPTH_MAX = 16;
const ECHO_MAX = 60;
const textDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** What is wrong with the bytes, and where. */
export class MsgpackError extends Error {
  override readonly name = "MsgpackError";
}

/** The one value that fills `bytes`. Throws MsgpackError. A key "__proto__" is a key like any other, never a prototype. */
export function decodePlainMsgpack(bytes: Uint8Array, depthMax = DEPTH_MAX): unknown {
  const reader = new Reader(bytes, depthMax);
  const value = reader.value(0);
  if (reader.offset !== bytes.length) refuse(`${bytes.length - reader.offset} bytes follow the value`);
  return value;
}

function refuse(what: string): never {
  throw new MsgpackError(what);
}

class Reader {
  offset = 0;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;

  constructor(
    bytes: Uint8Array,
    private readonly depthMax: number,
  ) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  value(depth: number): unknown {
    if (depth > this.depthMax) refuse(`nested deeper than ${this.depthMax} levels`);
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
    if (count > this.#bytes.length - this.offset) refuse(`an array of ${count} items does not fit into what is left`);
    const items: unknown[] = [];
    for (let i = 0; i < count; i++) items.push(this.value(depth + 1));
    return items;
  }

  #map(count: number, depth: number): Record<string, unknown> {
    if (2 * count > this.#bytes.length - this.offset)
      refuse(`a map of ${count} entries does not fit into what is left`);
    const map: Record<string, unknown> = {};
    for (let i = 0; i < count; i++) {
      const key = this.value(depth + 1);
      if (typeof key !== "string") refuse("a map has a key that is not text");
      if (Object.hasOwn(map, key))
        refuse(`the field ${JSON.stringify(key.slice(0, ECHO_MAX))} occurs twice in one map`);
      // Assigning to "__proto__" would set the prototype.
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
