// The contract that every device keeps: each op agrees with the reference within the stated tolerances, a row's result does
// not depend on the rows beside it, and sampling follows the logits. `device-contract.test.ts` lists who keeps it.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { defined } from "../../src/base/assert.ts";
import { DuetError } from "../../src/base/errors.ts";
import { createUniform } from "../../src/base/prng.ts";
import type { Device, DeviceModel } from "../../src/device/device.ts";
import { draftWith } from "../../src/device/reference/draft.ts";
import { createReferenceDevice } from "../../src/device/reference/reference-device.ts";
import { createSampler, logNormaliser, logprobOf } from "../../src/device/reference/sampler.ts";
import { createSampleResult, type SampleRequest, TOP_LOGPROBS_MAX } from "../../src/device/sampling.ts";
import type { DeviceEntry } from "../support/devices.ts";
import { greedyParams, sampleRequest, samplingCases } from "../support/sampling.ts";
import { createCases } from "./cases.ts";
import {
  batchFor,
  chunkings,
  type ContractCase,
  fillBatch,
  firstBitDifference,
  largestDifference,
  loadCase,
  type Outputs,
  runRows,
} from "./run-rows.ts";

const caseSet = createCases();
const { cases } = caseSet;
const expected = new Map<ContractCase, Outputs>();
const familyOutputs = new Map<string, Outputs>();

/** What the reference gives for a case, computed once. */
function referenceOutputs(case_: ContractCase): Outputs {
  const outputs = expected.get(case_) ?? runAlone(createReferenceDevice(), case_);
  expected.set(case_, outputs);
  return outputs;
}

function runAlone(device: Device, case_: ContractCase): Outputs {
  const model = loadCase(device, case_);
  try {
    return runRows(model, case_, defined(chunkings["one batch"])(case_));
  } finally {
    model.close();
  }
}

/** Declares the whole contract for the entries. */
export function describeDeviceContract(entries: readonly DeviceEntry[]): void {
  afterAll(() => caseSet[Symbol.dispose]());
  for (const entry of entries) {
    describe(entry.name, () => {
      let device: Device;
      beforeAll(() => {
        device = entry.create();
      });
      afterAll(() => device.close());
      describe.each(cases.map((case_) => [case_.name, case_] as const))("%s", (_, case_) => {
        describeCase(() => device, entry, case_);
      });
      describeSteps(() => device);
      describeSampling(() => device);
    });
  }
}

function describeCase(device: () => Device, entry: DeviceEntry, case_: ContractCase): void {
  test("agrees with the reference, and a row's bits don't depend on its batch", () => {
    const model = loadCase(device(), case_);
    try {
      const whole = runRows(model, case_, defined(chunkings["one batch"])(case_));
      const { relative, where } = largestDifference(whole, referenceOutputs(case_));
      if (!(relative <= case_.tolerance)) throw new Error(`differs from the reference by ${relative} in ${where}`);

      const key = `${entry.family} ${case_.name}`;
      const first = familyOutputs.get(key) ?? whole;
      familyOutputs.set(key, first);
      expect(firstBitDifference(whole, first)).toBeNull();
      for (const [name, chunking] of Object.entries(chunkings)) {
        const difference = firstBitDifference(runRows(model, case_, chunking(case_)), whole);
        if (difference !== null) throw new Error(`${name}: ${difference} differs from one batch`);
      }
    } finally {
      model.close();
    }
  });
}

const wholeModel = () => defined(cases.find((case_) => case_.name.startsWith("whole model: 64 experts")));

function withModel(device: Device, case_: ContractCase, use: (model: DeviceModel) => void): void {
  const model = loadCase(device, case_);
  try {
    use(model);
  } finally {
    model.close();
  }
}

/** A model with the logits of every row of the case in place. */
function withLogits(
  device: Device,
  use: (model: DeviceModel, case_: ContractCase, logits: Float32Array) => void,
): void {
  const case_ = wholeModel();
  withModel(device, case_, (model) => {
    const outputs = runRows(model, case_, defined(chunkings["one batch"])(case_));
    use(model, case_, defined(outputs.get("logits")).values);
  });
}

