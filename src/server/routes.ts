// The server's routes as one table: path, methods, and what answers. Handlers parse, call and format; what they decide is elsewhere.

import type { Clock } from "../base/clock.ts";
import { RequestError } from "../base/errors.ts";
import type { Log } from "../base/log.ts";
import type { EngineClient } from "../engine/client.ts";
import type { EngineStatus } from "../engine/messages.ts";
import { answer, answerFormat, bodyFormat, parseBody, readBody } from "./body.ts";
import { DASHBOARD_HEADERS, DASHBOARD_HTML } from "./dashboard.ts";
import { parseFields } from "./fields.ts";
import { ChatFormat, CompletionFormat } from "./format.ts";
import type { AnswerHead } from "./format.ts";
import { chatPrompt, checkModel, planChat, planCompletion } from "./generation.ts";
import type { Generation, ServedModel } from "./generation.ts";
import type { Lifecycle } from "./lifecycle.ts";
import { withTimeout } from "./lifecycle.ts";
import type { Metrics } from "./metrics.ts";
import { answerStream, answerWhole } from "./responder.ts";
import type { StreamLimits } from "./responder.ts";
import { chatSchema, completionSchema, detokenizeSchema, tokenizeSchema } from "./schema.ts";

/** What handlers work with. */
export interface RouteContext {
  readonly engine: EngineClient;
  readonly model: ServedModel;
  readonly lifecycle: Lifecycle;
  readonly metrics: Metrics;
  readonly clock: Clock;
  readonly log: Log;
  readonly bodyBytesMax: number;
  readonly streamLimits: StreamLimits;
  /** Wall-clock seconds at start. */
  readonly startedSeconds: number;
  /** A seed for a request that has none. */
  readonly drawSeed: () => number;
}

/** One HTTP request as handlers see it. */
export interface Call {
  readonly request: Request;
  readonly params: Readonly<Record<string, string>>;
  /** Lifts the connection's idle timeout, for answers that may take long. */
  readonly keepOpen: () => void;
}

export type Handler = (call: Call, context: RouteContext) => Response | Promise<Response>;

export interface Route {
  readonly path: string;
  readonly get?: Handler;
  readonly post?: Handler;
}

const STATUS_WAIT_MS = 1_000;

async function readFields<T extends Parameters<typeof parseFields>[0]>(schema: T, call: Call, context: RouteContext) {
  const format = bodyFormat(call.request.headers);
  const bytes = await readBody(call.request, context.bodyBytesMax);
  return parseFields(schema, parseBody(bytes, format));
}

function newId(prefix: string): string {
  return `${prefix}-${crypto.randomUUID().replaceAll("-", "")}`;
}

function head(generation: Generation, context: RouteContext): AnswerHead {
  return {
    id: generation.id,
    created: context.clock.wallSeconds(),
    model: context.model.name,
    system_fingerprint: `duet-${context.engine.lastStatus.containerFingerprint.slice(0, 16)}`,
    seed: generation.seed,
  };
}

const chatCompletions: Handler = async (call, context) => {
  context.lifecycle.checkReady();
  const body = await readFields(chatSchema, call, context);
  const generation = planChat(body, context.model, newId("chatcmpl"), context.drawSeed());
  const format = new ChatFormat(context.model.tokenizer, generation, head(generation, context));
  return generate(generation, format, call, context);
};

const completions: Handler = async (call, context) => {
  context.lifecycle.checkReady();
  const body = await readFields(completionSchema, call, context);
  const generation = planCompletion(body, context.model, newId("cmpl"), context.drawSeed());
  const format = new CompletionFormat(context.model.tokenizer, generation, head(generation, context));
  return generate(generation, format, call, context);
};

function generate(
  generation: Generation,
  format: ChatFormat | CompletionFormat,
  call: Call,
  context: RouteContext,
): Promise<Response> {
  call.keepOpen();
  const { signal, headers } = call.request;
  const wireFormat = answerFormat(headers);
  if (!generation.isStream) return answerWhole(generation, format, wireFormat, context, signal);
  return answerStream(generation, format, wireFormat, context, context.model.tokenizer, context.streamLimits, signal);
}

