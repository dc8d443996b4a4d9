/* The kernel table on 256-bit registers: a template for AVX2 and for AVX2 with AVX-VNNI. Owns the q4 and q8 matmuls there;
 * the rest is kernels-rows.h over two registers of 8 lanes.
 *
 * The including unit defines DUET_HAS_DPBUSD as 0 or 1 and, with 1, DUET_DPBUSD(sum, unsigned, signed). With 0, products go through
 * vpmaddubsw, which saturates int16 sums of two: q8 takes |w| and sign(q, w), at most 2 x 127 x 127; q4 adds the 8
 * products of a quantBlock in int16, at most 8 x 2 x 15 x 127, before widening. Both are exact.
 */
#include <immintrin.h>
#include <stdint.h>

typedef struct x16 {
  __m256 a;
  __m256 b;
} x16;

#define DUET_SCORE_CHAINS 2
#define DUET_VALUE_CHAINS 4
#define DUET_FLOAT_ROWS 1
#define DUET_ROWS_MAX 4 /* rows that share an unpacked quantBlock */

#define X16 static inline __attribute__((always_inline))

/* All ones in the first n of 8 lanes. */
X16 __m256i first_lanes(unsigned n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
X16 x16 x16_zero(void) { return (x16){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
X16 x16 x16_set1(float x) { return (x16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
X16 x16 x16_load(const float *p) { return (x16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
X16 x16 x16_load_n(const float *p, unsigned n) {
  return (x16){_mm256_maskload_ps(p, first_lanes(n)),
               n > 8 ? _mm256_maskload_ps(p + 8, first_lanes(n - 8)) : _mm256_setzero_ps()};
}
X16 x16 x16_load_f16(const void *p) {
  return (x16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
               _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1))};
}
X16 x16 x16_load_i8(const void *p) {
  const __m128i v = _mm_loadu_si128((const __m128i *)p);
  return (x16){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)),
               _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v)))};
}
X16 void x16_store(float *p, x16 v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
X16 void x16_store_n(float *p, unsigned n, x16 v) {
  _mm256_maskstore_ps(p, first_lanes(n), v.a);
  if (n > 8) _mm256_maskstore_ps(p + 8, first_lanes(n - 8), v.b);
}
X16 x16 x16_add(x16 x, x16 y) { return (x16){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
X16 x16 x16_sub(x16 x, x16 y) { return (x16){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
X16 x16 x16_mul(x16 x, x16 y) { return (x16){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
X16 x16 x16_div(x16 x, x16 y) { return (x16){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
X16 x16 x16_fma(x16 x, x16 y, x16 z) {
  return (x16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
X16 x16 x16_max(x16 x, x16 y) { return (x16){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
/* limit < v ? limit : v */
X16 x16 x16_min_keep_nan(x16 limit, x16 v) { return (x16){_mm256_min_ps(limit.a, v.a), _mm256_min_ps(limit.b, v.b)}; }
X16 x16 x16_negate(x16 v) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return (x16){_mm256_xor_ps(v.a, sign), _mm256_xor_ps(v.b, sign)};
}
X16 __m256 add_exponent(__m256 p, __m256 shifted) {
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}
/* p * 2^n, n in the low bits of `shifted` */
X16 x16 x16_add_exponent(x16 p, x16 shifted) {
  return (x16){add_exponent(p.a, shifted.a), add_exponent(p.b, shifted.b)};
}
/* v where not x < limit, else 0 */
X16 x16 x16_zero_where_less(x16 x, x16 limit, x16 v) {
  return (x16){_mm256_and_ps(v.a, _mm256_cmp_ps(x.a, limit.a, _CMP_NLT_UQ)),
               _mm256_and_ps(v.b, _mm256_cmp_ps(x.b, limit.b, _CMP_NLT_UQ))};
}
/* Folds i + (i + 8), then 4, 2, 1. */
X16 float x16_fold_sum(x16 v) {
  const __m256 a = _mm256_add_ps(v.a, v.b);
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
X16 float x16_fold_max(x16 v) {
  const __m256 a = _mm256_max_ps(v.a, v.b);
  const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}
X16 __m256i magnitude_bits(x16 v) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  return _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(v.a), mask),
                          _mm256_and_si256(_mm256_castps_si256(v.b), mask));
}
/* The largest |x| of 32, as bits: the order of magnitudes is the order of their bits, NaN last. */
X16 unsigned x16_magnitude_bits_max(x16 x, x16 y) {
  const __m256i w = _mm256_max_epi32(magnitude_bits(x), magnitude_bits(y));
  __m128i s = _mm_max_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return (unsigned)_mm_cvtsi128_si32(s);
}
/* Rounds 32 values of magnitude below 127.5 to int8, ties to even; returns their sum. */
X16 int x16_store_i8(void *p, x16 x, x16 y) {
  const __m256i i0 = _mm256_cvtps_epi32(x.a);
  const __m256i i1 = _mm256_cvtps_epi32(x.b);
  const __m256i i2 = _mm256_cvtps_epi32(y.a);
  const __m256i i3 = _mm256_cvtps_epi32(y.b);
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(i0, i1), _mm256_packs_epi32(i2, i3));
  _mm256_storeu_si256((__m256i *)p, _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  const __m256i w = _mm256_add_epi32(_mm256_add_epi32(i0, i1), _mm256_add_epi32(i2, i3));
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

#include "kernels-rows.h"

/* ---- q4 and q8 matrices (rule 3) ----
 *
 * A group of 4 inputs of half a rowTile (8 rows) is one register. */

DUET_INLINE __m256i broadcast_i32(const void *p) {
  int32_t x;
  memcpy(&x, p, sizeof x);
  return _mm256_set1_epi32(x);
}

/* Groups 2c and 2c + 1 of a quantBlock, 8 rows: nibbles of q4 as they are, q8 as stored (value + 128). */
DUET_INLINE void load_groups(const int is_q4, const uint8_t *p, int c, __m256i w[2]) {
  if (is_q4) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)(p + 64 * c));
    w[0] = _mm256_and_si256(bytes, nibble);
    w[1] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);
  } else {
    w[0] = _mm256_loadu_si256((const __m256i *)(const void *)(p + 128 * c));
    w[1] = _mm256_loadu_si256((const __m256i *)(const void *)(p + 128 * c + 64));
  }
}

/* The exact integer dot products of R rows with a quantBlock of 8 weight rows; q[r] is the row's 32 inputs. */
DUET_INLINE void block_dots(const int R, const int is_q4, const uint8_t *p, const int8_t *const q[],
                            const int32_t sums[], __m256i dot[]) {
#if DUET_HAS_DPBUSD
  for (int r = 0; r < R; r++) dot[r] = _mm256_set1_epi32(-sums[r] * (is_q4 ? 8 : 128));
  for (int c = 0; c < 4; c++) {
    __m256i w[2];
    load_groups(is_q4, p, c, w);
    for (int r = 0; r < R; r++) {
      dot[r] = DUET_DPBUSD(dot[r], w[0], broadcast_i32(q[r] + 8 * c));
      dot[r] = DUET_DPBUSD(dot[r], w[1], broadcast_i32(q[r] + 8 * c + 4));
    }
  }
#else
  const __m256i ones = _mm256_set1_epi16(1);
  for (int r = 0; r < R; r++) dot[r] = _mm256_setzero_si256();
  for (int c = 0; c < 4; c++) {
    __m256i w[2];
    load_groups(is_q4, p, c, w);
    if (is_q4) {
      for (int r = 0; r < R; r++) { /* int16 sums */
        const __m256i low = _mm256_maddubs_epi16(w[0], broadcast_i32(q[r] + 8 * c));
        const __m256i high = _mm256_maddubs_epi16(w[1], broadcast_i32(q[r] + 8 * c + 4));
        dot[r] = _mm256_add_epi16(dot[r], _mm256_add_epi16(low, high));
      }
    } else {
      for (int i = 0; i < 2; i++) {
        const __m256i value = _mm256_xor_si256(w[i], _mm256_set1_epi8((char)0x80));
        const __m256i magnitude = _mm256_abs_epi8(value);
        for (int r = 0; r < R; r++) {
          const __m256i signed_q = _mm256_sign_epi8(broadcast_i32(q[r] + 8 * c + 4 * i), value);
          dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_q), ones));
        }
      }
    }
  }
  if (is_q4) {
    for (int r = 0; r < R; r++) {
      dot[r] = _mm256_sub_epi32(_mm256_madd_epi16(dot[r], ones), _mm256_set1_epi32(8 * sums[r]));
    }
  }
#endif
}

/* R rows from `row` on against `halves` halves of one rowTile from `first_half` on. */
DUET_INLINE void quant_tile_rows(const int R, const int halves, const int is_q4, const duet_matmul_args *a,
                                 uint32_t tile, int first_half, uint32_t row) {
  const size_t block_bytes = is_q4 ? 256 : 512;
  const size_t pair_bytes = 64 + 2 * block_bytes;
  const uint8_t *pair = a->tiles + (size_t)tile * a->tile_step * a->tile_bytes;
  size_t at[DUET_ROWS_MAX]; /* a row's first quantBlock, in quantBlocks */
  __m256 acc[2][DUET_ROWS_MAX];
  for (int r = 0; r < R; r++) {
    at[r] = matmul_row(a, row + (uint32_t)r) * (a->qx.stride / DUET_QUANT_BLOCK);
    acc[0][r] = acc[1][r] = _mm256_setzero_ps();
  }
  for (uint32_t block = 0; block < a->column_count / DUET_QUANT_BLOCK; block++) {
    const uint8_t *bytes = pair + 64 + (block & 1) * block_bytes;
    const int8_t *q[DUET_ROWS_MAX];
    int32_t sums[DUET_ROWS_MAX];
    for (int r = 0; r < R; r++) {
      q[r] = a->qx.q + (at[r] + block) * DUET_QUANT_BLOCK;
      sums[r] = a->qx.sums[at[r] + block];
    }
    for (int i = 0; i < halves; i++) {
      const int half = first_half + i;
      const __m256 scale =
          _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(pair + 32 * (block & 1) + 16 * half)));
      __m256i dot[DUET_ROWS_MAX];
      block_dots(R, is_q4, bytes + 32 * half, q, sums, dot);
      for (int r = 0; r < R; r++) {
        const __m256 step = _mm256_mul_ps(scale, _mm256_set1_ps(a->qx.scales[at[r] + block]));
        acc[i][r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r]), step, acc[i][r]);
      }
    }
    if (block & 1) pair += pair_bytes;
  }
  for (int i = 0; i < halves; i++) {
    const size_t column = (size_t)tile * 16 + 8 * (size_t)(first_half + i);
    for (int r = 0; r < R; r++) {
      __m256 y = acc[i][r];
      if (a->bias) y = _mm256_add_ps(y, _mm256_loadu_ps(a->bias + column));
      _mm256_storeu_ps(a->out + (row + (uint32_t)r) * a->out_stride + column, y);
    }
  }
}

