// Reads the parts of a Hugging Face tokenizer.json that Duet understands, and refuses the rest by name. Pure checking
// and naming: it builds nothing. The input comes from a container, so nothing about its shape is taken for granted.

import { DuetError } from "../base/errors.ts";
import type { DuetErrorCode } from "../base/errors.ts";
import type { AddedToken } from "./added-tokens.ts";
import { BYTE_CHARACTERS } from "./token-bytes.ts";
import type { PieceSpelling } from "./token-bytes.ts";
import { bytePiece } from "./bpe.ts";

type Json = Record<string, unknown>;

/** What a tokenizer is made of, checked. Ids are below `idLimit`. */
export interface TokenizerParts {
  readonly vocabulary: ReadonlyMap<string, number>;
  readonly merges: readonly (readonly [string, string])[];
  readonly addedTokens: readonly AddedToken[];
  readonly spelling: PieceSpelling;
  /** Whether decoding a whole text drops one space at its start. */
  readonly stripsLeadingSpace: boolean;
  readonly ignoreMerges: boolean;
  readonly byteFallback: boolean;
  readonly unknownId: number | undefined;
  readonly fuseUnknown: boolean;
  readonly idLimit: number;
}

/** More than any vocabulary in use; bounds what a corrupt id can make us allocate. */
const ID_LIMIT_MAX = 1 << 22;

function fail(code: DuetErrorCode, where: string, expected: string, got: unknown): never {
  const what =
    code === "container_unsupported" ? "this kind of tokenizer is not supported" : "the tokenizer is malformed";
  throw new DuetError(code, what, {
    where: `tokenizer.json ${where}`,
    expected,
    got: (JSON.stringify(got) ?? "nothing").slice(0, 120),
    next: "pack again from a checkpoint whose tokenizer.json is a byte-level or byte-fallback BPE",
  });
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function object(value: unknown, where: string): Json {
  return isObject(value) ? value : fail("container_corrupt", where, "an object", value);
}

function tokenId(value: unknown, where: string): number {
  const isId = Number.isInteger(value) && (value as number) >= 0 && (value as number) < ID_LIMIT_MAX;
  return isId ? (value as number) : fail("container_corrupt", where, `an integer from 0 to ${ID_LIMIT_MAX - 1}`, value);
}

/** A component and, if it is a Sequence, those in it. */
function components(value: unknown, listKey: string): Json[] {
  if (!isObject(value)) return [];
  const list = value[listKey];
  return value["type"] === "Sequence" && Array.isArray(list) ? list.filter(isObject) : [value];
}

/** Throws DuetError container_unsupported for another kind of tokenizer, container_corrupt for a malformed one. */
export function readTokenizerJson(value: unknown): TokenizerParts {
  const json = object(value, "(root)");
  const model = object(json["model"], "model");
  // Files of older versions leave the type out and have merges.
  if (model["type"] !== "BPE" && (model["type"] !== undefined || !Array.isArray(model["merges"]))) {
    fail("container_unsupported", "model.type", "BPE", model["type"]);
  }
  for (const key of ["continuing_subword_prefix", "end_of_word_suffix", "dropout"]) {
    if (model[key]) fail("container_unsupported", `model.${key}`, "nothing", model[key]);
  }
  const vocabulary = readVocabulary(model["vocab"]);
  const addedTokens = readAddedTokens(json["added_tokens"], vocabulary);
  let idMax = -1;
  for (const id of vocabulary.values()) idMax = Math.max(idMax, id);
  for (const token of addedTokens) idMax = Math.max(idMax, token.id);
  if (idMax < 0) fail("container_corrupt", "model.vocab", "at least one token", model["vocab"]);
  const unknownPiece = model["unk_token"];
  const unknownId = typeof unknownPiece === "string" ? vocabulary.get(unknownPiece) : undefined;
  const decoders = components(json["decoder"], "decoders");
  const byteFallback = model["byte_fallback"] === true;
  const spelling = readSpelling(json, decoders, byteFallback);
  if (unknownId === undefined) requireAllBytes(vocabulary, spelling);
  return {
    vocabulary,
    merges: readMerges(model["merges"]),
    addedTokens,
    spelling,
    stripsLeadingSpace: decoders.some((d) => d["type"] === "Strip" && d["content"] === " " && Number(d["start"]) > 0),
    ignoreMerges: model["ignore_merges"] === true,
    byteFallback,
    unknownId,
    fuseUnknown: model["fuse_unk"] === true,
    idLimit: idMax + 1,
  };
}

function readVocabulary(value: unknown): Map<string, number> {
  const vocabulary = new Map<string, number>();
  const seen = new Set<number>();
  for (const [piece, id] of Object.entries(object(value, "model.vocab"))) {
    const where = `model.vocab[${JSON.stringify(piece)}]`;
    vocabulary.set(piece, tokenId(id, where));
    if (seen.has(id as number)) fail("container_corrupt", where, "an id of its own", id);
    seen.add(id as number);
  }
  return vocabulary;
}

/** Merges as pairs of pieces; older files have them as one string with a space between. */
function readMerges(value: unknown): (readonly [string, string])[] {
  if (!Array.isArray(value)) fail("container_corrupt", "model.merges", "an array", value);
  return value.map((merge: unknown, rank) => {
    const parts: unknown[] = typeof merge === "string" ? merge.split(" ") : Array.isArray(merge) ? merge : [];
    const [left, right] = parts;
    if (parts.length !== 2 || typeof left !== "string" || typeof right !== "string") {
      fail("container_corrupt", `model.merges[${rank}]`, "two pieces", merge);
    }
    return [left, right];
  });
}

function readAddedTokens(value: unknown, vocabulary: ReadonlyMap<string, number>): AddedToken[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) fail("container_corrupt", "added_tokens", "an array", value);
  const pieceOfId = new Map([...vocabulary].map(([piece, id]) => [id, piece]));
  return value.map((entry: unknown, i) => {
    const where = `added_tokens[${i}]`;
    const token = object(entry, where);
    const content = token["content"];
    if (typeof content !== "string" || content === "") {
      fail("container_corrupt", `${where}.content`, "a non-empty string", content);
    }
    if (token["single_word"] === true) fail("container_unsupported", `${where}.single_word`, "false", true);
    const id = tokenId(token["id"], `${where}.id`);
    const piece = pieceOfId.get(id);
    if (piece !== undefined && piece !== content) fail("container_corrupt", `${where}.id`, "an id of its own", id);
    pieceOfId.set(id, content);
    return {
      id,
      content,
      special: token["special"] === true,
      stripsLeft: token["lstrip"] === true,
      stripsRight: token["rstrip"] === true,
    };
  });
}

