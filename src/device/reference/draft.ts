// Drafting on top of a model's run and sample: catch up on a Batch, then feed every sequence its own samples. The native
// library has the same loop in C (duet_model_draft); here it serves the reference device.

import { assert, defined } from "../../base/assert.ts";
import { addRow, addSequence, type Batch, clearBatch, createBatch } from "../batch.ts";
import type { DeviceModel, StepOutcome } from "../device.ts";
import { createSampleResult, type SampleRequest } from "../sampling.ts";

type Steppable = Pick<DeviceModel, "run" | "sample">;

/** See DeviceModel.draft. The probability of a draft token is that of the unmodified distribution. */
export function draftWith(
  model: Steppable,
  batch: Batch,
  requests: readonly SampleRequest[],
  stepCounts: Uint32Array,
  stepStride: number,
  draftTokens: Int32Array,
  draftProbs: Float32Array,
): StepOutcome {
  const sequenceCount = batch.sequenceCount;
  assert(batch.logitRowCount === sequenceCount, "every sequence wants its last row's logits");
  assert(requests.length >= sequenceCount && stepCounts.length >= sequenceCount, "every sequence has a request");
  if (model.run(batch) === "cancelled") return "cancelled";

  const drafts = requests.slice(0, sequenceCount).map((request, s) => createDraft(request, defined(stepCounts[s])));
  const stepMax = Math.max(0, ...stepCounts.subarray(0, sequenceCount));
  const limits = { rowMax: sequenceCount, sequenceMax: sequenceCount, blocksPerSequenceMax: batch.blockTableStride };
  const step = createBatch(limits, batch.abortWord);
  const result = createSampleResult(1);
  /** The sequences behind the logit rows of the last run. */
  let running = drafts.map((_, s) => s);
  for (let i = 0; i < stepMax; i++) {
    if (i > 0) {
      running = running.filter((s) => i < defined(stepCounts[s]));
      clearBatch(step);
      for (const s of running) {
        const tableStart = s * batch.blockTableStride;
        addSequence(step, batch.blockTables.subarray(tableStart, tableStart + batch.blockTableStride));
        addRow(step, defined(draftTokens[s * stepStride + i - 1]), defined(drafts[s]).position - 1, true);
      }
      if (model.run(step) === "cancelled") return "cancelled";
    }
    for (const [row, s] of running.entries()) {
      const draft = defined(drafts[s]);
      draft.firstLogitRow = row;
      model.sample([draft], [result]);
      const token = defined(result.tokens[0]);
      draftTokens[s * stepStride + i] = token;
      draftProbs[s * stepStride + i] = Math.exp(defined(result.logprobs[0]));
      draft.history[draft.historyCount++] = token;
      draft.position++;
    }
  }
  return "ok";
}

/** A request of its own for one sequence, with room in its history for what will be drafted. */
function createDraft(request: SampleRequest, stepCount: number): SampleRequest {
  assert(request.rowCount === 1 && stepCount >= 1, "a draft request samples one row, at least once");
  const history = new Int32Array(request.historyCount + stepCount);
  history.set(request.history.subarray(0, request.historyCount));
  return { ...request, params: { ...request.params, topLogprobs: 0 }, history };
}
