// The shipped models as tests find them: containers, golden outputs, the held-out text, and the float16 containers that are
// packed on the spot where the checkpoint folders are there.

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createTokenizer } from "../../src/tokenizer/tokenizer.ts";
import { readContainer } from "../../src/weights/container.ts";
import type { Container, RecipeName } from "../../src/weights/header.ts";
import { packCheckpoint } from "../../src/weights/packer.ts";

export const ROOT = join(import.meta.dir, "../..");
export const MODEL_NAMES = ["fable", "fable-draft"] as const;
export type ModelName = (typeof MODEL_NAMES)[number];

export const containerPath = (model: ModelName) => join(ROOT, "models", model, `${model}.duet`);

/** golden.json: what PyTorch computed in float32 over the checkpoint. */
export interface Golden {
  readonly prompts: readonly GoldenPrompt[];
}

export interface GoldenPrompt {
  readonly prompt: string;
  readonly ids: readonly number[];
  /** The 20 largest logits after ids[0 .. position]. */
  readonly logits: readonly {
    readonly position: number;
    readonly ids: readonly number[];
    readonly values: readonly number[];
  }[];
  readonly greedy: readonly number[];
  /** Best minus second logit of each greedy token. */
  readonly greedy_gap: readonly number[];
  /** Chosen experts and routing weights of layer 0, per prompt token. */
  readonly layer0_router?: { readonly experts: readonly number[][]; readonly weights: readonly number[][] };
}

export function readGolden(model: ModelName): Golden {
  return JSON.parse(readFileSync(join(ROOT, "models", model, "golden.json"), "utf8")) as Golden;
}

/**
 * Where a model's checkpoint is, or null: DUET_FABLE_CHECKPOINT names fable's folder, else it is models/fable of a folder beside
 * the repository. The draft model's lies beside it.
 */
export function checkpointFolder(model: ModelName): string | null {
  const beside = readdirSync(join(ROOT, "..")).map((name) => join(ROOT, "..", name, "models/fable"));
  const candidates = [process.env["DUET_FABLE_CHECKPOINT"] ?? [], beside].flat();
  const fable = candidates.find((folder) => existsSync(join(folder, "model.safetensors")));
  if (fable === undefined) return null;
  const folder = model === "fable" ? fable : `${fable}-draft`;
  return existsSync(join(folder, "model.safetensors")) ? folder : null;
}

/** Reason to skip a test, after its name. */
export const NEEDS_CHECKPOINT = "(skipped: needs the fable checkpoint, DUET_FABLE_CHECKPOINT)";
export const hasCheckpoints = checkpointFolder("fable") !== null && checkpointFolder("fable-draft") !== null;

export interface PackedModels extends Disposable {
  container(model: ModelName, recipe: RecipeName): Container;
}

/** Packs what is asked for into a folder of its own, which dispose removes. */
export function createPackedModels(): PackedModels {
  const folder = mkdtempSync(join(tmpdir(), "duet-packed-"));
  const packed = new Map<string, Container>();
  return {
    container(model, recipe) {
      const outPath = join(folder, `${model}-${recipe}.duet`);
      const checkpoint = checkpointFolder(model);
      if (checkpoint === null) throw new Error(`no checkpoint of ${model}`);
      let container = packed.get(outPath);
      if (container === undefined) {
        packCheckpoint({ folder: checkpoint, recipe, outPath });
        container = readContainer(outPath);
        packed.set(outPath, container);
      }
      return container;
    },
    [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }),
  };
}

/** The held-out documents as tokens. */
export function validationTokens(container: Container): number[] {
  const { tokenizerJson, tokenizerConfigJson } = container.header.tokenizer;
  const tokenizer = createTokenizer({
    tokenizerJson: JSON.parse(tokenizerJson),
    tokenizerConfig: JSON.parse(tokenizerConfigJson),
    vocabularySize: container.header.shape.vocabularySize,
  });
  const text = readFileSync(join(ROOT, "models/fable/validation.txt"), "utf8");
  return tokenizer.encode(text, { allowSpecial: true });
}
