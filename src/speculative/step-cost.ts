// A running estimate of how long a step takes as a function of its rows, from what was measured on this machine. Rows are
// put in buckets (exact up to 16, then four to an octave); each keeps a mean that follows slow changes.

import { defined } from "../base/assert.ts";

const EXACT_ROWS = 16;
const BUCKETS_PER_OCTAVE = 4;
const BUCKET_COUNT = EXACT_ROWS + 16 * BUCKETS_PER_OCTAVE;
/** Weight of a new measurement once the bucket has enough of them. */
const FOLLOW = 0.1;
/** A measurement counts as at most this many times the mean: a pause of the machine isn't the step's cost. */
const OUTLIER = 3;
/** Of a bucket's first measurements the least counts: steps are slow while weights come into memory and lanes wake up. */
const TRUSTED_AFTER = 3;

function bucketOf(rows: number): number {
  if (rows <= EXACT_ROWS) return Math.max(0, rows - 1);
  const above = Math.floor(Math.log2(rows / EXACT_ROWS) * BUCKETS_PER_OCTAVE);
  return Math.min(EXACT_ROWS + above, BUCKET_COUNT - 1);
}

export class StepCost {
  readonly #counts = new Float64Array(BUCKET_COUNT);
  readonly #rows = new Float64Array(BUCKET_COUNT);
  readonly #ms = new Float64Array(BUCKET_COUNT);

  observe(rows: number, ms: number): void {
    const bucket = bucketOf(rows);
    const count = defined(this.#counts[bucket]);
    const mean = this.#ms[bucket]!;
    const weight = Math.max(1 / (count + 1), FOLLOW);
    if (count >= TRUSTED_AFTER) this.#ms[bucket] = mean + weight * (Math.min(ms, OUTLIER * mean) - mean);
    else this.#ms[bucket] = count === 0 ? ms : Math.min(mean, ms);
    this.#rows[bucket] = this.#rows[bucket]! + weight * (rows - this.#rows[bucket]!);
    this.#counts[bucket] = count + 1;
  }

  /**
   * Milliseconds for a step of `rows` rows: interpolated between the nearest measured buckets. Beyond the highest measured one
   * the cost is that one's ("flat": the hopeful reading, for trying a longer draft) or grows with the rows ("proportional": the
   * careful one, for a time budget). Below the lowest it is that one's. 0 when nothing was measured.
   */
  predict(rows: number, beyond: "flat" | "proportional"): number {
    const bucket = bucketOf(rows);
    const below = this.#measuredFrom(bucket);
    let above = bucket;
    while (above < BUCKET_COUNT && this.#counts[above] === 0) above++;
    if (below < 0) return above < BUCKET_COUNT ? this.#ms[above]! : 0;
    const belowMs = this.#believedMs(below);
    const belowRows = this.#rows[below]!;
    if (above === BUCKET_COUNT || above === below) {
      if (beyond === "flat" || rows <= belowRows) return belowMs;
      return belowMs * (rows / belowRows);
    }
    const share = (rows - belowRows) / (this.#rows[above]! - belowRows);
    return belowMs + share * (this.#believedMs(above) - belowMs);
  }

  /** The most rows, up to `rowMax`, whose step is expected to take at most `ms`; at least `rowMin`. */
  rowsWithin(ms: number, rowMin: number, rowMax: number): number {
    if (this.predict(rowMax, "proportional") <= ms) return Math.max(rowMin, rowMax);
    let low = rowMin;
    let high = rowMax;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.predict(middle, "proportional") <= ms) low = middle;
      else high = middle;
    }
    return low;
  }

  /** The highest measured bucket that is not above `bucket`; −1: none. */
  #measuredFrom(bucket: number): number {
    while (bucket >= 0 && this.#counts[bucket] === 0) bucket--;
    return bucket;
  }

  /**
   * A measured bucket's milliseconds. Until they are trusted they rise no faster than the rows from the bucket below: else one
   * slow step would keep others of its size from ever being tried again.
   */
  #believedMs(bucket: number): number {
    const ms = this.#ms[bucket]!;
    if (this.#counts[bucket]! >= TRUSTED_AFTER) return ms;
    const lower = this.#measuredFrom(bucket - 1);
    return lower < 0 ? ms : Math.min(ms, this.#ms[lower]! * (this.#rows[bucket]! / this.#rows[lower]!));
  }
}
