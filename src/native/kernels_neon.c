/* The kernel table for AArch64 with NEON and its int8 dot product (SDOT, Armv8.2). Owns the q4 and q8 matmuls there; the rest
 * is kernels-rows.h over four registers of 4 lanes.
 *
 * A quarter of a rowTile (4 output rows) is one register per group of 4 inputs: a 64-byte group of the container is four 16-byte
 * loads. SDOT multiplies signed bytes only, so stored weights change their zero point on the way in: q8 by flipping bit 7; a q4
 * nibble becomes 16 (n - 8) by flipping its bit 3 and standing in the high half, and the conversion to float32 takes the 16 back.
 * Both are exact: |dot| is at most 16 * 8 * 127 * 32 < 2^24.
 *
 * The shapes of the loops come from counting instructions and spills in compiled code; no Arm machine has timed them. SMMLA (i8mm)
 * is not used: its 2 x 2 results must be sorted into rows, and the float32 step of every quantBlock stays, which leaves about 84
 * vector instructions of 100 at 8 rows.
 */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

typedef struct x16 {
  float32x4_t v[4];
} x16;

#define DUET_SCORE_CHAINS 2
#define DUET_VALUE_CHAINS 4
#define DUET_FLOAT_ROWS 1
#define DUET_ROWS_MAX 8 /* rows that share an unpacked half of a quantBlock */

#define X16 static inline __attribute__((always_inline))
#define X16_EACH(expression) ((x16){{expression(0), expression(1), expression(2), expression(3)}})

