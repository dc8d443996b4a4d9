/* The kernels that are written once for every vector instruction set: quantisation, norms, SwiGLU, sums and attention.
 *
 * A template. The including unit first defines the type x16 (16 float32 lanes in one, two or four registers), the x16_*
 * operations used below, and
 *   DUET_SCORE_CHAINS   score accumulators kept in registers, in units of one query head x 32 tokens
 *   DUET_VALUE_CHAINS   output accumulators kept in registers, in x16
 *   DUET_FLOAT_ROWS     rows of an f16 or f32 matmul that share a weight load.
 * Every function equals its plain twin bit for bit (docs/arithmetic.md): lanes never mix except in the folds written there.
 */
#include <string.h>

#include "duet-math.h"
#include "kernel-table.h"

#define DUET_INLINE static inline __attribute__((always_inline))

/* duet_expf, lane by lane. */
DUET_INLINE x16 x16_exp(x16 x) {
  const x16 y = x16_min_keep_nan(x16_set1(DUET_EXP_HIGH), x);
  const x16 shifted = x16_fma(y, x16_set1(DUET_LOG2_E), x16_set1(DUET_ROUND_F32));
  const x16 n = x16_sub(shifted, x16_set1(DUET_ROUND_F32));
  x16 r = x16_fma(n, x16_set1(-DUET_LN2_HIGH), y);
  r = x16_fma(n, x16_set1(-DUET_LN2_LOW), r);
  x16 p = x16_fma(x16_set1(DUET_EXP_C6), r, x16_set1(DUET_EXP_C5));
  p = x16_fma(p, r, x16_set1(DUET_EXP_C4));
  p = x16_fma(p, r, x16_set1(DUET_EXP_C3));
  p = x16_fma(p, r, x16_set1(DUET_EXP_C2));
  p = x16_fma(p, r, x16_set1(1.0f));
  p = x16_fma(p, r, x16_set1(1.0f));
  return x16_zero_where_less(x, x16_set1(DUET_EXP_LOW), x16_add_exponent(p, shifted));
}

/* ---- rows ---- */

static int quantise_row(const float *x, uint32_t columns, uint32_t padded_columns, int8_t *q, float *scales,
                        int32_t *sums) {
  int is_not_finite = 0;
  for (uint32_t k = 0; k < padded_columns; k += DUET_QUANT_BLOCK) {
    const uint32_t left = columns > k ? columns - k : 0;
    const x16 low = left >= 16 ? x16_load(x + k) : x16_load_n(x + k, left);
    const x16 high = left >= 32 ? x16_load(x + k + 16) : x16_load_n(x + k + 16, left > 16 ? left - 16 : 0);
    const uint32_t magnitude_bits = x16_magnitude_bits_max(low, high);
    const float magnitude = duet_f32_from_bits(magnitude_bits);
    const float inverse = 127.0f / magnitude;
    /* Zero, too small for `inverse` to be finite, or not finite: the block counts as zero. */
    const int is_zero = duet_f32_bits(inverse) >= 0x7f800000u || magnitude_bits >= 0x7f800000u;
    is_not_finite |= magnitude_bits >= 0x7f800000u;
    if (is_zero) {
      memset(q + k, 0, DUET_QUANT_BLOCK);
      scales[k / DUET_QUANT_BLOCK] = 0.0f;
      sums[k / DUET_QUANT_BLOCK] = 0;
      continue;
    }
    const x16 r = x16_set1(inverse);
    scales[k / DUET_QUANT_BLOCK] = magnitude / 127.0f;
    sums[k / DUET_QUANT_BLOCK] = x16_store_i8(q + k, x16_mul(low, r), x16_mul(high, r));
  }
  return is_not_finite;
}

