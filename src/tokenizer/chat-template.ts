// Chat messages to token ids through the model's own template. Special tokens that the template writes become tokens; those in
// a message stay text. A message that the template would drop is refused, never lost silently. Trust: the template
// comes with the weights and is trusted not to build special tokens out of message text; messages are not trusted.
//
// How: in message text the first character of everything that is, or may begin, a special token is replaced by a mark that
// carries a number which nobody could know before; the rest stays as it is, so that a template's trims, tests and splits
// work. After rendering, special tokens are cut out first and the marks turned back last.

import { systemClock } from "../base/clock.ts";
import type { Clock } from "../base/clock.ts";
import { DuetError, RequestError } from "../base/errors.ts";
import { AddedTokenMatcher } from "./added-tokens.ts";
import { BoundedTemplate, TemplateRefusal } from "./bounded-jinja.ts";
import type { TextSegment, Tokenizer } from "./tokenizer.ts";

export interface ChatMessage {
  readonly role: string;
  /** Text, or parts whose texts are joined with a line feed, as other engines join them. Null means no text. */
  readonly content: string | readonly ChatContentPart[] | null;
}

export interface ChatContentPart {
  readonly type: string;
  readonly text?: string;
}

export interface ChatTemplateOptions {
  /** Jinja source; see chatTemplateSource. */
  readonly source: string;
  readonly tokenizer: Tokenizer;
  readonly clock?: Clock;
  /** A string that no message can contain by guess; fresh at each call. */
  readonly nonce?: () => string;
}

export interface RenderOptions {
  /** Whether to end with the beginning of an answer. */
  readonly addGenerationPrompt: boolean;
}

// Noncharacters enclose marks: no template treats them specially.
const MARK_OPEN = "\uFDD0";
const MARK_CLOSE = "\uFDD1";
const ROLE = /^[A-Za-z][A-Za-z0-9_-]{0,63}$/;
const STEPS_BASE = 100_000;
const STEPS_PER_MESSAGE = 10_000;
const TEXT_BASE = 1 << 20;
/** How much longer than all messages a rendering may be; templates repeat little. */
const TEXT_FACTOR = 4;

/** The default template of a tokenizer_config.json, or null when it has none. */
export function chatTemplateSource(tokenizerConfig: unknown): string | null {
  const template = (tokenizerConfig as { chat_template?: unknown } | null)?.chat_template ?? null;
  if (template === null || typeof template === "string") return template;
  if (Array.isArray(template)) {
    const named = template as ({ name?: unknown; template?: unknown } | null)[];
    const source = named.find((entry) => entry?.name === "default")?.template;
    if (typeof source === "string") return source;
  }
  throw new DuetError("container_corrupt", "the chat template is malformed", {
    where: "tokenizer_config.json chat_template",
    expected: "a string, or a list with an entry named default",
    got: JSON.stringify(template).slice(0, 120),
  });
}

export class ChatTemplate {
  readonly #tokenizer: Tokenizer;
  readonly #template: BoundedTemplate;
  readonly #specials: AddedTokenMatcher;
  readonly #nonce: () => string;

  /** Throws DuetError container_unsupported when the source cannot be parsed. */
  constructor(options: ChatTemplateOptions) {
    this.#tokenizer = options.tokenizer;
    this.#template = new BoundedTemplate(options.source, options.clock ?? systemClock);
    this.#specials = new AddedTokenMatcher(options.tokenizer.specialTokens);
    this.#nonce = options.nonce ?? (() => crypto.randomUUID());
  }

