// Order statistics of small samples, and whether two of them differ.

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

export const median = (values: readonly number[]) => quantile(values, 0.5);

export interface Spread {
  readonly median: number;
  readonly low: number;
  readonly high: number;
  readonly count: number;
}

/** Median with the extremes of a sample. */
export function spreadOf(values: readonly number[]): Spread {
  return { median: median(values), low: quantile(values, 0), high: quantile(values, 1), count: values.length };
}

/** A value as JSON keeps it: five significant digits say more than any of these measurements knows. */
export const rounded = (value: number) => Number(value.toPrecision(5));

/** Above this many values together the normal approximation is good to the third digit. */
const EXACT_MAX = 40;

/**
 * Two-sided p of the Mann-Whitney U test: how often samples of these sizes from one distribution would differ this much or
 * more in rank. Exact for small samples without ties (Mann and Whitney 1947), otherwise the normal approximation with
 * corrections for ties and continuity. 1 when a sample is empty.
 */
export function mannWhitneyP(a: readonly number[], b: readonly number[]): number {
  const [n, m] = [a.length, b.length];
  if (n === 0 || m === 0) return 1;
  let u = 0;
  for (const x of a) for (const y of b) u += x > y ? 1 : x === y ? 0.5 : 0;
  const all = [...a, ...b];
  const tieSizes = [...Map.groupBy(all, (value) => value).values()].map((group) => group.length);
  const hasTies = tieSizes.some((size) => size > 1);
  if (!hasTies && n + m <= EXACT_MAX) return exactP(u, n, m);
  const total = n + m;
  const tied = tieSizes.reduce((sum, size) => sum + size ** 3 - size, 0);
  const variance = ((n * m) / 12) * (total + 1 - tied / (total * (total - 1)));
  if (!(variance > 0)) return 1;
  const distance = Math.max(0, Math.abs(u - (n * m) / 2) - 0.5);
  return Math.min(1, 2 * normalTail(distance / Math.sqrt(variance)));
}

/** counts[u]: in how many orders of n + m values U is u. f(n, m, u) = f(n − 1, m, u − m) + f(n, m − 1, u). */
function exactP(u: number, n: number, m: number): number {
  let rows: number[][] = Array.from({ length: m + 1 }, () => [1]);
  for (let i = 1; i <= n; i++) {
    const next: number[][] = [[1]];
    for (let j = 1; j <= m; j++) {
      const counts = Array.from({ length: i * j + 1 }, () => 0);
      for (const [at, count] of (rows[j] ?? []).entries()) counts[at + j] = (counts[at + j] ?? 0) + count;
      for (const [at, count] of (next[j - 1] ?? []).entries()) counts[at] = (counts[at] ?? 0) + count;
      next.push(counts);
    }
    rows = next;
  }
  const counts = rows[m] ?? [];
  const total = counts.reduce((sum, count) => sum + count, 0);
  const extreme = Math.min(u, n * m - u);
  const tail = counts.slice(0, extreme + 1).reduce((sum, count) => sum + count, 0);
  return Math.min(1, (2 * tail) / total);
}

/** P(Z > z) for z ≥ 0, to 1e-7 (Abramowitz and Stegun 26.2.17). */
function normalTail(z: number): number {
  const t = 1 / (1 + 0.2316419 * z);
  const poly = t * (0.31938153 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))));
  return (Math.exp((-z * z) / 2) / Math.sqrt(2 * Math.PI)) * poly;
}
