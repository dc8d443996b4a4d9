// What crosses the boundary between the HTTP thread and the engine's worker: plain data only, structured-clone safe. One
// message per step carries what all sequences emitted.

import type { DeviceDescription, KvType } from "../device/device.ts";
import type { SamplingParams } from "../device/sampling.ts";
import type { EngineOptions } from "./client.ts";

export type SpeculationMode = "auto" | "off" | "draft" | "ngram";
export type FinishReason = "stop" | "length" | "cancelled" | "error";

/** A request as the engine takes it: immutable, already validated and tokenised. */
export interface EngineRequest {
  readonly requestId: string;
  readonly promptTokens: Int32Array;
  /** Choices 0 .. choiceCount−1 share the prompt; 1 to 8. */
  readonly choiceCount: number;
  readonly params: SamplingParams;
  /** Output tokens at most; already cut to the context. */
  readonly outputTokenMax: number;
  /** Tokens that finish a sequence; with ignore_eos only those that the request names itself. */
  readonly stopTokenIds: readonly number[];
  readonly stopStrings: readonly string[];
  readonly speculation: SpeculationMode;
  /** null: the engine's own limit. */
  readonly draftTokenMax: number | null;
  /** From arrival; null: none. */
  readonly deadlineMs: number | null;
  /** Higher goes first; default 0. */
  readonly priority: number;
  /** Decoded text keeps special tokens. */
  readonly keepSpecialTokens: boolean;
  /** Cached prefixes are shared only between requests of equal salt; absent: "". */
  readonly cacheSalt?: string;
}

export interface TopLogprob {
  readonly tokenId: number;
  readonly logprob: number;
}

/** One output token with what was asked for about it. */
export interface TokenLogprob {
  readonly tokenId: number;
  readonly logprob: number;
  readonly top: readonly TopLogprob[];
}

export interface ChoiceUsage {
  readonly outputTokenCount: number;
  readonly draftedCount: number;
  readonly acceptedCount: number;
  readonly decodeMs: number;
  /** Prompt tokens that the prefix index supplied. */
  readonly cachedTokenCount: number;
  readonly prefillMs: number;
  readonly queueMs: number;
}

/**
 * What one choice emitted in one step. `text` is complete code points with stop strings held back and cut. The stop token and the
 * tokens of a stop string are among tokenIds (and logprobs), and counted; their text is not in `text`.
 */
export interface ChoiceOutput {
  readonly requestId: string;
  readonly choiceIndex: number;
  readonly tokenIds: readonly number[];
  readonly text: string;
  readonly logprobs: readonly TokenLogprob[] | null;
  readonly finishReason: FinishReason | null;
  /** With finishReason only. */
  readonly usage: ChoiceUsage | null;
  /** The stop string that ended it, if one did. */
  readonly stopString: string | null;
  /** With finishReason "error": what failed. With "cancelled": "deadline exceeded" when that was the cause, else null. */
  readonly errorMessage: string | null;
}

/** Live state for `/v1/status`. Counts are of now; totals since start. */
export interface EngineStatus {
  readonly state: "ready" | "draining" | "unhealthy";
  readonly unhealthyReason: string | null;
  readonly device: DeviceDescription;
  readonly modelName: string;
  readonly draftModelName: string | null;
  readonly containerFingerprint: string;
  readonly kvType: KvType;
  readonly contextMax: number;
  readonly kvBlockCount: number;
  readonly kvBlocksUsed: number;
  /** Held only by the prefix index: free for whoever needs them. */
  readonly kvBlocksCached: number;
  readonly waitingCount: number;
  readonly runningCount: number;
  readonly sequences: readonly {
    readonly requestId: string;
    readonly choiceIndex: number;
    readonly state: "waiting" | "running" | "preempted";
    readonly promptTokenCount: number;
    readonly outputTokenCount: number;
    readonly kvFrontier: number;
    readonly kvBlockCount: number;
  }[];
  readonly totals: EngineTotals;
  readonly weightBytes: number;
  readonly kvBytes: number;
  readonly integrity: "pending" | "verified" | "failed" | "off";
}

export interface EngineTotals {
  readonly stepCount: number;
  readonly prefillTokenCount: number;
  readonly cachedTokenCount: number;
  readonly outputTokenCount: number;
  readonly draftedCount: number;
  readonly acceptedCount: number;
  readonly verifyCount: number;
  readonly preemptionCount: number;
  readonly cancelledCount: number;
  readonly finishedCount: number;
  readonly stepMs: number;
  readonly draftMs: number;
  readonly weightBytesRead: number;
  readonly distinctExperts: number;
  readonly expertLayers: number;
  readonly proposers: Readonly<Record<string, { readonly draftedCount: number; readonly acceptedCount: number }>>;
}

/** Per-step figures that the HTTP thread feeds into histograms. */
export interface StepReport {
  readonly rowCount: number;
  readonly sequenceCount: number;
  readonly stepMs: number;
  readonly draftMs: number;
}

/** HTTP thread → engine worker; "open" comes first. Cancellation also goes through the shared words (cancel-words.ts). */
export type ToEngine =
  | { readonly type: "open"; readonly options: EngineOptions; readonly words: SharedArrayBuffer }
  | { readonly type: "submit"; readonly request: EngineRequest }
  | { readonly type: "cancel"; readonly requestId: string }
  /** The step under way was aborted through the shared words, no matter for which request. */
  | { readonly type: "abort" }
  | { readonly type: "status"; readonly replyId: number }
  | { readonly type: "drain"; readonly deadlineMs: number }
  | { readonly type: "close" };

/** Engine worker → HTTP thread. */
export type FromEngine =
  | { readonly type: "loading"; readonly bytesDone: number; readonly bytesTotal: number }
  | { readonly type: "ready"; readonly status: EngineStatus }
  /** report: null when the outputs didn't come from a step (a cancellation while idle). */
  | { readonly type: "step"; readonly outputs: readonly ChoiceOutput[]; readonly report: StepReport | null }
  | { readonly type: "queued"; readonly requestId: string }
  | {
      readonly type: "rejected";
      readonly requestId: string;
      readonly httpStatus: number;
      readonly message: string;
      readonly param: string | null;
      readonly code: string | null;
    }
  | { readonly type: "status"; readonly replyId: number; readonly status: EngineStatus }
  | { readonly type: "drained" }
  | { readonly type: "closed" }
  | { readonly type: "failed"; readonly code: string; readonly message: string };
