// Who runs next: admission, order of service, the rows of a step, preemption. Owns the waiting and running lists, the run
// indices and what sequences hold of the kvBlock pool. It runs nothing and emits nothing.

import { assert, defined } from "../base/assert.ts";
import { RequestError } from "../base/errors.ts";
import { KV_BLOCK_TOKENS } from "../device/batch.ts";
import { blocksFor } from "../memory/block-table.ts";
import type { KvBlockPool } from "../memory/kv-block-pool.ts";
import { type PrefixIndex, ROOT_ENTRY } from "../memory/prefix-index.ts";
import type { StepCost } from "../speculative/step-cost.ts";
import { compareService, type Sequence } from "./sequence.ts";
import type { StepPlan } from "./step-plan.ts";

/** Output tokens that admission sets kvBlocks aside for. */
const RESERVED_OUTPUT_TOKENS = 256;
/** However tight the time, a prefill goes on by this many rows a step. */
const PREFILL_ROWS_MIN = 8;

export interface SchedulerOptions {
  readonly pool: KvBlockPool;
  /** null: no prefix cache. */
  readonly prefixIndex: PrefixIndex | null;
  readonly stepCost: StepCost;
  readonly sequenceMax: number;
  readonly queueMax: number;
  readonly contextMax: number;
  readonly prefillChunkMax: number;
  readonly stepMsTarget: number;
}

export class Scheduler {
  /** In order of service. */
  readonly waiting: Sequence[] = [];
  readonly running: Sequence[] = [];
  preemptionCount = 0;
  readonly #options: SchedulerOptions;
  readonly #freeRunIndices: number[];
  readonly #onStart: (sequence: Sequence) => void;
  /** The sequence that found no room, and the pool's releaseCount then. */
  #blocked: Sequence | null = null;
  #blockedAt = -1;

  /** onStart: a sequence begins to run, or runs again after preemption. */
  constructor(options: SchedulerOptions, onStart: (sequence: Sequence) => void) {
    this.#options = options;
    this.#onStart = onStart;
    this.#freeRunIndices = Array.from({ length: options.sequenceMax }, (_, i) => options.sequenceMax - 1 - i);
  }

  get hasWork(): boolean {
    return this.running.length > 0 || this.waiting.length > 0;
  }

  /** Throws RequestError 400 for a request that could never run, 429 when the queue is full. */
  checkAdmissible(promptCount: number, outputTokenMax: number): void {
    const { contextMax, pool, queueMax } = this.#options;
    const tokens = promptCount + outputTokenMax;
    if (tokens > contextMax) {
      throw new RequestError(
        400,
        `the prompt's ${promptCount} tokens and ${outputTokenMax} output tokens exceed the context of ${contextMax} tokens`,
        "max_tokens",
        "context_length_exceeded",
      );
    }
    if (blocksFor(tokens) > pool.blockCount) {
      throw new RequestError(
        400,
        `the prompt's ${promptCount} tokens and ${outputTokenMax} output tokens need ${blocksFor(tokens)} kvBlocks; this server has ` +
          `${pool.blockCount}`,
        "max_tokens",
        "context_length_exceeded",
      );
    }
    const queued = new Set(this.waiting.filter((s) => !s.owner.isStarted).map((s) => s.owner)).size;
    // Those that the next step may start don't count; none may while the first finds no kvBlocks.
    const startable = this.#isBlocked(this.waiting[0]) ? 0 : this.#freeRunIndices.length;
    if (queued - startable >= queueMax) {
      throw new RequestError(429, `${queued} requests are waiting already; try again later`, null, "queue_full");
    }
  }

  enqueue(sequence: Sequence): void {
    insertInOrder(this.waiting, sequence);
  }

