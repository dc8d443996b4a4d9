// Statistics of acceptance, pure: how often the draft token at each position of a draft is accepted, given that all before
// it were. Estimates follow slow changes by letting old observations fade.

import { assert } from "../base/assert.ts";

/** Whoever has seen nothing yet assumes this. */
const PRIOR_RATE = 0.6;
/** How many observations the prior counts for. */
const PRIOR_WEIGHT = 4;

export class AcceptanceEstimate {
  readonly #tried: Float64Array;
  readonly #accepted: Float64Array;

  /** `fade`: what an observation still counts after one more cycle, in (0, 1]. */
  constructor(
    draftMax: number,
    private readonly fade: number,
  ) {
    this.#tried = new Float64Array(draftMax);
    this.#accepted = new Float64Array(draftMax);
  }

  /** One cycle: `acceptedCount` of `draftedCount` draft tokens were accepted. */
  observe(draftedCount: number, acceptedCount: number): void {
    assert(acceptedCount <= draftedCount, "no more tokens are accepted than drafted");
    const reached = Math.min(draftedCount, acceptedCount + 1);
    for (let i = 0; i < reached; i++) {
      this.#tried[i] = this.#tried[i]! * this.fade + 1;
      this.#accepted[i] = this.#accepted[i]! * this.fade + (i < acceptedCount ? 1 : 0);
    }
  }

  /** The chance that draft position i is accepted when all before it were; `prior` is what to assume before any observation. */
  rate(position: number, prior = PRIOR_RATE): number {
    return (this.#accepted[position]! + PRIOR_WEIGHT * prior) / (this.#tried[position]! + PRIOR_WEIGHT);
  }

  reset(): void {
    this.#tried.fill(0);
    this.#accepted.fill(0);
  }
}
