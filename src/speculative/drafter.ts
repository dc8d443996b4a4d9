// The drafting half of a step: chooses proposer and draft length for each sequence from what was measured (draft-length.ts),
// has the proposers write the drafts, and learns from what was accepted and how long it took. Owns the running estimates; no
// sequence state of its own beyond them.

import type { Clock } from "../base/clock.ts";
import type { StepOutcome } from "../device/device.ts";
import { AcceptanceEstimate } from "./acceptance.ts";
import {
  chooseDraftLengths,
  createDraftLengthScratch,
  type DraftLengthProblem,
  type DraftLengthScratch,
} from "./draft-length.ts";
import type { Drafts, DraftSequence, Proposer, ProposerName } from "./proposer.ts";
import { StepCost } from "./step-cost.ts";

/** A proposer that stayed unused for this many steps is tried once; doubled, up to the maximum, while trying changes nothing. */
const PROBE_STEPS_MIN = 100;
const PROBE_STEPS_MAX = 6400;
const PROBE_LENGTH = 2;
/** What drafting must promise beyond not drafting: estimates are noisy, and the best of several looks better than it is. */
const MARGIN = 0.03;
/** Weight of a new measurement of missedMs. */
const FOLLOW = 0.1;
const SEQUENCE_FADE = 0.97;
const OVERALL_FADE = 0.995;

/** What the drafter keeps about one proposer. */
interface ProposerState {
  readonly proposer: Proposer;
  /** By kind of draft. */
  readonly overall: readonly AcceptanceEstimate[];
  /** By runIndex and kind. */
  readonly bySequence: readonly (readonly AcceptanceEstimate[])[];
  /** Milliseconds per drafted token, by the number of sequences that draft together. */
  readonly cost: StepCost;
  /** Milliseconds per missed token; 0 until measured. */
  missedMs: number;
  readonly lengths: Int32Array;
  idleSteps: number;
  probeSteps: number;
  draftedCount: number;
  acceptedCount: number;
}

export interface DrafterOptions {
  readonly proposers: readonly Proposer[];
  readonly sequenceMax: number;
  readonly draftTokenMax: number;
  /** The target's step cost, kept by the engine. */
  readonly stepCost: StepCost;
  readonly clock: Clock;
}

/** Drafts of the current step; index as in the sequences handed to `draft`. */
export interface DraftSet extends Drafts {
  /** Milliseconds that drafting took. */
  ms: number;
}

export class Drafter {
  readonly drafts: DraftSet;
  readonly #states: readonly ProposerState[];
  readonly #clock: Clock;
  readonly #stepCost: StepCost;
  readonly #problem: DraftLengthProblem;
  readonly #scratch: DraftLengthScratch;
  /** Chosen proposer (index into #states, −1 none) and length by sequence. */
  readonly #chosen: Int32Array;
  readonly #kinds: Int32Array;
  readonly #lengths: Int32Array;
  readonly #rates: Float64Array;

