// From a planned generation to an HTTP answer, whole or streamed. After a choice's first token a stream is flushed at most every
// FLUSH_MS, so that on a model with short steps HTTP does not dominate.

import type { RequestError } from "../base/errors.ts";
import type { ChoiceOutput } from "../engine/messages.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { answer } from "./body.ts";
import type { WireFormat } from "./body.ts";
import { describeFailure, errorBody } from "./errors.ts";
import { CONTENT_TYPES, EventStream } from "./event-stream.ts";
import { emptyPiece } from "./format.ts";
import type { Format, Piece } from "./format.ts";
import type { Generation } from "./generation.ts";
import { Run } from "./run.ts";
import type { RunListener, RunServices } from "./run.ts";
import { TokenSplitter } from "./token-splitter.ts";

export interface StreamLimits {
  readonly heartbeatMs: number;
  readonly waitingBytesMax: number;
  readonly stallMs: number;
}

export const STREAM_LIMITS: StreamLimits = { heartbeatMs: 10_000, waitingBytesMax: 4 * 1024 * 1024, stallMs: 30_000 };
const FLUSH_MS = 10;
/** The status that proxies use for a caller who went away; nobody reads it. */
const CLIENT_CLOSED = 499;

function append(piece: Piece, output: ChoiceOutput): void {
  piece.text += output.text;
  piece.tokenIds.push(...output.tokenIds);
  if (output.logprobs !== null) piece.logprobs.push(...output.logprobs);
  if (output.finishReason !== null) piece.finishReason = output.finishReason;
  if (output.stopString !== null) piece.stopString = output.stopString;
}

function emptyPieces(generation: Generation): Piece[] {
  return Array.from({ length: generation.requests.length * generation.choiceCount }, emptyPiece);
}

/** Waits for all choices. Throws RequestError; the engine is told when `signal` says that the caller went away. */
export async function answerWhole(
  generation: Generation,
  format: Format,
  wireFormat: WireFormat,
  services: RunServices,
  signal: AbortSignal,
): Promise<Response> {
  const pieces = emptyPieces(generation);
  const { promise: ended, resolve } = Promise.withResolvers<RequestError | null>();
  const run = new Run(generation, services, {
    output: (index, output) => append(pieces[index]!, output),
    end: resolve,
  });
  const leave = () => run.abandon();
  signal.addEventListener("abort", leave);
  try {
    await run.start();
    if (signal.aborted) leave();
    const failure = await ended;
    if (failure !== null) throw failure;
  } finally {
    signal.removeEventListener("abort", leave);
  }
  if (signal.aborted) return answer(wireFormat, CLIENT_CLOSED, errorBody(CLIENT_CLOSED, "the caller went away"));
  return answer(wireFormat, 200, format.whole(pieces, run.usage()));
}

/** Starts a stream as soon as the engine has queued the request. Throws RequestError before that only. */
export async function answerStream(
  generation: Generation,
  format: Format,
  wireFormat: WireFormat,
  services: RunServices,
  tokenizer: Tokenizer,
  limits: StreamLimits,
  signal: AbortSignal,
): Promise<Response> {
  const chunks = new ChunkSender(generation, format, tokenizer, wireFormat, limits);
  const run = new Run(generation, services, chunks);
  chunks.run = run;
  const leave = () => chunks.stream.abandon();
  signal.addEventListener("abort", leave);
  try {
    await run.start();
  } catch (error) {
    chunks.discard();
    throw error;
  }
  if (signal.aborted) leave();
  const headers = { "content-type": CONTENT_TYPES[wireFormat], "cache-control": "no-store", "x-accel-buffering": "no" };
  return new Response(chunks.stream.body, { headers });
}

/** Collects what the choices emit and sends it as chunks. */
class ChunkSender implements RunListener {
  readonly stream: EventStream;
  run: Run | null = null;
  readonly #generation: Generation;
  readonly #format: Format;
  readonly #pieces: Piece[];
  readonly #isOpen: boolean[];
  readonly #splitters: TokenSplitter[] | null;
  #timer: ReturnType<typeof setTimeout> | null = null;
  #isDiscarded = false;

  constructor(
    generation: Generation,
    format: Format,
    tokenizer: Tokenizer,
    wireFormat: WireFormat,
    limits: StreamLimits,
  ) {
    this.#generation = generation;
    this.#format = format;
    this.#pieces = emptyPieces(generation);
    this.#isOpen = this.#pieces.map(() => false);
    const keepsSpecial = generation.requests[0]?.keepSpecialTokens === true;
    this.#splitters = generation.isEventPerToken
      ? this.#pieces.map(() => new TokenSplitter(tokenizer, keepsSpecial))
      : null;
    this.stream = new EventStream({ ...limits, format: wireFormat, onGone: () => this.#gone() });
  }

  output(index: number, output: ChoiceOutput): void {
    const isFirst = !this.#isOpen[index];
    if (isFirst) this.#open(index);
    if (this.#splitters !== null) this.#sendEach(index, output);
    else append(this.#pieces[index]!, output);
    if (isFirst || output.finishReason !== null || this.#splitters !== null) this.#flush(index);
    else this.#timer ??= setTimeout(() => this.#flushAll(), FLUSH_MS);
  }

  end(failure: RequestError | null): void {
    if (this.#isDiscarded) return;
    this.#flushAll();
    if (failure !== null) this.stream.send(describeFailure(failure).body);
    else if (this.#generation.includesUsage && this.run !== null)
      this.stream.send(this.#format.usageChunk(this.run.usage()));
    this.stream.end();
  }

  /** The engine refused the request: there will be no stream. */
  discard(): void {
    this.#isDiscarded = true;
    this.stream.abandon();
  }

  #open(index: number): void {
    this.#isOpen[index] = true;
    const opening = this.#format.opening(index);
    if (opening !== null) this.stream.send(opening);
  }

  /** A step's tokens one by one; what the last carries stays in the piece. */
  #sendEach(index: number, output: ChoiceOutput): void {
    const texts = this.#splitters![index]!.split(output);
    if (texts.length === 0) append(this.#pieces[index]!, output);
    output.tokenIds.forEach((tokenId, i) => {
      const isLast = i === output.tokenIds.length - 1;
      append(this.#pieces[index]!, {
        ...output,
        tokenIds: [tokenId],
        text: texts[i] ?? "",
        logprobs: output.logprobs?.slice(i, i + 1) ?? null,
        finishReason: isLast ? output.finishReason : null,
        stopString: isLast ? output.stopString : null,
      });
      if (!isLast) this.#flush(index);
    });
  }

  #flush(index: number): void {
    const piece = this.#pieces[index]!;
    const { hasLogprobs, returnsTokenIds, isEventPerToken } = this.#generation;
    const isSilent = piece.text === "" && piece.finishReason === null;
    const hasTokens = piece.tokenIds.length > 0 && (hasLogprobs || returnsTokenIds || isEventPerToken);
    if (isSilent && !hasTokens) return;
    this.#pieces[index] = emptyPiece();
    this.stream.send(this.#format.chunk(index, piece));
  }

  #flushAll(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    for (let index = 0; index < this.#pieces.length; index++) this.#flush(index);
  }

  #gone(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.run?.abandon();
  }
}
