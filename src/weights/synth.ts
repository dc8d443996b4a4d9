// Containers with random weights, for measuring and testing shapes whose weights nobody has. What they compute is as heavy as
// the real thing and means nothing. Deterministic: the same shape, recipe, tokenizer and seed give the same bytes.

import { z } from "zod";
import packageJson from "../../package.json";
import { DuetError } from "../base/errors.ts";
import { inverseFrequencies, writeContainer, type WriteProgress, type WriteResult } from "./container-writer.ts";
import { expectedTensors } from "./expected-tensors.ts";
import type { RecipeName, TokenizerFiles } from "./header.ts";
import { NAMED_SHAPES } from "./named-shapes.ts";
import { RandomModel } from "./random-model.ts";
import { RECIPES } from "./recipe.ts";
import { type ModelShape, modelShapeSchema } from "./shape.ts";
import { splitForShape } from "./split.ts";

/** A tokenizer to embed. */
export interface SynthTokenizer {
  readonly files: TokenizerFiles;
  readonly endTokenIds: readonly number[];
  /** Its ids are below this. */
  readonly idCount: number;
  /** What it is called in errors. */
  readonly name: string;
}

export interface SynthOptions {
  readonly shape: ModelShape;
  readonly recipe: RecipeName;
  readonly outPath: string;
  readonly modelName: string;
  readonly seed: number;
  /** null: none, so that the model can be measured but not served. */
  readonly tokenizer: SynthTokenizer | null;
  readonly onProgress?: (progress: WriteProgress) => void;
}

const NO_TOKENIZER: TokenizerFiles = { tokenizerJson: "{}", tokenizerConfigJson: "{}", generationConfigJson: "{}" };

/** Writes the container. DuetError `config_invalid` for a vocabulary smaller than the tokenizer's, `file_unwritable`. */
export function synthesise(options: SynthOptions): WriteResult {
  const { shape, tokenizer } = options;
  const idCount = tokenizer?.idCount ?? shape.vocabularySize;
  if (idCount > shape.vocabularySize) {
    throw new DuetError("config_invalid", "the tokenizer has more ids than the shape's vocabulary", {
      where: tokenizer?.name ?? "",
      expected: `at most ${shape.vocabularySize} ids`,
      got: `${idCount}`,
      next: `raise vocabularySize to ${idCount}, or choose --tokenizer none (the model can't be served then)`,
    });
  }
  const split = splitForShape(shape);
  const recipe = RECIPES[options.recipe];
  const specs = [...expectedTensors(shape, split, recipe)];
  const model = new RandomModel(shape, split, specs, idCount, options.seed);
  return writeContainer({
    outPath: options.outPath,
    header: {
      layout: "cpu-x16",
      recipe,
      shape,
      split,
      inverseFrequencies: inverseFrequencies(shape),
      endTokenIds: tokenizer?.endTokenIds ?? [],
      tokenizer: tokenizer?.files ?? NO_TOKENIZER,
      provenance: {
        modelName: options.modelName,
        license: "CC0-1.0",
        source: `random weights, seed ${options.seed}`,
        packedBy: `duet ${packageJson.version}`,
        sourceDigest: "",
      },
    },
    specs,
    encode: (spec) => model.encode(spec),
    onProgress: options.onProgress,
  });
}

const manifestSchema = z.looseObject({ shape: z.unknown() });

/**
 * The shape that a text names or spells: a named shape, or JSON of a ModelShape or of a manifest with a `shape`. Fields that
 * JSON leaves out are those of `small`. DuetError `config_invalid`.
 */
export function shapeFromText(text: string, where: string): ModelShape {
  const named = NAMED_SHAPES[text];
  if (named !== undefined) return named;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw invalidShape(where, error instanceof Error ? error.message : String(error));
  }
  const manifest = manifestSchema.safeParse(value);
  const fields = manifest.success && manifest.data.shape !== undefined ? manifest.data.shape : value;
  if (typeof fields !== "object" || fields === null || Array.isArray(fields)) {
    throw invalidShape(where, "it is no JSON object");
  }
  const parsed = modelShapeSchema.safeParse({ ...NAMED_SHAPES.small, ...fields });
  if (parsed.success) return Object.freeze(parsed.data);
  const issue = parsed.error.issues[0];
  const path = issue?.path.join(".") ?? "";
  throw invalidShape(where, `${path === "" ? "" : `${path}: `}${issue?.message ?? "unknown"}`);
}

function invalidShape(where: string, got: string): DuetError {
  return new DuetError("config_invalid", "the shape cannot be read", {
    where,
    expected: `${Object.keys(NAMED_SHAPES).join(", ")}, a JSON file, or JSON of a model shape`,
    got,
    next: "duet inspect --json shows a shape's fields",
  });
}
