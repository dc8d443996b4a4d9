// fast-check's source of valid small ModelShapes: dense and mixture, tied and untied, odd dims, one KV head, one group.

import fc from "fast-check";
import { type ModelShape, modelShapeSchema } from "../../src/weights/shape.ts";

export const anyShape: fc.Arbitrary<ModelShape> = fc
  .record({
    vocabularySize: fc.integer({ min: 1, max: 90 }),
    hiddenDim: fc.integer({ min: 1, max: 90 }),
    layerCount: fc.integer({ min: 1, max: 2 }),
    kvHeadCount: fc.integer({ min: 1, max: 3 }),
    queriesPerKv: fc.integer({ min: 1, max: 3 }),
    halfHeadDim: fc.integer({ min: 1, max: 9 }),
    expertGroupCount: fc.integer({ min: 0, max: 3 }),
    expertsPerGroup: fc.integer({ min: 1, max: 3 }),
    expertDim: fc.integer({ min: 1, max: 40 }),
    ffnDim: fc.integer({ min: 0, max: 80 }),
    isRoutingRenormalised: fc.boolean(),
    hasRouterScale: fc.boolean(),
    hasAttentionBias: fc.boolean(),
    isEmbeddingTied: fc.boolean(),
    mtpLayerCount: fc.integer({ min: 0, max: 1 }),
    mtpFfnDim: fc.integer({ min: 1, max: 70 }),
  })
  .map(({ queriesPerKv, halfHeadDim, expertsPerGroup, ...fields }) => {
    const isDense = fields.expertGroupCount === 0;
    const denseDim = Math.max(1, fields.ffnDim);
    return modelShapeSchema.parse({
      architecture: "pangu-pro-moe",
      contextMax: 64,
      rmsNormEps: 1e-5,
      ropeTheta: 10000,
      ...fields,
      queryHeadCount: fields.kvHeadCount * queriesPerKv,
      headDim: 2 * halfHeadDim,
      routedExpertCount: fields.expertGroupCount * expertsPerGroup,
      activeExpertCount: fields.expertGroupCount,
      expertDim: isDense ? 0 : fields.expertDim,
      ffnDim: isDense ? denseDim : fields.ffnDim,
      hasRouterScale: !isDense && fields.hasRouterScale,
      // A dense config has one feed-forward width, intermediate_size, for its layers and its MTP modules.
      mtpFfnDim: fields.mtpLayerCount === 0 ? 0 : isDense ? denseDim : fields.mtpFfnDim,
    });
  });
