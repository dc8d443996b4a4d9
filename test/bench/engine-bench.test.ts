// Running a plan on a model: every line is there, runs are counted by the clock that is given, and KV that nobody computed is finite
// in every type.
import { describe, expect, test } from "bun:test";
import { runEngineBench } from "../../src/bench/engine-bench.ts";
import { enginePlan } from "../../src/bench/engine-plan.ts";
import { SHIPPED_DRAFT } from "../../src/config.ts";
import type { KvType } from "../../src/device/device.ts";
import { openDevice } from "../../src/device/open-device.ts";
import { kvBlockBytes } from "../../src/engine/kv-budget.ts";
import { compileProgram } from "../../src/model/compile.ts";
import { readContainer } from "../../src/weights/container.ts";

const container = readContainer(SHIPPED_DRAFT);
const program = compileProgram(container);
const { shape } = container.header;

async function run(deviceKind: "cpu" | "reference", kvType: KvType, kinds: string[], lineMs: number) {
  const blockBytes = kvBlockBytes(program.shape, kvType);
  const plan = enginePlan({ kinds, isQuick: true, contextMax: 160, kvBlockBytes: blockBytes, kvBytesMax: 1e9 });
  const device = await openDevice({ deviceKind, threadCount: 2, isPinned: false, isa: null, residency: "mmap" });
  const { rowMax, logitRowMax, kvBlockCount } = plan;
  const model = device.load(container, program, { kvType, rowMax, logitRowMax, kvBlockCount });
  try {
    let ticks = 0;
    const runs = { repeatCount: 2, lineMs, vocabularySize: shape.vocabularySize, kvBlockBytes: blockBytes };
    const seen: string[] = [];
    // Each reading of the clock is a millisecond after the one before.
    const lines = await runEngineBench(
      model,
      plan,
      runs,
      ({ step }) => seen.push(step.id),
      () => ticks++,
    );
    expect(seen).toEqual(plan.steps.map((step) => step.id));
    return lines;
  } finally {
    model.close();
    device.close();
  }
}

describe("a plan", () => {
  test.each(["f16", "int8", "f32"] as const)("runs at every context with %s KV", async (kvType) => {
    const lines = await run("cpu", kvType, ["prefill", "decode", "verify"], 5);
    expect(lines.map((line) => line.step.contextTokens)).toContain(128);
    for (const line of lines) {
      // One millisecond each, until five have passed.
      expect(line.runsMs).toEqual([1, 1, 1, 1, 1]);
      expect(line.weightBytes).toBeGreaterThan(0);
      expect(line.integerOps).toBeGreaterThan(0);
    }
  });

  test("gets the runs that were asked for where a step takes long, and at most 30 where it is short", async () => {
    expect((await run("cpu", "f16", ["verify"], 0))[0]?.runsMs).toHaveLength(2);
    expect((await run("cpu", "f16", ["verify"], 1e9))[0]?.runsMs).toHaveLength(30);
  });

  test("runs on a device that has no kvBlocks to fill", async () => {
    const lines = await run("reference", "f16", ["verify"], 0);
    expect(lines.length).toBeGreaterThan(0);
  });
});