  constructor(options: DrafterOptions) {
    const { sequenceMax, draftTokenMax } = options;
    this.#clock = options.clock;
    this.#stepCost = options.stepCost;
    this.#states = options.proposers.map((proposer) => ({
      proposer,
      overall: createEstimates(proposer, draftTokenMax, OVERALL_FADE),
      bySequence: Array.from({ length: sequenceMax }, () => createEstimates(proposer, draftTokenMax, SEQUENCE_FADE)),
      cost: new StepCost(),
      missedMs: 0,
      lengths: new Int32Array(sequenceMax),
      idleSteps: 0,
      probeSteps: PROBE_STEPS_MIN,
      draftedCount: 0,
      acceptedCount: 0,
    }));
    this.drafts = {
      stride: draftTokenMax,
      tokens: new Int32Array(sequenceMax * draftTokenMax),
      counts: new Int32Array(sequenceMax),
      ms: 0,
    };
    this.#chosen = new Int32Array(sequenceMax);
    this.#kinds = new Int32Array(sequenceMax);
    this.#lengths = new Int32Array(sequenceMax);
    this.#rates = new Float64Array(draftTokenMax);
    this.#scratch = createDraftLengthScratch(sequenceMax);
    const draftCost = this.#states.find((state) => state.proposer.name === "draft")?.cost ?? new StepCost();
    this.#problem = {
      sequenceCount: 0,
      lengthMin: new Int32Array(sequenceMax),
      lengthMax: new Int32Array(sequenceMax),
      isCharged: new Uint8Array(sequenceMax),
      startMs: new Float64Array(sequenceMax),
      margin: MARGIN,
      rates: new Float64Array(sequenceMax * draftTokenMax),
      rateStride: draftTokenMax,
      baseRows: 0,
      baseTokens: 0,
      stepMs: (rows) => this.#stepCost.predict(rows, "flat"),
      draftMs: (length, sequences) => length * draftCost.predict(sequences, "flat"),
    };
  }

  /** A sequence begins to run, or runs again after preemption. */
  start(sequence: DraftSequence): void {
    for (const state of this.#states) {
      state.proposer.start(sequence);
      for (const estimate of state.bySequence[sequence.runIndex]!) estimate.reset();
    }
  }

  /**
   * Drafts for the step's decoding sequences, the first `count`: fills `drafts`. limits[i]: the most tokens that sequence i may draft. `baseRows`: the
   * step's rows without drafts. `reserve` takes kvBlocks for the draft of sequence i and returns how much of it fits.
   */
  draft(
    sequences: readonly DraftSequence[],
    count: number,
    limits: Int32Array,
    baseRows: number,
    reserve: (index: number, length: number) => number,
  ): StepOutcome {
    const drafts = this.drafts;
    drafts.counts.fill(0, 0, count);
    drafts.ms = 0;
    let limitMax = 0;
    for (let s = 0; s < count; s++) limitMax = Math.max(limitMax, limits[s]!);
    if (limitMax === 0 || this.#states.length === 0) return "ok";
    const startMs = this.#clock.nowMs();
    this.#choose(sequences, count, limits, baseRows);
    for (let s = 0; s < count; s++) {
      if (this.#lengths[s]! > 0) this.#lengths[s] = reserve(s, this.#lengths[s]!);
    }
    for (let p = 0; p < this.#states.length; p++) {
      if (this.#run(p, sequences, count) === "cancelled") return "cancelled";
    }
    drafts.ms = this.#clock.nowMs() - startMs;
    return "ok";
  }

  /** After a step: sequence `index` of it had `acceptedCount` of its drafts accepted, and its tokens were extended. */
  observe(sequence: DraftSequence, index: number, acceptedCount: number): void {
    const drafted = this.drafts.counts[index]!;
    for (let p = 0; p < this.#states.length; p++) {
      const state = this.#states[p]!;
      state.proposer.observe(sequence);
      if (drafted === 0 || this.#chosen[index] !== p) continue;
      const kind = this.#kinds[index]!;
      state.overall[kind]!.observe(drafted, acceptedCount);
      state.bySequence[sequence.runIndex]![kind]!.observe(drafted, acceptedCount);
      state.draftedCount += drafted;
      state.acceptedCount += acceptedCount;
    }
  }

  /** Drafted and accepted tokens by proposer since start. */
  totals(): Record<string, { draftedCount: number; acceptedCount: number }> {
    const entries = this.#states.map(
      (state) =>
        [state.proposer.name, { draftedCount: state.draftedCount, acceptedCount: state.acceptedCount }] as const,
    );
    return Object.fromEntries(entries);
  }

  #choose(sequences: readonly DraftSequence[], count: number, limits: Int32Array, baseRows: number): void {
    const problem = this.#problem;
    problem.sequenceCount = count;
    problem.baseRows = baseRows;
    problem.baseTokens = count;
    for (let s = 0; s < count; s++) this.#chooseProposer(sequences[s]!, s, limits[s]!);
    chooseDraftLengths(problem, this.#scratch, this.#lengths);
    for (let p = 0; p < this.#states.length; p++) this.#probe(p, sequences, count, limits);
  }

  /** The proposer that would serve this sequence best, and the bounds of its draft. */
  #chooseProposer(sequence: DraftSequence, s: number, limit: number): void {
    const problem = this.#problem;
    this.#chosen[s] = -1;
    problem.lengthMin[s] = 0;
    problem.lengthMax[s] = 0;
    problem.isCharged[s] = 0;
    let best = 0;
    for (let p = 0; p < this.#states.length; p++) {
      const state = this.#states[p]!;
      if (limit <= 0 || !isAllowed(sequence, state.proposer.name)) continue;
      const available = state.proposer.available(sequence, limit);
      if (available === 0) continue;
      this.#readRates(state, sequence, available);
      const startMs = this.#startMs(state, sequence);
      const speed = this.#speedAlone(state, available, startMs);
      if (speed <= best) continue;
      best = speed;
      this.#chosen[s] = p;
      this.#kinds[s] = state.proposer.kind(sequence);
      problem.lengthMax[s] = available;
      problem.lengthMin[s] = sequence.speculation === "auto" ? 0 : 1;
      problem.isCharged[s] = state.proposer.name === "draft" ? 1 : 0;
      problem.startMs[s] = startMs;
      problem.rates.set(this.#rates, s * problem.rateStride);
    }
  }

  #readRates(state: ProposerState, sequence: DraftSequence, length: number): void {
    const kind = state.proposer.kind(sequence);
    const own = state.bySequence[sequence.runIndex]![kind]!;
    const overall = state.overall[kind]!;
    for (let i = 0; i < length; i++) this.#rates[i] = own.rate(i, overall.rate(i));
  }

  /**
   * Milliseconds for what the proposer has missed of a sequence. Missed output is charged in full, as it is missed again each time
   * that another proposer is used; the prompt is run once, so its share of the remaining output is charged.
   */
  #startMs(state: ProposerState, sequence: DraftSequence): number {
    const missed = state.proposer.missedRows(sequence);
    const missedPrompt = Math.max(0, missed - (sequence.tokenCount - sequence.promptCount));
    const remaining = Math.max(1, sequence.tokenMax - sequence.tokenCount);
    return state.missedMs * (missed - missedPrompt + missedPrompt / remaining);
  }

  /** Tokens per millisecond at this proposer's best length if every sequence of the step did the same. */
  #speedAlone(state: ProposerState, lengthMax: number, startMs: number): number {
    const { baseRows, baseTokens } = this.#problem;
    const isCharged = state.proposer.name === "draft";
    let best = 0;
    let reach = 1;
    let accepted = 0;
    for (let length = 1; length <= lengthMax; length++) {
      reach *= this.#rates[length - 1]!;
      accepted += reach;
      const tokens = baseTokens * (1 + accepted);
      const ms = this.#stepCost.predict(baseRows + baseTokens * length, "flat");
      const draftMs = isCharged ? length * state.cost.predict(baseTokens, "flat") + baseTokens * startMs : 0;
      // Nothing measured yet: any draft is worth a try.
      best = Math.max(best, ms + draftMs > 0 ? tokens / (ms + draftMs) : tokens);
    }
    return best;
  }

  /** Keeps the estimates of an unused proposer fresh: a short draft for one sequence, at most once in a hundred steps. */
  #probe(p: number, sequences: readonly DraftSequence[], count: number, limits: Int32Array): void {
    const state = this.#states[p]!;
    let isUsed = false;
    for (let s = 0; s < count; s++) isUsed ||= this.#chosen[s] === p && this.#lengths[s]! > 0;
    if (isUsed) {
      state.idleSteps = 0;
      state.probeSteps = PROBE_STEPS_MIN;
      return;
    }
    if (++state.idleSteps < state.probeSteps) return;
    for (let s = 0; s < count; s++) {
      const sequence = sequences[s]!;
      if (sequence.speculation !== "auto" || limits[s]! <= 0) continue;
      const length = state.proposer.available(sequence, Math.min(PROBE_LENGTH, limits[s]!));
      if (length === 0) continue;
      this.#chosen[s] = p;
      this.#kinds[s] = state.proposer.kind(sequence);
      this.#lengths[s] = length;
      state.idleSteps = 0;
      state.probeSteps = Math.min(PROBE_STEPS_MAX, state.probeSteps * 2);
      return;
    }
  }

  #run(p: number, sequences: readonly DraftSequence[], count: number): StepOutcome {
    const state = this.#states[p]!;
    let drafting = 0;
    let longest = 0;
    for (let s = 0; s < count; s++) {
      const length = this.#chosen[s] === p ? this.#lengths[s]! : 0;
      state.lengths[s] = length;
      if (length > 0) drafting++;
      longest = Math.max(longest, length);
    }
    const startMs = this.#clock.nowMs();
    const outcome = state.proposer.propose(sequences, count, state.lengths, this.drafts);
    if (outcome === "ok" && drafting > 0) this.#measure(state, drafting, longest, this.#clock.nowMs() - startMs);
    return outcome;
  }

  /** Learns from a call: the cost of drafting where little was missed, else that of what was. */
  #measure(state: ProposerState, drafting: number, longest: number, ms: number): void {
    const missed = state.proposer.catchUpRows;
    if (missed <= 2 * drafting) return state.cost.observe(drafting, ms / longest);
    const share = Math.max(0, ms - longest * state.cost.predict(drafting, "flat")) / missed;
    state.missedMs += (state.missedMs === 0 ? 1 : FOLLOW) * (share - state.missedMs);
  }
}

function createEstimates(proposer: Proposer, draftTokenMax: number, fade: number): AcceptanceEstimate[] {
  return Array.from({ length: proposer.kindCount }, () => new AcceptanceEstimate(draftTokenMax, fade));
}

function isAllowed(sequence: DraftSequence, name: ProposerName): boolean {
  return sequence.speculation === "auto" || sequence.speculation === name;
}
