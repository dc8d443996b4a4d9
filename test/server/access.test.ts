import { describe, expect, test } from "bun:test";
import { RequestError } from "../../src/base/errors.ts";
import { checkHost, checkOrigin, createKeyCheck, isHostAllowed } from "../../src/server/access.ts";
import type { AccessPolicy } from "../../src/server/access.ts";

const LOOPBACK: AccessPolicy = { listenHost: "127.0.0.1", allowedHosts: [], corsOrigins: [], keys: [] };
const ANYWHERE: AccessPolicy = { ...LOOPBACK, listenHost: "0.0.0.0" };
const NAMED: AccessPolicy = { ...LOOPBACK, allowedHosts: ["Duet.local"] };

function statusOf(run: () => void): number | null {
  try {
    run();
    return null;
  } catch (error) {
    if (error instanceof RequestError) return error.httpStatus;
    throw error;
  }
}

describe("isHostAllowed", () => {
  test.each(["localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:65535", "[::1]", "[::1]:8080"])(
    "loopback always: %s",
    (host) => {
      for (const policy of [LOOPBACK, ANYWHERE, NAMED]) expect(isHostAllowed(host, policy)).toBe(true);
    },
  );

  test.each([
    "",
    "evil.example",
    "localhost.",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.256",
    "127.1",
    "localhost:",
    "localhost:123456",
    "user@localhost",
    "localhost/x",
    "localhost, evil.example",
    "[::1",
    "[::2]",
    "192.168.0.9",
    "lo calhost",
  ])("never on loopback: %j", (host) => expect(isHostAllowed(host, LOOPBACK)).toBe(false));

  test("an IP literal passes where the server listens everywhere; a name does not", () => {
    for (const host of ["192.168.0.9:8080", "[fe80::1]:80", "10.0.0.1"])
      expect(isHostAllowed(host, ANYWHERE)).toBe(true);
    for (const host of ["duet.local", "999.1.1.1", "1.2.3"]) expect(isHostAllowed(host, ANYWHERE)).toBe(false);
  });

  test("a configured name and the listening address pass, whatever their case and port", () => {
    expect(isHostAllowed("duet.LOCAL:9000", NAMED)).toBe(true);
    expect(isHostAllowed("x.duet.local", NAMED)).toBe(false);
    expect(isHostAllowed("192.168.0.9", { ...LOOPBACK, listenHost: "192.168.0.9" })).toBe(true);
    expect(isHostAllowed("[fe80::1]:80", { ...LOOPBACK, listenHost: "fe80::1" })).toBe(true);
  });
});

test("checkHost: missing is 400, foreign is 403", () => {
  expect(statusOf(() => checkHost(undefined, LOOPBACK))).toBe(400);
  expect(statusOf(() => checkHost("", LOOPBACK))).toBe(400);
  expect(statusOf(() => checkHost("evil.example", LOOPBACK))).toBe(403);
  expect(statusOf(() => checkHost("localhost", LOOPBACK))).toBeNull();
  expect(() => checkHost("evil.example", LOOPBACK)).toThrow("--allow-host");
});

test("checkOrigin: none, the server's own and configured ones pass", () => {
  const policy = { ...LOOPBACK, corsOrigins: ["https://app.example"] };
  const status = (origin: string | undefined, host = "localhost:8080") =>
    statusOf(() => checkOrigin(origin, host, policy));
  for (const origin of [undefined, "http://localhost:8080", "https://LOCALHOST:8080", "https://app.example"]) {
    expect(status(origin)).toBeNull();
  }
  for (const origin of [
    "null",
    "",
    "https://app.example.evil",
    "https://app.example:444",
    "http://localhost",
    "file://localhost:8080",
    "http://localhost:8080/",
  ]) {
    expect(status(origin)).toBe(403);
  }
});

describe("createKeyCheck", () => {
  test("without keys everyone passes", () => {
    expect(statusOf(() => createKeyCheck([])(undefined))).toBeNull();
  });

  test("each key passes; everything else is 401", () => {
    const check = createKeyCheck(["one", "zwö"]);
    for (const given of ["Bearer one", "bearer  one ", "Bearer zwö"]) expect(statusOf(() => check(given))).toBeNull();
    for (const given of [
      undefined,
      "",
      "Bearer",
      "Bearer ",
      "Bearer two",
      "Bearer one two",
      "Bearer onee",
      "Basic one",
      "one",
      `Bearer ${"x".repeat(1e6)}`,
    ]) {
      expect(statusOf(() => check(given))).toBe(401);
    }
  });

  test("an empty key among the keys does not let callers without one in", () => {
    const check = createKeyCheck([""]);
    for (const given of [undefined, "Bearer ", "Bearer x"]) expect(statusOf(() => check(given))).toBe(401);
  });

  test("a key is not shown", () => {
    expect(() => createKeyCheck(["one"])("Bearer mistyped")).toThrow(/^(?!.*mistyped)/);
  });
});
