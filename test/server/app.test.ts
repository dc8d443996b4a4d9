// What holds in front of and behind every route: Host, Origin, key, request id, methods, spellings, preflights.

import { describe, expect, test } from "bun:test";
import { ROUTES } from "../../src/server/routes.ts";
import { createFixture, json, MODEL, USER_HI } from "./fixture.ts";
import type { Fixture } from "./fixture.ts";

const KEY = "sk-one";
const PATHS = ROUTES.map((route) => route.path.replace(":id{.+}", MODEL));
const GET_PATHS = ROUTES.filter((route) => route.get).map((route) => route.path.replace(":id{.+}", MODEL));
const POST_PATHS = ROUTES.filter((route) => route.post).map((route) => route.path);

const call = (fixture: Fixture, method: string, path: string, headers: Record<string, string> = {}) =>
  fixture.app.request(`http://localhost:8080${path}`, { method, headers: { host: "localhost:8080", ...headers } });

async function expectError(response: Response, httpStatus: number, code: string | null) {
  expect(response.status).toBe(httpStatus);
  const { error } = await json(response);
  expect(error.code).toBe(code);
  expect(error.message).not.toBe("");
  return error as { message: string; type: string; param: string | null };
}

describe("keys", () => {
  const fixture = createFixture({ keys: ["sk-zero", KEY] });

  test.each([
    ["none", {}],
    ["wrong", { authorization: "Bearer sk-two" }],
    ["a prefix", { authorization: "Bearer sk-on" }],
    ["another scheme", { authorization: `Basic ${KEY}` }],
    ["no scheme", { authorization: KEY }],
    ["two keys", { authorization: `Bearer ${KEY} ${KEY}` }],
    ["another header", { "x-api-key": KEY }],
  ])("every route refuses a caller whose key is %s", async (_name, headers: Record<string, string>) => {
    for (const path of [
      ...PATHS,
      "/nothing",
      "//v1/models",
      "/v1%2Fmodels",
      "/V1/MODELS",
      "/v1/models/",
      "/health/live/",
    ]) {
      for (const method of ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"]) {
        if (path === "/health/live" && (method === "GET" || method === "HEAD")) continue;
        const response = await call(fixture, method, path, headers);
        expect([method, path, response.status]).toEqual([method, path, 401]);
        expect(response.headers.get("www-authenticate")).toBe("Bearer");
        if (method !== "HEAD") expect((await json(response)).error.type).toBe("authentication_error");
      }
    }
    expect(fixture.engine.submitted).toEqual([]);
  });

  test("a key in the query is none", async () => {
    await expectError(
      await call(fixture, "GET", `/v1/models?api_key=${KEY}&authorization=Bearer%20${KEY}`),
      401,
      "invalid_api_key",
    );
  });

  test("any of the keys opens every route; liveness needs none", async () => {
    for (const key of ["sk-zero", KEY]) {
      for (const path of GET_PATHS) {
        expect((await call(fixture, "GET", path, { authorization: `bearer ${key}` })).status).toBe(200);
      }
    }
    expect((await call(fixture, "GET", "/health/live")).status).toBe(200);
  });

  test("a browser without a key gets the page that asks for one, and nothing else", async () => {
    const response = await call(fixture, "GET", "/", { accept: "text/html,*/*" });
    expect([response.status, response.headers.get("content-type")]).toEqual([401, "text/html; charset=utf-8"]);
    expect((await call(fixture, "GET", "/v1/status", { accept: "text/html" })).headers.get("content-type")).toBe(
      "application/json",
    );
  });
});