  /** Fills `plan` with the next step: every decoding sequence, then prefill rows as far as the time allows. */
  schedule(plan: StepPlan, nowMs: number): void {
    plan.clear();
    const preemptionsBefore = this.preemptionCount;
    this.#growDecoding();
    // Who was just preempted would take the blocks straight back.
    if (this.preemptionCount === preemptionsBefore) this.#admit(nowMs);
    for (const sequence of this.running) {
      if (sequence.missingCount === 1) plan.addDecode(sequence);
    }
    if (plan.sequences.length === this.running.length) return;
    let budget = this.#prefillBudget(plan.rowCount);
    for (const sequence of this.running) {
      if (budget === 0) break;
      if (sequence.missingCount === 1) continue;
      const rows = Math.min(budget, sequence.missingCount);
      plan.addPrefill(sequence, rows);
      budget -= rows;
    }
  }

  /** Takes kvBlocks for a draft where some are neither in use nor promised; returns how many of its tokens fit. */
  reserveDraft(sequence: Sequence, length: number): number {
    const { blockTable, tokenCount, reservedBlocks } = sequence;
    const missing = blocksFor(tokenCount + length) - blockTable.blockCount;
    if (missing <= 0) return length;
    const own = Math.max(0, reservedBlocks - blockTable.blockCount);
    const spare = this.#options.pool.availableCount - this.#outstanding() + own;
    const room = (blockTable.blockCount + Math.min(missing, Math.max(0, spare))) * KV_BLOCK_TOKENS;
    const fitting = Math.min(length, room - tokenCount);
    const hasGrown = blockTable.grow(tokenCount + fitting);
    assert(hasGrown, "spare kvBlocks can be taken");
    return fitting;
  }

  /** After a step: puts the sequence's newly full blocks into the prefix index. */
  indexBlocks(sequence: Sequence): void {
    const { prefixIndex } = this.#options;
    if (prefixIndex === null) return;
    const { blocks } = sequence.blockTable;
    const salt = sequence.owner.request.cacheSalt ?? "";
    while ((sequence.indexedBlockCount + 1) * KV_BLOCK_TOKENS <= sequence.kvFrontier) {
      const start = sequence.indexedBlockCount * KV_BLOCK_TOKENS;
      const block = blocks[sequence.indexedBlockCount]!;
      sequence.prefixEntry = prefixIndex.add(sequence.prefixEntry, sequence.tokens, start, salt, block);
      sequence.indexedBlockCount++;
    }
  }

  /** The sequence ends, in whatever state; its blocks are released at once. */
  finish(sequence: Sequence): void {
    assert(sequence.state !== "finished", "a sequence finishes once");
    if (sequence.state === "running") this.#leave(sequence);
    else remove(this.waiting, sequence);
    sequence.state = "finished";
    if (sequence.choiceIndex === 0) sequence.owner.isPromptReady = true;
  }

