// What executes a Program: the Device interface that reference, cpu and ascend implement. The engine never sees a tensor; a
// device never sees a request.

import type { Program, SlotIndex } from "../model/program.ts";
import type { Container } from "../weights/header.ts";
import type { DieIndex } from "../weights/split.ts";
import type { Batch } from "./batch.ts";
import type { SampleRequest, SampleResult } from "./sampling.ts";

export type DeviceKind = "reference" | "cpu" | "ascend";
export type KvType = "f16" | "int8" | "f32";

/** Where the parts run, for `doctor`, `/v1/status` and the start-up lines. No secrets, no pointers. */
export interface DeviceDescription {
  readonly kind: DeviceKind;
  /** Human-readable, e.g. "cpu (AVX-512 VNNI, 2 lanes in 2 teams)". */
  readonly summary: string;
  readonly isa: string;
  readonly laneCount: number;
  /** What executes each die's half. */
  readonly dies: readonly [string, string];
  /** Each op's place, e.g. { matmul: "native avx512" }. */
  readonly ops: Readonly<Record<string, string>>;
  /** Things the operator should know: fallbacks, missing features. Empty when all is as wished. */
  readonly warnings: readonly string[];
}

export interface ModelOptions {
  readonly kvType: KvType;
  /** Blocks of 32 tokens. The same ids index the target's and the draft model's KV. */
  readonly kvBlockCount: number;
  readonly rowMax: number;
  readonly logitRowMax: number;
}

export interface StepStats {
  weightBytes: number;
  integerOps: number;
  distinctExperts: number;
  expertLayers: number;
}

/** `cancelled`: the abort word was set; nothing of this step may be committed. */
export type StepOutcome = "ok" | "cancelled";

/** A Program bound to weights, slots and a KV cache on one device. Not re-entrant; one thread. */
export interface DeviceModel {
  readonly program: Program;
  readonly options: ModelOptions;
  readonly kvBytes: number;
  readonly scratchBytes: number;
  /** Runs the Program. Throws DuetError `device_fault` for lost mappings and non-finite values, `native_failed` otherwise. */
  run(batch: Batch, stats?: StepStats): StepOutcome;
  /** Samples from the last run's logits, writing into the results. */
  sample(requests: readonly SampleRequest[], results: readonly SampleResult[]): void;
  /**
   * Catches up on the Batch's rows, then drafts stepCounts[s] tokens per sequence (see duet_model_draft). Writes
   * draftTokens and draftProbs as [sequence][stepStride].
   */
  draft(
    batch: Batch,
    requests: readonly SampleRequest[],
    stepCounts: Uint32Array,
    stepStride: number,
    draftTokens: Int32Array,
    draftProbs: Float32Array,
  ): StepOutcome;
  /** log softmax of logit row i at tokenIds[i]. */
  score(tokenIds: Int32Array, out: Float32Array): void;
  /** Logits of one logit row: out[vocabularySize]. */
  readLogits(logitRow: number, out: Float32Array): void;
  /** Tests: [rowCount][columns] of a slot. */
  readSlot(slot: SlotIndex, die: DieIndex, rowCount: number, out: Float32Array): void;
  writeSlot(slot: SlotIndex, die: DieIndex, rowCount: number, values: Float32Array): void;
  /**
   * Benchmarks: writes finite values over the first kvBlocks, so that a long context is timed against real memory without a
   * prefill. Absent where KV is real memory from the start.
   */
  fillKv?(kvBlockCount: number): void;
  close(): void;
}

export interface Device {
  readonly kind: DeviceKind;
  describe(): DeviceDescription;
  /** Maps the container's weights and binds the Program. */
  load(container: Container, program: Program, options: ModelOptions): DeviceModel;
  close(): void;
}
