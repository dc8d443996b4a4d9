// A model made of bytes (token id = byte value, then four special tokens) behind the application, and ways to call it.

import { silentLog } from "../../src/base/log.ts";
import { createApp } from "../../src/server/app.ts";
import type { App, AppOptions } from "../../src/server/app.ts";
import { ChatTemplate } from "../../src/tokenizer/chat-template.ts";
import { BYTE_CHARACTERS } from "../../src/tokenizer/token-bytes.ts";
import { createTokenizer } from "../../src/tokenizer/tokenizer.ts";
import type { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import { FakeEngine } from "./fake-engine.ts";

export const END_ID = 256;
export const USER_ID = 257;
export const ASSISTANT_ID = 258;
export const CONTEXT_MAX = 512;
const SPECIALS = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"];
const SOURCE =
  "{% for m in messages %}{% if m['role'] in ['user', 'assistant', 'system'] %}<|{{ m['role'] }}|>{{ m['content'] }}{% endif %}{% endfor %}" +
  "{% if add_generation_prompt %}<|assistant|>{% endif %}";

export function byteTokenizer(): Tokenizer {
  return createTokenizer({
    tokenizerJson: {
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: SPECIALS.map((content, i) => ({
        id: 256 + i,
        content,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      })),
      normalizer: null,
      pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
      post_processor: null,
      decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
      model: {
        type: "BPE",
        dropout: null,
        unk_token: null,
        continuing_subword_prefix: null,
        end_of_word_suffix: null,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: false,
        vocab: Object.fromEntries(BYTE_CHARACTERS.map((character, byte) => [character, byte])),
        merges: [],
      },
    },
    tokenizerConfig: { eos_token: "<|end|>" },
  });
}

export function byteTemplate(tokenizer: Tokenizer): ChatTemplate {
  return new ChatTemplate({ source: SOURCE, tokenizer });
}

export const MODEL = "byte-model";
export const HEADERS = { host: "localhost:8080", "content-type": "application/json" };

export interface Fixture {
  readonly app: App;
  readonly engine: FakeEngine;
  readonly tokenizer: Tokenizer;
  /** POST of a JSON body; strings and bytes go as they are. */
  post(path: string, body: unknown, headers?: Record<string, string>): Promise<Response>;
  get(path: string, headers?: Record<string, string>): Promise<Response>;
}

export function createFixture(options: Partial<AppOptions> & { readonly engine?: FakeEngine } = {}): Fixture {
  const engine = options.engine ?? new FakeEngine();
  const tokenizer = byteTokenizer();
  const app = createApp({
    engine,
    tokenizer,
    chatTemplate: byteTemplate(tokenizer),
    modelName: MODEL,
    contextMax: CONTEXT_MAX,
    log: silentLog,
    drawSeed: () => 4242,
    ...options,
  });
  const call = async (path: string, init: RequestInit) => app.request(`http://localhost:8080${path}`, init);
  return {
    app,
    engine,
    tokenizer,
    post: (path, body, headers = {}) =>
      call(path, {
        method: "POST",
        headers: { ...HEADERS, ...headers },
        body: typeof body === "string" || body instanceof Uint8Array ? (body as string) : JSON.stringify(body),
      }),
    get: (path, headers = {}) => call(path, { headers: { host: HEADERS.host, ...headers } }),
  };
}

export const USER_HI = [{ role: "user", content: "Hi" }] as const;

/** Answers are read loosely in tests. */
// eslint-disable-next-line @typescript-eslint/no-explicit-any
export type Loose = any;

export async function json(response: Response): Promise<Loose> {
  return (await response.json()) as Loose;
}

/** The data of server-sent events, "[DONE]" as it is. */
export function parseEvents(text: string): Loose[] {
  return text
    .split("\n\n")
    .filter((event) => event.startsWith("data: "))
    .map((event) => event.slice(6))
    .map((data) => (data === "[DONE]" ? data : JSON.parse(data)));
}
