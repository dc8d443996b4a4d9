/* The kernel table for AVX-512 F, BW, VL, DQ and VNNI. Owns the q4 and q8 matmuls on 512-bit registers; the rest is
 * kernels-rows.h over one register of 16 lanes.
 *
 * vpdpbusd is the only integer product: weights are the unsigned operand, activations the signed one, broadcast 4 inputs at
 * a time from memory. A quantBlock of a rowTile is held in 8 registers while a run of rows passes over it. Per row, rowTile and
 * quantBlock that is 8 vpdpbusd, one multiply and one fma, all for the same two ports: at most 80 % of vpdpbusd's peak.
 *
 * One row reads one rowTile after the other, a single ascending stream without software prefetch: measured on Zen 4 with small
 * and huge pages, both prefetching and several rowTiles at once read DRAM 10 to 40 % slower than the hardware's own prefetchers.
 */
#if defined(__x86_64__)
#include <immintrin.h>

typedef __m512 x16;

#define DUET_SCORE_CHAINS 8
#define DUET_VALUE_CHAINS 16
#define DUET_FLOAT_ROWS 6
#define DUET_ROWS_MAX 8 /* rows that share an unpacked quantBlock; 16 measured no better and makes clang spill */

#define X16 static inline __attribute__((always_inline))

X16 __mmask16 first_lanes(unsigned n) { return (__mmask16)((1u << n) - 1); }
X16 x16 x16_zero(void) { return _mm512_setzero_ps(); }
X16 x16 x16_set1(float x) { return _mm512_set1_ps(x); }
X16 x16 x16_load(const float *p) { return _mm512_loadu_ps(p); }
X16 x16 x16_load_n(const float *p, unsigned n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
X16 x16 x16_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
X16 x16 x16_load_i8(const void *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
X16 void x16_store(float *p, x16 v) { _mm512_storeu_ps(p, v); }
X16 void x16_store_n(float *p, unsigned n, x16 v) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
X16 x16 x16_add(x16 a, x16 b) { return _mm512_add_ps(a, b); }
X16 x16 x16_sub(x16 a, x16 b) { return _mm512_sub_ps(a, b); }
X16 x16 x16_mul(x16 a, x16 b) { return _mm512_mul_ps(a, b); }
X16 x16 x16_div(x16 a, x16 b) { return _mm512_div_ps(a, b); }
X16 x16 x16_fma(x16 a, x16 b, x16 c) { return _mm512_fmadd_ps(a, b, c); }
X16 x16 x16_max(x16 a, x16 b) { return _mm512_max_ps(a, b); }
X16 x16 x16_min_keep_nan(x16 limit, x16 v) { return _mm512_min_ps(limit, v); } /* limit < v ? limit : v */
X16 x16 x16_negate(x16 v) { return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f)); }
/* p * 2^n, n in the low bits of `shifted` */
X16 x16 x16_add_exponent(x16 p, x16 shifted) {
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}
/* v where not x < limit, else 0 */
X16 x16 x16_zero_where_less(x16 x, x16 limit, x16 v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), v);
}
/* Folds i + (i + 8), then 4, 2, 1. */
X16 float x16_fold_sum(x16 v) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
X16 float x16_fold_max(x16 v) {
  const __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}
/* The largest |x| of 32, as bits: the order of magnitudes is the order of their bits, NaN last. */
X16 unsigned x16_magnitude_bits_max(x16 a, x16 b) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i v = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), magnitude),
                                     _mm512_and_si512(_mm512_castps_si512(b), magnitude));
  const __m256i w = _mm256_max_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  __m128i s = _mm_max_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return (unsigned)_mm_cvtsi128_si32(s);
}
/* Rounds 32 values of magnitude below 127.5 to int8, ties to even; returns their sum. */
X16 int x16_store_i8(void *p, x16 a, x16 b) {
  const __m512i low = _mm512_cvtps_epi32(a);
  const __m512i high = _mm512_cvtps_epi32(b);
  _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(low));
  _mm_storeu_si128((__m128i *)p + 1, _mm512_cvtepi32_epi8(high));
  const __m512i v = _mm512_add_epi32(low, high);
  const __m256i w = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

#include "kernels-rows.h"

/* ---- q4 and q8 matrices (rule 3) ---- */

/* Unpacks a quantBlock: w[g] holds inputs 4g .. 4g+3 of 16 rows, unsigned; for q4 an odd g holds 16 times that, as add_block
 * undoes it with one shift instead of four here. */