static void rms_norm_row(const float *x, const float *weight, uint32_t n, float eps, float *y) {
  const uint32_t whole = n & ~15u;
  x16 lanes = x16_zero();
  for (uint32_t i = 0; i < whole; i += 16) {
    const x16 v = x16_load(x + i);
    lanes = x16_fma(v, v, lanes);
  }
  if (whole < n) {
    const x16 v = x16_load_n(x + whole, n - whole); /* fma(0, 0, lane) is lane: a sum of squares is never -0 */
    lanes = x16_fma(v, v, lanes);
  }
  const float scale = 1.0f / __builtin_sqrtf(x16_fold_sum(lanes) / (float)n + eps);
  const x16 s = x16_set1(scale);
  for (uint32_t i = 0; i < whole; i += 16) {
    x16_store(y + i, x16_mul(x16_mul(x16_load(x + i), s), x16_load(weight + i)));
  }
  if (whole < n) {
    const uint32_t left = n - whole;
    x16_store_n(y + whole, left, x16_mul(x16_mul(x16_load_n(x + whole, left), s), x16_load_n(weight + whole, left)));
  }
}

static void exchange_add_row(float *h, const float *p0, const float *p1, uint32_t n) {
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16) x16_store(h + i, x16_add(x16_load(h + i), x16_add(x16_load(p0 + i), x16_load(p1 + i))));
  for (; i < n; i++) h[i] = h[i] + (p0[i] + p1[i]);
}

static void scaled_add_row(float *y, const float *x, float weight, uint32_t n) {
  const x16 w = x16_set1(weight);
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16) x16_store(y + i, x16_fma(w, x16_load(x + i), x16_load(y + i)));
  for (; i < n; i++) y[i] = duet_fmaf(weight, x[i], y[i]);
}

static void swiglu_row(const float *gu, uint32_t n, float *act) {
  const x16 one = x16_set1(1.0f);
  for (uint32_t i = 0; i < n; i += 16) {
    const x16 gate = x16_load(gu + 2 * i);
    const x16 swish = x16_div(gate, x16_add(one, x16_exp(x16_negate(gate))));
    const x16 a = x16_mul(swish, x16_load(gu + 2 * i + 16));
    if (n - i >= 16) x16_store(act + i, a);
    else x16_store_n(act + i, n - i, a);
  }
}

static float max_row(const float *x, uint32_t n) {
  float max = -__builtin_inff();
  uint32_t i = 0;
  if (n >= 16) {
    x16 lanes = x16_load(x);
    for (i = 16; i + 16 <= n; i += 16) lanes = x16_max(lanes, x16_load(x + i));
    max = x16_fold_max(lanes);
  }
  for (; i < n; i++) max = x[i] > max ? x[i] : max;
  return max;
}

static float exp_sum_row(const float *logits, uint32_t n, float max, float *e) {
  const x16 m = x16_set1(max);
  x16 lanes = x16_zero();
  uint32_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const x16 v = x16_exp(x16_sub(x16_load(logits + i), m));
    x16_store(e + i, v);
    lanes = x16_add(lanes, v);
  }
  if (i < n) {
    x16_store_n(e + i, n - i, x16_exp(x16_sub(x16_load_n(logits + i, n - i), m)));
    lanes = x16_add(lanes, x16_load_n(e + i, n - i)); /* lane + 0 is lane: e is never -0 */
  }
  return x16_fold_sum(lanes);
}

/* ---- attention ----
 *
 * Shapes: h queries (rows x query heads of the KV head), D = head_dim, a chunk of up to 256 keys in kvBlocks of 32. K of a block is
 * [D][32], V is [32][D]. Scores vectorise over tokens, outputs over D; what rule 5 wants sequential stays sequential within a lane.
 * Queries are taken in groups that share loads; a group's rows differ in their last keys, which are added to each by itself.
 *
 * A KV head's blocks lie far apart, so the hardware's prefetchers lose their way at every one. The first group asks for what
 * comes next: scores for the same blocks' V and the next block's K, values for the next chunk's K. */

DUET_INLINE size_t kv_element_bytes(const uint32_t type) {
  return type == DUET_KV_F16 ? 2 : type == DUET_KV_INT8 ? 1 : 4;
}

