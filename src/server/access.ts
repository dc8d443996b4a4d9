// Who may call: Host, Origin and key checks as pure decisions. A page in a browser must not reach the server through a name that
// an attacker controls (DNS rebinding), nor from another origin; keys are compared in constant time.

import { createHash, timingSafeEqual } from "node:crypto";
import { RequestError } from "../base/errors.ts";

export interface AccessPolicy {
  /** The address that the server listens on; a wildcard address admits every IP literal as Host. */
  readonly listenHost: string;
  /** Further names, without port, under which the server may be called. */
  readonly allowedHosts: readonly string[];
  /** Origins, such as "https://app.example", whose pages may call. Empty: none but the server's own. */
  readonly corsOrigins: readonly string[];
  /** Empty: no key is needed. */
  readonly keys: readonly string[];
}

const HOST = /^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?$/;
const IPV4 = /^(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?!$)|$)){4}$/;
const LOOPBACK_V4 = /^127\.\d+\.\d+\.\d+$/;
const WILDCARDS = new Set(["0.0.0.0", "::", "[::]"]);

/**
 * Whether a Host header names this server. An IP literal cannot be rebound, so that all of them pass when the server listens
 * everywhere; names pass only when they are loopback or configured.
 */
export function isHostAllowed(header: string, policy: AccessPolicy): boolean {
  const host = HOST.exec(header.toLowerCase())?.[1];
  if (host === undefined) return false;
  if (host === "localhost" || host === "[::1]") return true;
  const isV4 = IPV4.test(host);
  if (isV4 && LOOPBACK_V4.test(host)) return true;
  const bare = host.startsWith("[") ? host.slice(1, -1) : host;
  const isListed = (name: string) => name.toLowerCase() === host || name.toLowerCase() === bare;
  if (WILDCARDS.has(policy.listenHost)) {
    if (isV4 || host.startsWith("[")) return true;
  } else if (isListed(policy.listenHost)) {
    return true;
  }
  return policy.allowedHosts.some(isListed);
}

/** Throws RequestError 400 for a missing Host, 403 for a foreign one. */
export function checkHost(header: string | undefined, policy: AccessPolicy): void {
  if (header === undefined || header === "")
    throw new RequestError(400, "the Host header is missing", null, "host_missing");
  if (isHostAllowed(header, policy)) return;
  throw new RequestError(
    403,
    `Host ${JSON.stringify(header.slice(0, 100))} is not a name of this server; expected localhost, a loopback address or a ` +
      "configured host (allow it with --allow-host)",
    null,
    "host_not_allowed",
  );
}

/** Whether the origin is configured for cross-origin calls. */
export function isCorsOrigin(origin: string, policy: AccessPolicy): boolean {
  return policy.corsOrigins.includes(origin);
}

/** Throws RequestError 403 unless there is no Origin, or it is the server's own or a configured one. `host` has been checked. */
export function checkOrigin(origin: string | undefined, host: string, policy: AccessPolicy): void {
  if (origin === undefined || isCorsOrigin(origin, policy)) return;
  const own = /^https?:\/\/([^/]+)$/.exec(origin)?.[1];
  if (own !== undefined && own.toLowerCase() === host.toLowerCase()) return;
  throw new RequestError(
    403,
    `pages from origin ${JSON.stringify(origin.slice(0, 100))} may not call this server (allow them with --cors-origin)`,
    null,
    "origin_not_allowed",
  );
}

function digest(key: string): Buffer {
  return createHash("sha256").update(key).digest();
}

/** A check of the Authorization header against all keys in constant time; throws RequestError 401. */
export function createKeyCheck(keys: readonly string[]): (authorization: string | undefined) => void {
  const digests = keys.map(digest);
  return (authorization) => {
    if (digests.length === 0) return;
    const given = /^Bearer +(\S+) *$/i.exec(authorization ?? "")?.[1];
    const actual = digest(given ?? "");
    let isKnown = false;
    for (const expected of digests) if (timingSafeEqual(expected, actual)) isKnown = true;
    if (isKnown && given !== undefined) return;
    throw new RequestError(
      401,
      given === undefined
        ? 'an API key is needed: send the header "Authorization: Bearer <key>"'
        : "the API key is not known to this server",
      null,
      "invalid_api_key",
    );
  };
}
