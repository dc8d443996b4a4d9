// Text to token ids and back. Normalising and pre-tokenising come from @huggingface/tokenizers; added tokens, merging and bytes
// are ours, so that special tokens in a user's text stay text, a megabyte without spaces takes linear time, and every
// token's exact bytes are known. It must not know about chat, sequences or HTTP.

import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers";
import { defined } from "../base/assert.ts";
import { DuetError, RequestError } from "../base/errors.ts";
import { AddedTokenMatcher } from "./added-tokens.ts";
import type { AddedToken } from "./added-tokens.ts";
import { Bpe } from "./bpe.ts";
import { pieceBytes, TokenBytes } from "./token-bytes.ts";
import { readTokenizerJson } from "./tokenizer-json.ts";
import type { TokenizerParts } from "./tokenizer-json.ts";

/** The parsed files as the container carries them. */
export interface TokenizerOptions {
  readonly tokenizerJson: unknown;
  readonly tokenizerConfig: unknown;
  /** The model's vocabulary size where it is padded beyond the tokenizer's; ids in the padding have no bytes. */
  readonly vocabularySize?: number;
}

export interface EncodeOptions {
  /** Whether the text of a special token becomes that token. False for everything a user wrote. */
  readonly allowSpecial: boolean;
  /** Whether to add the tokens that the model wants around a plain prompt, such as a beginning-of-text. Default false. */
  readonly addSpecial?: boolean;
}

/** A stretch of text and whether special tokens in it count. A token never straddles a change of `allowSpecial`. */
export interface TextSegment {
  readonly text: string;
  readonly allowSpecial: boolean;
}

const encoder = new TextEncoder();
const fatalDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const lenientDecoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Throws DuetError container_unsupported for a kind of tokenizer that Duet lacks, container_corrupt for a malformed one. */
export function createTokenizer(options: TokenizerOptions): Tokenizer {
  const parts = readTokenizerJson(options.tokenizerJson);
  const config = options.tokenizerConfig;
  if (typeof config !== "object" || config === null || Array.isArray(config)) {
    throw new DuetError("container_corrupt", "the tokenizer is malformed", {
      where: "tokenizer_config.json",
      expected: "an object",
      got: JSON.stringify(config) ?? "nothing",
    });
  }
  const vocabularySize = options.vocabularySize ?? parts.idLimit;
  if (vocabularySize < parts.idLimit) {
    throw new DuetError("container_corrupt", "the tokenizer has ids that the model has no embedding for", {
      where: "tokenizer.json",
      expected: `ids below the model's vocabulary size of ${vocabularySize}`,
      got: `id ${parts.idLimit - 1}`,
      next: "take tokenizer.json from the same checkpoint as the weights and pack again",
    });
  }
  return new Tokenizer(parts, createLibraryTokenizer(options.tokenizerJson as object), { ...config }, vocabularySize);
}

/** The library's normaliser, pre-tokeniser and post-processor. It gets no vocabulary: it would index it for seconds. */
function createLibraryTokenizer(json: object): LibraryTokenizer {
  const absent = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null };
  try {
    const model = { type: "BPE", vocab: {}, merges: [] };
    return new LibraryTokenizer({ ...absent, ...json, decoder: null, added_tokens: [], model }, {});
  } catch (error) {
    throw new DuetError(
      "container_unsupported",
      "this kind of tokenizer is not supported",
      {
        where: "tokenizer.json",
        expected: "a normalizer, pre_tokenizer and post_processor known to @huggingface/tokenizers",
        got: error instanceof Error ? error.message : String(error),
      },
      { cause: error },
    );
  }
}

export class Tokenizer {
  /** Ids are 0 to vocabularySize - 1. */
  readonly vocabularySize: number;
  /** Ids that end an answer by the tokenizer's own account (eos_token). */
  readonly endOfTextIds: readonly number[];
  /** All special tokens. */
  readonly specialTokens: readonly AddedToken[];
  /** The string entries of tokenizer_config.json named `*_token`, such as bos_token: what chat templates may refer to. */
  readonly namedTokens: Readonly<Record<string, string>>;