const tokenize: Handler = async (call, context) => {
  const { model } = context;
  const body = await readFields(tokenizeSchema, call, context);
  checkModel(body.model, model);
  if ((body.prompt === undefined) === (body.messages === undefined)) {
    throw new RequestError(400, "prompt: expected one of prompt and messages", "prompt");
  }
  const tokens =
    body.messages === undefined
      ? model.tokenizer.encode(body.prompt ?? "", { allowSpecial: false, addSpecial: body.add_special_tokens ?? true })
      : chatPrompt(body.messages, body.add_generation_prompt ?? true, model);
  return answer(answerFormat(call.request.headers), 200, {
    count: tokens.length,
    max_model_len: model.contextMax,
    tokens,
    token_strs: body.return_token_strs === true ? tokens.map((id) => model.tokenizer.pieceOf(id)) : null,
  });
};

const detokenize: Handler = async (call, context) => {
  const body = await readFields(detokenizeSchema, call, context);
  checkModel(body.model, context.model);
  const { tokenizer } = context.model;
  tokenizer.checkIds(body.tokens, "tokens");
  const prompt = tokenizer.decode(body.tokens as number[], { skipSpecial: false });
  return answer(answerFormat(call.request.headers), 200, { prompt });
};

function modelEntry(context: RouteContext) {
  return {
    id: context.model.name,
    object: "model",
    created: context.startedSeconds,
    owned_by: "duet",
    max_model_len: context.model.contextMax,
  };
}

const models: Handler = (call, context) =>
  answer(answerFormat(call.request.headers), 200, { object: "list", data: [modelEntry(context)] });

const oneModel: Handler = (call, context) => {
  checkModel(call.params["id"], context.model);
  return answer(answerFormat(call.request.headers), 200, modelEntry(context));
};

const live: Handler = (call) => answer(answerFormat(call.request.headers), 200, { status: "live" });

const ready: Handler = (call, context) => {
  const reason = context.lifecycle.unreadyReason;
  const format = answerFormat(call.request.headers);
  if (reason === null) return answer(format, 200, { status: "ready" });
  return answer(format, 503, { status: "not_ready", reason }, { "retry-after": "5" });
};

/** The engine's own word, or the last one when it does not answer in time. */
async function freshStatus(engine: EngineClient): Promise<EngineStatus> {
  let status: EngineStatus | null = null;
  const asked = engine.status().then(
    (value) => (status = value),
    () => null,
  );
  await withTimeout(asked, STATUS_WAIT_MS);
  return status ?? engine.lastStatus;
}

const status: Handler = async (call, context) => {
  const { clock, lifecycle, model } = context;
  return answer(answerFormat(call.request.headers), 200, {
    engine: await freshStatus(context.engine),
    server: {
      modelName: model.name,
      contextMax: model.contextMax,
      uptimeSeconds: clock.wallSeconds() - context.startedSeconds,
      activeCount: lifecycle.activeCount,
      isDraining: lifecycle.isDraining,
      unreadyReason: lifecycle.unreadyReason,
    },
  });
};

const metrics: Handler = async (_call, context) => {
  await freshStatus(context.engine);
  const headers = { "content-type": context.metrics.contentType, "cache-control": "no-store" };
  return new Response(await context.metrics.text(), { headers });
};

const dashboard: Handler = () => new Response(DASHBOARD_HTML, { headers: DASHBOARD_HEADERS });

export const LIVE_PATH = "/health/live";

export const ROUTES: readonly Route[] = [
  { path: "/", get: dashboard },
  { path: LIVE_PATH, get: live },
  { path: "/health/ready", get: ready },
  { path: "/metrics", get: metrics },
  { path: "/v1/status", get: status },
  { path: "/v1/models", get: models },
  { path: "/v1/models/:id{.+}", get: oneModel },
  { path: "/v1/chat/completions", post: chatCompletions },
  { path: "/v1/completions", post: completions },
  { path: "/tokenize", post: tokenize },
  { path: "/detokenize", post: detokenize },
];