DUET_INLINE x16 kv_load(const uint32_t type, const uint8_t *base, size_t element, x16 scale) {
  if (type == DUET_KV_F16) return x16_load_f16(base + 2 * element);
  if (type == DUET_KV_INT8) return x16_mul(x16_load_i8((const int8_t *)base + element), scale);
  return x16_load((const float *)(const void *)base + element);
}

/* Scores of H heads from q on, for B kvBlocks from `block` of the sequence on; scores[h][256] at this chunk's `first` key. */
DUET_INLINE void score_blocks(const uint32_t type, const uint32_t H, const uint32_t B, const duet_attention_args *a,
                              const float *q, uint32_t block, int is_first_group, float *scores) {
  const uint32_t D = a->head_dim;
  const size_t row_bytes = 32 * kv_element_bytes(type);
  const uint8_t *k[DUET_SCORE_CHAINS];
  const uint8_t *next_k[DUET_SCORE_CHAINS];
  const uint8_t *v[DUET_SCORE_CHAINS];
  x16 scale[DUET_SCORE_CHAINS][2];
  x16 acc[DUET_SCORE_CHAINS][2];
  for (uint32_t b = 0; b < B; b++) {
    const size_t at = (size_t)a->block_table[block + b] * a->block_stride;
    k[b] = a->k_base + at;
    v[b] = a->v_base + at;
    next_k[b] = (block + B + b) * 32 < a->key_count ? a->k_base + (size_t)a->block_table[block + B + b] * a->block_stride : k[b];
    if (type == DUET_KV_INT8) {
      const float *s = (const float *)(const void *)((const uint8_t *)a->k_scales + at);
      scale[b][0] = x16_load(s);
      scale[b][1] = x16_load(s + 16);
    } else {
      scale[b][0] = scale[b][1] = x16_zero();
    }
  }
  for (uint32_t i = 0; i < H * B; i++) acc[i][0] = acc[i][1] = x16_zero();
  for (uint32_t d = 0; d < D; d++) {
    for (uint32_t b = 0; b < B; b++) {
      if (is_first_group) {
        __builtin_prefetch(v[b] + d * row_bytes, 0, 2);
        __builtin_prefetch(next_k[b] + d * row_bytes, 0, 2);
      }
      const x16 k0 = kv_load(type, k[b], (size_t)d * 32, scale[b][0]);
      const x16 k1 = kv_load(type, k[b], (size_t)d * 32 + 16, scale[b][1]);
      for (uint32_t h = 0; h < H; h++) {
        const x16 qd = x16_set1(q[(size_t)h * D + d]);
        acc[h * B + b][0] = x16_fma(qd, k0, acc[h * B + b][0]);
        acc[h * B + b][1] = x16_fma(qd, k1, acc[h * B + b][1]);
      }
    }
  }
  for (uint32_t h = 0; h < H; h++) {
    for (uint32_t b = 0; b < B; b++) {
      x16_store(scores + (size_t)h * DUET_ATTN_CHUNK + b * 32, acc[h * B + b][0]);
      x16_store(scores + (size_t)h * DUET_ATTN_CHUNK + b * 32 + 16, acc[h * B + b][1]);
    }
  }
}

DUET_INLINE void score_heads(const uint32_t type, const uint32_t H, const duet_attention_args *a, const float *queries, uint32_t head,
                             uint32_t first_block, uint32_t block_count, float *scores) {
  const uint32_t chains = DUET_SCORE_CHAINS < 4 ? DUET_SCORE_CHAINS : 4; /* more blocks at once measured slower, more queries faster */
  const uint32_t B = H < chains ? chains / H : 1;
  const float *q = queries + (size_t)head * a->head_dim;
  float *s = scores + (size_t)head * DUET_ATTN_CHUNK;
  uint32_t b = 0;
  for (; b + B <= block_count; b += B) score_blocks(type, H, B, a, q, first_block + b, head == 0, s + b * 32);
  if (B > 1) {
    for (; b < block_count; b++) score_blocks(type, H, 1, a, q, first_block + b, head == 0, s + b * 32);
  }
}

