// What an Engine is made of and whom it tells; types only.

import type { Clock } from "../base/clock.ts";
import type { DeviceModel } from "../device/device.ts";
import type { KvBlockPool } from "../memory/kv-block-pool.ts";
import type { PrefixIndex } from "../memory/prefix-index.ts";
import type { Proposer } from "../speculative/proposer.ts";
import type { CancelWords } from "./cancel-words.ts";
import type { TokenDecoder } from "./choice-text.ts";
import type { ChoiceOutput, EngineStatus, StepReport } from "./messages.ts";

export interface EngineLimits {
  readonly sequenceMax: number;
  readonly queueMax: number;
  readonly prefillChunkMax: number;
  readonly contextMax: number;
  readonly draftTokenMax: number;
  readonly stepMsTarget: number;
}

/** The part of the status that never changes. */
export type EngineInfo = Pick<
  EngineStatus,
  | "device"
  | "modelName"
  | "draftModelName"
  | "containerFingerprint"
  | "kvType"
  | "contextMax"
  | "weightBytes"
  | "kvBytes"
>;

export interface EngineParts {
  /** rowMax: prefillChunkMax + sequenceMax × (draftTokenMax + 1) at least; logitRowMax: sequenceMax × (draftTokenMax + 1). */
  readonly model: DeviceModel;
  readonly pool: KvBlockPool;
  /** null: no prefix cache. */
  readonly prefixIndex: PrefixIndex | null;
  readonly proposers: readonly Proposer[];
  readonly createDecoder: (keepSpecialTokens: boolean) => TokenDecoder;
  readonly limits: EngineLimits;
  readonly info: EngineInfo;
  readonly words: CancelWords;
  readonly clock: Clock;
}

export interface EngineEvents {
  /** While weights are brought into memory before the first step, in bytes of one container. */
  onLoading?(bytesDone: number, bytesTotal: number): void;
  /** What was emitted, at least one output or a report. report: null when no step was run for it. */
  onOutputs(outputs: readonly ChoiceOutput[], report: StepReport | null): void;
  /** Once: the engine has failed for good. Every request has finished with "error" by then. */
  onFailure(message: string): void;
}
