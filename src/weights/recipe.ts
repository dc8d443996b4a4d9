// The recipes: which quant type each tensor class gets. Norms, biases and the router are float32 in every one.

import type { Recipe, RecipeName } from "./header.ts";
import type { QuantType } from "./tensor.ts";

const recipe = (name: RecipeName, experts: QuantType, rest: QuantType): Recipe => ({
  name,
  types: {
    embedding: rest,
    attention: rest,
    router: "f32",
    shared: rest,
    experts,
    head: rest,
    norm: "f32",
    mtp: rest,
  },
});

export const RECIPES: Readonly<Record<RecipeName, Recipe>> = {
  q4: recipe("q4", "q4", "q8"),
  q8: recipe("q8", "q8", "q8"),
  f16: recipe("f16", "f16", "f16"),
};

export const RECIPE_NAMES: readonly RecipeName[] = ["q4", "q8", "f16"];