/* o[h][column .. column + 16 Z) of H heads over `count` keys from `first` on, and with `sums` the heads' l. */
DUET_INLINE void value_columns(const uint32_t type, const uint32_t H, const uint32_t Z, const uint32_t last_lanes,
                               const duet_attention_args *a, uint32_t column, uint32_t first, uint32_t count,
                               const float *e, int is_first_group, float *o, float *sums) {
  const uint32_t D = a->head_dim;
  const size_t row_bytes = D * kv_element_bytes(type);
  x16 acc[DUET_VALUE_CHAINS];
  float l[DUET_VALUE_CHAINS];
  for (uint32_t i = 0; i < H * Z; i++) acc[i] = x16_zero();
  for (uint32_t h = 0; h < H; h++) l[h] = 0.0f;
  for (uint32_t p = 0; p < count; p += 32) {
    const size_t at = (size_t)a->block_table[(first + p) / 32] * a->block_stride;
    const uint8_t *v = a->v_base + at;
    const float *scales = type == DUET_KV_INT8 ? (const float *)(const void *)((const uint8_t *)a->v_scales + at) : 0;
    const uint32_t tokens = count - p < 32 ? count - p : 32;
    const uint32_t later = first + p + DUET_ATTN_CHUNK;
    const uint8_t *next_k = is_first_group && later < a->key_count ? a->k_base + (size_t)a->block_table[later / 32] * a->block_stride : 0;
    for (uint32_t t = 0; t < tokens; t++) {
      if (next_k) {
        for (size_t b = 0; b < row_bytes; b += 64) __builtin_prefetch(next_k + t * row_bytes + b, 0, 2);
      }
      const size_t element = (size_t)t * D + column;
      const x16 scale = type == DUET_KV_INT8 ? x16_set1(scales[t]) : x16_zero();
      for (uint32_t h = 0; h < H; h++) l[h] = l[h] + e[(size_t)h * DUET_ATTN_CHUNK + p + t];
      for (uint32_t z = 0; z < Z; z++) {
        x16 value;
        if (last_lanes < 16) { /* Z is 1: the columns beyond the last whole 16 */
          const size_t bytes = kv_element_bytes(type);
          uint8_t padded[64] = {0};
          memcpy(padded, v + element * bytes, last_lanes * bytes);
          value = kv_load(type, padded, 0, scale);
        } else {
          value = kv_load(type, v, element + 16 * z, scale);
        }
        for (uint32_t h = 0; h < H; h++) {
          acc[h * Z + z] = x16_fma(x16_set1(e[(size_t)h * DUET_ATTN_CHUNK + p + t]), value, acc[h * Z + z]);
        }
      }
    }
  }
  for (uint32_t h = 0; h < H; h++) {
    if (sums) sums[h] = l[h];
    for (uint32_t z = 0; z < Z; z++) {
      float *out = o + (size_t)h * D + column + 16 * z;
      if (last_lanes < 16) x16_store_n(out, last_lanes, acc[h * Z + z]);
      else x16_store(out, acc[h * Z + z]);
    }
  }
}