DUET_INLINE void load_weights(const int is_q4, const uint8_t *p, __m512i w[8]) {
  if (is_q4) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      const __m512i bytes = _mm512_loadu_si512(p + 64 * c);
      w[2 * c] = _mm512_and_si512(bytes, _mm512_set1_epi8(0x0f));
      w[2 * c + 1] = _mm512_and_si512(bytes, _mm512_set1_epi8((char)0xf0));
    }
  } else {
#pragma GCC unroll 8
    for (int c = 0; c < 8; c++) w[c] = _mm512_loadu_si512(p + 64 * c);
  }
}

DUET_INLINE __m512i broadcast_i32(const void *p) {
  int32_t x;
  memcpy(&x, p, sizeof x);
  return _mm512_set1_epi32(x);
}

/* fma(float(dot), scale * step, acc) for one row and quantBlock, where dot = sum of (w - zero point) q = sum of w q - zero point *
 * sum of q. */
DUET_INLINE __m512 add_block(const int is_q4, const __m512i w[8], const int8_t *q, const int32_t *sum, __m512 scale,
                             float step, __m512 acc) {
  const __m512i zero = _mm512_slli_epi32(broadcast_i32(sum), is_q4 ? 3 : 7);
  __m512i even = _mm512_sub_epi32(_mm512_setzero_si512(), zero);
  __m512i odd = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int g = 0; g < 8; g += 2) {
    even = _mm512_dpbusd_epi32(even, w[g], broadcast_i32(q + 4 * g));
    odd = _mm512_dpbusd_epi32(odd, w[g + 1], broadcast_i32(q + 4 * g + 4));
  }
  if (is_q4) odd = _mm512_srai_epi32(odd, 4);
  const __m512 dot = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
  return _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(step)), acc);
}

DUET_INLINE void store_tile(const duet_matmul_args *a, uint32_t tile, uint32_t row, __m512 y) {
  if (a->bias) y = _mm512_add_ps(y, _mm512_loadu_ps(a->bias + (size_t)tile * 16));
  _mm512_storeu_ps(a->out + row * a->out_stride + (size_t)tile * 16, y);
}

/* R rows from `row` on against one rowTile. */
DUET_INLINE void quant_tile_rows(const int R, const int is_q4, const duet_matmul_args *a, uint32_t tile, uint32_t row) {
  const uint8_t *pair = a->tiles + (size_t)tile * a->tile_step * a->tile_bytes;
  const size_t block_bytes = is_q4 ? 256 : 512;
  const size_t pair_bytes = 64 + 2 * block_bytes;
  size_t at[DUET_ROWS_MAX]; /* a row's first quantBlock, in quantBlocks */
  __m512 acc[DUET_ROWS_MAX];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    at[r] = matmul_row(a, row + r) * (a->qx.stride / DUET_QUANT_BLOCK);
    acc[r] = _mm512_setzero_ps();
  }
  for (uint32_t block = 0; block < a->column_count / DUET_QUANT_BLOCK; block += 2, pair += pair_bytes) {
#pragma GCC unroll 2
    for (uint32_t half = 0; half < 2; half++) {
      const __m512 scale = x16_load_f16(pair + 32 * half);
      __m512i w[8];
      load_weights(is_q4, pair + 64 + half * block_bytes, w);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const size_t index = at[r] + block + half;
        acc[r] = add_block(is_q4, w, a->qx.q + index * DUET_QUANT_BLOCK, a->qx.sums + index, scale,
                           a->qx.scales[index], acc[r]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) store_tile(a, tile, row + r, acc[r]);
}

DUET_INLINE void quant_matmul(const int is_q4, const duet_matmul_args *a) {
  for (uint32_t tile = 0; tile < a->tile_count; tile++) {
    uint32_t runs = (a->row_count + DUET_ROWS_MAX - 1) / DUET_ROWS_MAX;
    for (uint32_t row = 0; row < a->row_count; runs--) {
      const uint32_t rows = (a->row_count - row + runs - 1) / runs; /* even runs: 9 rows are 5 and 4, not 8 and 1 */
      switch (rows) {
#define DUET_CASE(R) \
  case R: \
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

DUET_KERNEL_TABLE(DUET_ISA_AVX512);

const duet_kernel_table *duet_kernels_avx512(void) {
  __builtin_cpu_init();
  const int can_run = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx2") &&
                      __builtin_cpu_supports("fma");
  return can_run ? &table : 0;
}
#endif