function describeSteps(device: () => Device): void {
  test("an abort word that is set ends the step as cancelled", () => {
    const case_ = wholeModel();
    withModel(device(), case_, (model) => {
      const batch = { ...batchFor(case_), abortWord: new Int32Array(new SharedArrayBuffer(4)) };
      fillBatch(batch, case_, [0, 1, 2]);
      expect(model.run(batch)).toBe("ok");
      batch.abortWord[0] = 1;
      expect(model.run(batch)).toBe("cancelled");
      batch.abortWord[0] = 0;
      expect(model.run(batch)).toBe("ok");
    });
  });

  test.each(["matmul over heads", "ffn", "rmsNorm of logit rows"])("a NaN in front of %s is a device fault", (op) => {
    const case_ = defined(cases.find(({ name }) => name.startsWith(op) && name.endsWith("q8")));
    const [input] = case_.inputs;
    const values = defined(input).values.slice();
    values[3] = NaN;
    withModel(device(), case_, (model) => {
      const poisoned = { ...case_, inputs: [{ ...defined(input), values }, ...case_.inputs.slice(1)] };
      const run = () => runRows(model, poisoned, defined(chunkings["one batch"])(case_));
      expect(run).toThrow(DuetError);
      expect(runRows(model, case_, [[0]]).size).toBeGreaterThan(0);
    });
  });

  test("stats count each distinct expert once a layer", () => {
    const case_ = wholeModel();
    const reference = createReferenceDevice();
    const [got, want] = [device(), reference].map((one) => {
      const stats = { weightBytes: 0, integerOps: 0, distinctExperts: 0, expertLayers: 0 };
      withModel(one, case_, (model) => {
        const batch = batchFor(case_);
        fillBatch(batch, case_, [0, 1, 2, 3, 4]);
        model.run(batch, stats);
      });
      return stats;
    });
    expect(got?.distinctExperts).toBe(defined(want?.distinctExperts));
    expect(got?.expertLayers).toBe(1);
    expect(got?.weightBytes).toBeGreaterThan(0);
  });

  test("score is the log softmax of the asked token", () => {
    withLogits(device(), (model, case_, logits) => {
      const vocabularySize = logits.length / case_.rows.length;
      const tokenIds = Int32Array.from(case_.rows, ({ tokenId }) => tokenId);
      const scores = new Float32Array(tokenIds.length);
      model.score(tokenIds, scores);
      for (const [row, tokenId] of tokenIds.entries()) {
        const rowLogits = logits.subarray(row * vocabularySize, (row + 1) * vocabularySize);
        const want = logprobOf(defined(rowLogits[tokenId]), logNormaliser(rowLogits));
        expect(Math.abs(defined(scores[row]) - want)).toBeLessThan(2e-6);
      }
    });
  });
}

function describeSampling(device: () => Device): void {
  test.each(samplingCases)("samples as the sampler's definition: $name", ({ params }) => {
    withLogits(device(), (model, case_, logits) => {
      const sampler = createSampler(logits.length / case_.rows.length);
      const uniform = createUniform(11);
      for (let round = 0; round < 40; round++) {
        const history = Int32Array.from({ length: 12 }, () => Math.floor(uniform() * 512));
        const request = sampleRequest(params, {
          firstLogitRow: Math.floor(uniform() * 8),
          rowCount: 1 + (round % 4),
          position: Math.floor(uniform() * 500),
          choiceIndex: round % 3,
          history,
          historyCount: 10,
          promptCount: 6,
        });
        const want = createSampleResult(4);
        // Drafts that are right for a while: the first rows' own samples, then a wrong one.
        request.draftTokens = new Int32Array(3);
        for (let row = 0; row + 1 < request.rowCount; row++) {
          sampler.sample(logits, request, want);
          request.draftTokens[row] = defined(want.tokens[row]) ^ (row === 2 ? 1 : 0);
        }
        sampler.sample(logits, request, want);
        const got = createSampleResult(4);
        model.sample([request], [got]);
        expectSameSamples(got, want, params.topLogprobs);
      }
    });
  });

  test("drafting is running and sampling in turn", () => {
    const case_ = wholeModel();
    const stepCounts = Uint32Array.of(3, 1, 4);
    const results = [true, false].map((isNative) => {
      const tokens = new Int32Array(12);
      const probs = new Float32Array(12);
      withModel(device(), case_, (model) => {
        const batch = batchFor(case_);
        fillBatch(batch, { ...case_, hasLogits: false }, [0, 1, 2, 5, 6, 16]);
        batch.logitRows.set([2, 4, 5]);
        batch.logitRowCount = 3;
        const requests = [3, 2, 1].map((position, index): SampleRequest => {
          const params = index === 0 ? greedyParams : defined(samplingCases[1]).params;
          const history = case_.rows.filter((row) => row.sequence === index).map((row) => row.tokenId);
          const shared = { position, history: Int32Array.from(history), historyCount: position, promptCount: position };
          return sampleRequest(params, { ...shared, firstLogitRow: index, rowCount: 1 });
        });
        const outcome = isNative
          ? model.draft(batch, requests, stepCounts, 4, tokens, probs)
          : draftWith(model, batch, requests, stepCounts, 4, tokens, probs);
        expect(outcome).toBe("ok");
      });
      return { tokens, probs };
    });
    const [got, want] = results;
    expect(got?.tokens).toEqual(defined(want?.tokens));
    for (const [i, prob] of defined(got).probs.entries()) {
      expect(Math.abs(prob - defined(want?.probs[i]))).toBeLessThan(1e-5);
    }
  });
}

function expectSameSamples(
  got: ReturnType<typeof createSampleResult>,
  want: ReturnType<typeof createSampleResult>,
  topLogprobs: number | null,
): void {
  expect(got.emittedCount).toBe(want.emittedCount);
  for (let row = 0; row < want.emittedCount; row++) {
    expect(got.tokens[row]).toBe(defined(want.tokens[row]));
    if (topLogprobs === null) {
      expect(got.logprobs[row]).toBeNaN();
      continue;
    }
    expect(Math.abs(defined(got.logprobs[row]) - defined(want.logprobs[row]))).toBeLessThan(2e-6);
    for (let rank = 0; rank < topLogprobs; rank++) {
      const at = row * TOP_LOGPROBS_MAX + rank;
      expect(got.topIds[at]).toBe(defined(want.topIds[at]));
      expect(Math.abs(defined(got.topLogprobs[at]) - defined(want.topLogprobs[at]))).toBeLessThan(2e-6);
    }
  }
}
