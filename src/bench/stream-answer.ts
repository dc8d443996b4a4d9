// What one streamed answer of an OpenAI-compatible server was, and when each part of it came: the meaning of its events, given
// with the time at which each was read. It reads no clock and no socket.

export interface StreamAnswer {
  /** When chunks with text came, ms. */
  readonly chunkMs: readonly number[];
  /** When the last chunk of a choice came (text or finish reason); null before any. */
  readonly endMs: number | null;
  /** From `usage`; null where the server sent none. */
  readonly promptTokens: number | null;
  readonly outputTokens: number | null;
  readonly cachedTokens: number | null;
  /** Why the answer is not whole, in a few words that many requests may share; null for a whole one. */
  readonly failure: string | null;
  /** The server's own words, when it said any. */
  readonly failureMessage: string | null;
}

export const MESSAGE_CHARACTERS_MAX = 200;

export const failedAnswer = (failure: string, failureMessage: string | null = null): StreamAnswer => ({
  chunkMs: [],
  endMs: null,
  promptTokens: null,
  outputTokens: null,
  cachedTokens: null,
  failure,
  failureMessage,
});

type Fields = Readonly<Record<string, unknown>>;

const fieldsOf = (value: unknown): Fields =>
  typeof value === "object" && value !== null ? (value as Fields) : Object.freeze({});
const countOf = (value: unknown) => (typeof value === "number" && Number.isInteger(value) && value >= 0 ? value : null);
const isText = (value: unknown) => typeof value === "string" && value !== "";

/** The message of an OpenAI error body, in one line. */
export function errorMessage(body: unknown): string | null {
  const error = fieldsOf(body).error;
  const message = typeof error === "string" ? error : fieldsOf(error).message;
  return typeof message === "string" ? message.replace(/\s+/g, " ").slice(0, MESSAGE_CHARACTERS_MAX) : null;
}

/** Collects an answer event by event. */
export class StreamAnswerReader {
  readonly #chunkMs: number[] = [];
  #endMs: number | null = null;
  #usage: Fields = {};
  #isFinished = false;
  #failure: string | null = null;
  #failureMessage: string | null = null;

  /** The data of one event that was read at `nowMs`. False: the answer has ended, nothing more is expected. */
  take(data: string, nowMs: number): boolean {
    if (data === "[DONE]") {
      this.#isFinished = true;
      return false;
    }
    let event: Fields;
    try {
      event = fieldsOf(JSON.parse(data));
    } catch {
      return this.fail("an event that is not JSON");
    }
    if (event.error !== undefined && event.error !== null)
      return this.fail("an error in the stream", errorMessage(event));
    if (event.usage !== undefined && event.usage !== null) this.#usage = fieldsOf(event.usage);
    const choice = fieldsOf(Array.isArray(event.choices) ? event.choices[0] : null);
    const delta = fieldsOf(choice.delta);
    const hasText = [choice.text, delta.content, delta.reasoning_content, delta.reasoning].some(isText);
    const hasEnd = choice.finish_reason !== undefined && choice.finish_reason !== null;
    if (hasText) this.#chunkMs.push(nowMs);
    if (hasText || hasEnd) this.#endMs = nowMs;
    this.#isFinished ||= hasEnd;
    return true;
  }

  /** What went wrong outside the events; the first failure counts. */
  fail(failure: string, message: string | null = null): false {
    this.#failure ??= failure;
    this.#failureMessage ??= message;
    return false;
  }

  /** All that came. An answer that broke off, or has no text to time, is a failure. */
  end(): StreamAnswer {
    const isBroken = !this.#isFinished && this.#failure === null;
    const isSilent = this.#isFinished && this.#chunkMs.length === 0;
    return {
      chunkMs: this.#chunkMs,
      endMs: this.#endMs,
      promptTokens: countOf(this.#usage.prompt_tokens),
      outputTokens: countOf(this.#usage.completion_tokens),
      cachedTokens: countOf(fieldsOf(this.#usage.prompt_tokens_details).cached_tokens),
      failure: this.#failure ?? (isBroken ? "an answer that broke off" : isSilent ? "an answer without text" : null),
      failureMessage: this.#failureMessage,
    };
  }
}
