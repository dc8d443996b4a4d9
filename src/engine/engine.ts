// The engine: owns all live state (requests, sequences, kvBlocks) on one thread. `step` runs one cycle for every running
// sequence. It never waits and starts no timer: step-loop.ts decides when steps run; its host (host.ts, worker.ts)
// brings requests and carries outputs away.

import { RequestError } from "../base/errors.ts";
import type { StepOutcome } from "../device/device.ts";
import { blocksFor } from "../memory/block-table.ts";
import { Drafter } from "../speculative/drafter.ts";
import { StepCost } from "../speculative/step-cost.ts";
import { StopAutomaton, StopMatcher } from "../tokenizer/stop-strings.ts";
import { ChoiceText } from "./choice-text.ts";
import type { EngineEvents, EngineParts } from "./engine-parts.ts";
import { emitTokens, endOutput } from "./emission.ts";
import type { ChoiceOutput, EngineRequest, EngineStatus, FinishReason, StepReport } from "./messages.ts";
import { Scheduler } from "./scheduler.ts";
import { type RequestState, Sequence } from "./sequence.ts";
import { StepPlan } from "./step-plan.ts";
import { createTotals, describeSequence } from "./totals.ts";
import { Verifier } from "./verify.ts";

/** After this many aborted steps in a row the next ignores the abort word: cancellations cannot hold up the others for ever. */
const ABORTED_STEPS_MAX = 2;

export class Engine {
  integrity: EngineStatus["integrity"] = "off";
  readonly #parts: EngineParts;
  readonly #events: EngineEvents;
  readonly #scheduler: Scheduler;
  readonly #drafter: Drafter;
  readonly #verifier: Verifier;
  readonly #stepCost = new StepCost();
  readonly #plan: StepPlan;
  readonly #draftLimits: Int32Array;
  readonly #requests = new Map<string, RequestState>();
  readonly #totals = createTotals();
  readonly #reserveDraft = (planIndex: number, length: number) =>
    this.#scheduler.reserveDraft(this.#plan.sequences[planIndex]!, length);
  #outputs: ChoiceOutput[] = [];
  #arrivalCount = 0;
  #abortedSteps = 0;
  #state: EngineStatus["state"] = "ready";
  #unhealthyReason: string | null = null;

