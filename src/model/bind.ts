// Binding: attaches a container's tensors to named fields, once and strictly. A tensor that the shape requires is there with
// the right dims or the container is refused; nothing is searched for, guessed or defaulted. It reads the header only.

import { DuetError } from "../base/errors.ts";
import type { Container } from "../weights/header.ts";
import { layerNames, tensorNames } from "../weights/names.ts";
import type { DieIndex } from "../weights/split.ts";
import type { Placement } from "./placement.ts";
import type { PerDie, TensorIndex } from "./program.ts";

export interface LayerTensors {
  readonly attnNorm: TensorIndex;
  readonly attnQkv: PerDie<TensorIndex | null>;
  readonly attnQkvBias: PerDie<TensorIndex | null>;
  readonly attnOutput: PerDie<TensorIndex | null>;
  readonly attnOutputBias: TensorIndex | null;
  readonly ffnNorm: TensorIndex;
  readonly router: TensorIndex | null;
  readonly routerScale: TensorIndex | null;
  /** Expert 0 of the layer; the others follow by id. */
  readonly firstExpert: TensorIndex | null;
  readonly ffnGateUp: PerDie<TensorIndex | null>;
  readonly ffnDown: PerDie<TensorIndex | null>;
}

export interface ModelTensors {
  /** Tied: both halves of the head. Untied: one tensor and null. */
  readonly embedding: PerDie<TensorIndex | null>;
  readonly outputNorm: TensorIndex;
  readonly output: PerDie<TensorIndex | null>;
  readonly layers: readonly LayerTensors[];
}

/** Binds the first `layerCount` layers and the tensors around them. DuetError `container_corrupt` names what is amiss. */
export function bindTensors(container: Container, placement: Placement, layerCount: number): ModelTensors {
  const { shape, tensors } = container.header;
  const { hiddenDim, headDim } = shape;

  const refuse = (name: string, expected: string, got: string): never => {
    throw new DuetError("container_corrupt", `the tensor "${name}" doesn't fit the model shape`, {
      where: container.path,
      expected,
      got,
      next: "pack the model again",
    });
  };
  const find = (name: string, rows: number, columns: number): TensorIndex => {
    const index = container.tensorIndex.get(name);
    const entry = index === undefined ? undefined : tensors[index];
    if (index === undefined || entry === undefined) return refuse(name, `${rows} x ${columns}`, "no such tensor");
    if (entry.rows !== rows || entry.columns !== columns) {
      return refuse(name, `${rows} x ${columns}`, `${entry.rows} x ${entry.columns}`);
    }
    return index;
  };
  /** A split tensor: null on a die where either dim is 0. */
  const findPerDie = (
    name: (die: DieIndex) => string,
    rows: PerDie<number>,
    columns: PerDie<number>,
  ): PerDie<TensorIndex | null> => {
    const one = (die: DieIndex) =>
      rows[die] === 0 || columns[die] === 0 ? null : find(name(die), rows[die], columns[die]);
    return [one(0), one(1)];
  };
  const both = (n: number): PerDie<number> => [n, n];
  const none: PerDie<null> = [null, null];

  const attnColumns: PerDie<number> = [placement.queryHeads[0] * headDim, placement.queryHeads[1] * headDim];
  const qkvRows: PerDie<number> = [
    attnColumns[0] + 2 * placement.kvHeads[0] * headDim,
    attnColumns[1] + 2 * placement.kvHeads[1] * headDim,
  ];
  const gateUpRows: PerDie<number> = [2 * placement.ffnColumns[0], 2 * placement.ffnColumns[1]];

  const bindExperts = (expert: (id: number) => string): TensorIndex | null => {
    let first: TensorIndex | null = null;
    for (let id = 0; id < shape.routedExpertCount; id++) {
      const index = find(expert(id), 2 * shape.expertDim, hiddenDim);
      first ??= index;
      if (index !== first + id) refuse(expert(id), `entry ${first + id} of the table`, `entry ${index}`);
    }
    return first;
  };

  const bindLayer = (layerIndex: number): LayerTensors => {
    const names = layerNames(layerIndex);
    return {
      attnNorm: find(names.attnNorm, 1, hiddenDim),
      attnQkv: findPerDie(names.attnQkv, qkvRows, both(hiddenDim)),
      attnQkvBias: shape.hasAttentionBias ? findPerDie(names.attnQkvBias, both(1), qkvRows) : none,
      attnOutput: findPerDie(names.attnOutput, both(hiddenDim), attnColumns),
      attnOutputBias: shape.hasAttentionBias ? find(names.attnOutputBias, 1, hiddenDim) : null,
      ffnNorm: find(names.ffnNorm, 1, hiddenDim),
      router: shape.routedExpertCount > 0 ? find(names.router, shape.routedExpertCount, hiddenDim) : null,
      routerScale: shape.hasRouterScale ? find(names.routerScale, 1, shape.routedExpertCount) : null,
      firstExpert: bindExperts(names.expert),
      ffnGateUp: findPerDie(names.ffnGateUp, gateUpRows, both(hiddenDim)),
      ffnDown: findPerDie(names.ffnDown, both(hiddenDim), placement.ffnColumns),
    };
  };

  const output = findPerDie(tensorNames.output, placement.vocabularyRows, both(hiddenDim));
  return {
    embedding: shape.isEmbeddingTied
      ? output
      : [find(tensorNames.tokenEmbedding, shape.vocabularySize, hiddenDim), null],
    outputNorm: find(tensorNames.outputNorm, 1, hiddenDim),
    output,
    layers: Array.from({ length: layerCount }, (_, layerIndex) => bindLayer(layerIndex)),
  };
}

/** Whether any of the tensors is q4 or q8, so that its input must be there as int8 too. */
export function areQuantised(container: Container, tensors: readonly (TensorIndex | null)[]): boolean {
  return tensors.some((index) => {
    const type = index === null ? undefined : container.header.tensors[index]?.quantType;
    return type === "q4" || type === "q8";
  });
}