  /**
   * The prompt as segments: special tokens of the template, and text. Throws RequestError 400 for a message that is malformed, that the
   * template refuses or that it would leave out, and DuetError container_unsupported when the template itself fails.
   */
  render(messages: readonly ChatMessage[], options: RenderOptions): TextSegment[] {
    const texts = messages.map((message, i) => readMessage(message, i));
    const nonce = MARK_OPEN + this.#nonce();
    const marked = texts.map((text) => this.#mark(text, nonce));
    this.#refuseDropped(messages, marked, nonce, options);

    const segments: TextSegment[] = [];
    for (const part of this.#specials.split(this.#run(messages, marked, options))) {
      if (typeof part === "string") segments.push({ text: unmark(part, nonce), allowSpecial: false });
      else segments.push({ text: part.content, allowSpecial: true });
    }
    return segments;
  }

  /** The prompt's token ids; throws as render does. */
  encodeChat(messages: readonly ChatMessage[], options: RenderOptions): number[] {
    return this.#tokenizer.encodeSegments(this.render(messages, options));
  }

  #run(messages: readonly ChatMessage[], contents: readonly string[], options: RenderOptions): string {
    const textLength = contents.reduce((sum, content) => sum + content.length, 0);
    try {
      return this.#template.render(
        {
          ...this.#tokenizer.namedTokens,
          messages: messages.map((message, i) => ({ role: message.role, content: contents[i] })),
          add_generation_prompt: options.addGenerationPrompt,
        },
        {
          stepMax: STEPS_BASE + STEPS_PER_MESSAGE * messages.length,
          textMax: TEXT_BASE + TEXT_FACTOR * textLength,
        },
      );
    } catch (error) {
      if (!(error instanceof TemplateRefusal)) throw error;
      throw new RequestError(400, `messages: the model's chat template refuses them: ${error.message}`, "messages");
    }
  }

  /** `text` with a mark in place of each character at which a special token stands or, at the end, may begin. */
  #mark(text: string, nonce: string): string {
    // Templates trim, so what is last may be what stands before the white space.
    const end = text.trimEnd().length;
    let marked = "";
    let start = 0;
    for (let i = 0; i < text.length; i++) {
      if (!this.#specials.mayStartAt(text, i, i < end ? end : text.length)) continue;
      marked += `${text.slice(start, i)}${nonce}:${text.charCodeAt(i).toString(16)}${MARK_CLOSE}`;
      start = i + 1;
    }
    return marked + text.slice(start);
  }

  /** Renders once more with a probe at the end of each message's text and looks for the probes. */
  #refuseDropped(
    messages: readonly ChatMessage[],
    contents: readonly string[],
    nonce: string,
    options: RenderOptions,
  ): void {
    const probed = contents.map((content, i) => {
      const end = content.trimEnd().length;
      return end === 0 ? content : `${content.slice(0, end)}${nonce}.${i}${MARK_CLOSE}${content.slice(end)}`;
    });
    const rendered = this.#run(messages, probed, options);
    const found = new Set(rendered.match(new RegExp(`${nonce}\\.\\d+${MARK_CLOSE}`, "g")));
    for (const [i, message] of messages.entries()) {
      if (probed[i] === contents[i] || found.has(`${nonce}.${i}${MARK_CLOSE}`)) continue;
      throw new RequestError(
        400,
        `messages[${i}].role: this model's chat template leaves out the message with role ${JSON.stringify(message.role)}; ` +
          "expected a role that the model knows at this place",
        `messages[${i}].role`,
      );
    }
  }
}

/** Turns marks back into the characters that they stand for. */
function unmark(text: string, nonce: string): string {
  return text.replace(new RegExp(`${nonce}:([0-9a-f]+)${MARK_CLOSE}`, "g"), (_, unit: string) =>
    String.fromCharCode(Number.parseInt(unit, 16)),
  );
}

/** The text of a message. Throws RequestError 400 that names the field. */
function readMessage(message: ChatMessage, index: number): string {
  const where = `messages[${index}]`;
  if (!ROLE.test(message.role)) refuse(`${where}.role`, "a word of letters, digits, _ and -", message.role);
  const content = message.content;
  if (content === null) return "";
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) refuse(`${where}.content`, "a string or an array of text parts", content);
  const parts = content as readonly ChatContentPart[];
  return parts
    .map((part, j) => {
      if (part.type !== "text") refuse(`${where}.content[${j}].type`, '"text"', part.type);
      if (typeof part.text !== "string") refuse(`${where}.content[${j}].text`, "a string", part.text);
      return part.text;
    })
    .join("\n");
}

function refuse(param: string, expected: string, got: unknown): never {
  throw new RequestError(
    400,
    `${param}: expected ${expected}, got ${(JSON.stringify(got) ?? "nothing").slice(0, 120)}`,
    param,
  );
}
