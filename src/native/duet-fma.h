/* One rounding of a * b + c in float32, on every machine (docs/arithmetic.md, rule 1).
 *
 * Units that are compiled with an fma instruction use it. The baseline has none, and libm is not linked, so there the sum is
 * made in float64: the product of two float32 is exact, and rounding the sum to odd before it is rounded to float32 makes the
 * second rounding harmless (Boldo, Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding
 * to odd", 2008). Round to nearest is assumed; every lane sets it.
 */
#ifndef DUET_FMA_H
#define DUET_FMA_H

#include <stdint.h>
#include <string.h>

static inline float duet_fmaf(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  double product = (double)a * (double)b;
  double addend = (double)c;
  double sum = product + addend;
  double back = sum - product; /* two-sum: the exact error of the addition */
  double error = (product - (sum - back)) + (addend - back);
  uint64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  /* Inexact and even: take the odd neighbour on the error's side. An infinite or NaN sum gives a NaN error: left as it is. */
  if ((error > 0.0 || error < 0.0) && (bits & 1u) == 0) {
    int is_away_from_zero = (error > 0.0) == (sum > 0.0);
    bits = is_away_from_zero ? bits + 1 : bits - 1;
    memcpy(&sum, &bits, sizeof sum);
  }
  return (float)sum;
#endif
}

#endif
