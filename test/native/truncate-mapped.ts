// Shrinks mapped files under the kernel library and prints what came of it as JSON. library.test.ts runs it in a process of
// its own: what it does would kill a process without the guard. Arguments: a folder; "foreign" for a mapping that isn't ours.
import { copyFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DuetError } from "../../src/base/errors.ts";
import { addRow, addSequence, clearBatch, createBatch } from "../../src/device/batch.ts";
import { createCpuDevice } from "../../src/device/cpu/cpu-device.ts";
import type { DeviceModel } from "../../src/device/device.ts";
import { compileProgram } from "../../src/model/compile.ts";
import { openNative } from "../../src/native/library.ts";
import { Slab } from "../../src/native/slab.ts";
import { RECIPES } from "../../src/weights/recipe.ts";
import { randomValues, testMogeShape, writeModel } from "../support/containers.ts";

const folder = process.argv[2] ?? "";
const native = openNative();

function outcome(action: () => unknown): string {
  try {
    action();
    return "ok";
  } catch (error) {
    return error instanceof DuetError ? error.code : String(error);
  }
}

/** A slab of `bytes` bytes whose file keeps `keptBytes`. */
function shrinkSlab(name: string, bytes: number): { slab: Slab; path: string } {
  const path = join(folder, name);
  writeFileSync(path, new Uint8Array(bytes).fill(1));
  return { slab: Slab.map(native, path, bytes), path };
}

function runForeign(): void {
  const { slab } = shrinkSlab("own", 8192);
  const path = join(folder, "foreign");
  writeFileSync(path, new Uint8Array(65536).fill(1));
  const view = Bun.mmap(path);
  truncateSync(path, 0);
  console.log("before");
  console.log(view[40000], slab.faultCount);
}

function runOwn(): void {
  const bytes = 64 * 4096;
  const { slab, path } = shrinkSlab("shrunk", bytes);
  const { slab: other } = shrinkSlab("other", bytes);
  const intact = outcome(() => slab.hash(0, bytes));
  truncateSync(path, 10 * 4096);
  const shrunk = outcome(() => slab.hash(0, bytes));

  const shape = testMogeShape();
  const modelPath = join(folder, "model.duet");
  const container = writeModel(modelPath, shape, RECIPES.q4, randomValues(1));
  const copyPath = join(folder, "copy.duet");
  copyFileSync(modelPath, copyPath);
  const device = createCpuDevice({ laneCount: 2 });
  const options = { kvType: "f16", kvBlockCount: 2, rowMax: 4, logitRowMax: 4 } as const;
  const load = (at: string) => device.load({ ...container, path: at }, compileProgram(container), options);
  const batch = createBatch({ rowMax: 4, sequenceMax: 1, blocksPerSequenceMax: 1 });
  const step = (model: DeviceModel) =>
    outcome(() => {
      clearBatch(batch);
      addSequence(batch, [1]);
      addRow(batch, 3, 0, true);
      model.run(batch);
    });
  const model = load(modelPath);
  const another = load(copyPath);
  const first = step(model);
  truncateSync(modelPath, 8192);
  const stepAfterLoss = step(model);
  const report = {
    intact,
    shrunk,
    faultCount: slab.faultCount,
    otherSlab: outcome(() => other.hash(0, bytes)),
    otherFaultCount: other.faultCount,
    step: first,
    stepAfterLoss,
    stepOfAnotherModel: step(another),
  };
  for (const one of [model, another, device]) one.close();
  for (const one of [slab, other]) one.unmap();
  console.log(JSON.stringify(report));
}

if (process.argv[3] === "foreign") runForeign();
else runOwn();