describe("Host and Origin", () => {
  test.each([
    "evil.example",
    "localhost.evil.example",
    "10.0.0.1:8080",
    "127.0.0.1.evil.example",
    "localhost:80:80",
    "a b",
    "localhost@evil",
  ])("the Host %j is refused on every route", async (host) => {
    const fixture = createFixture();
    for (const path of [...PATHS, "/nothing"])
      await expectError(await call(fixture, "GET", path, { host }), 403, "host_not_allowed");
  });

  test("a missing Host is refused", async () => {
    await expectError(await createFixture().app.request("http://localhost:8080/v1/models"), 400, "host_missing");
  });

  test.each([
    "null",
    "https://evil.example",
    "http://localhost.evil.example:8080",
    "http://localhost:8081",
    "https://localhost:8080/x",
    "",
  ])("a page of origin %j is refused", async (origin) => {
    const { app, engine } = createFixture();
    const response = await app.request("http://localhost:8080/v1/completions", {
      method: "POST",
      headers: { host: "localhost:8080", origin, "content-type": "application/json" },
      body: JSON.stringify({ prompt: "x" }),
    });
    const error = await expectError(response, 403, "origin_not_allowed");
    expect(error.message).toContain("--cors-origin");
    expect(response.headers.get("access-control-allow-origin")).toBeNull();
    expect(engine.submitted).toEqual([]);
  });

  test("the server's own page may call", async () => {
    const response = await createFixture().post(
      "/v1/completions",
      { prompt: "x" },
      { origin: "http://localhost:8080" },
    );
    expect(response.status).toBe(200);
  });

  test("a configured origin may call, and its preflight needs no key", async () => {
    const origin = "https://app.example";
    const fixture = createFixture({ corsOrigins: [origin], keys: [KEY] });
    const preflight = await call(fixture, "OPTIONS", "/v1/completions", { origin });
    expect([preflight.status, preflight.headers.get("access-control-allow-methods")]).toEqual([204, "POST, OPTIONS"]);
    expect(preflight.headers.get("access-control-allow-origin")).toBe(origin);
    expect(preflight.headers.get("access-control-allow-headers")).toContain("authorization");
    const answer = await call(fixture, "GET", "/v1/models", { origin, authorization: `Bearer ${KEY}` });
    expect([answer.status, answer.headers.get("access-control-allow-origin"), answer.headers.get("vary")]).toEqual([
      200,
      origin,
      "Origin",
    ]);
    expect((await call(fixture, "OPTIONS", "/v1/completions", { origin: "https://other.example" })).status).toBe(403);
    expect((await call(fixture, "GET", "/v1/models", { origin })).status).toBe(401);
  });
});

describe("methods", () => {
  const fixture = createFixture();

  test.each(PATHS)("%s answers other methods with 405 and Allow", async (path) => {
    const allowed = GET_PATHS.includes(path) ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
    for (const method of ["PUT", "DELETE", "PATCH", GET_PATHS.includes(path) ? "POST" : "GET"]) {
      const response = await call(fixture, method, path);
      expect(response.headers.get("allow")).toBe(allowed);
      const error = await expectError(response, 405, "method_not_allowed");
      expect(error.message).toContain(`${method} is not possible here`);
      expect(error.message).toContain(allowed);
    }
    const options = await call(fixture, "OPTIONS", path);
    expect([options.status, options.headers.get("allow"), await options.text()]).toEqual([204, allowed, ""]);
  });

  test.each(GET_PATHS)("HEAD %s has GET's head and no body", async (path) => {
    const response = await call(fixture, "HEAD", path);
    expect([response.status, await response.text()]).toEqual([200, ""]);
    expect(response.headers.get("content-type")).toBe((await call(fixture, "GET", path)).headers.get("content-type"));
  });

  test("HEAD of a route that takes POST is 405", async () => {
    for (const path of POST_PATHS) expect((await call(fixture, "HEAD", path)).status).toBe(405);
  });
});