  constructor(parts: EngineParts, events: EngineEvents) {
    const { limits, model, pool, prefixIndex, proposers, clock, words } = parts;
    const { sequenceMax } = limits;
    this.#parts = parts;
    this.#events = events;
    this.#plan = new StepPlan(sequenceMax);
    this.#draftLimits = new Int32Array(sequenceMax);
    const draftTokenMax = Math.max(1, limits.draftTokenMax);
    this.#drafter = new Drafter({ proposers, sequenceMax, draftTokenMax, stepCost: this.#stepCost, clock });
    const scheduling = { ...limits, pool, prefixIndex, stepCost: this.#stepCost };
    this.#scheduler = new Scheduler(scheduling, (sequence) => this.#drafter.start(sequence));
    this.#verifier = new Verifier({
      model,
      sequenceMax,
      blocksPerSequenceMax: blocksFor(limits.contextMax),
      drafts: this.#drafter.drafts,
      abortWord: words.abortWord,
    });
  }

  get hasWork(): boolean {
    return this.#scheduler.hasWork;
  }

  /** Queues the request. Throws RequestError: 400 (could never run), 429 (queue full), 503 (draining or unhealthy). */
  submit(request: EngineRequest): void {
    const { requestId, promptTokens, outputTokenMax, choiceCount } = request;
    if (this.#state !== "ready") {
      const why = this.#state === "draining" ? "is shutting down" : `has failed: ${this.#unhealthyReason}`;
      throw new RequestError(503, `the engine ${why}`, null, `engine_${this.#state}`);
    }
    if (this.#requests.has(requestId))
      throw new RequestError(400, `request ${requestId} is running already`, "requestId");
    if (promptTokens.length === 0)
      throw new RequestError(400, "the prompt has no tokens; expected at least 1", "prompt");
    if (!(choiceCount >= 1)) throw new RequestError(400, `expected at least 1 choice, got ${choiceCount}`, "n");
    if (!(outputTokenMax >= 1))
      throw new RequestError(400, `expected at least 1 output token, got ${outputTokenMax}`, "max_tokens");
    this.#scheduler.checkAdmissible(promptTokens.length, outputTokenMax);
    const arrivalMs = this.#parts.clock.nowMs();
    const state: RequestState = {
      request,
      arrivalIndex: this.#arrivalCount++,
      arrivalMs,
      deadlineMs: request.deadlineMs === null ? Number.POSITIVE_INFINITY : arrivalMs + request.deadlineMs,
      sequences: [],
      isPromptReady: false,
      isStarted: false,
    };
    const automaton = request.stopStrings.length === 0 ? null : new StopAutomaton(request.stopStrings);
    for (let choice = 0; choice < choiceCount; choice++) this.#addSequence(state, choice, automaton);
    this.#requests.set(requestId, state);
  }

  /** Ends a request between steps; unknown ids are ignored. */
  cancel(requestId: string): void {
    const state = this.#requests.get(requestId);
    if (state === undefined) return;
    this.#endRequest(state, "cancelled", null);
    this.#flush(null);
  }

  cancelAll(): void {
    for (const requestId of [...this.#requests.keys()]) this.cancel(requestId);
  }

  /** From now on submit answers 503. */
  startDraining(): void {
    if (this.#state === "ready") this.#state = "draining";
  }

  /** One cycle for every running sequence. Never throws: whatever fails here ends every request. */
  step(): void {
    try {
      const startMs = this.#parts.clock.nowMs();
      this.#expire(startMs);
      this.#scheduler.schedule(this.#plan, startMs);
      const outcome = this.#plan.isEmpty ? "idle" : this.#draftAndRun();
      if (outcome === "ok") this.#accept();
      this.#abortedSteps = outcome === "cancelled" ? this.#abortedSteps + 1 : 0;
      this.#flush(outcome === "ok" ? this.#report(startMs) : null);
    } catch (error) {
      this.fail(error instanceof Error ? error.message : String(error));
    }
  }

  /** The engine can't go on: every request finishes with "error", later ones are refused. */
  fail(message: string): void {
    if (this.#state === "unhealthy") return;
    this.#state = "unhealthy";
    this.#unhealthyReason = message;
    for (const state of [...this.#requests.values()]) this.#endRequest(state, "error", message);
    this.#flush(null);
    this.#events.onFailure(message);
  }

  status(): EngineStatus {
    const { pool, info } = this.#parts;
    const { waiting, running, preemptionCount } = this.#scheduler;
    return {
      ...info,
      state: this.#state,
      unhealthyReason: this.#unhealthyReason,
      integrity: this.integrity,
      kvBlockCount: pool.blockCount,
      kvBlocksUsed: pool.usedCount,
      kvBlocksCached: pool.cachedCount,
      waitingCount: waiting.length,
      runningCount: running.length,
      sequences: [...running, ...waiting].map(describeSequence),
      totals: { ...this.#totals, preemptionCount, proposers: this.#drafter.totals() },
    };
  }

  #addSequence(state: RequestState, choiceIndex: number, automaton: StopAutomaton | null): void {
    const { limits, pool, createDecoder } = this.#parts;
    const { keepSpecialTokens, draftTokenMax } = state.request;
    const matcher = automaton === null ? null : new StopMatcher(automaton);
    const text = new ChoiceText(createDecoder(keepSpecialTokens), matcher);
    const draftMax = Math.min(draftTokenMax ?? limits.draftTokenMax, limits.draftTokenMax);
    const sequence = new Sequence(state, choiceIndex, text, draftMax, pool);
    state.sequences.push(sequence);
    this.#scheduler.enqueue(sequence);
  }

  /** Requests past their deadline end. */
  #expire(nowMs: number): void {
    for (const state of this.#requests.values()) {
      if (nowMs >= state.deadlineMs) this.#endRequest(state, "cancelled", "deadline exceeded");
    }
  }

  #draftAndRun(): StepOutcome {
    const { sequences, decodeCount, rowCount } = this.#plan;
    const isAbortable = this.#abortedSteps < ABORTED_STEPS_MAX;
    // A step that must not be aborted doesn't draft: drafting polls the same word.
    for (let i = 0; i < decodeCount; i++) this.#draftLimits[i] = isAbortable ? sequences[i]!.draftLimit : 0;
    const drafted = this.#drafter.draft(sequences, decodeCount, this.#draftLimits, rowCount, this.#reserveDraft);
    if (drafted === "cancelled") return drafted;
    const startMs = this.#parts.clock.nowMs();
    const outcome = this.#verifier.run(this.#plan, isAbortable);
    if (outcome === "ok") this.#stepCost.observe(this.#verifier.rowCount, this.#parts.clock.nowMs() - startMs);
    return outcome;
  }

  /** Commits KV and target tokens of every sequence of the step. */
  #accept(): void {
    const nowMs = this.#parts.clock.nowMs();
    const { sequences, rowCounts, decodeCount } = this.#plan;
    for (let i = 0; i < sequences.length; i++) {
      const sequence = sequences[i]!;
      const result = this.#verifier.results[i]!;
      if (i >= decodeCount) this.#totals.prefillTokenCount += rowCounts[i]!;
      if (result === null) {
        sequence.kvFrontier += rowCounts[i]!;
        this.#scheduler.indexBlocks(sequence);
        continue;
      }
      const draftedCount = i < decodeCount ? this.#drafter.drafts.counts[i]! : 0;
      const acceptedBefore = sequence.acceptedCount;
      sequence.draftedCount += draftedCount;
      const output = emitTokens(sequence, result, nowMs);
      sequence.kvFrontier = sequence.tokenCount - 1;
      if (sequence.choiceIndex === 0) sequence.owner.isPromptReady = true;
      this.#scheduler.indexBlocks(sequence);
      this.#totals.outputTokenCount += output.tokenIds.length;
      if (i < decodeCount) this.#learn(sequence, i, draftedCount, sequence.acceptedCount - acceptedBefore);
      if (output.finishReason !== null) this.#retire(sequence);
      this.#outputs.push(output);
    }
  }

  /** What the drafts of a decoding sequence came to. */
  #learn(sequence: Sequence, planIndex: number, draftedCount: number, acceptedCount: number): void {
    this.#drafter.observe(sequence, planIndex, acceptedCount);
    this.#totals.draftedCount += draftedCount;
    this.#totals.acceptedCount += acceptedCount;
    if (draftedCount > 0) this.#totals.verifyCount++;
  }

  /** Ends what is left of a request without further tokens. */
  #endRequest(state: RequestState, reason: FinishReason, message: string | null): void {
    const nowMs = this.#parts.clock.nowMs();
    if (reason === "cancelled") this.#totals.cancelledCount++;
    for (const sequence of state.sequences) {
      if (sequence.state === "finished") continue;
      this.#outputs.push(endOutput(sequence, reason, message, nowMs));
      this.#retire(sequence);
    }
  }

  /** A sequence has its finish reason: its blocks are released, and its request ends with the last of its choices. */
  #retire(sequence: Sequence): void {
    this.#scheduler.finish(sequence);
    this.#totals.finishedCount++;
    this.#totals.cachedTokenCount += sequence.cachedTokenCount;
    const { sequences, request } = sequence.owner;
    if (sequences.every((choice) => choice.state === "finished")) this.#requests.delete(request.requestId);
  }

  #report(startMs: number): StepReport {
    const { stats, rowCount } = this.#verifier;
    const draftMs = this.#drafter.drafts.ms;
    const stepMs = this.#parts.clock.nowMs() - startMs;
    const totals = this.#totals;
    totals.stepCount++;
    totals.stepMs += stepMs;
    totals.draftMs += draftMs;
    totals.weightBytesRead += stats.weightBytes;
    totals.distinctExperts += stats.distinctExperts;
    totals.expertLayers += stats.expertLayers;
    return { rowCount, sequenceCount: this.#plan.sequences.length, stepMs, draftMs };
  }

  #flush(report: StepReport | null): void {
    if (this.#outputs.length === 0 && report === null) return;
    const outputs = this.#outputs;
    this.#outputs = [];
    this.#events.onOutputs(outputs, report);
  }
}