/* All columns of H heads, as many at once as there are accumulators. */
DUET_INLINE void value_heads(const uint32_t type, const uint32_t H, const duet_attention_args *a, uint32_t head,
                             uint32_t first, uint32_t count, const float *scores, float *outputs, float *sums) {
  const uint32_t D = a->head_dim;
  const uint32_t Z = DUET_VALUE_CHAINS / H;
  const float *e = scores + (size_t)head * DUET_ATTN_CHUNK;
  float *o = outputs + (size_t)head * D;
  float *l = sums + head;
  uint32_t column = 0;
#define DUET_COLUMNS(z)                                                              \
  if (Z >= (z)) {                                                                    \
    for (; column + 16 * (z) <= D; column += 16 * (z)) {                             \
      value_columns(type, H, Z >= (z) ? (z) : 1, 16, a, column, first, count, e, head == 0 && column == 0, o, l); \
    }                                                                                \
  }
#if DUET_VALUE_CHAINS >= 8
  DUET_COLUMNS(8)
#endif
  DUET_COLUMNS(4)
  DUET_COLUMNS(2)
  DUET_COLUMNS(1)
#undef DUET_COLUMNS
  if (column < D) value_columns(type, H, 1, D - column, a, column, first, count, e, head == 0 && column == 0, o, l);
}

/* One chunk's scores become e = exp(score - m); returns m. */
DUET_INLINE float soften_chunk(float *scores, uint32_t count) {
  const uint32_t padded = (count + 15) & ~15u;
  for (uint32_t p = count; p < padded; p++) scores[p] = -__builtin_inff();
  const float max = max_row(scores, padded);
  const x16 m = x16_set1(max);
  for (uint32_t p = 0; p < padded; p += 16) x16_store(scores + p, x16_exp(x16_sub(x16_load(scores + p), m)));
  return max;
}

/* (max, sum, o) of a head's earlier chunks take in the next chunk's. */
static void merge_chunk(uint32_t D, float *max, float *sum, float *o, float chunk_max, float chunk_sum,
                        const float *chunk_o) {
  const float both = chunk_max > *max ? chunk_max : *max;
  const float f_old = duet_expf(*max - both);
  const float f_new = duet_expf(chunk_max - both);
  *max = both;
  *sum = duet_fmaf(chunk_sum, f_new, *sum * f_old);
  const x16 old = x16_set1(f_old);
  const x16 new = x16_set1(f_new);
  uint32_t d = 0;
  for (; d + 16 <= D; d += 16) {
    x16_store(o + d, x16_fma(x16_load(chunk_o + d), new, x16_mul(x16_load(o + d), old)));
  }
  for (; d < D; d++) o[d] = duet_fmaf(chunk_o[d], f_new, o[d] * f_old);
}

/* Keys [from, to) of a chunk added to one query's l and o. */
DUET_INLINE void add_last_keys(const uint32_t type, const duet_attention_args *a, uint32_t first, uint32_t from, uint32_t to,
                               const float *e, float *o, float *sum) {
  const uint32_t D = a->head_dim;
  for (uint32_t p = from; p < to; p++) {
    const size_t at = (size_t)a->block_table[(first + p) / 32] * a->block_stride;
    const size_t element = (size_t)((first + p) % 32) * D;
    const uint8_t *v = a->v_base + at;
    const float scale = type == DUET_KV_INT8 ? ((const float *)(const void *)((const uint8_t *)a->v_scales + at))[(first + p) % 32] : 1.0f;
    const x16 ep = x16_set1(e[p]);
    uint32_t d = 0;
    for (; d + 16 <= D; d += 16) x16_store(o + d, x16_fma(ep, kv_load(type, v, element + d, x16_set1(scale)), x16_load(o + d)));
    if (d < D) {
      const size_t bytes = kv_element_bytes(type);
      uint8_t padded[64] = {0};
      memcpy(padded, v + (element + d) * bytes, (D - d) * bytes);
      x16_store_n(o + d, D - d, x16_fma(ep, kv_load(type, padded, 0, x16_set1(scale)), x16_load_n(o + d, D - d)));
    }
    *sum = *sum + e[p];
  }
}

/* Keys of a chunk that the row of query h sees: 0 where the chunk lies behind them. */
DUET_INLINE uint32_t chunk_keys(const duet_attention_args *a, uint32_t h, uint32_t first) {
  const uint32_t keys = a->key_count + h / a->query_head_count;
  return keys <= first ? 0 : keys - first < DUET_ATTN_CHUNK ? keys - first : DUET_ATTN_CHUNK;
}