describe("spellings", () => {
  test.each([
    ["//v1/models", "/v1/models"],
    ["/v1//models", "/v1/models"],
    ["/V1/Models", "/v1/models"],
    ["/models", "/v1/models"],
    ["/v1/chat/completions/", "/v1/chat/completions"],
    ["/chat/completions", "/v1/chat/completions"],
    ["/v1/tokenize", "/tokenize"],
    ["/metrics/", "/metrics"],
  ])("%s is no route, and the answer says which was meant", async (path, meant) => {
    const error = await expectError(await call(createFixture(), "GET", path), 404, "route_not_found");
    expect(error.message).toContain(`did you mean ${meant}?`);
  });

  test.each(["/nothing", "/v1%2Fmodels", "/%zz", "/%00", "/..%2f..%2fetc/passwd", `/${"a".repeat(5000)}`])(
    "%s: the routes are listed",
    async (path) => {
      const error = await expectError(await call(createFixture(), "GET", path), 404, "route_not_found");
      expect(error.message).toContain("routes: /health/live");
      expect(error.message.length).toBeLessThan(400);
    },
  );

  test("/v1/models/{id} decodes the id and refuses others by name", async () => {
    const fixture = createFixture({ modelName: "org/model" });
    for (const id of ["org/model", "org%2Fmodel"]) {
      expect((await json(await call(fixture, "GET", `/v1/models/${id}`))).id).toBe("org/model");
    }
    for (const id of ["other", "%zz", "%00"])
      await expectError(await call(fixture, "GET", `/v1/models/${id}`), 404, "model_not_found");
  });
});

describe("every answer", () => {
  test("has the caller's request id, or its own where that could not be a header", async () => {
    const fixture = createFixture();
    for (const path of ["/v1/models", "/nothing"]) {
      expect((await call(fixture, "GET", path, { "x-request-id": "abc-1:2.3_4" })).headers.get("x-request-id")).toBe(
        "abc-1:2.3_4",
      );
      for (const given of ["a b", "a\tb", "a,b", "<script>", "x".repeat(129), ""]) {
        expect((await call(fixture, "GET", path, { "x-request-id": given })).headers.get("x-request-id")).toMatch(
          /^req-[0-9a-f-]{36}$/,
        );
      }
    }
  });

  test("cannot be sniffed or stored", async () => {
    for (const path of ["/", "/v1/models", "/metrics", "/nothing"]) {
      const { headers } = await call(createFixture(), "GET", path);
      expect([headers.get("x-content-type-options"), headers.get("cache-control")]).toEqual(["nosniff", "no-store"]);
    }
  });

  test("hides what an unexpected failure says, and the log has it under the request's id", async () => {
    const lines: [string, Record<string, unknown> | undefined][] = [];
    const log = {
      debug: () => {},
      info: () => {},
      warn: () => {},
      error: (message: string, fields?: Record<string, unknown>) => lines.push([message, fields]),
    };
    const fixture = createFixture({
      log: log as never,
      drawSeed: () => {
        throw new Error("secret path");
      },
    });
    const response = await fixture.post("/v1/completions", { prompt: "x" }, { "x-request-id": "abc" });
    expect([response.status, (await response.clone().text()).includes("secret")]).toEqual([500, false]);
    expect((await json(response)).error.type).toBe("server_error");
    expect(lines.map(([message, fields]) => [message, fields?.["requestId"]])).toEqual([["request failed", "abc"]]);
    expect(String(lines[0]?.[1]?.["error"])).toContain("secret path");
  });

  test("prompts, answers and keys stay out of the log", async () => {
    const lines: string[] = [];
    const write = (message: string, fields?: unknown) => void lines.push(message + JSON.stringify(fields));
    const fixture = createFixture({ keys: [KEY], log: { debug: write, info: write, warn: write, error: write } });
    const headers = { authorization: `Bearer ${KEY}` };
    await fixture.post("/v1/chat/completions", { messages: [{ role: "user", content: "confidential" }] }, headers);
    await fixture.post("/v1/chat/completions", { messages: USER_HI, confidential: 1 }, headers);
    await fixture.post("/v1/completions?confidential", "{", { authorization: "Bearer confidential" });
    expect(lines.length).toBe(3);
    expect(lines.filter((line) => /confidential|Hello|sk-/.test(line))).toEqual([]);
  });
});
