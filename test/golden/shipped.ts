// Golden outputs of the shipped containers: what shipped.json holds, and how it is made and compared. The hash is over the
// bits of every logit row of a greedy run, from the plain C kernels; `bun scripts/update-golden.ts` writes the file again.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Device } from "../../src/device/device.ts";
import { readContainer } from "../../src/weights/container.ts";
import { containerPath, MODEL_NAMES, type ModelName, readGolden } from "../support/fable.ts";
import { generateGreedy, openSingleSequence } from "../support/single-sequence.ts";

export const SHIPPED_PATH = join(import.meta.dir, "shipped.json");
export const SHIPPED_TOKEN_COUNT = 64;
const CONTEXT = 96;

export interface ShippedRun {
  readonly prompt: string;
  readonly ids: readonly number[];
  readonly tokens: readonly number[];
  /** Best minus second logit of each token. */
  readonly gaps: readonly number[];
  /** XXH64 of the float32 logits of all prompt rows and all decoded rows, chained in that order. */
  readonly logitsHash: string;
}

export interface ShippedModel {
  /** Of the container that the runs belong to. */
  readonly fingerprint: string;
  readonly runs: readonly ShippedRun[];
}

export type Shipped = { readonly command: string; readonly kvType: "f16" } & Readonly<Record<ModelName, ShippedModel>>;

export function readShipped(): Shipped {
  return JSON.parse(readFileSync(SHIPPED_PATH, "utf8")) as Shipped;
}

export function computeShippedModel(device: Device, name: ModelName): ShippedModel {
  const container = readContainer(containerPath(name));
  using sequence = openSingleSequence(device, container, "f16", CONTEXT);
  const runs = readGolden(name).prompts.map(({ prompt, ids }): ShippedRun => {
    let hash = 0n;
    const { tokens, gaps } = generateGreedy(sequence, ids, SHIPPED_TOKEN_COUNT, (logits) => {
      const bytes = new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength);
      hash = Bun.hash.xxHash64(bytes, hash);
    });
    return {
      prompt,
      ids,
      tokens,
      gaps: gaps.map((gap) => Number(gap.toFixed(4))),
      logitsHash: hash.toString(16).padStart(16, "0"),
    };
  });
  return { fingerprint: container.fingerprint, runs };
}

export function computeShipped(device: Device): Shipped {
  const models = MODEL_NAMES.map((name) => [name, computeShippedModel(device, name)] as const);
  return {
    command: "bun scripts/update-golden.ts",
    kvType: "f16",
    ...(Object.fromEntries(models) as Record<ModelName, ShippedModel>),
  };
}
