// ModelShape: the numbers of a model, as a container header holds them (manifest.ts reads them from a Hugging Face config),
// validated once and frozen.

import { z } from "zod";
import { DuetError } from "../base/errors.ts";

const count = z
  .int()
  .min(0)
  .max(1 << 24);
const positive = z
  .int()
  .min(1)
  .max(1 << 24);

/** Schema of a shape as it stands in a container header. */
export const modelShapeSchema = z
  .strictObject({
    architecture: z.literal("pangu-pro-moe"),
    vocabularySize: positive,
    hiddenDim: positive,
    layerCount: positive.max(4096),
    queryHeadCount: positive.max(4096),
    kvHeadCount: positive.max(4096),
    headDim: positive.max(1024),
    contextMax: positive,
    rmsNormEps: z.number().positive().max(1),
    ropeTheta: z.number().positive(),
    /** 0: a dense model. */
    routedExpertCount: count.max(65536),
    /** 1: an ordinary top-k mixture. 0 when dense. */
    expertGroupCount: count.max(65536),
    /** Over all groups. */
    activeExpertCount: count.max(65536),
    expertDim: count,
    /** Width of the fused shared experts, or of the dense FFN when there are no routed experts. 0: no shared experts. */
    ffnDim: count,
    isRoutingRenormalised: z.boolean(),
    hasRouterScale: z.boolean(),
    hasAttentionBias: z.boolean(),
    isEmbeddingTied: z.boolean(),
    /** MTP modules in the container (dense blocks), and their FFN width. */
    mtpLayerCount: count.max(16),
    mtpFfnDim: count,
  })
  .superRefine((shape, context) => {
    const demand = (isHeld: boolean, message: string) => {
      if (!isHeld) context.addIssue({ code: "custom", message });
    };
    demand(shape.queryHeadCount % shape.kvHeadCount === 0, "queryHeadCount must be a multiple of kvHeadCount");
    demand(shape.headDim % 2 === 0, "headDim must be even (rotary embedding)");
    if (shape.routedExpertCount === 0) {
      demand(shape.expertGroupCount === 0 && shape.activeExpertCount === 0, "a dense model has no expert groups");
      demand(shape.ffnDim > 0, "a dense model needs ffnDim");
      return;
    }
    demand(shape.expertDim > 0, "routed experts need expertDim");
    demand(
      shape.expertGroupCount > 0 && shape.routedExpertCount % shape.expertGroupCount === 0,
      "routedExpertCount must be a multiple of expertGroupCount",
    );
    demand(
      shape.expertGroupCount > 0 && shape.activeExpertCount % shape.expertGroupCount === 0,
      "activeExpertCount must be a multiple of expertGroupCount (the same number from every group)",
    );
    demand(
      shape.activeExpertCount > 0 && shape.activeExpertCount <= shape.routedExpertCount,
      "activeExpertCount must be between 1 and routedExpertCount",
    );
  });

/** The numbers of a model; dims in elements. */
export type ModelShape = Readonly<z.infer<typeof modelShapeSchema>>;

/** Validates a header's shape; DuetError `container_corrupt` names the field. */
export function parseModelShape(value: unknown, where: string): ModelShape {
  const parsed = modelShapeSchema.safeParse(value);
  if (parsed.success) return Object.freeze(parsed.data);
  const issue = parsed.error.issues[0];
  throw new DuetError("container_corrupt", `the model shape is invalid: ${issue?.message ?? "unknown"}`, {
    where: `${where}, shape.${issue?.path.join(".") ?? ""}`,
    next: "pack the model again",
  });
}

/** Experts per routing group, and how many of them a token takes; 0 for a dense model. */
export function expertsPerGroup(shape: ModelShape): number {
  return shape.expertGroupCount === 0 ? 0 : shape.routedExpertCount / shape.expertGroupCount;
}

export function activePerGroup(shape: ModelShape): number {
  return shape.expertGroupCount === 0 ? 0 : shape.activeExpertCount / shape.expertGroupCount;
}
