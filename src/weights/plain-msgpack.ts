// Strict decoding of msgpack that came from outside: nil, booleans, numbers, strings, arrays and string-keyed maps, nothing
// else. No extension types (msgpackr revives classes from them), no binary, no repeated keys, bounded depth, and never an
// array longer than the bytes that could fill it.

const DEPTH_MAX = 16;

/** What is wrong with the bytes, and where. */
export class MsgpackError extends Error {
  override readonly name = "MsgpackError";
}

/** The one value that `bytes` hold. Throws MsgpackError. Maps become objects without a prototype's keys. */
export function decodePlainMsgpack(bytes: Uint8Array): unknown {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let at = 0;

  const fail = (what: string): never => {
    throw new MsgpackError(`${what} at byte ${at}`);
  };

  /** Advances by `count` bytes and returns where they began. */
  const take = (count: number): number => {
    if (count > bytes.byteLength - at) fail("the value runs past the end");
    const start = at;
    at += count;
    return start;
  };

  const integer64 = (value: bigint): number => {
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : fail("an integer is beyond 2^53");
  };

  const string = (count: number): string => {
    const start = take(count);
    try {
      return text.decode(bytes.subarray(start, at));
    } catch {
      return fail("a string is not UTF-8");
    }
  };

  const array = (count: number, depth: number): unknown[] => {
    if (count > bytes.byteLength - at) fail("an array is longer than what is left");
    const values: unknown[] = [];
    for (let i = 0; i < count; i++) values.push(value(depth + 1));
    return values;
  };

  const map = (count: number, depth: number): Record<string, unknown> => {
    if (2 * count > bytes.byteLength - at) fail("a map is longer than what is left");
    const object: Record<string, unknown> = {};
    for (let i = 0; i < count; i++) {
      const key = value(depth + 1);
      if (typeof key !== "string") return fail("a map key is not a string");
      if (key === "__proto__" || Object.hasOwn(object, key)) fail(`the map key ${JSON.stringify(key)} is refused`);
      object[key] = value(depth + 1);
    }
    return object;
  };

  function value(depth: number): unknown {
    if (depth > DEPTH_MAX) fail("the value is nested too deeply");
    const code = bytes[take(1)] as number;
    if (code < 0x80) return code;
    if (code < 0x90) return map(code & 15, depth);
    if (code < 0xa0) return array(code & 15, depth);
    if (code < 0xc0) return string(code & 31);
    if (code >= 0xe0) return code - 256;
    switch (code) {
      case 0xc0:
        return null;
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xca:
        return view.getFloat32(take(4));
      case 0xcb:
        return view.getFloat64(take(8));
      case 0xcc:
        return view.getUint8(take(1));
      case 0xcd:
        return view.getUint16(take(2));
      case 0xce:
        return view.getUint32(take(4));
      case 0xcf:
        return integer64(view.getBigUint64(take(8)));
      case 0xd0:
        return view.getInt8(take(1));
      case 0xd1:
        return view.getInt16(take(2));
      case 0xd2:
        return view.getInt32(take(4));
      case 0xd3:
        return integer64(view.getBigInt64(take(8)));
      case 0xd9:
        return string(view.getUint8(take(1)));
      case 0xda:
        return string(view.getUint16(take(2)));
      case 0xdb:
        return string(view.getUint32(take(4)));
      case 0xdc:
        return array(view.getUint16(take(2)), depth);
      case 0xdd:
        return array(view.getUint32(take(4)), depth);
      case 0xde:
        return map(view.getUint16(take(2)), depth);
      case 0xdf:
        return map(view.getUint32(take(4)), depth);
      default:
        return fail(`the type 0x${code.toString(16)} is refused`);
    }
  }

  const decoded = value(0);
  if (at !== bytes.byteLength) fail("bytes are left over");
  return decoded;
}