DUET_INLINE void quant_matmul(const int is_q4, const duet_matmul_args *a) {
  /* Both halves at once read memory in one ascending stream; several rows fit 16 registers so only where a product needs few. */
  const int has_few_registers = !DUET_HAS_DPBUSD || is_q4;
  for (uint32_t tile = 0; tile < a->tile_count; tile++) {
    uint32_t runs = (a->row_count + DUET_ROWS_MAX - 1) / DUET_ROWS_MAX;
    for (uint32_t row = 0; row < a->row_count; runs--) {
      const uint32_t rows = (a->row_count - row + runs - 1) / runs; /* even runs: 5 rows are 3 and 2, not 4 and 1 */
      const int halves = rows > 1 && has_few_registers ? 1 : 2;
      for (int half = 0; half < 2; half += halves) {
        switch (rows) {
#define DUET_CASE(R)                                                    \
  case R:                                                               \
    if (halves == 2) quant_tile_rows(R, 2, is_q4, a, tile, half, row);  \
    else quant_tile_rows(R, 1, is_q4, a, tile, half, row);              \
    break;
          DUET_CASE(1)
          DUET_CASE(2)
          DUET_CASE(3)
          DUET_CASE(4)
#undef DUET_CASE
        }
      }
      row += rows;
    }
  }
}

static void matmul_q4(const duet_matmul_args *a) { quant_matmul(1, a); }
static void matmul_q8(const duet_matmul_args *a) { quant_matmul(0, a); }
