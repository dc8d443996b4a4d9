import { describe, expect, test } from "bun:test";
import { RequestError } from "../../src/base/errors.ts";
import { answer, answerFormat, bodyFormat, parseBody, readBody } from "../../src/server/body.ts";
import { decodeMsgpack, encodeMsgpack } from "../../src/server/msgpack.ts";
import { createFixture, json } from "./fixture.ts";

const utf8 = (text: string) => new TextEncoder().encode(text);

function refusal(run: () => unknown): RequestError {
  try {
    run();
  } catch (error) {
    if (error instanceof RequestError) return error;
    throw error;
  }
  throw new Error("expected a refusal");
}

describe("bodyFormat", () => {
  test.each([
    ["application/json", "json"],
    ["Application/JSON; charset=utf-8", "json"],
    ["application/msgpack", "msgpack"],
    ["application/x-msgpack", "msgpack"],
    ["application/vnd.msgpack", "msgpack"],
  ])("%s", (type, format) => {
    expect(bodyFormat(new Headers({ "content-type": type }))).toBe(format as never);
  });

  test.each([
    "",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/jsonp",
    "text/json",
    "application/json, text/plain",
  ])("%j is 415, as a page may send it without asking", async (type) => {
    const error = refusal(() => bodyFormat(new Headers(type === "" ? {} : { "content-type": type })));
    expect(error.httpStatus).toBe(415);
    expect(error.message).toContain("expected application/json or application/msgpack, got ");
    const { app, engine } = createFixture();
    const headers = { host: "localhost", ...(type === "" ? {} : { "content-type": type }) };
    const response = await app.request("http://localhost/v1/completions", {
      method: "POST",
      headers,
      body: utf8('{"prompt":"x"}'),
    });
    expect([response.status, engine.submitted.length]).toEqual([415, 0]);
  });

  test("a compressed body is 415", () => {
    for (const encoding of ["gzip", "br", "deflate, gzip"]) {
      const headers = new Headers({ "content-type": "application/json", "content-encoding": encoding });
      expect(refusal(() => bodyFormat(headers)).httpStatus).toBe(415);
    }
    expect(bodyFormat(new Headers({ "content-type": "application/json", "content-encoding": "identity" }))).toBe(
      "json",
    );
  });
});

describe("parseBody", () => {
  const json = (bytes: Uint8Array) => parseBody(bytes, "json");

  test("a value", () => {
    expect(json(utf8(' {"a":[1,"é",null]}\n'))).toEqual({ a: [1, "é", null] });
  });

  test.each([
    ["nothing", new Uint8Array(0), "the body is empty"],
    ["white space", utf8("  "), "the body is not JSON"],
    ["truncated", utf8('{"a":'), "the body is not JSON"],
    ["in a string", utf8('{"a":"'), "the body is not JSON"],
    ["two values", utf8("{}{}"), "the body is not JSON"],
    ["a trailing comma", utf8('{"a":1,}'), "the body is not JSON"],
    ["NaN", utf8('{"a":NaN}'), "the body is not JSON"],
    ["single quotes", utf8("{'a':1}"), "the body is not JSON"],
    ["a comment", utf8("{}//"), "the body is not JSON"],
    ["NUL", utf8("\0"), "the body is not JSON"],
    ["a byte order mark", utf8("\ufeff{}"), "byte order mark"],
    ["UTF-16", Uint8Array.of(0xff, 0xfe, 0x7b, 0, 0x7d, 0), "not UTF-8"],
    ["an overlong form", Uint8Array.of(0x22, 0xc0, 0x80, 0x22), "not UTF-8"],
    ["a surrogate in bytes", Uint8Array.of(0x22, 0xed, 0xa0, 0x80, 0x22), "not UTF-8"],
    ["half a character", Uint8Array.of(0x22, 0xe2, 0x82), "not UTF-8"],
    ["a field twice", utf8('{"a":1,"a":2}'), 'the field "a" twice'],
    ["depth 100,000", utf8("[".repeat(100_000)), "nested deeper than 64"],
  ])("%s is 400", (_name, bytes, message) => {
    const error = refusal(() => json(bytes));
    expect(error.httpStatus).toBe(400);
    expect(error.message).toContain(message);
    expect(error.message.length).toBeLessThan(250);
  });
});

