// The engine's front door: what server, CLI and benchmarks may use of it. Implementations: worker-client.ts (a Bun Worker that
// owns the device) and, for tests, an engine on the same thread.

import type { Residency } from "../device/cpu/residency.ts";
import type { ChoiceOutput, EngineRequest, EngineStatus, StepReport } from "./messages.ts";

/** Receives what a request's choices emit, in order. After every choice has a finishReason nothing more comes. */
export type OutputListener = (output: ChoiceOutput) => void;

export interface EngineClient {
  /**
   * Hands a request to the engine. Rejects with RequestError (429 when the queue is full, 400 when it could never fit, 503 when
   * draining or unhealthy) before any output; resolves once it is queued.
   */
  submit(request: EngineRequest, listener: OutputListener): Promise<void>;
  /** Ends the request within a layer; its choices finish with "cancelled". Unknown ids are ignored. */
  cancel(requestId: string): void;
  status(): Promise<EngineStatus>;
  /** The status that the engine last reported, without asking it. */
  readonly lastStatus: EngineStatus;
  /** Called after every step; for histograms. */
  onStep(listener: (report: StepReport) => void): void;
  /** Called once when the engine has failed for good. */
  onFailure(listener: (message: string) => void): void;
  /** Refuses new requests, lets running ones finish for at most deadlineMs, cancels the rest. */
  drain(deadlineMs: number): Promise<void>;
  close(): Promise<void>;
}

/** What an engine needs to start; plain data, crosses into the worker. */
export interface EngineOptions {
  readonly containerPath: string;
  readonly draftContainerPath: string | null;
  readonly deviceKind: "cpu" | "reference";
  /** Lanes (threads) of the cpu device; null: one per physical core. */
  readonly threadCount: number | null;
  readonly isPinned: boolean;
  /** null: the best of this CPU. */
  readonly isa: string | null;
  readonly kvType: "f16" | "int8" | "f32";
  /** null: from contextMax and sequenceMax, bounded by memory. */
  readonly kvBlockCount: number | null;
  readonly sequenceMax: number;
  /** Waiting requests beyond which submit answers 429. */
  readonly queueMax: number;
  readonly prefillChunkMax: number;
  readonly speculation: "auto" | "off" | "draft" | "ngram";
  readonly draftTokenMax: number;
  readonly isPrefixCached: boolean;
  readonly stepMsTarget: number;
  readonly verify: "eager" | "background" | "off";
  /** Weights come into memory with their first use, before the first step, or to stay (locked). */
  readonly residency: Residency;
}