function readSpelling(json: Json, decoders: Json[], byteFallback: boolean): PieceSpelling {
  if (decoders.some((decoder) => decoder["type"] === "ByteLevel")) {
    const preTokenizers = components(json["pre_tokenizer"], "pretokenizers");
    if (preTokenizers.at(-1)?.["type"] === "ByteLevel") return { kind: "byteLevel" };
    fail("container_unsupported", "pre_tokenizer", "ByteLevel, or a Sequence that ends with it", json["pre_tokenizer"]);
  }
  if (byteFallback && decoders.some((decoder) => decoder["type"] === "ByteFallback")) {
    const replacements = decoders.flatMap((decoder): [string, string][] => {
      if (decoder["type"] !== "Replace") return [];
      const from = isObject(decoder["pattern"]) ? decoder["pattern"]["String"] : undefined;
      const to = decoder["content"];
      if (typeof from === "string" && typeof to === "string") return [[from, to]];
      return fail("container_unsupported", "decoder", "Replace of a fixed string", decoder);
    });
    return { kind: "byteFallback", replacements };
  }
  return fail(
    "container_unsupported",
    "decoder",
    "ByteLevel, or ByteFallback with model.byte_fallback",
    json["decoder"],
  );
}

/** Without an unknown token, a byte that no piece spells would vanish from prompts silently. */
function requireAllBytes(vocabulary: ReadonlyMap<string, number>, spelling: PieceSpelling): void {
  for (const [byte, character] of BYTE_CHARACTERS.entries()) {
    const isInUtf8 = byte !== 0xc0 && byte !== 0xc1 && byte < 0xf5;
    const piece = spelling.kind === "byteLevel" ? character : bytePiece(byte);
    if (isInUtf8 && !vocabulary.has(piece))
      fail("container_unsupported", "model.vocab", `a token for byte ${byte}`, piece);
  }
}
