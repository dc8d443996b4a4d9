// Order statistics of small samples.

/** The p-quantile (0 to 1) of the values by linear interpolation between order statistics; NaN for none. */
export function quantile(values: readonly number[], p: number): number {
  if (values.length === 0) return Number.NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const at = (sorted.length - 1) * p;
  const low = Math.floor(at);
  const high = Math.min(low + 1, sorted.length - 1);
  const below = sorted[low] ?? Number.NaN;
  return below + ((sorted[high] ?? Number.NaN) - below) * (at - low);
}

export interface Spread {
  readonly median: number;
  readonly low: number;
  readonly high: number;
  readonly count: number;
}

/** Median with the extremes of a sample. */
export function spreadOf(values: readonly number[]): Spread {
  return { median: quantile(values, 0.5), low: quantile(values, 0), high: quantile(values, 1), count: values.length };
}
