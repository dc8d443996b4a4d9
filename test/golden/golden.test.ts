// The float16 container against what PyTorch computed in float32 over the same weights.

import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { assert, defined } from "../../src/base/assert.ts";
import { compileProgram } from "../../src/model/compile.ts";
import { readTensor } from "../../src/weights/container.ts";
import type { Container } from "../../src/weights/header.ts";
import { decodeMatrix } from "../../src/weights/quantise.ts";
import { oneOfEach } from "../support/devices.ts";
import { createPackedModels, hasCheckpoints, MODEL_NAMES, NEEDS_CHECKPOINT, readGolden } from "../support/fable.ts";
import { openSingleSequence, topTwo } from "../support/single-sequence.ts";

setDefaultTimeout(60_000);

const CONTEXT = 96;
const LOGIT_TOLERANCE = 2e-2;
/** Below this gap between the best two logits, rounding may decide. */
const NEAR_TIE = 0.05;
const ROUTER_NEAR_TIE = 1e-3;

const packed = hasCheckpoints ? createPackedModels() : null;
afterAll(() => packed?.[Symbol.dispose]());
const suite = hasCheckpoints ? describe : describe.skip;

suite.each(oneOfEach.map((entry) => [entry.name, entry] as const))(
  `golden outputs on %s${hasCheckpoints ? "" : ` ${NEEDS_CHECKPOINT}`}`,
  (_, entry) => {
    test.each(MODEL_NAMES)("%s: the listed logits, at every position", (name) => {
      using device = disposable(entry.create());
      using sequence = openSingleSequence(device.value, defined(packed).container(name, "f16"), "f32", CONTEXT);
      let worst = 0;
      for (const { ids, logits } of readGolden(name).prompts) {
        sequence.feed(ids, 0);
        for (const listed of logits) {
          const got = sequence.logits(listed.position);
          for (const [i, id] of listed.ids.entries()) {
            worst = Math.max(worst, Math.abs(defined(got[id]) - defined(listed.values[i])));
          }
        }
      }
      expect(worst).toBeLessThan(LOGIT_TOLERANCE);
      expect(worst).toBeGreaterThan(0);
    });

    test.each(MODEL_NAMES)("%s: the listed greedy tokens, but for near-ties", (name) => {
      using device = disposable(entry.create());
      using sequence = openSingleSequence(device.value, defined(packed).container(name, "f16"), "f32", CONTEXT);
      for (const { ids, greedy, greedy_gap } of readGolden(name).prompts) {
        // Feeding the listed tokens makes every position comparable, not only those before the first near-tie.
        let fed: readonly number[] = ids;
        let position = 0;
        for (const [i, want] of greedy.entries()) {
          sequence.feed(fed, position);
          const { token, gap } = topTwo(sequence.logits(fed.length - 1));
          if (defined(greedy_gap[i]) >= NEAR_TIE) expect(token).toBe(want);
          expect(Math.abs(gap - defined(greedy_gap[i]))).toBeLessThan(token === want ? LOGIT_TOLERANCE : NEAR_TIE * 2);
          position += fed.length;
          fed = [want];
        }
      }
    });

    test("fable: layer 0 chooses the listed experts with the listed routing weights", () => {
      using device = disposable(entry.create());
      const container = defined(packed).container("fable", "f16");
      const program = compileProgram(container, { layerCount: 1 });
      using sequence = openSingleSequence(device.value, container, "f32", CONTEXT, program);
      const x = program.slots.findIndex((slot) => slot.name === "x");
      const { hiddenDim } = container.header.shape;
      const { ids, layer0_router } = defined(readGolden("fable").prompts[0]);
      const listed = defined(layer0_router, "the first prompt's router choices");
      sequence.feed(ids, 0);
      const rows = new Float32Array(ids.length * hiddenDim);
      sequence.model.readSlot(x, 0, ids.length, rows);
      let clearCount = 0;
      for (const [row, experts] of listed.experts.entries()) {
        const got = routeRow(container, rows.subarray(row * hiddenDim, (row + 1) * hiddenDim));
        for (const [group, { expert, weight, second }] of got.entries()) {
          if (weight.score / second < 1 + ROUTER_NEAR_TIE) continue;
          clearCount++;
          expect(expert).toBe(defined(experts[group]));
          expect(weight.scaled).toBeCloseTo(defined(listed.weights[row]?.[group]), 5);
        }
      }
      expect(clearCount).toBeGreaterThan(ids.length * 7);
    });
  },
);

/** Each group's best expert of layer 0, straight from the definition. */
function routeRow(container: Container, x: Float32Array) {
  const { routedExpertCount, expertGroupCount, hiddenDim } = container.header.shape;
  const tensor = (name: string) => readTensor(container, defined(container.tensorIndex.get(name), name));
  const router = decodeMatrix(tensor("layers.0.ffn_gate_inp"), "f32", routedExpertCount, hiddenDim);
  const scales = new Float32Array(tensor("layers.0.ffn_gate_scale").buffer);
  const logits = Array.from({ length: routedExpertCount }, (_, id) =>
    x.reduce((sum, value, k) => sum + value * defined(router[id * hiddenDim + k]), 0),
  );
  const exps = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
  const sum = exps.reduce((a, b) => a + b, 0);
  const perGroup = routedExpertCount / expertGroupCount;
  return Array.from({ length: expertGroupCount }, (_, group) => {
    const ids = Array.from({ length: perGroup }, (_, i) => group * perGroup + i);
    const [best, second] = ids.sort((a, b) => defined(exps[b]) - defined(exps[a]));
    assert(best !== undefined && second !== undefined, "a group has two experts");
    const score = defined(exps[best]) / sum;
    return {
      expert: best,
      weight: { score, scaled: score * defined(scales[best]) },
      second: defined(exps[second]) / sum,
    };
  });
}

function disposable<T extends { close(): void }>(value: T): { value: T } & Disposable {
  return { value, [Symbol.dispose]: () => value.close() };
}
