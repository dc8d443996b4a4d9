// Words that tidy refuses, with the word to use instead: one thing has one name in code, logs, metrics and documents.
// Only words whose other senses don't occur here are listed; strings are never looked at, since they carry the words of
// file formats and of the API.

export interface BannedIdentifier {
  /** Words of an identifier, in a row: `page table` finds `pageTable` and `kv_page_table`. */
  readonly words: string;
  readonly use: string;
  /** Path prefixes where the word has another, right sense. */
  readonly allowedIn?: readonly string[];
}

export interface BannedProse {
  readonly pattern: RegExp;
  readonly use: string;
  readonly allowedIn?: readonly string[];
}

/** Where a checkpoint is what everybody calls one: somebody's trained weights. */
const CHECKPOINT = ["src/weights/", "src/base/errors.ts", "src/tokenizer/", "src/config.ts", "src/cli", "test/"];
/** The card's own interface, whose words are its maker's. */
const VENDOR = ["src/device/ascend/", "test/ascend-emulator/"];

export const BANNED_IN_IDENTIFIERS: readonly BannedIdentifier[] = [
  { words: "rollback", use: "truncate" },
  { words: "roll back", use: "truncate" },
  { words: "rewind", use: "truncate" },
  { words: "microbatch", use: "batch" },
  { words: "micro batch", use: "batch" },
  { words: "speculate k", use: "draftLength" },
  { words: "gamma", use: "draftLength, or the norm's weight" },
  { words: "draft k", use: "draftLength" },
  { words: "base model", use: "target" },
  { words: "main model", use: "target" },
  { words: "gpu", use: "die", allowedIn: VENDOR },
  { words: "npu", use: "die", allowedIn: VENDOR },
  { words: "checkpoint", use: "frontier or snapshot (a checkpoint is weights)", allowedIn: CHECKPOINT },
  { words: "page table", use: "blockTable" },
  { words: "kv page", use: "kvBlock" },
  { words: "prompt cache", use: "prefixIndex", allowedIn: ["src/server/", "test/server/"] },
  { words: "hparams", use: "shape" },
  { words: "num", use: "<noun>Count", allowedIn: ["test/", ...VENDOR] },
  { words: "arena", use: "slab" },
  { words: "workspace", use: "scratch", allowedIn: VENDOR },
  { words: "blk", use: "layer" },
  { words: "head group", use: "kvHead" },
  { words: "gating", use: "router" },
  { words: "rollout", use: "decode" },
];

export const BANNED_IN_PROSE: readonly BannedProse[] = [
  { pattern: /\broll(?:s|ed)?[ -]?back\b/gi, use: "truncate (move the frontier back)" },
  { pattern: /\brewinds?\b/gi, use: "truncate (move the frontier back)" },
  { pattern: /\bmicro-?batch(?:es)?\b/gi, use: "batch" },
  { pattern: /\bpage tables?\b/gi, use: "block table" },
  { pattern: /\bprompt cache\b/gi, use: "prefix index" },
  { pattern: /\bhparams\b/gi, use: "shape" },
  { pattern: /\bcheckpoints?\b/gi, use: "frontier or snapshot (a checkpoint is weights)", allowedIn: CHECKPOINT },
  { pattern: /\bverifier model\b/gi, use: "target" },
  { pattern: /\bgating network\b/gi, use: "router" },
];
