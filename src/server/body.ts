// Bytes in, values out, and back: bounded reading of request bodies and the two encodings, JSON and msgpack. It knows nothing of
// what the values mean.

import { RequestError } from "../base/errors.ts";
import { guardJson } from "./json-guard.ts";
import { decodeMsgpack, encodeMsgpack } from "./msgpack.ts";

export const BODY_BYTES_MAX = 8 * 1024 * 1024;

const MSGPACK_TYPES = new Set(["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"]);
const textDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export type WireFormat = "json" | "msgpack";

function mediaType(header: string): string {
  return (header.split(";", 1)[0] ?? "").trim().toLowerCase();
}

/** The encoding of a request's body. Throws RequestError 415: a page can send text/plain to a foreign server without asking. */
export function bodyFormat(headers: Headers): WireFormat {
  const encoding = headers.get("content-encoding");
  if (encoding !== null && encoding.toLowerCase() !== "identity") {
    throw new RequestError(415, `content-encoding: expected none, got ${JSON.stringify(encoding.slice(0, 60))}`);
  }
  const type = mediaType(headers.get("content-type") ?? "");
  if (type === "application/json") return "json";
  if (MSGPACK_TYPES.has(type)) return "msgpack";
  const got = type === "" ? "none" : JSON.stringify(type.slice(0, 60));
  throw new RequestError(415, `content-type: expected application/json or application/msgpack, got ${got}`);
}

/** What the caller wants to read: msgpack when Accept names it before (or without) JSON. */
export function answerFormat(headers: Headers): WireFormat {
  for (const entry of (headers.get("accept") ?? "").split(",")) {
    const type = mediaType(entry);
    if (MSGPACK_TYPES.has(type)) return "msgpack";
    if (type === "application/json") return "json";
  }
  return "json";
}

/** The body's bytes, counted while they arrive. Throws RequestError 413, 400 when the caller goes away in the middle. */
export async function readBody(request: Request, bytesMax: number): Promise<Uint8Array> {
  const tooLarge = () => new RequestError(413, `the body is larger than ${bytesMax} bytes`, null, "body_too_large");
  if (Number(request.headers.get("content-length") ?? 0) > bytesMax) throw tooLarge();
  if (request.body === null) return new Uint8Array(0);
  const reader = request.body.getReader();
  const chunks: Uint8Array[] = [];
  let byteCount = 0;
  for (;;) {
    const { value, done } = await reader.read().catch(() => {
      throw new RequestError(400, "the body ended before it was complete");
    });
    if (done) break;
    byteCount += value.length;
    if (byteCount > bytesMax) {
      reader.cancel().catch(() => {});
      throw tooLarge();
    }
    chunks.push(value);
  }
  return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
}

/** The value in a body. Throws RequestError 400. */
export function parseBody(bytes: Uint8Array, format: WireFormat): unknown {
  if (bytes.length === 0) throw new RequestError(400, "the body is empty; expected an object");
  if (format === "msgpack") return decodeMsgpack(bytes);
  if (bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) {
    throw new RequestError(400, "the body begins with a byte order mark; expected JSON in plain UTF-8");
  }
  let text: string;
  try {
    text = textDecoder.decode(bytes);
  } catch {
    throw new RequestError(400, "the body is not UTF-8");
  }
  guardJson(text);
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    const reason = error instanceof Error ? error.message.slice(0, 120) : "syntax error";
    throw new RequestError(400, `the body is not JSON: ${reason}`);
  }
}

/** An answer in the encoding that the caller asked for. */
export function answer(
  format: WireFormat,
  httpStatus: number,
  value: unknown,
  headers: Readonly<Record<string, string>> = {},
): Response {
  const isJson = format === "json";
  return new Response(isJson ? JSON.stringify(value) : (encodeMsgpack(value) as Uint8Array<ArrayBuffer>), {
    status: httpStatus,
    headers: {
      "content-type": isJson ? "application/json" : "application/msgpack",
      "cache-control": "no-store",
      ...headers,
    },
  });
}
