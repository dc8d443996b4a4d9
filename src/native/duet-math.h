/* Scalar arithmetic that every kernel unit shares: fp16, exp, log, log1p, sin and cos.
 *
 * The authority for docs/arithmetic.md, section 8. Only IEEE add, subtract, multiply, divide and fma are used, so that
 * gcc and clang, with or without FMA hardware (duet-fma.h), give the same bits and no libm is linked. Vector forms elsewhere do the
 * same operations in the same order with the constants below. Needs -ffp-contract=off and round to nearest even.
 */
#ifndef DUET_MATH_H
#define DUET_MATH_H

#include <stdint.h>
#include <string.h>

#include "duet-fma.h"

static inline uint32_t duet_f32_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline float duet_f32_from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static inline uint64_t duet_f64_bits(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline double duet_f64_from_bits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* Adding and subtracting 1.5 * 2^23 rounds to an integer, ties to even, for |x| < 2^22. */
#define DUET_ROUND_F32 12582912.0f

static inline int32_t duet_rne_i32(float x) {
  return (int32_t)(duet_f32_bits(x + DUET_ROUND_F32) - duet_f32_bits(DUET_ROUND_F32));
}

/* ---- fp16 ---- */

static inline float duet_f16_to_f32(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) { /* infinity; NaN becomes quiet */
    return duet_f32_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 | (magnitude > 0x7c00u ? 0x400000u : 0));
  }
  if (magnitude < 0x400u) { /* zero and subnormals: an exact multiple of 2^-24 */
    return duet_f32_from_bits(sign | duet_f32_bits((float)magnitude * 0x1p-24f));
  }
  return duet_f32_from_bits(sign | ((magnitude << 13) + 0x38000000u));
}

