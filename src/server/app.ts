// The HTTP application: in front of every route, known or not, Host, Origin and key are checked; behind it failures become OpenAI error
// bodies and every answer gets its x-request-id. It owns no sockets (serve.ts) and no engine.

import { Hono } from "hono";
import type { Context } from "hono";
import { systemClock } from "../base/clock.ts";
import type { Clock } from "../base/clock.ts";
import { RequestError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { EngineClient } from "../engine/client.ts";
import type { ChatTemplate } from "../tokenizer/chat-template.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { checkHost, checkOrigin, createKeyCheck, isCorsOrigin } from "./access.ts";
import type { AccessPolicy } from "./access.ts";
import { answer, answerFormat, BODY_BYTES_MAX } from "./body.ts";
import { DASHBOARD_HEADERS, DASHBOARD_HTML } from "./dashboard.ts";
import { describeFailure } from "./errors.ts";
import { PLAIN_SAMPLING } from "./generation.ts";
import type { SamplingDefaults } from "./generation.ts";
import { Lifecycle } from "./lifecycle.ts";
import { Metrics } from "./metrics.ts";
import { STREAM_LIMITS } from "./responder.ts";
import type { StreamLimits } from "./responder.ts";
import { LIVE_PATH, ROUTES } from "./routes.ts";
import type { RouteContext } from "./routes.ts";

export interface AppOptions {
  readonly engine: EngineClient;
  readonly tokenizer: Tokenizer;
  /** null: the model has none, and chat is refused. */
  readonly chatTemplate: ChatTemplate | null;
  readonly modelName: string;
  readonly contextMax: number;
  /** The model's recommended sampling; what is missing is off. */
  readonly defaults?: Partial<SamplingDefaults>;
  /** Tokens that end an answer. Default: the tokenizer's. */
  readonly endTokenIds?: readonly number[];
  readonly log: Log;
  readonly clock?: Clock;
  /** The address that the server listens on. Default 127.0.0.1. */
  readonly listenHost?: string;
  readonly keys?: readonly string[];
  readonly allowedHosts?: readonly string[];
  readonly corsOrigins?: readonly string[];
  readonly bodyBytesMax?: number;
  readonly streamLimits?: Partial<StreamLimits>;
  readonly drawSeed?: () => number;
}

/** What serve.ts hands to the app with each request. Absent in tests that call app.request. */
export interface SocketBindings {
  readonly server?: { timeout(request: Request, seconds: number): void };
}

interface Env {
  Bindings: SocketBindings;
  Variables: { route: string };
}

export type App = Hono<Env> & { readonly lifecycle: Lifecycle; readonly log: Log };

const REQUEST_ID = /^[A-Za-z0-9._:-]{1,128}$/;
const CORS_HEADERS = "authorization, content-type, accept, x-request-id";

/** 53 random bits: every seed survives JSON. */
function drawSeed(): number {
  const [high = 0, low = 0] = crypto.getRandomValues(new Uint32Array(2));
  return (high >>> 11) * 2 ** 32 + low;
}

export function createApp(options: AppOptions): App {
  const policy: AccessPolicy = {
    listenHost: options.listenHost ?? "127.0.0.1",
    allowedHosts: options.allowedHosts ?? [],
    corsOrigins: options.corsOrigins ?? [],
    keys: options.keys ?? [],
  };
  const checkKey = createKeyCheck(policy.keys);
  const clock = options.clock ?? systemClock;
  const { log } = options;
  const context: RouteContext = {
    engine: options.engine,
    model: {
      name: options.modelName,
      tokenizer: options.tokenizer,
      chatTemplate: options.chatTemplate,
      contextMax: options.contextMax,
      defaults: { ...PLAIN_SAMPLING, ...options.defaults },
      endTokenIds: options.endTokenIds ?? options.tokenizer.endOfTextIds,
    },
    lifecycle: new Lifecycle(options.engine),
    metrics: new Metrics(options.engine),
    clock,
    log,
    bodyBytesMax: options.bodyBytesMax ?? BODY_BYTES_MAX,
    streamLimits: { ...STREAM_LIMITS, ...options.streamLimits },
    startedSeconds: clock.wallSeconds(),
    drawSeed: options.drawSeed ?? drawSeed,
  };

  const hono = new Hono<Env>();

  // Outermost: whatever happens inside, the answer is counted, logged and named.
  hono.use("*", async (c, next) => {
    const startMs = clock.nowMs();
    const given = c.req.header("x-request-id");
    const requestId = given !== undefined && REQUEST_ID.test(given) ? given : `req-${crypto.randomUUID()}`;
    await next();
    if (c.error !== undefined && describeFailure(c.error).isUnexpected) {
      log.error("request failed", { requestId, error: c.error.stack ?? String(c.error) });
    }
    c.res.headers.set("x-request-id", requestId);
    c.res.headers.set("x-content-type-options", "nosniff");
    const origin = c.req.header("origin");
    if (policy.corsOrigins.length > 0) c.res.headers.append("vary", "Origin");
    if (origin !== undefined && isCorsOrigin(origin, policy)) {
      c.res.headers.set("access-control-allow-origin", origin);
      c.res.headers.set("access-control-expose-headers", "x-request-id, retry-after");
    }
    const route = c.get("route") ?? "other";
    context.metrics.request(route, c.res.status);
    log.debug("request", { requestId, route, status: c.res.status, ms: Math.round(clock.nowMs() - startMs) });
  });

  hono.use("*", async (c, next) => {
    checkHost(c.req.header("host"), policy);
    const origin = c.req.header("origin");
    checkOrigin(origin, c.req.header("host") ?? "", policy);
    const isPreflight = c.req.method === "OPTIONS" && origin !== undefined && isCorsOrigin(origin, policy);
    const isLive = c.req.path === LIVE_PATH && (c.req.method === "GET" || c.req.method === "HEAD");
    if (!isPreflight && !isLive) checkKey(c.req.header("authorization"));
    await next();
  });

  for (const route of ROUTES) {
    const allowed = [...(route.get ? ["GET", "HEAD"] : []), ...(route.post ? ["POST"] : []), "OPTIONS"].join(", ");
    const label = route.path.replace(/\{.*\}$/, "");
    hono.all(route.path, async (c) => {
      c.set("route", label);
      const { method } = c.req;
      if (method === "OPTIONS") return optionsAnswer(allowed, c.req.header("origin"), policy);
      const handler = method === "GET" || method === "HEAD" ? route.get : method === "POST" ? route.post : undefined;
      if (handler === undefined) {
        const body = describeFailure(
          new RequestError(
            405,
            `${method.slice(0, 20)} is not possible here; ${label} takes ${allowed}`,
            null,
            "method_not_allowed",
          ),
        ).body;
        return answer(answerFormat(c.req.raw.headers), 405, body, { allow: allowed });
      }
      const keepOpen = () => c.env?.server?.timeout(c.req.raw, 0);
      const response = await handler(
        { request: c.req.raw, params: c.req.param() as Record<string, string>, keepOpen },
        context,
      );
      return method === "HEAD" ? new Response(null, { status: response.status, headers: response.headers }) : response;
    });
  }

  hono.notFound((c) =>
    failureAnswer(
      c,
      new RequestError(404, `no route ${c.req.path.slice(0, 100)}; ${hint(c.req.path)}`, null, "route_not_found"),
      context,
    ),
  );
  hono.onError((error, c) => failureAnswer(c, error, context));

  return Object.assign(hono, { lifecycle: context.lifecycle, log });
}

function failureAnswer(c: Context<Env>, error: unknown, context: RouteContext): Response {
  const failure = describeFailure(error);
  const headers: Record<string, string> = {};
  if (failure.retryAfterSeconds !== null) headers["retry-after"] = String(failure.retryAfterSeconds);
  if (failure.httpStatus === 413 || context.lifecycle.isDraining) headers["connection"] = "close";
  if (failure.httpStatus === 401) {
    headers["www-authenticate"] = "Bearer";
    // A browser that opens the page has no key yet: the page itself says nothing and asks for one.
    if (c.req.path === "/" && (c.req.header("accept") ?? "").includes("text/html")) {
      return new Response(DASHBOARD_HTML, { status: 401, headers: { ...headers, ...DASHBOARD_HEADERS } });
    }
  }
  return answer(answerFormat(c.req.raw.headers), failure.httpStatus, failure.body, headers);
}

/** The known path that the caller may have meant. */
function hint(path: string): string {
  const plain = (text: string) =>
    text
      .toLowerCase()
      .replaceAll(/[^a-z]/g, "")
      .replace(/^v1/, "");
  const paths = [...new Set(ROUTES.map((route) => route.path.replace(/\/:.*$/, "")))].filter((known) => known !== "/");
  const wanted = plain(path.slice(0, 200)).replace(/^v/, "");
  const near = paths.find((known) => wanted !== "" && plain(known).replace(/^v/, "").endsWith(wanted));
  return near === undefined ? `routes: ${paths.join(" ")}` : `did you mean ${near}?`;
}

function optionsAnswer(allowed: string, origin: string | undefined, policy: AccessPolicy): Response {
  const headers: Record<string, string> = { allow: allowed };
  if (origin !== undefined && isCorsOrigin(origin, policy)) {
    headers["access-control-allow-methods"] = allowed;
    headers["access-control-allow-headers"] = CORS_HEADERS;
    headers["access-control-max-age"] = "600";
  }
  return new Response(null, { status: 204, headers });
}
