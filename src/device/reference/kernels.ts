// The reference's arithmetic: leaf loops over typed arrays, in float64 wherever docs/arithmetic.md names a sum, and rounded to
// float32 exactly where that page rounds something that later decides (quantised activations, stored K and V). No state, no
// ops, no batches; every function takes primitives and arrays.

/* oxlint-disable typescript/no-non-null-assertion -- indices are bounded by the shape and the checked batch */

/** out[r] = w[r]·x + bias[r], for w row-major [rows][columns], summed in float64. */
export function matrixTimesRow(
  w: Float32Array,
  rows: number,
  columns: number,
  x: Float64Array,
  bias: Float32Array | null,
  out: Float32Array,
  outStart: number,
): void {
  const columnsBy4 = columns - (columns % 4);
  for (let row = 0; row < rows; row++) {
    const start = row * columns;
    let s0 = 0;
    let s1 = 0;
    let s2 = 0;
    let s3 = 0;
    for (let k = 0; k < columnsBy4; k += 4) {
      s0 += w[start + k]! * x[k]!;
      s1 += w[start + k + 1]! * x[k + 1]!;
      s2 += w[start + k + 2]! * x[k + 2]!;
      s3 += w[start + k + 3]! * x[k + 3]!;
    }
    for (let k = columnsBy4; k < columns; k++) s0 += w[start + k]! * x[k]!;
    out[outStart + row] = s0 + s1 + (s2 + s3) + (bias === null ? 0 : bias[row]!);
  }
}

const QUANT_BLOCK = 32;

/**
 * Rule 2: writes q × a of every element, the value that a quantised row stands for. False when the row holds a NaN or an
 * infinity.
 */
export function quantiseRow(x: Float32Array, start: number, columns: number, out: Float64Array): boolean {
  let isFinite = true;
  for (let block = 0; block < columns; block += QUANT_BLOCK) {
    const end = Math.min(block + QUANT_BLOCK, columns);
    let m = 0;
    for (let k = block; k < end; k++) {
      const magnitude = Math.abs(x[start + k]!);
      if (!(magnitude <= 3.4028234663852886e38)) isFinite = false;
      if (magnitude > m) m = magnitude;
    }
    const r = Math.fround(127 / m);
    if (m === 0 || !Number.isFinite(r)) {
      out.fill(0, block, end);
      continue;
    }
    const a = Math.fround(m / 127);
    for (let k = block; k < end; k++) {
      const q = roundHalfEven(Math.fround(x[start + k]! * r));
      out[k] = Math.max(-127, Math.min(127, q)) * a;
    }
  }
  return isFinite;
}

/** Adding 1.5 × 2^52 leaves no fraction bits, so the hardware's own rounding (to nearest, ties to even) does the work. */
export function roundHalfEven(value: number): number {
  return value + 6755399441055744 - 6755399441055744;
}

export function copyRow(x: Float32Array, start: number, columns: number, out: Float64Array): void {
  for (let k = 0; k < columns; k++) out[k] = x[start + k]!;
}

/** y = x / sqrt(mean(x²) + eps) × weight. */
export function rmsNormRow(
  x: Float32Array,
  xStart: number,
  weight: Float32Array,
  columns: number,
  eps: number,
  out: Float32Array,
  outStart: number,
): void {
  let sum = 0;
  for (let k = 0; k < columns; k++) {
    const value = x[xStart + k]!;
    sum += value * value;
  }
  const scale = 1 / Math.sqrt(sum / columns + eps);
  for (let k = 0; k < columns; k++) out[outStart + k] = x[xStart + k]! * scale * weight[k]!;
}

/** Rule 5's rotation of one head in place; float32 rounding as there, because what it gives is stored in the KV type. */
export function rotateHead(
  x: Float32Array,
  start: number,
  headDim: number,
  position: number,
  inverseFrequencies: readonly number[],
): void {
  const half = headDim / 2;
  for (let i = 0; i < half; i++) {
    const angle = position * inverseFrequencies[i]!;
    const cos = Math.fround(Math.cos(angle));
    const sin = Math.fround(Math.sin(angle));
    const a = x[start + i]!;
    const b = x[start + half + i]!;
    x[start + i] = Math.fround(a * cos) - b * sin;
    x[start + half + i] = Math.fround(b * cos) + a * sin;
  }
}

/** Rule 7: a = silu(gate) × up, in float32 steps, because a quantised `down` quantises it. */
export function swiglu(gate: Float32Array, up: Float32Array, count: number, out: Float32Array): void {
  for (let k = 0; k < count; k++) {
    const g = gate[k]!;
    const s = Math.fround(g / Math.fround(1 + Math.fround(Math.exp(-g))));
    out[k] = s * up[k]!;
  }
}

/** Causal attention of one query head over the keys and values of `count` positions, whose kvSlots are given. */
export function attendHead(
  q: Float32Array,
  qStart: number,
  headDim: number,
  keys: Float32Array,
  values: Float32Array,
  kvStride: number,
  kvHeadStart: number,
  kvSlots: Int32Array,
  count: number,
  scores: Float64Array,
  sums: Float64Array,
  out: Float32Array,
  outStart: number,
): void {
  let max = -Infinity;
  for (let p = 0; p < count; p++) {
    const start = kvSlots[p]! * kvStride + kvHeadStart;
    let score = 0;
    for (let d = 0; d < headDim; d++) score += q[qStart + d]! * keys[start + d]!;
    scores[p] = score;
    if (score > max) max = score;
  }
  sums.fill(0, 0, headDim);
  let total = 0;
  for (let p = 0; p < count; p++) {
    const e = Math.exp(scores[p]! - max);
    total += e;
    const start = kvSlots[p]! * kvStride + kvHeadStart;
    for (let d = 0; d < headDim; d++) sums[d] = sums[d]! + e * values[start + d]!;
  }
  for (let d = 0; d < headDim; d++) out[outStart + d] = sums[d]! / total;
}

/** Scores of a softmax over logits[0 .. count), in float64. */
export function softmaxRow(logits: Float32Array, count: number, out: Float64Array): void {
  let max = -Infinity;
  for (let i = 0; i < count; i++) if (logits[i]! > max) max = logits[i]!;
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const e = Math.exp(logits[i]! - max);
    out[i] = e;
    sum += e;
  }
  for (let i = 0; i < count; i++) out[i] = out[i]! / sum;
}

/**
 * Rule 6: the `active` largest logits of every run of `perGroup` experts, ties to the lower id. Writes the ids ascending to
 * out[outStart ..]; returns how many.
 */
export function chooseExperts(
  logits: Float32Array,
  count: number,
  perGroup: number,
  active: number,
  out: Int32Array,
  outStart: number,
): number {
  let chosen = outStart;
  for (let first = 0; first < count; first += perGroup) {
    for (let id = first; id < first + perGroup; id++) {
      let better = 0;
      for (let other = first; other < first + perGroup; other++) {
        if (logits[other]! > logits[id]! || (other < id && logits[other] === logits[id])) better++;
      }
      if (better < active) out[chosen++] = id;
    }
  }
  return chosen - outStart;
}
