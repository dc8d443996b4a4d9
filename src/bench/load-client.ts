// The HTTP side of the load generator: learns what the server is, and sends one request at a time to the one address that it was
// given: no redirect is followed and no proxy is used. When to send, and what the times mean, is decided elsewhere.

import { DuetError } from "../base/errors.ts";
import { EventParser } from "./event-parser.ts";
import { type Prompt, type PromptSource, randomTokens, textSlices, tokenSlices } from "./load-prompts.ts";
import { errorMessage, failedAnswer, type StreamAnswer, StreamAnswerReader } from "./stream-answer.ts";

export type Api = "completions" | "chat";

export interface Target {
  /** Without a slash at the end and without /v1. */
  readonly url: string;
  readonly apiKey: string | null;
}

export interface Served {
  readonly modelName: string;
  /** Takes Duet's own fields, and token ids. */
  readonly isDuet: boolean;
  /** null: the server does not say. */
  readonly contextTokens: number | null;
}

/** What every request of a run has in common. */
export interface RequestForm {
  readonly api: Api;
  readonly served: Served;
  /** null: the server's own. */
  readonly temperature: number | null;
  /** One event for each token; Duet only. */
  readonly isEventPerToken: boolean;
}

const ERROR_BYTES_MAX = 16 * 1024;
const ANSWER_BYTES_MAX = 64 * 1024 * 1024;
/** How long a server may take over a question that costs it nothing. */
const PROBE_MS = 60_000;
/** Text that is asked about to learn the server's tokens. */
const PROBE_CHARACTERS = 1000;

function request(target: Target, path: string, body: unknown, signal: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = { "accept-encoding": "identity" };
  if (target.apiKey !== null) headers.authorization = `Bearer ${target.apiKey}`;
  const init = {
    method: body === null ? "GET" : "POST",
    headers: body === null ? headers : { ...headers, "content-type": "application/json" },
    ...(body === null ? {} : { body: JSON.stringify(body) }),
    redirect: "manual",
    signal,
    // Bun's own: never a proxy of the environment, and no limit on the time between two bytes.
    proxy: false,
    timeout: false,
  };
  return fetch(`${target.url}${path}`, init as unknown as RequestInit);
}

/** The body up to `bytesMax`; the rest is dropped with its connection. */
async function readText(response: Response, bytesMax: number): Promise<string> {
  const decoder = new TextDecoder();
  let [text, bytes] = ["", 0];
  for await (const piece of response.body ?? []) {
    bytes += piece.byteLength;
    text += decoder.decode(piece, { stream: true });
    if (bytes > bytesMax) break;
  }
  return text;
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

async function refusal(response: Response): Promise<string | null> {
  const text = await readText(response, ERROR_BYTES_MAX).catch(() => "");
  return errorMessage(parsed(text)) ?? (text.replace(/\s+/g, " ").trim().slice(0, 200) || null);
}

const causeOf = (error: unknown) => {
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown };
  return typeof code === "string" ? code : String(message ?? error);
};

/** The JSON of an answer. Throws DuetError server_unreachable, or server_refused for another status than 2xx and for no JSON. */
async function ask(target: Target, path: string, body: unknown, signal: AbortSignal): Promise<unknown> {
  const where = `${target.url}${path}`;
  let response: Response;
  let text: string;
  try {
    response = await request(target, path, body, AbortSignal.any([signal, AbortSignal.timeout(PROBE_MS)]));
    if (response.ok) text = await readText(response, ANSWER_BYTES_MAX);
    else {
      const message = await refusal(response);
      const got = `HTTP ${response.status}${message === null ? "" : `: ${message}`}`;
      const next = response.status === 401 ? "give its key with --api-key" : "check the address and the server's log";
      throw new DuetError("server_refused", "the server refuses what the benchmark needs", { where, got, next });
    }
  } catch (error) {
    if (error instanceof DuetError) throw error;
    const next = "start the server, or leave the address out to measure the shipped model";
    const detail = { where, got: causeOf(error), next };
    throw new DuetError("server_unreachable", "the server does not answer", detail, { cause: error });
  }
  const json = parsed(text);
  if (typeof json === "object" && json !== null) return json;
  const expected = "JSON of an OpenAI-compatible server";
  throw new DuetError("server_refused", "this is no server that the benchmark knows", {
    where,
    expected,
    got: JSON.stringify(text.slice(0, 80)),
  });
}

interface ModelList {
  readonly data?: readonly { readonly id?: unknown; readonly owned_by?: unknown; readonly max_model_len?: unknown }[];
}