/* Round to nearest even; too large gives infinity. */
static inline uint16_t duet_f32_to_f16(float x) {
  const uint32_t bits = duet_f32_bits(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* from 65520 on */
  if (magnitude < 0x38800000u) { /* subnormal: 0.5 has ulp 2^-24, so adding it rounds where fp16 does */
    const uint32_t sum = duet_f32_bits(duet_f32_from_bits(magnitude) + 0.5f);
    return (uint16_t)(sign | (sum - 0x3f000000u));
  }
  return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

/* ---- exp ---- */

#define DUET_EXP_LOW (-87.33654f)    /* below: exactly 0 */
#define DUET_EXP_HIGH 88.72283f      /* above: as here, the largest that stays finite */
#define DUET_LOG2_E 0x1.715476p+0f
#define DUET_LN2_HIGH 0x1.62e430p-1f
#define DUET_LN2_LOW (-0x1.05c610p-29f)
/* exp(r) for |r| <= ln(2) / 2: 1 + r + r^2 (C2 + r (C3 + ...)); minimax, relative error 2^-28.2 */
#define DUET_EXP_C2 0x1.fffffcp-2f
#define DUET_EXP_C3 0x1.555492p-3f
#define DUET_EXP_C4 0x1.5558f2p-5f
#define DUET_EXP_C5 0x1.1239e2p-7f
#define DUET_EXP_C6 0x1.6a2434p-10f

/* NaN in gives an unspecified value out. */
static inline float duet_expf(float x) {
  const float y = DUET_EXP_HIGH < x ? DUET_EXP_HIGH : x;
  const float shifted = duet_fmaf(y, DUET_LOG2_E, DUET_ROUND_F32);
  const float n = shifted - DUET_ROUND_F32;
  float r = duet_fmaf(n, -DUET_LN2_HIGH, y);
  r = duet_fmaf(n, -DUET_LN2_LOW, r);
  float p = duet_fmaf(DUET_EXP_C6, r, DUET_EXP_C5);
  p = duet_fmaf(p, r, DUET_EXP_C4);
  p = duet_fmaf(p, r, DUET_EXP_C3);
  p = duet_fmaf(p, r, DUET_EXP_C2);
  p = duet_fmaf(p, r, 1.0f);
  p = duet_fmaf(p, r, 1.0f);
  /* The low bits of `shifted` are n, so shifting its bits left by 23 leaves n in the exponent field. */
  const float scaled = duet_f32_from_bits(duet_f32_bits(p) + (duet_f32_bits(shifted) << 23));
  return x < DUET_EXP_LOW ? 0.0f : scaled;
}

/* ---- float64 log, log1p, sin and cos: fdlibm's reductions with Taylor coefficients, no fma ---- */

/* Natural logarithm of a positive, normal, finite x; 0 gives -infinity. */
static inline double duet_log(double x) {
  if (x == 0.0) return -__builtin_inf();
  /* x = 2^k (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2): the bias puts the exponent's step at sqrt(1/2). */
  const uint64_t bits = duet_f64_bits(x) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
  const double k = (double)((int32_t)(bits >> 52) - 1023);
  const double f = duet_f64_from_bits((bits & 0xfffffffffffffu) + 0x3fe6a09e667f3bcdu) - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  /* log(1 + f) = 2 artanh(s) = 2 s (1 + z/3 + z^2/5 + ...), z < 0.0295 */
  double p = 1.0 / 23.0;
  p = p * z + 1.0 / 21.0;
  p = p * z + 1.0 / 19.0;
  p = p * z + 1.0 / 17.0;
  p = p * z + 1.0 / 15.0;
  p = p * z + 1.0 / 13.0;
  p = p * z + 1.0 / 11.0;
  p = p * z + 1.0 / 9.0;
  p = p * z + 1.0 / 7.0;
  p = p * z + 1.0 / 5.0;
  p = p * z + 1.0 / 3.0;
  /* 2 s = f - s f = f - (f^2/2 - s f^2/2) keeps f's last bits apart; ln 2 in two parts, the first of 32 bits. */
  const double half_square = 0.5 * f * f;
  const double tail = s * (half_square + 2.0 * z * p);
  return k * 0x1.62e42fee00000p-1 - ((half_square - (tail + k * 0x1.a39ef35793c76p-33)) - f);
}

/* log(1 + x) for x > -1: what 1 + x lost in rounding comes back to first order. */
static inline double duet_log1p(double x) {
  const double u = 1.0 + x;
  if (u == 1.0) return x;
  return duet_log(u) + (x - (u - 1.0)) / u;
}

/* sin and cos of |x| < 1e9; absolute error below 1e-12 up to 1e6. */
static inline void duet_sincos(double x, double *sin_out, double *cos_out) {
  const double shift = 0x1.8p52; /* rounds to an integer, ties to even */
  const double n = (x * 0x1.45f306dc9c883p-1 + shift) - shift;
  /* pi / 2 in pieces of 33 bits: n times the first two is exact for n < 2^20. */
  const double r = ((x - n * 0x1.921fb54400000p0) - n * 0x1.0b4611a600000p-34) - n * 0x1.3198a2e037073p-69;
  const double z = r * r;
  double s = 1.0 / 355687428096000.0; /* 1/17!, alternating signs down to 1/3! */
  s = s * z - 1.0 / 1307674368000.0;
  s = s * z + 1.0 / 6227020800.0;
  s = s * z - 1.0 / 39916800.0;
  s = s * z + 1.0 / 362880.0;
  s = s * z - 1.0 / 5040.0;
  s = s * z + 1.0 / 120.0;
  s = s * z - 1.0 / 6.0;
  s = r + r * (z * s);
  double c = 1.0 / 20922789888000.0; /* 1/16!, down to 1/4! */
  c = c * z - 1.0 / 87178291200.0;
  c = c * z + 1.0 / 479001600.0;
  c = c * z - 1.0 / 3628800.0;
  c = c * z + 1.0 / 40320.0;
  c = c * z - 1.0 / 720.0;
  c = c * z + 1.0 / 24.0;
  c = 1.0 - z * (0.5 - z * c);
  const uint32_t quadrant = (uint32_t)duet_f64_bits(n + shift) & 3u;
  const double sine = (quadrant & 1u) ? c : s;
  const double cosine = (quadrant & 1u) ? s : c;
  *sin_out = (quadrant & 2u) ? -sine : sine;
  *cos_out = ((quadrant + 1u) & 2u) ? -cosine : cosine;
}

#endif
