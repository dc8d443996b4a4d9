// msgpack on the wire: encoding is msgpackr's, decoding a caller's bytes is strict and bounded.

import { Packr } from "msgpackr";
import { RequestError } from "../base/errors.ts";
import { decodePlainMsgpack, MsgpackError } from "../base/plain-msgpack.ts";
import { DEPTH_MAX } from "./json-guard.ts";

const packr = new Packr({ useRecords: false, variableMapSize: true });

/** A JSON-like value as msgpack: maps with text keys, no extension types. */
export function encodeMsgpack(value: unknown): Uint8Array {
  return packr.pack(value);
}

/** One msgpack value that fills `bytes`. Throws RequestError 400. */
export function decodeMsgpack(bytes: Uint8Array): unknown {
  try {
    return decodePlainMsgpack(bytes, DEPTH_MAX);
  } catch (error) {
    if (!(error instanceof MsgpackError)) throw error;
    throw new RequestError(400, `the body is not acceptable msgpack: ${error.message}`);
  }
}