/* l and o of H queries over a chunk. */
DUET_INLINE void value_group(const uint32_t type, const uint32_t H, const duet_attention_args *a, uint32_t h, uint32_t first,
                             const float *scores, float *o, float *sums) {
  const uint32_t common = chunk_keys(a, h, first);
  value_heads(type, H, a, h, first, common, scores, o, sums);
  for (uint32_t i = h; i < h + H; i++) {
    add_last_keys(type, a, first, common, chunk_keys(a, i, first), scores + (size_t)i * DUET_ATTN_CHUNK, o + (size_t)i * a->head_dim, sums + i);
  }
}

DUET_INLINE void attention_of_type(const uint32_t type, const duet_attention_args *a) {
  const uint32_t D = a->head_dim;
  const uint32_t H = a->row_count * a->query_head_count;
  const size_t row_floats = (size_t)a->query_head_count * D;
  float *scores = a->scratch;                          /* [H][256] */
  float *o = scores + (size_t)H * DUET_ATTN_CHUNK;     /* [H][D]: of the chunks so far */
  float *chunk_o = o + (size_t)H * D;                  /* [H][D] */
  float *rows = chunk_o + (size_t)H * D;               /* [H][D]: the queries, where rows lie apart */
  float *max = rows + (size_t)H * D;                   /* [H] each: max, sum, and the chunk's */
  float *sum = max + H;
  float *chunk_max = sum + H;
  float *chunk_sum = chunk_max + H;
  const float *q = a->row_count == 1 ? a->q : rows;
  if (a->row_count > 1) {
    for (uint32_t r = 0; r < a->row_count; r++) memcpy(rows + r * row_floats, a->q + r * a->q_stride, row_floats * sizeof *rows);
  }
  for (uint32_t first = 0; first < a->key_count + a->row_count - 1; first += DUET_ATTN_CHUNK) {
    const uint32_t blocks = (chunk_keys(a, H - 1, first) + 31) / 32;
    const int is_first = first == 0;
    float *into = is_first ? o : chunk_o;
    uint32_t h = 0;
#if DUET_SCORE_CHAINS >= 8
    for (; h + 8 <= H; h += 8) score_heads(type, 8, a, q, h, first / 32, blocks, scores);
#endif
#if DUET_SCORE_CHAINS >= 4
    for (; h + 4 <= H; h += 4) score_heads(type, 4, a, q, h, first / 32, blocks, scores);
#endif
    for (; h + 2 <= H; h += 2) score_heads(type, 2, a, q, h, first / 32, blocks, scores);
    for (; h < H; h++) score_heads(type, 1, a, q, h, first / 32, blocks, scores);
    for (h = 0; h < H; h++) {
      const uint32_t count = chunk_keys(a, h, first);
      if (count > 0) (is_first ? max : chunk_max)[h] = soften_chunk(scores + (size_t)h * DUET_ATTN_CHUNK, count);
    }
    float *sums = is_first ? sum : chunk_sum;
    h = 0;
#if DUET_VALUE_CHAINS >= 16
    if (D <= 32) {
      for (; h + 8 <= H; h += 8) value_group(type, 8, a, h, first, scores, into, sums);
    }
    for (; h + 4 <= H; h += 4) value_group(type, 4, a, h, first, scores, into, sums);
#endif
    for (; h + 2 <= H; h += 2) value_group(type, 2, a, h, first, scores, into, sums);
    for (; h < H; h++) value_group(type, 1, a, h, first, scores, into, sums);
    for (h = 0; !is_first && h < H; h++) {
      if (chunk_keys(a, h, first) == 0) continue;
      merge_chunk(D, max + h, sum + h, o + (size_t)h * D, chunk_max[h], chunk_sum[h], chunk_o + (size_t)h * D);
    }
  }
  for (uint32_t h = 0; h < H; h++) {
    float *out = a->out + h / a->query_head_count * a->out_stride + (size_t)(h % a->query_head_count) * D;
    for (uint32_t d = 0; d < D; d++) out[d] = o[(size_t)h * D + d] / sum[h];
  }
}

