/* Measures duet-math.h and duet-fma.h against libm and against what rounding to nearest even means.
 *
 * Prints one JSON object: largest errors (relative for exp, log and log1p, absolute for sin and cos) and counts of wrong
 * results. duet-math.test.ts holds the bounds.
 */
#include <math.h>
#include <stdio.h>

#include "duet-math.h"

static uint64_t state = 88172645463325252u;
static uint64_t random_u64(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}
static double random_unit(void) { return (double)(random_u64() >> 11) * 0x1p-53; }

static double larger(double a, double b) { return b > a || b != b ? b : a; }

static int is_same(float a, float b) { return duet_f32_bits(a) == duet_f32_bits(b) || (a != a && b != b); }

static long wrong_fma(void) {
  long wrong = 0;
  for (int i = 0; i < 2000000; i++) {
    uint32_t a = (uint32_t)random_u64();
    const uint32_t b = (uint32_t)random_u64();
    uint32_t c = (uint32_t)random_u64();
    if (i & 1) { /* an addend near the product, and often few bits: cancellation and ties */
      const int shift = (int)(random_u64() % 60) - 30;
      int exponent = (int)(a >> 23 & 255) + (int)(b >> 23 & 255) - 127 + shift;
      exponent = exponent < 0 ? 0 : exponent > 254 ? 254 : exponent;
      c = (c & 0x807fffffu) | (uint32_t)exponent << 23;
      if (i & 2) {
        a &= 0xfffff000u;
        c &= 0xffff8000u;
      }
    }
    const float x = duet_f32_from_bits(a), y = duet_f32_from_bits(b), z = duet_f32_from_bits(c);
    wrong += !is_same(duet_fmaf(x, y, z), fmaf(x, y, z));
  }
  return wrong;
}

/* Every fp16 value, the ties between neighbours, and both sides of each tie. */
static long wrong_f16(void) {
  long wrong = 0;
  for (uint32_t sign = 0; sign <= 0x8000u; sign += 0x8000u) {
    for (uint32_t h = 0; h <= 0x7c00u; h++) {
      const float x = duet_f16_to_f32((uint16_t)(sign | h));
      const double value = h < 0x400u ? h * 0x1p-24 : h == 0x7c00u ? INFINITY : ldexp(1024 + (h & 0x3ff), (int)(h >> 10) - 25);
      wrong += (double)x != (sign ? -value : value) || !signbit(x) != !sign;
      wrong += duet_f32_to_f16(x) != (sign | h);
      if (h == 0x7c00u) continue;
      const double next = h == 0x7bffu ? 65536.0 : fabs(duet_f16_to_f32((uint16_t)(h + 1)));
      const float tie = (float)((value + next) / 2);
      const float below = nextafterf(tie, 0), above = nextafterf(tie, INFINITY);
      wrong += duet_f32_to_f16(sign ? -tie : tie) != (sign | (h + (h & 1)));
      wrong += duet_f32_to_f16(sign ? -below : below) != (sign | h);
      wrong += duet_f32_to_f16(sign ? -above : above) != (sign | (h + 1));
    }
    for (uint32_t h = 0x7c01u; h <= 0x7fffu; h++) {
      const float x = duet_f16_to_f32((uint16_t)(sign | h));
      wrong += x == x || (duet_f32_to_f16(x) & 0x7e00u) != 0x7e00u;
    }
  }
  wrong += duet_f32_to_f16(1e30f) != 0x7c00u || duet_f32_to_f16(-1e30f) != 0xfc00u || duet_f32_to_f16(1e-30f) != 0;
  return wrong;
}

static long wrong_rne(void) {
  long wrong = 0;
  for (int i = -2000; i <= 2000; i++) {
    const float tie = (float)i * 0.5f;
    wrong += duet_rne_i32(tie) != (int32_t)nearbyint(tie);
    wrong += duet_rne_i32(nextafterf(tie, 1e9f)) != (int32_t)nearbyint(nextafterf(tie, 1e9f));
  }
  return wrong;
}

static long wrong_limits(void) {
  long wrong = 0;
  wrong += duet_expf(-INFINITY) != 0.0f || duet_expf(-1e30f) != 0.0f || duet_expf(-87.34f) != 0.0f;
  wrong += duet_expf(0.0f) != 1.0f || duet_expf(-0.0f) != 1.0f;
  wrong += !isfinite(duet_expf(1e30f)) || duet_expf(INFINITY) != duet_expf(88.72283f);
  wrong += duet_log(1.0) != 0.0 || duet_log(0.0) != -INFINITY || duet_log1p(0.0) != 0.0;
  double s, c;
  duet_sincos(0.0, &s, &c);
  return wrong + (s != 0.0 || c != 1.0);
}

int main(void) {
  double exp_error = 0, log_error = 0, log1p_error = 0, sincos_error = 0;
  for (int i = 0; i < 1000000; i++) {
    const float x = (float)(-87.33654 + random_unit() * (87.33654 + 88.72283));
    const double e = exp((double)x);
    exp_error = larger(exp_error, fabs(duet_expf(x) - e) / e);
  }
  for (int i = 0; i < 300000; i++) {
    const double mantissa = 1 + random_unit();
    const double x = i & 1 ? ldexp(mantissa, (int)(random_u64() % 80) - 60) : mantissa - 0.5;
    if (x != 1.0) log_error = larger(log_error, fabs(duet_log(x) - log(x)) / fabs(log(x)));
    const double v = -((double)(uint32_t)random_u64() + 0.5) * 0x1p-32;
    log1p_error = larger(log1p_error, fabs(duet_log1p(v) - log1p(v)) / fabs(log1p(v)));
    double angle = (double)(random_u64() % 1000000);
    angle *= i & 1 ? random_unit() : -1;
    double s, c;
    duet_sincos(angle, &s, &c);
    sincos_error = larger(sincos_error, larger(fabs(s - sin(angle)), fabs(c - cos(angle))));
  }
  printf("{\"exp\":%.3g,\"log\":%.3g,\"log1p\":%.3g,\"sincos\":%.3g,", exp_error, log_error, log1p_error, sincos_error);
  printf("\"wrongFma\":%ld,\"wrongF16\":%ld,\"wrongRne\":%ld,\"wrongLimits\":%ld}\n", wrong_fma(), wrong_f16(),
         wrong_rne(), wrong_limits());
  return 0;
}