  readonly #library: LibraryTokenizer;
  readonly #bpe: Bpe;
  readonly #anyAdded: AddedTokenMatcher;
  readonly #plainAdded: AddedTokenMatcher;
  readonly #addedById: ReadonlyMap<number, AddedToken>;
  readonly #idOfSpecial: ReadonlyMap<string, number>;
  readonly #pieces: string[];
  readonly #bytes: TokenBytes;
  readonly #stripsLeadingSpace: boolean;
  readonly #promptPrefix: readonly number[];
  readonly #promptSuffix: readonly number[];
  /** Text of tokens that are valid UTF-8 by themselves, null for others; filled on demand. */
  readonly #wholeText: (string | null | undefined)[];

  /** Use createTokenizer. */
  constructor(
    parts: TokenizerParts,
    library: LibraryTokenizer,
    config: Readonly<Record<string, unknown>>,
    vocabularySize: number,
  ) {
    this.vocabularySize = vocabularySize;
    this.#library = library;
    this.specialTokens = parts.addedTokens.filter((token) => token.special);
    this.#addedById = new Map(parts.addedTokens.map((token) => [token.id, token]));
    this.#idOfSpecial = new Map(this.specialTokens.map((token) => [token.content, token.id]));
    this.#anyAdded = new AddedTokenMatcher(parts.addedTokens);
    this.#plainAdded = new AddedTokenMatcher(parts.addedTokens.filter((token) => !token.special));

    // Vocabularies list special tokens too; merging must never arrive at one.
    const vocabulary = new Map(parts.vocabulary);
    for (const content of this.#idOfSpecial.keys()) vocabulary.delete(content);
    this.#bpe = new Bpe({ ...parts, vocabulary });

    this.#pieces = new Array<string>(vocabularySize).fill("");
    for (const [piece, id] of parts.vocabulary) this.#pieces[id] = piece;
    const bytes = this.#pieces.map((piece) => pieceBytes(piece, parts.spelling));
    for (const token of parts.addedTokens) {
      this.#pieces[token.id] = token.content;
      bytes[token.id] = encoder.encode(token.content);
    }
    this.#bytes = new TokenBytes(bytes);
    this.#wholeText = new Array<string | null | undefined>(vocabularySize).fill(undefined);
    this.#stripsLeadingSpace = parts.stripsLeadingSpace;

    this.namedTokens = readNamedTokens(config);
    const endOfText = this.namedTokens["eos_token"];
    this.endOfTextIds = endOfText === undefined ? [] : [this.#idOfNamed("eos_token", endOfText)];
    [this.#promptPrefix, this.#promptSuffix] = this.#readPromptFrame(config);
  }

  /** Token ids of `text`. Lone surrogates become U+FFFD. */
  encode(text: string, options: EncodeOptions): number[] {
    const ids = this.encodeSegments([{ text, allowSpecial: options.allowSpecial }]);
    return options.addSpecial === true ? [...this.#promptPrefix, ...ids, ...this.#promptSuffix] : ids;
  }

  /** Token ids of segments that follow each other: pre-tokenised as one text between any two added tokens. */
  encodeSegments(segments: readonly TextSegment[]): number[] {
    const sections: (string | AddedToken)[] = [];
    for (const segment of segments) {
      const matcher = segment.allowSpecial ? this.#anyAdded : this.#plainAdded;
      for (const part of matcher.split(segment.text)) {
        const last = sections.at(-1);
        if (typeof part === "string" && typeof last === "string") sections[sections.length - 1] = last + part;
        else sections.push(part);
      }
    }
    const ids: number[] = [];
    for (const [index, section] of sections.entries()) {
      if (typeof section !== "string") {
        ids.push(section.id);
        continue;
      }
      const before = sections[index - 1];
      const after = sections[index + 1];
      let text = section;
      if (typeof before === "object" && before.stripsRight) text = text.trimStart();
      if (typeof after === "object" && after.stripsLeft) text = text.trimEnd();
      this.#encodeText(text, index, ids);
    }
    return ids;
  }

  /** Text of `ids`: the tokens' bytes as UTF-8, with U+FFFD for what is not UTF-8. Throws RequestError 400 (see checkIds). */
  decode(ids: readonly number[], options: { readonly skipSpecial: boolean }): string {
    this.checkIds(ids);
    const kept = options.skipSpecial ? ids.filter((id) => !this.isSpecial(id)) : ids;
    let length = 0;
    for (const id of kept) length += this.#bytes.get(id).length;
    const bytes = new Uint8Array(length);
    let offset = 0;
    for (const id of kept) {
      const token = this.#bytes.get(id);
      bytes.set(token, offset);
      offset += token.length;
    }
    const text = lenientDecoder.decode(bytes);
    return this.#stripsLeadingSpace && text.startsWith(" ") ? text.slice(1) : text;
  }

  /** Throws RequestError 400 unless every id is a token id; `param` names the field that holds them. */
  checkIds(ids: readonly unknown[], param = "tokens"): void {
    for (let i = 0; i < ids.length; i++) this.#checkId(ids[i], `${param}[${i}]`, param);
  }

  /** The exact bytes of a token; a view, not to be written to. */
  tokenBytes(id: number): Uint8Array {
    this.#checkId(id, "token id", null);
    return this.#bytes.get(id);
  }

  /** The token's text when its bytes are valid UTF-8 by themselves, else null. No allocation after the first call per id. */
  wholeText(id: number): string | null {
    const known = this.#wholeText[id];
    if (known !== undefined) return known;
    const bytes = this.tokenBytes(id);
    let text: string | null;
    try {
      text = fatalDecoder.decode(bytes);
    } catch {
      text = null;
    }
    this.#wholeText[id] = text;
    return text;
  }

  /** The token as the vocabulary spells it; empty for an unassigned id. */
  pieceOf(id: number): string {
    this.#checkId(id, "token id", null);
    return defined(this.#pieces[id]);
  }

  isSpecial(id: number): boolean {
    return this.#addedById.get(id)?.special === true;
  }

  /** The id of a special token by its content, such as `<|user|>`. */
  specialTokenId(content: string): number | undefined {
    return this.#idOfSpecial.get(content);
  }

  #encodeText(text: string, sectionIndex: number, ids: number[]): void {
    const { normalizer, pre_tokenizer: preTokenizer } = this.#library;
    const normalized = normalizer === null ? text : normalizer.normalize(text);
    if (normalized === "") return;
    const words =
      preTokenizer === null ? [normalized] : preTokenizer.pre_tokenize(normalized, { section_index: sectionIndex });
    for (const word of words) this.#bpe.encode(word, ids);
  }

  #checkId(id: unknown, what: string, param: string | null): void {
    if (Number.isInteger(id) && (id as number) >= 0 && (id as number) < this.vocabularySize) return;
    const expected = `a token id from 0 to ${this.vocabularySize - 1}`;
    throw new RequestError(
      400,
      `${what}: expected ${expected}, got ${JSON.stringify(id)?.slice(0, 60) ?? "nothing"}`,
      param,
    );
  }

  #idOfNamed(name: string, content: string): number {
    const id = this.#idOfSpecial.get(content);
    if (id !== undefined) return id;
    throw new DuetError("container_corrupt", "the tokenizer is malformed", {
      where: `tokenizer_config.json ${name}`,
      expected: "one of tokenizer.json's special added_tokens",
      got: JSON.stringify(content),
    });
  }

  /** The ids that the post-processor puts before and after a plain prompt. */
  #readPromptFrame(config: Readonly<Record<string, unknown>>): [number[], number[]] {
    const process = this.#library.post_processor;
    if (process === null) {
      const ids = (name: string) => {
        const content = config[`add_${name}`] === true ? this.namedTokens[name] : undefined;
        return content === undefined ? [] : [this.#idOfNamed(name, content)];
      };
      return [ids("bos_token"), ids("eos_token")];
    }
    const text = "\u0000";
    const tokens = process.post_process([text], null, true).tokens;
    const at = tokens.indexOf(text);
    const ids = (contents: string[]) => contents.map((content) => this.#idOfNamed("post_processor", content));
    return [ids(tokens.slice(0, at)), ids(tokens.slice(at + 1))];
  }
}

/** tokenizer_config.json writes a token as a string or as an object with its content. */
function readNamedTokens(config: Readonly<Record<string, unknown>>): Record<string, string> {
  const named: Record<string, string> = {};
  for (const [key, value] of Object.entries(config)) {
    const content = typeof value === "object" && value !== null ? (value as { content?: unknown }).content : value;
    if (key.endsWith("_token") && typeof content === "string") named[key] = content;
  }
  return named;
}
