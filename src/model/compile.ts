// The compiler: a container's header in, a Program out. It decides which ops run in which order over which slots; it is pure,
// runs once per loaded model, and knows nothing of batches, kvBlocks or of how a device executes an op.

import { assert } from "../base/assert.ts";
import type { Container } from "../weights/header.ts";
import { activePerGroup, expertsPerGroup } from "../weights/shape.ts";
import { areQuantised, bindTensors, type LayerTensors, type ModelTensors } from "./bind.ts";
import { placementOf } from "./placement.ts";
import {
  NO_TENSORS,
  type Op,
  type OpName,
  type PerDie,
  type Program,
  type Slot,
  type SlotIndex,
  type TensorIndex,
} from "./program.ts";

export interface CompileOptions {
  /** Only the first so many layers, for tests; all when absent. */
  readonly layerCount?: number;
}

/** Compiles a container's forward pass. DuetError `container_corrupt` where a tensor is missing or of other dims. */
export function compileProgram(container: Container, options: CompileOptions = {}): Program {
  const { shape, split, inverseFrequencies } = container.header;
  const layerCount = options.layerCount ?? shape.layerCount;
  assert(layerCount >= 0 && layerCount <= shape.layerCount, `the model has ${shape.layerCount} layers`);
  const placement = placementOf(shape, split);
  const tensors = bindTensors(container, placement, layerCount);
  const slots = createSlots(container, tensors);
  return {
    shape: {
      hiddenDim: shape.hiddenDim,
      headDim: shape.headDim,
      kvLayerCount: layerCount,
      contextMax: shape.contextMax,
      ...placement,
      expertDim: shape.expertDim,
      expertGroupCount: shape.expertGroupCount,
      expertsPerGroup: expertsPerGroup(shape),
      activePerGroup: activePerGroup(shape),
      rmsNormEps: shape.rmsNormEps,
      inverseFrequencies,
    },
    slots,
    ops: [
      op("embed", { output: SLOT.h, weight: tensors.embedding }),
      ...tensors.layers.flatMap((layer, index) => layerOps(layer, index, shape.isRoutingRenormalised)),
      op("rmsNorm", {
        input: SLOT.h,
        output: SLOT.logitX,
        weight: [tensors.outputNorm, null],
        flags: { logitRows: true },
      }),
      op("logits", { input: SLOT.logitX, weight: tensors.output }),
    ],
  };
}

/** Slots of a compiled Program by name; their order in Program.slots. */
const SLOT = { h: 0, x: 1, qkv: 2, attn: 3, partial: 4, logitX: 5 } as const;

function createSlots(container: Container, tensors: ModelTensors): Slot[] {
  const { shape, split } = container.header;
  const { queryHeads, kvHeads } = placementOf(shape, split);
  const heads = (count: PerDie<number>): PerDie<number> => [count[0] * shape.headDim, count[1] * shape.headDim];
  const hidden: PerDie<number> = [shape.hiddenDim, shape.hiddenDim];
  const qkv = heads([queryHeads[0] + 2 * kvHeads[0], queryHeads[1] + 2 * kvHeads[1]]);
  const readersOfX = tensors.layers.flatMap((layer) => [...layer.attnQkv, ...layer.ffnGateUp, layer.firstExpert]);
  const readersOfAttn = tensors.layers.flatMap((layer) => [...layer.attnOutput]);
  const isQuantised = (readers: readonly (TensorIndex | null)[]) => areQuantised(container, readers);
  return [
    { name: "h", columns: hidden, isPerDie: false, isQuantised: false },
    { name: "x", columns: hidden, isPerDie: false, isQuantised: isQuantised(readersOfX) },
    { name: "qkv", columns: qkv, isPerDie: true, isQuantised: false },
    { name: "attn", columns: heads(queryHeads), isPerDie: true, isQuantised: isQuantised(readersOfAttn) },
    { name: "partial", columns: hidden, isPerDie: true, isQuantised: false },
    { name: "logit_x", columns: hidden, isPerDie: false, isQuantised: isQuantised([...tensors.output]) },
  ];
}

/** Two residual branches, each ending in an exchange: attention, then the feed-forward. */
function layerOps(layer: LayerTensors, index: number, isRenormalised: boolean): Op[] {
  const at = (name: OpName, operands: Operands) => op(name, { layer: index, ...operands });
  const ops = [
    at("rmsNorm", { input: SLOT.h, output: SLOT.x, weight: [layer.attnNorm, null] }),
    at("matmul", { input: SLOT.x, output: SLOT.qkv, weight: layer.attnQkv, bias: layer.attnQkvBias }),
    at("ropeAndStore", { input: SLOT.qkv, output: SLOT.qkv }),
    at("attention", { input: SLOT.qkv, output: SLOT.attn }),
    at("matmul", {
      input: SLOT.attn,
      output: SLOT.partial,
      weight: layer.attnOutput,
      bias: [layer.attnOutputBias, null],
    }),
    at("exchangeAdd", { input: SLOT.partial, output: SLOT.h }),
    at("rmsNorm", { input: SLOT.h, output: SLOT.x, weight: [layer.ffnNorm, null] }),
  ];
  const hasFfn = layer.ffnGateUp[0] !== null || layer.ffnGateUp[1] !== null;
  const { router, firstExpert } = layer;
  if (router !== null) {
    ops.push(
      at("route", {
        input: SLOT.x,
        weight: [router, null],
        weight2: [layer.routerScale, null],
        flags: isRenormalised ? { renormalise: true } : {},
      }),
    );
  }
  if (hasFfn) {
    ops.push(at("ffn", { input: SLOT.x, output: SLOT.partial, weight: layer.ffnGateUp, weight2: layer.ffnDown }));
  }
  if (firstExpert !== null) {
    ops.push(
      at("expertFfn", {
        input: SLOT.x,
        output: SLOT.partial,
        weight: [firstExpert, null],
        flags: hasFfn ? { accumulate: true } : {},
      }),
    );
  }
  ops.push(at("exchangeAdd", { input: SLOT.partial, output: SLOT.h }));
  return ops;
}

interface Operands {
  readonly layer?: number;
  readonly input?: SlotIndex;
  readonly output?: SlotIndex;
  readonly weight?: PerDie<TensorIndex | null>;
  readonly weight2?: PerDie<TensorIndex | null>;
  readonly bias?: PerDie<TensorIndex | null>;
  readonly flags?: Op["flags"];
}

/** An op with everything that it doesn't name left out: no slots, no tensors, layer 0. */
export function op(name: OpName, operands: Operands): Op {
  return {
    name,
    flags: operands.flags ?? {},
    layer: operands.layer ?? 0,
    input: operands.input ?? null,
    output: operands.output ?? null,
    weight: operands.weight ?? NO_TENSORS,
    weight2: operands.weight2 ?? NO_TENSORS,
    bias: operands.bias ?? NO_TENSORS,
  };
}