describe("readBody", () => {
  const chunked = (chunks: readonly Uint8Array[], onCancel = () => {}) => {
    const rest = [...chunks];
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        const next = rest.shift();
        if (next === undefined) controller.close();
        else controller.enqueue(next);
      },
      cancel: onCancel,
    });
    return new Request("http://localhost/", { method: "POST", body });
  };

  test("whole, in one or many pieces", async () => {
    expect(await readBody(chunked([utf8("ab")]), 4)).toEqual(utf8("ab"));
    expect([...(await readBody(chunked([utf8("ab"), utf8("cd")]), 4))]).toEqual([...utf8("abcd")]);
    expect(await readBody(new Request("http://localhost/", { method: "POST" }), 4)).toEqual(new Uint8Array(0));
  });

  test("counts what arrives, and stops reading beyond the limit", async () => {
    let isCancelled = false;
    const request = chunked([utf8("abc"), utf8("de"), utf8("never")], () => (isCancelled = true));
    const error = await readBody(request, 4).catch((thrown: unknown) => thrown);
    expect([(error as RequestError).httpStatus, (error as RequestError).code]).toEqual([413, "body_too_large"]);
    expect(isCancelled).toBe(true);
  });

  test("a body that breaks off is 400", async () => {
    const body = new ReadableStream({ pull: (controller) => controller.error(new Error("reset")) });
    const request = new Request("http://localhost/", { method: "POST", body });
    expect(((await readBody(request, 4).catch((thrown: unknown) => thrown)) as RequestError).httpStatus).toBe(400);
  });

  test("the limit over HTTP", async () => {
    const { post } = createFixture({ bodyBytesMax: 100 });
    const response = await post("/v1/completions", { prompt: "x".repeat(100) });
    expect([response.status, response.headers.get("connection")]).toEqual([413, "close"]);
    expect((await json(response)).error.message).toBe("the body is larger than 100 bytes");
  });
});

describe("answers", () => {
  test.each([
    ["", "json"],
    ["*/*", "json"],
    ["application/json, application/msgpack", "json"],
    ["application/msgpack", "msgpack"],
    ["text/html, application/x-msgpack;q=0.9", "msgpack"],
    ["application/msgpack, application/json", "msgpack"],
  ])("accept %j", (accept, format) => {
    expect(answerFormat(new Headers({ accept }))).toBe(format as never);
  });

  test("carry the same value in both encodings", async () => {
    const value = { a: [1, 2.5, null, "é"] };
    const asJson = answer("json", 201, value, { allow: "GET" });
    expect([asJson.status, asJson.headers.get("content-type"), asJson.headers.get("allow")]).toEqual([
      201,
      "application/json",
      "GET",
    ]);
    expect(await asJson.json()).toEqual(value);
    const asMsgpack = answer("msgpack", 200, value);
    expect(asMsgpack.headers.get("content-type")).toBe("application/msgpack");
    expect(decodeMsgpack(await asMsgpack.bytes())).toEqual(value);
  });

  test("errors come in the encoding that was asked for", async () => {
    const { post } = createFixture();
    const headers = { "content-type": "application/msgpack", accept: "application/msgpack" };
    const response = await post("/v1/completions", encodeMsgpack({ prompt: "x", foo: 1 }), headers);
    expect([response.status, response.headers.get("content-type")]).toEqual([400, "application/msgpack"]);
    expect(decodeMsgpack(await response.bytes())).toMatchObject({ error: { param: "foo", code: "unknown_field" } });
  });
});