X16 x16 x16_set1(float x) {
  const float32x4_t v = vdupq_n_f32(x);
  return (x16){{v, v, v, v}};
}
X16 x16 x16_zero(void) { return x16_set1(0.0f); }
X16 x16 x16_load(const float *p) {
#define AT(i) vld1q_f32(p + 4 * (i))
  return X16_EACH(AT);
#undef AT
}
/* The first n of 16; the others are zero. */
X16 x16 x16_load_n(const float *p, unsigned n) {
  float padded[16] = {0};
  memcpy(padded, p, n * sizeof *p);
  return x16_load(padded);
}
X16 x16 x16_load_f16(const void *p) {
  const uint8_t *bytes = p;
#define AT(i) vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(bytes + 8 * (i))))
  return X16_EACH(AT);
#undef AT
}
X16 x16 x16_load_i8(const void *p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes));
  const int16x8_t high = vmovl_high_s8(bytes);
  return (x16){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
X16 void x16_store(float *p, x16 x) {
  for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
}
X16 void x16_store_n(float *p, unsigned n, x16 x) {
  float all[16];
  x16_store(all, x);
  memcpy(p, all, n * sizeof *p);
}
#define DUET_BINARY(name, operation)                                                                            \
  X16 x16 name(x16 x, x16 y) {                                                                                  \
    return (x16){{operation(x.v[0], y.v[0]), operation(x.v[1], y.v[1]), operation(x.v[2], y.v[2]),              \
                  operation(x.v[3], y.v[3])}};                                                                  \
  }
DUET_BINARY(x16_add, vaddq_f32)
DUET_BINARY(x16_sub, vsubq_f32)
DUET_BINARY(x16_mul, vmulq_f32)
DUET_BINARY(x16_div, vdivq_f32)
DUET_BINARY(x16_max, vmaxq_f32)
#undef DUET_BINARY
X16 x16 x16_fma(x16 x, x16 y, x16 z) {
#define AT(i) vfmaq_f32(z.v[i], x.v[i], y.v[i])
  return X16_EACH(AT);
#undef AT
}
/* limit < x ? limit : x */
X16 x16 x16_min_keep_nan(x16 limit, x16 x) {
#define AT(i) vbslq_f32(vcltq_f32(limit.v[i], x.v[i]), limit.v[i], x.v[i])
  return X16_EACH(AT);
#undef AT
}
X16 x16 x16_negate(x16 x) {
#define AT(i) vnegq_f32(x.v[i])
  return X16_EACH(AT);
#undef AT
}
/* p * 2^n, n in the low bits of `shifted` */
X16 x16 x16_add_exponent(x16 p, x16 shifted) {
#define AT(i)            \
  vreinterpretq_f32_u32( \
      vaddq_u32(vreinterpretq_u32_f32(p.v[i]), vshlq_n_u32(vreinterpretq_u32_f32(shifted.v[i]), 23)))
  return X16_EACH(AT);
#undef AT
}
/* y where not x < limit, else 0 */
X16 x16 x16_zero_where_less(x16 x, x16 limit, x16 y) {
#define AT(i) vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y.v[i]), vcltq_f32(x.v[i], limit.v[i])))
  return X16_EACH(AT);
#undef AT
}
/* Folds i + (i + 8), then 4, 2, 1. */
X16 float x16_fold_sum(x16 x) {
  const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
X16 float x16_fold_max(x16 x) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[2]), vmaxq_f32(x.v[1], x.v[3])));
}
X16 uint32x4_t magnitude_bits(x16 x) {
#define AT(i) vreinterpretq_u32_f32(vabsq_f32(x.v[i]))
  return vmaxq_u32(vmaxq_u32(AT(0), AT(1)), vmaxq_u32(AT(2), AT(3)));
#undef AT
}
/* The largest |x| of 32, as bits: the order of magnitudes is the order of their bits, NaN last. */
X16 unsigned x16_magnitude_bits_max(x16 x, x16 y) {
  return vmaxvq_u32(vmaxq_u32(magnitude_bits(x), magnitude_bits(y)));
}
/* Rounds 16 values to int16, ties to even. */
X16 int16x8x2_t round_i16(x16 x) {
#define PAIR(i) vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(x.v[i])), vcvtnq_s32_f32(x.v[(i) + 1]))
  return (int16x8x2_t){{PAIR(0), PAIR(2)}};
#undef PAIR
}
/* Rounds 32 values of magnitude below 127.5 to int8, ties to even; returns their sum. */
X16 int x16_store_i8(void *p, x16 x, x16 y) {
  const int16x8x2_t low = round_i16(x);
  const int16x8x2_t high = round_i16(y);
  vst1q_s8(p, vqmovn_high_s16(vqmovn_s16(low.val[0]), low.val[1]));
  vst1q_s8((int8_t *)p + 16, vqmovn_high_s16(vqmovn_s16(high.val[0]), high.val[1]));
  return vaddvq_s16(vaddq_s16(vaddq_s16(low.val[0], low.val[1]), vaddq_s16(high.val[0], high.val[1])));
}

#include "kernels-rows.h"

/* ---- q4 and q8 matrices (rule 3) ---- */

/* Four groups of 4 inputs of a quarter: half a quantBlock, signed; q4 times 16. `p` is the half's first byte of the quarter. */
DUET_INLINE int8x16x4_t load_half(const int is_q4, const uint8_t *p) {
  int8x16x4_t w;
  if (is_q4) {
    for (int c = 0; c < 2; c++) {
      const uint8x16_t flipped = veorq_u8(vld1q_u8(p + 64 * c), vdupq_n_u8(0x88));
      w.val[2 * c] = vreinterpretq_s8_u8(vshlq_n_u8(flipped, 4));
      w.val[2 * c + 1] = vreinterpretq_s8_u8(vandq_u8(flipped, vdupq_n_u8(0xf0)));
    }
  } else {
    for (int c = 0; c < 4; c++) {
      w.val[c] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 64 * c), vdupq_n_u8(0x80)));
    }
  }
  return w;
}

/* The dot products of a row's 16 inputs with 4 output rows. */
DUET_INLINE int32x4_t add_half(int32x4_t dot, int8x16x4_t w, int8x16_t q) {
  dot = vdotq_laneq_s32(dot, w.val[0], q, 0);
  dot = vdotq_laneq_s32(dot, w.val[1], q, 1);
  dot = vdotq_laneq_s32(dot, w.val[2], q, 2);
  return vdotq_laneq_s32(dot, w.val[3], q, 3);
}

