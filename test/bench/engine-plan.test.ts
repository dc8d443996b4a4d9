// Which lines a model gets, and that what is reserved for them holds every one.
import { expect, test } from "bun:test";
import fc from "fast-check";
import { decodeContexts, enginePlan, type PlanLimits, stepBlocks, stepKeys } from "../../src/bench/engine-plan.ts";

const limits: PlanLimits = {
  kinds: ["prefill", "decode", "verify"],
  isQuick: false,
  contextMax: 16384,
  kvBlockBytes: 1,
  kvBytesMax: 1e12,
};

test("a model with a long context gets every line", () => {
  const { steps, skipped } = enginePlan(limits);
  const of = (kind: string) => steps.filter((step) => step.kind === kind);
  expect(of("prefill").map((step) => step.rowsEach)).toEqual([128, 512, 2048]);
  expect(of("verify").map((step) => step.rowsEach)).toEqual(Array.from({ length: 16 }, (_, i) => i + 1));
  expect(of("decode")).toHaveLength(7 * 3);
  expect(new Set(of("decode").map((step) => step.contextTokens))).toEqual(new Set([0, 2048, 8192]));
  expect(new Set(steps.map((step) => step.id)).size).toBe(steps.length);
  expect(skipped).toEqual([]);
});

test("a short context gets what it has room for", () => {
  expect(decodeContexts(512, false)).toEqual([0, 480]);
  expect(decodeContexts(4096, false)).toEqual([0, 2048]);
  expect(decodeContexts(64, false)).toEqual([0]);
  const { steps } = enginePlan({ ...limits, contextMax: 512 });
  expect(steps.filter((step) => step.kind === "prefill").map((step) => step.rowsEach)).toEqual([128, 512]);
});

test("lines whose KV has no room are named, not lost", () => {
  const { steps, skipped } = enginePlan({ ...limits, kvBlockBytes: 1e6, kvBytesMax: 1e9 });
  const all = enginePlan(limits).steps.length;
  expect(steps.length + skipped.length).toBe(all);
  expect(skipped.length).toBeGreaterThan(0);
  expect(skipped.join()).toContain("decode/64@8192");
});

test("only the kinds that were asked for", () => {
  expect(new Set(enginePlan({ ...limits, kinds: ["verify"] }).steps.map((step) => step.kind))).toEqual(
    new Set(["verify"]),
  );
  expect(enginePlan({ ...limits, kinds: ["start-up"] })).toMatchObject({ steps: [], sequenceMax: 1, logitRowMax: 1 });
});

test("what is reserved holds every line, within the context", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 20000 }),
      fc.boolean(),
      fc.integer({ min: 1, max: 5000 }),
      (contextMax, isQuick, blocks) => {
        const plan = enginePlan({ ...limits, contextMax, isQuick, kvBytesMax: blocks });
        for (const step of plan.steps) {
          expect(step.contextTokens + step.rowsEach).toBeLessThanOrEqual(contextMax);
          expect(step.sequences).toBeLessThanOrEqual(plan.sequenceMax);
          expect(stepBlocks(step)).toBeLessThanOrEqual(Math.min(plan.kvBlockCount, blocks));
          expect(stepBlocks(step) / step.sequences).toBeLessThanOrEqual(plan.blocksPerSequenceMax);
          if (step.kind !== "prefill") {
            expect(step.sequences * step.rowsEach).toBeLessThanOrEqual(Math.min(plan.rowMax, plan.logitRowMax));
          }
        }
      },
    ),
  );
});

test("a step's rows see the context, themselves and the rows before them", () => {
  const step = { id: "x", kind: "verify", sequences: 2, rowsEach: 3, contextTokens: 10 } as const;
  expect(stepKeys(step)).toBe(2 * (11 + 12 + 13));
});
