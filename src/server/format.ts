// Answers in the shapes of OpenAI's API, whole and in chunks. One Format for each route; what both share is here once.

import type { FinishReason, TokenLogprob } from "../engine/messages.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { Generation } from "./generation.ts";
import { chatLogprobs, codePointCount, completionLogprobs } from "./logprobs.ts";
import type { Usage } from "./usage.ts";

/** What a choice emitted: all of it, or since the last chunk. */
export interface Piece {
  text: string;
  readonly tokenIds: number[];
  readonly logprobs: TokenLogprob[];
  finishReason: FinishReason | null;
  /** The stop string that ended the choice. */
  stopString: string | null;
}

export function emptyPiece(): Piece {
  return { text: "", tokenIds: [], logprobs: [], finishReason: null, stopString: null };
}

/** Fields of every answer and chunk. */
export interface AnswerHead {
  readonly id: string;
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
  readonly seed: number;
}

type Json = Record<string, unknown>;

export abstract class Format {
  protected readonly tokenizer: Tokenizer;
  protected readonly generation: Generation;
  readonly #head: AnswerHead;

  constructor(tokenizer: Tokenizer, generation: Generation, head: AnswerHead) {
    this.tokenizer = tokenizer;
    this.generation = generation;
    this.#head = head;
  }

  protected abstract readonly answerObject: string;
  protected abstract readonly chunkObject: string;
  protected abstract wholeChoice(index: number, piece: Piece): Json;
  protected abstract openingChoice(index: number): Json | null;
  protected abstract chunkChoice(index: number, piece: Piece): Json;

  /** The answer of a call that doesn't stream. */
  whole(pieces: readonly Piece[], usage: Usage): Json {
    const choices = pieces.map((piece, index) => ({
      ...this.wholeChoice(index, piece),
      ...this.#common(piece),
      ...(this.generation.returnsTokenIds
        ? { token_ids: piece.tokenIds, prompt_token_ids: this.#promptTokenIds(index) }
        : {}),
    }));
    return { ...this.#base(this.answerObject), choices, usage };
  }

  /** What a choice's stream begins with, or null when that is nothing. */
  opening(index: number): Json | null {
    const choice = this.openingChoice(index);
    if (choice === null && !this.generation.returnsTokenIds) return null;
    const content = choice ?? this.chunkChoice(index, emptyPiece());
    const ids = this.generation.returnsTokenIds ? { token_ids: [], prompt_token_ids: this.#promptTokenIds(index) } : {};
    return this.#chunk([{ ...content, finish_reason: null, ...ids }]);
  }

  chunk(index: number, piece: Piece): Json {
    const ids = this.generation.returnsTokenIds ? { token_ids: piece.tokenIds } : {};
    return this.#chunk([{ ...this.chunkChoice(index, piece), ...this.#common(piece), ...ids }]);
  }

  /** The last chunk of a stream that includes usage. */
  usageChunk(usage: Usage): Json {
    return { ...this.#base(this.chunkObject), choices: [], usage };
  }

  #chunk(choices: Json[]): Json {
    const chunk: Json = { ...this.#base(this.chunkObject), choices };
    if (this.generation.includesUsage) chunk["usage"] = null;
    return chunk;
  }

  #base(object: string): Json {
    const { id, created, model, system_fingerprint, seed } = this.#head;
    return { id, object, created, model, system_fingerprint, seed };
  }

  #common(piece: Piece): Json {
    return {
      finish_reason: piece.finishReason,
      ...(piece.stopString === null ? {} : { stop_reason: piece.stopString }),
    };
  }

  #promptTokenIds(index: number): number[] {
    return [...(this.generation.requests[Math.floor(index / this.generation.choiceCount)]?.promptTokens ?? [])];
  }
}

export class ChatFormat extends Format {
  protected readonly answerObject = "chat.completion";
  protected readonly chunkObject = "chat.completion.chunk";

  protected wholeChoice(index: number, piece: Piece): Json {
    return {
      index,
      message: { role: "assistant", content: piece.text, refusal: null },
      logprobs: this.#logprobs(piece),
    };
  }

  protected openingChoice(index: number): Json {
    return { index, delta: { role: "assistant", content: "" }, logprobs: null };
  }

  protected chunkChoice(index: number, piece: Piece): Json {
    return { index, delta: piece.text === "" ? {} : { content: piece.text }, logprobs: this.#logprobs(piece) };
  }

  #logprobs(piece: Piece): Json | null {
    if (!this.generation.hasLogprobs) return null;
    return { content: chatLogprobs(this.tokenizer, piece.logprobs, this.generation.topLogprobs), refusal: null };
  }
}

export class CompletionFormat extends Format {
  protected readonly answerObject = "text_completion";
  protected readonly chunkObject = "text_completion";
  /** Code points of each choice's tokens so far, for text_offset. */
  readonly #offsets = new Map<number, number>();

  protected wholeChoice(index: number, piece: Piece): Json {
    return { index, text: this.#echo(index) + piece.text, logprobs: this.#logprobs(index, piece) };
  }

  protected openingChoice(index: number): Json | null {
    return this.generation.echoes === null ? null : { index, text: this.#echo(index), logprobs: null };
  }

  protected chunkChoice(index: number, piece: Piece): Json {
    return { index, text: piece.text, logprobs: this.#logprobs(index, piece) };
  }

  #echo(index: number): string {
    return this.generation.echoes?.[Math.floor(index / this.generation.choiceCount)] ?? "";
  }

  #logprobs(index: number, piece: Piece): Json | null {
    if (!this.generation.hasLogprobs) return null;
    const offset = this.#offsets.get(index) ?? 0;
    const added = piece.tokenIds.reduce((sum, id) => sum + codePointCount(this.tokenizer, id), 0);
    this.#offsets.set(index, offset + added);
    return { ...completionLogprobs(this.tokenizer, piece.logprobs, this.generation.topLogprobs, offset) };
  }
}