/* R rows from `row` on against one rowTile. */
DUET_INLINE void quant_tile_rows(const int R, const int is_q4, const duet_matmul_args *a, uint32_t tile, uint32_t row) {
  const size_t block_bytes = is_q4 ? 256 : 512;
  const size_t pair_bytes = 64 + 2 * block_bytes;
  const uint8_t *pair = a->tiles + (size_t)tile * a->tile_step * a->tile_bytes;
  size_t at[DUET_ROWS_MAX]; /* a row's first quantBlock, in quantBlocks */
  x16 acc[DUET_ROWS_MAX];
  for (int r = 0; r < R; r++) {
    at[r] = matmul_row(a, row + (uint32_t)r) * (a->qx.stride / DUET_QUANT_BLOCK);
    acc[r] = x16_zero();
  }
  for (uint32_t block = 0; block < a->column_count / DUET_QUANT_BLOCK; block++) {
    const x16 scale = x16_load_f16(pair + 32 * (block & 1));
    const uint8_t *bytes = pair + 64 + (block & 1) * block_bytes;
    /* Rolled, its sums in L1: unrolled, several rows ask for more than the 32 registers and gcc spills in the middle of it. */
#pragma GCC unroll 1
    for (int quarter = 0; quarter < 4; quarter++) {
      int32x4_t dot[DUET_ROWS_MAX];
      for (int r = 0; r < R; r++) dot[r] = vdupq_n_s32(0);
      for (size_t half = 0; half < 2; half++) {
        const int8x16x4_t w = load_half(is_q4, bytes + half * (block_bytes / 2) + 16 * (size_t)quarter);
        for (int r = 0; r < R; r++) {
          dot[r] = add_half(dot[r], w, vld1q_s8(a->qx.q + (at[r] + block) * DUET_QUANT_BLOCK + 16 * half));
        }
      }
      for (int r = 0; r < R; r++) {
        const float32x4_t exact = is_q4 ? vcvtq_n_f32_s32(dot[r], 4) : vcvtq_f32_s32(dot[r]);
        const float32x4_t step = vmulq_n_f32(scale.v[quarter], a->qx.scales[at[r] + block]);
        acc[r].v[quarter] = vfmaq_f32(acc[r].v[quarter], exact, step);
      }
    }
    if (block & 1) pair += pair_bytes;
  }
  for (int r = 0; r < R; r++) {
    x16 y = acc[r];
    if (a->bias) y = x16_add(y, x16_load(a->bias + (size_t)tile * DUET_TILE_ROWS));
    x16_store(a->out + (row + (uint32_t)r) * a->out_stride + (size_t)tile * DUET_TILE_ROWS, y);
  }
}

DUET_INLINE void quant_matmul(const int is_q4, const duet_matmul_args *a) {
  for (uint32_t tile = 0; tile < a->tile_count; tile++) {
    uint32_t runs = (a->row_count + DUET_ROWS_MAX - 1) / DUET_ROWS_MAX;
    for (uint32_t row = 0; row < a->row_count; runs--) {
      const uint32_t rows = (a->row_count - row + runs - 1) / runs; /* even runs: 9 rows are 5 and 4, not 8 and 1 */
      switch (rows) {
#define DUET_CASE(R)                         \
  case R:                                    \
    quant_tile_rows(R, is_q4, a, tile, row); \
    break;
        DUET_CASE(1)
        DUET_CASE(2)
        DUET_CASE(3)
        DUET_CASE(4)
        DUET_CASE(5)
        DUET_CASE(6)
        DUET_CASE(7)
        DUET_CASE(8)
#undef DUET_CASE
      }
      row += rows;
    }
  }
}

static void matmul_q4(const duet_matmul_args *a) { quant_matmul(1, a); }
static void matmul_q8(const duet_matmul_args *a) { quant_matmul(0, a); }

DUET_KERNEL_TABLE(DUET_ISA_NEON);

const duet_kernel_table *duet_kernels_neon(void) { return &table; }
#endif
