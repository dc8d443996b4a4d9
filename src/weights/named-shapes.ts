// Shapes that have a name, for models without weights: the one that the runtime is designed for, a slice of it that fits a
// desktop's memory, and two small ones. pangu-72b is read from its manifest, and so said in one place.

import manifest from "../../models/pangu-pro-moe-72b/manifest.json";
import { type ModelShape, modelShapeSchema } from "./shape.ts";

const pangu = modelShapeSchema.parse(manifest.shape);

/** What the small shapes have in common; context for long prompts and many sequences. */
const small: ModelShape = {
  ...pangu,
  hiddenDim: 1024,
  layerCount: 12,
  queryHeadCount: 16,
  kvHeadCount: 4,
  headDim: 64,
  expertDim: 256,
  ffnDim: 1024,
  vocabularySize: 32768,
  contextMax: 16384,
  ropeTheta: 1e6,
};

export const NAMED_SHAPES: Readonly<Record<string, ModelShape>> = {
  "pangu-72b": pangu,
  "pangu-slice": modelShapeSchema.parse({ ...pangu, layerCount: 6, vocabularySize: 32768 }),
  small: modelShapeSchema.parse(small),
  tiny: modelShapeSchema.parse({
    ...small,
    hiddenDim: 256,
    layerCount: 8,
    queryHeadCount: 8,
    headDim: 32,
    expertDim: 64,
    ffnDim: 256,
    vocabularySize: 8192,
  }),
};