/** Asks /v1/models; `modelName` null: the first one. Throws DuetError. */
export async function askServed(target: Target, modelName: string | null, signal: AbortSignal): Promise<Served> {
  const { data } = (await ask(target, "/v1/models", null, signal)) as ModelList;
  const models = Array.isArray(data) ? data.filter((model) => typeof model?.id === "string") : [];
  const model = modelName === null ? models[0] : models.find(({ id }) => id === modelName);
  if (model === undefined) {
    const got = models.length === 0 ? "none" : models.map(({ id }) => String(id)).join(", ");
    const where = `${target.url}/v1/models`;
    throw new DuetError("server_refused", "the server has no such model", {
      where,
      expected: modelName ?? "a model",
      got: got.slice(0, 300),
      next: "choose one with --model",
    });
  }
  const context = model.max_model_len;
  return {
    modelName: String(model.id),
    isDuet: model.owned_by === "duet",
    contextTokens: typeof context === "number" && context >= 2 ? Math.floor(context) : null,
  };
}

/** The fields of one streamed request. Only OpenAI's, unless the server is Duet. */
export function requestBody(form: RequestForm, prompt: Prompt, outputTokens: number, seed: number): object {
  const { served, api, temperature } = form;
  return {
    model: served.modelName,
    ...(api === "chat" ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
    max_tokens: outputTokens,
    seed,
    ...(temperature === null ? {} : { temperature }),
    stream: true,
    stream_options: {
      include_usage: true,
      ...(served.isDuet && form.isEventPerToken ? { event_per_token: true } : {}),
    },
    ...(served.isDuet ? { ignore_eos: true } : {}),
  };
}

const pathOf = (api: Api) => (api === "chat" ? "/v1/chat/completions" : "/v1/completions");

/**
 * Where prompts come from. Duet cuts the text into tokens itself; of another server the mean length of a token is learned from the
 * usage of one answer, which also shows that it answers at all. Throws DuetError.
 */
export async function preparePrompts(
  target: Target,
  form: RequestForm,
  text: string,
  isRandom: boolean,
  signal: AbortSignal,
): Promise<PromptSource> {
  if (form.served.isDuet && form.api === "completions") {
    const body = { prompt: text, add_special_tokens: false };
    const { tokens } = (await ask(target, "/tokenize", body, signal)) as { tokens?: unknown };
    const tokenIds = Array.isArray(tokens) ? tokens.filter((id): id is number => Number.isInteger(id)) : [];
    if (tokenIds.length > 0) return isRandom ? randomTokens(tokenIds) : tokenSlices(tokenIds);
  }
  if (isRandom) {
    throw new DuetError("config_invalid", "random token ids need a server that takes and makes token ids", {
      expected: "Duet, and the completions API",
      got: `${form.served.isDuet ? "Duet" : "another server"}, ${form.api}`,
      next: "leave out --prompts random",
    });
  }
  const probe = text.slice(0, PROBE_CHARACTERS).toWellFormed();
  const { model, messages, prompt } = requestBody(form, probe, 1, 0) as Record<string, unknown>;
  const body = { model, max_tokens: 1, ...(form.api === "chat" ? { messages } : { prompt }) };
  const answer = (await ask(target, pathOf(form.api), body, signal)) as { usage?: { prompt_tokens?: unknown } };
  const tokens = answer.usage?.prompt_tokens;
  // Where usage is missing: what tokenizers of large vocabularies make of English prose.
  return textSlices(text, typeof tokens === "number" && tokens > 0 ? probe.length / tokens : 4);
}

/** Sends one request and reads its stream to the end. Never rejects: what goes wrong is in the answer. */
export async function streamAnswer(
  target: Target,
  api: Api,
  body: object,
  nowMs: () => number,
  signal: AbortSignal,
): Promise<StreamAnswer> {
  const reader = new StreamAnswerReader();
  try {
    const response = await request(target, pathOf(api), body, signal);
    if (!response.ok) return failedAnswer(`HTTP ${response.status}`, await refusal(response));
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
      return failedAnswer("no event stream", await refusal(response));
    }
    const parser = new EventParser();
    for await (const bytes of response.body ?? []) {
      const atMs = nowMs();
      // All events of one read came at one time. Reading goes on to the end, so that the connection can serve again.
      for (const event of parser.push(bytes)) reader.take(event, atMs);
    }
  } catch (error) {
    if (signal.aborted) reader.fail(String(signal.reason));
    else reader.fail(error instanceof RangeError ? "an endless event" : `connection: ${causeOf(error)}`);
  }
  return reader.end();
}

/** The context that lengths are fitted into: text prompts and chat templates are longer than asked by an unknown bit. */
export function usableContext({ served, api }: RequestForm): number {
  if (served.contextTokens === null) return Number.POSITIVE_INFINITY;
  if (served.isDuet && api === "completions") return served.contextTokens;
  return Math.max(2, Math.floor(served.contextTokens * 0.85) - 32);
}