static void attention(const duet_attention_args *a) {
  if (a->kv_type == DUET_KV_F16) attention_of_type(DUET_KV_F16, a);
  else if (a->kv_type == DUET_KV_INT8) attention_of_type(DUET_KV_INT8, a);
  else attention_of_type(DUET_KV_F32, a);
}

/* ---- f16 and f32 matrices (rule 4) ---- */

DUET_INLINE size_t matmul_row(const duet_matmul_args *a, uint32_t row) {
  return a->row_index ? a->row_index[row] : row;
}

/* R rows from `row` on against one rowTile [input][16]: four chains a row, by input mod 4. */
DUET_INLINE void float_tile_rows(const uint32_t R, const int is_f16, const duet_matmul_args *a, uint32_t tile,
                                 uint32_t row) {
  const uint8_t *w = a->tiles + (size_t)tile * a->tile_step * a->tile_bytes;
  const size_t input_bytes = is_f16 ? 32 : 64;
  const float *x[DUET_FLOAT_ROWS];
  x16 c[DUET_FLOAT_ROWS][4];
  for (uint32_t r = 0; r < R; r++) {
    x[r] = a->x + matmul_row(a, row + r) * a->x_stride;
    c[r][0] = c[r][1] = c[r][2] = c[r][3] = x16_zero();
  }
  for (uint32_t k = 0; k < a->column_count; k += 4, w += 4 * input_bytes) {
    for (uint32_t j = 0; j < 4; j++) {
      const x16 wk = is_f16 ? x16_load_f16(w + j * input_bytes) : x16_load((const float *)(const void *)(w + j * 64));
      for (uint32_t r = 0; r < R; r++) c[r][j] = x16_fma(wk, x16_set1(x[r][k + j]), c[r][j]);
    }
  }
  for (uint32_t r = 0; r < R; r++) {
    x16 y = x16_add(x16_add(c[r][0], c[r][1]), x16_add(c[r][2], c[r][3]));
    if (a->bias) y = x16_add(y, x16_load(a->bias + (size_t)tile * 16));
    x16_store(a->out + (row + r) * a->out_stride + (size_t)tile * 16, y);
  }
}

DUET_INLINE void float_matmul(const int is_f16, const duet_matmul_args *a) {
  for (uint32_t tile = 0; tile < a->tile_count; tile++) {
    uint32_t row = 0;
    for (; row + DUET_FLOAT_ROWS <= a->row_count; row += DUET_FLOAT_ROWS) {
      float_tile_rows(DUET_FLOAT_ROWS, is_f16, a, tile, row);
    }
#if DUET_FLOAT_ROWS > 2
    for (; row + 2 <= a->row_count; row += 2) float_tile_rows(2, is_f16, a, tile, row);
#endif
    for (; row < a->row_count; row++) float_tile_rows(1, is_f16, a, tile, row);
  }
}

static void matmul_f16(const duet_matmul_args *a) { float_matmul(1, a); }
static void matmul_f32(const duet_matmul_args *a) { float_matmul(0, a); }

/* The table of a unit that has also defined matmul_q8 and matmul_q4. */
#define DUET_KERNEL_TABLE(ISA)                                            \
  static const duet_kernel_table table = {                                \
      .isa = ISA,                                                         \
      .quantise_row = quantise_row,                                       \
      .matmul = {matmul_f32, matmul_f16, matmul_q8, matmul_q4},           \
      .rms_norm_row = rms_norm_row,                                       \
      .exchange_add_row = exchange_add_row,                               \
      .swiglu_row = swiglu_row,                                           \
      .scaled_add_row = scaled_add_row,                                   \
      .exp_sum_row = exp_sum_row,                                         \
      .max_row = max_row,                                                 \
      .attention = attention,                                             \
  }