  /** kvBlocks for the anchor of every decoding sequence; preempts from the end of the order until all have one. */
  #growDecoding(): void {
    for (let i = 0; i < this.running.length; i++) {
      const sequence = this.running[i]!;
      if (sequence.missingCount !== 1) continue;
      while (sequence.state === "running" && !sequence.blockTable.grow(sequence.tokenCount)) {
        this.#preempt(defined(this.running.at(-1)));
      }
    }
  }

  #preempt(sequence: Sequence): void {
    assert(this.running.length > 1, "a sequence that runs alone has room");
    this.#leave(sequence);
    sequence.state = "preempted";
    sequence.kvFrontier = 0;
    sequence.indexedBlockCount = 0;
    sequence.prefixEntry = ROOT_ENTRY;
    sequence.reservedBlocks = 0;
    this.preemptionCount++;
    this.enqueue(sequence);
  }

  #leave(sequence: Sequence): void {
    remove(this.running, sequence);
    sequence.blockTable.clear();
    this.#freeRunIndices.push(sequence.runIndex);
    sequence.runIndex = -1;
  }

  #admit(nowMs: number): void {
    let i = 0;
    while (i < this.waiting.length && this.#freeRunIndices.length > 0) {
      const sequence = this.waiting[i]!;
      if (this.#waitsForSibling(sequence)) {
        i++;
        continue;
      }
      if (this.#isBlocked(sequence)) return;
      if (!this.#takeBlocks(sequence)) {
        this.#blocked = sequence;
        this.#blockedAt = this.#options.pool.releaseCount;
        return;
      }
      this.waiting.splice(i, 1);
      this.#start(sequence, nowMs);
    }
  }

  /** It found no room, and nothing has been released since. */
  #isBlocked(sequence: Sequence | undefined): boolean {
    return sequence !== undefined && sequence === this.#blocked && this.#options.pool.releaseCount === this.#blockedAt;
  }

  /** Later choices of a request wait until the first has computed the prompt, whose full blocks they then share. */
  #waitsForSibling(sequence: Sequence): boolean {
    if (this.#options.prefixIndex === null || sequence.choiceIndex === 0) return false;
    return !sequence.owner.isPromptReady && sequence.promptCount > KV_BLOCK_TOKENS;
  }

  /** Cached prefix and blocks for all known tokens; false, with nothing taken, when the reservation doesn't fit. */
  #takeBlocks(sequence: Sequence): boolean {
    const { pool, prefixIndex } = this.#options;
    const { blockTable, tokenCount, tokenMax } = sequence;
    const wanted = blocksFor(Math.min(tokenMax, tokenCount + RESERVED_OUTPUT_TOKENS));
    const salt = sequence.owner.request.cacheSalt ?? "";
    // The last known token always runs: its logits give the next.
    const matchMax = Math.floor((tokenCount - 1) / KV_BLOCK_TOKENS);
    const entry = prefixIndex?.match(sequence.tokens, matchMax, salt, blockTable) ?? ROOT_ENTRY;
    if (pool.availableCount - this.#outstanding() < wanted - blockTable.blockCount) {
      blockTable.clear();
      return false;
    }
    sequence.prefixEntry = entry;
    sequence.indexedBlockCount = blockTable.blockCount;
    sequence.kvFrontier = blockTable.blockCount * KV_BLOCK_TOKENS;
    sequence.reservedBlocks = wanted;
    const hasGrown = blockTable.grow(tokenCount);
    assert(hasGrown, "an admitted sequence has kvBlocks for what it knows");
    return true;
  }

  /** Blocks that running sequences were promised and have not taken yet. */
  #outstanding(): number {
    let blocks = 0;
    for (const sequence of this.running)
      blocks += Math.max(0, sequence.reservedBlocks - sequence.blockTable.blockCount);
    return blocks;
  }

  #start(sequence: Sequence, nowMs: number): void {
    sequence.allocateTokens();
    if (Number.isNaN(sequence.startMs)) {
      sequence.startMs = nowMs;
      sequence.cachedTokenCount = sequence.kvFrontier;
    }
    sequence.state = "running";
    sequence.owner.isStarted = true;
    sequence.runIndex = defined(this.#freeRunIndices.pop());
    insertInOrder(this.running, sequence);
    this.#onStart(sequence);
  }

  #prefillBudget(decodeRows: number): number {
    const { stepCost, stepMsTarget, prefillChunkMax } = this.#options;
    const rowMin = decodeRows + Math.min(PREFILL_ROWS_MIN, prefillChunkMax);
    return stepCost.rowsWithin(stepMsTarget, rowMin, decodeRows + prefillChunkMax) - decodeRows;
  }
}

function insertInOrder(list: Sequence[], sequence: Sequence): void {
  let at = list.length;
  while (at > 0 && compareService(list[at - 1]!, sequence) > 0) at--;
  list.splice(at, 0, sequence);
}

function remove(list: Sequence[], sequence: Sequence): void {
  const at = list.indexOf(sequence);
  assert(at >= 0, "a sequence is in the list of its state");
  list.splice(at, 1);
}
