/* The plain twins: every entry of the kernel table in portable C, written straight from docs/arithmetic.md.
 *
 * They are the bitwise oracle of all fast kernels, so clarity comes before speed; inner loops run over the 16 rows of a
 * rowTile (or the 32 tokens of a kvBlock) only so that a compiler can vectorise them without changing an order of operations.
 */
#include "duet-math.h"
#include "internal.h"

#include <string.h>

#define PAIR_BYTES_Q4 576u        /* two quantBlocks of 16 rows: fp16 scale[2][16], then 2 x 256 bytes */
#define PAIR_BYTES_Q8 1088u       /* two quantBlocks of 16 rows: fp16 scale[2][16], then 2 x 512 bytes */
#define SCALE_BYTES 64u

static inline int is_finite(float x) { return (duet_f32_bits(x) & 0x7f800000u) != 0x7f800000u; }
static inline float magnitude(float x) { return duet_f32_from_bits(duet_f32_bits(x) & 0x7fffffffu); }

/* ---- rule 2 ------------------------------------------------------------------------------------------------------ */

static int plain_quantise_row(const float *x, uint32_t columns, uint32_t padded_columns, int8_t *q, float *scales, int32_t *sums) {
  int is_bad = 0;
  for (uint32_t first = 0; first < padded_columns; first += DUET_QUANT_BLOCK) {
    uint32_t block = first / DUET_QUANT_BLOCK;
    uint32_t n = first >= columns ? 0 : duet_min_u32(columns - first, DUET_QUANT_BLOCK);
    float m = 0;
    int is_block_finite = 1;
    for (uint32_t i = 0; i < n; i++) {
      float a = magnitude(x[first + i]);
      is_block_finite &= is_finite(a);
      m = a > m ? a : m;
    }
    float r = m > 0 && is_block_finite ? 127.0f / m : 0.0f;
    is_bad |= !is_block_finite;
    memset(q + first, 0, DUET_QUANT_BLOCK);
    scales[block] = 0;
    sums[block] = 0;
    if (r == 0 || !is_finite(r)) continue;
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i++) {
      int32_t value = duet_rne_i32(x[first + i] * r);
      value = value > 127 ? 127 : value < -127 ? -127 : value;
      q[first + i] = (int8_t)value;
      sum += value;
    }
    scales[block] = m / 127.0f;
    sums[block] = sum;
  }
  return is_bad;
}

/* ---- rules 3 and 4: matrices ------------------------------------------------------------------------------------- */

static inline uint16_t load_u16(const uint8_t *p) {
  uint16_t value;
  memcpy(&value, p, sizeof value);
  return value;
}

static inline size_t activation_row(const duet_matmul_args *args, uint32_t row) {
  return args->row_index != NULL ? args->row_index[row] : row;
}

static void store_tile(const duet_matmul_args *args, uint32_t tile, uint32_t row, const float *acc) {
  float *out = args->out + row * args->out_stride + (size_t)tile * DUET_TILE_ROWS;
  const float *bias = args->bias == NULL ? NULL : args->bias + (size_t)tile * DUET_TILE_ROWS;
  for (uint32_t i = 0; i < DUET_TILE_ROWS; i++) out[i] = bias == NULL ? acc[i] : acc[i] + bias[i];
}

/* Sum of (weight - zero point) x q over one quantBlock, for the 16 rows. */
static inline void block_dot_q4(const uint8_t *bytes, const int8_t *q, int32_t *dot) {
  for (uint32_t c = 0; c < 4; c++) {
    for (uint32_t row = 0; row < DUET_TILE_ROWS; row++) {
      int32_t sum = 0;
      for (uint32_t i = 0; i < 4; i++) {
        int32_t byte = bytes[c * 64 + row * 4 + i];
        sum += ((byte & 15) - 8) * q[8 * c + i] + ((byte >> 4) - 8) * q[8 * c + 4 + i];
      }
      dot[row] += sum;
    }
  }
}

static inline void block_dot_q8(const uint8_t *bytes, const int8_t *q, int32_t *dot) {
  for (uint32_t c = 0; c < 8; c++) {
    for (uint32_t row = 0; row < DUET_TILE_ROWS; row++) {
      int32_t sum = 0;
      for (uint32_t i = 0; i < 4; i++) sum += ((int32_t)bytes[c * 64 + row * 4 + i] - 128) * q[4 * c + i];
      dot[row] += sum;
    }
  }
}

static inline void matmul_integer(const duet_matmul_args *args, size_t pair_bytes, size_t block_bytes, int is_q4) {
  const duet_quantised_rows *qx = &args->qx;
  for (uint32_t tile = 0; tile < args->tile_count; tile++) {
    const uint8_t *weights = args->tiles + (size_t)tile * args->tile_step * args->tile_bytes;
    for (uint32_t row = 0; row < args->row_count; row++) {
      size_t x_row = activation_row(args, row);
      const int8_t *q = qx->q + x_row * qx->stride;
      const float *scales = qx->scales + x_row * (qx->stride / DUET_QUANT_BLOCK);
      float acc[DUET_TILE_ROWS] = {0};
      for (uint32_t block = 0; block < args->column_count / DUET_QUANT_BLOCK; block++) {
        const uint8_t *pair = weights + (block / 2) * pair_bytes;
        const uint8_t *bytes = pair + SCALE_BYTES + (block % 2) * block_bytes;
        int32_t dot[DUET_TILE_ROWS] = {0};
        if (is_q4) block_dot_q4(bytes, q + block * DUET_QUANT_BLOCK, dot);
        else block_dot_q8(bytes, q + block * DUET_QUANT_BLOCK, dot);
        for (uint32_t i = 0; i < DUET_TILE_ROWS; i++) {
          float w = duet_f16_to_f32(load_u16(pair + (block % 2) * 32 + i * 2));
          acc[i] = duet_fmaf((float)dot[i], w * scales[block], acc[i]);
        }
      }
      store_tile(args, tile, row, acc);
    }
  }
}

static void plain_matmul_q4(const duet_matmul_args *args) { matmul_integer(args, PAIR_BYTES_Q4, 256, 1); }
static void plain_matmul_q8(const duet_matmul_args *args) { matmul_integer(args, PAIR_BYTES_Q8, 512, 0); }

static inline void matmul_float(const duet_matmul_args *args, int is_f16) {
  for (uint32_t tile = 0; tile < args->tile_count; tile++) {
    const uint8_t *weights = args->tiles + (size_t)tile * args->tile_step * args->tile_bytes;
    for (uint32_t row = 0; row < args->row_count; row++) {
      const float *x = args->x + activation_row(args, row) * args->x_stride;
      float chain[4][DUET_TILE_ROWS] = {{0}};
      for (uint32_t k = 0; k < args->column_count; k++) {
        float *c = chain[k % 4];
        if (is_f16) {
          const uint8_t *w = weights + (size_t)k * DUET_TILE_ROWS * 2;
          for (uint32_t i = 0; i < DUET_TILE_ROWS; i++) c[i] = duet_fmaf(duet_f16_to_f32(load_u16(w + i * 2)), x[k], c[i]);
        } else {
          float w[DUET_TILE_ROWS];
          memcpy(w, weights + (size_t)k * DUET_TILE_ROWS * 4, sizeof w);
          for (uint32_t i = 0; i < DUET_TILE_ROWS; i++) c[i] = duet_fmaf(w[i], x[k], c[i]);
        }
      }
      float acc[DUET_TILE_ROWS];
      for (uint32_t i = 0; i < DUET_TILE_ROWS; i++) acc[i] = (chain[0][i] + chain[1][i]) + (chain[2][i] + chain[3][i]);
      store_tile(args, tile, row, acc);
    }
  }
}

static void plain_matmul_f16(const duet_matmul_args *args) { matmul_float(args, 1); }
static void plain_matmul_f32(const duet_matmul_args *args) { matmul_float(args, 0); }

/* ---- rule 4: sums over a row, and what is made of them ----------------------------------------------------------- */

static float fold_lanes(float *lane) {
  for (uint32_t width = 8; width >= 1; width /= 2)
    for (uint32_t i = 0; i < width; i++) lane[i] = lane[i] + lane[i + width];
  return lane[0];
}

static void plain_rms_norm_row(const float *x, const float *weight, uint32_t n, float eps, float *y) {
  float lane[16] = {0};
  for (uint32_t k = 0; k < n; k++) lane[k % 16] = duet_fmaf(x[k], x[k], lane[k % 16]);
  float sum = fold_lanes(lane);
  float factor = 1.0f / __builtin_sqrtf(sum / (float)n + eps);
  for (uint32_t k = 0; k < n; k++) y[k] = (x[k] * factor) * weight[k];
}

static float plain_exp_sum_row(const float *logits, uint32_t n, float max, float *e) {
  float lane[16] = {0};
  for (uint32_t k = 0; k < n; k++) {
    e[k] = duet_expf(logits[k] - max);
    lane[k % 16] = lane[k % 16] + e[k];
  }
  return fold_lanes(lane);
}

static float plain_max_row(const float *x, uint32_t n) {
  float max = x[0];
  for (uint32_t k = 1; k < n; k++) max = x[k] > max ? x[k] : max;
  return max;
}

/* ---- rule 7 and the small ones ----------------------------------------------------------------------------------- */

static void plain_exchange_add_row(float *h, const float *p0, const float *p1, uint32_t n) {
  for (uint32_t k = 0; k < n; k++) h[k] = h[k] + (p0[k] + p1[k]);
}

static void plain_swiglu_row(const float *gu, uint32_t n, float *act) {
  for (uint32_t k = 0; k < n; k++) {
    const float *pair = gu + (size_t)(k / DUET_TILE_ROWS) * 2 * DUET_TILE_ROWS;
    float g = pair[k % DUET_TILE_ROWS];
    float u = pair[DUET_TILE_ROWS + k % DUET_TILE_ROWS];
    act[k] = (g / (1.0f + duet_expf(-g))) * u;
  }
}

static void plain_scaled_add_row(float *y, const float *x, float weight, uint32_t n) {
  for (uint32_t k = 0; k < n; k++) y[k] = duet_fmaf(weight, x[k], y[k]);
}

/* ---- rule 5: attention ------------------------------------------------------------------------------------------- */

/* n elements of the KV type as float32; int8 ones times scale. */
static inline void load_kv(const uint8_t *from, uint32_t kv_type, uint32_t n, float scale, float *to) {
  if (kv_type == DUET_KV_F32) {
    memcpy(to, from, n * sizeof *to);
  } else if (kv_type == DUET_KV_F16) {
    for (uint32_t i = 0; i < n; i++) to[i] = duet_f16_to_f32(load_u16(from + i * 2));
  } else {
    for (uint32_t i = 0; i < n; i++) to[i] = (float)(int8_t)from[i] * scale;
  }
}

static inline const float *scale_row(const float *base, size_t byte_offset) {
  return (const float *)(const void *)((const uint8_t *)base + byte_offset);
}

static const uint8_t element_bytes[] = {[DUET_KV_F16] = 2, [DUET_KV_INT8] = 1, [DUET_KV_F32] = 4};

/* scores[p] = q . k[p] for the n tokens of one kvBlock. */
static void block_scores(const duet_attention_args *args, const float *q, size_t block_offset, uint32_t n, float *scores) {
  const uint8_t *k = args->k_base + block_offset;
  const size_t k_row_bytes = DUET_KV_BLOCK_TOKENS * (size_t)element_bytes[args->kv_type];
  for (uint32_t t = 0; t < n; t++) scores[t] = 0;
  for (uint32_t d = 0; d < args->head_dim; d++) {
    float row[DUET_KV_BLOCK_TOKENS];
    load_kv(k + d * k_row_bytes, args->kv_type, n, 1.0f, row);
    if (args->kv_type == DUET_KV_INT8) {
      const float *k_scales = scale_row(args->k_scales, block_offset);
      for (uint32_t t = 0; t < n; t++) row[t] = row[t] * k_scales[t];
    }
    for (uint32_t t = 0; t < n; t++) scores[t] = duet_fmaf(q[d], row[t], scores[t]);
  }
}

/* o[d] += e[t] * v[t][d] over the n tokens of one kvBlock, in order. */
static void block_values(const duet_attention_args *args, const float *e, size_t block_offset, uint32_t n, float *v_row, float *o) {
  const size_t v_row_bytes = args->head_dim * (size_t)element_bytes[args->kv_type];
  for (uint32_t t = 0; t < n; t++) {
    float scale = args->kv_type == DUET_KV_INT8 ? scale_row(args->v_scales, block_offset)[t] : 1.0f;
    load_kv(args->v_base + block_offset + t * v_row_bytes, args->kv_type, args->head_dim, scale, v_row);
    for (uint32_t d = 0; d < args->head_dim; d++) o[d] = duet_fmaf(e[t], v_row[d], o[d]);
  }
}

static void attend_one_head(const duet_attention_args *args, const float *q, float *out) {
  const uint32_t head_dim = args->head_dim;
  float *scores = args->scratch;                    /* [chunk] */
  float *o = scores + DUET_ATTN_CHUNK;              /* [head_dim] */
  float *v_row = o + head_dim;                      /* [head_dim] */
  float m_acc = 0, l_acc = 0;
  for (uint32_t first = 0; first < args->key_count; first += DUET_ATTN_CHUNK) {
    uint32_t chunk = duet_min_u32(args->key_count - first, DUET_ATTN_CHUNK);
    for (uint32_t t = 0; t < chunk; t += DUET_KV_BLOCK_TOKENS) {
      size_t block = (size_t)args->block_table[(first + t) / DUET_KV_BLOCK_TOKENS] * args->block_stride;
      block_scores(args, q, block, duet_min_u32(chunk - t, DUET_KV_BLOCK_TOKENS), scores + t);
    }
    float m = plain_max_row(scores, chunk);
    float l = 0;
    for (uint32_t t = 0; t < chunk; t++) {
      scores[t] = duet_expf(scores[t] - m);
      l = l + scores[t];
    }
    for (uint32_t d = 0; d < head_dim; d++) o[d] = 0;
    for (uint32_t t = 0; t < chunk; t += DUET_KV_BLOCK_TOKENS) {
      size_t block = (size_t)args->block_table[(first + t) / DUET_KV_BLOCK_TOKENS] * args->block_stride;
      block_values(args, scores + t, block, duet_min_u32(chunk - t, DUET_KV_BLOCK_TOKENS), v_row, o);
    }
    if (first == 0) {
      m_acc = m;
      l_acc = l;
      memcpy(out, o, head_dim * sizeof *out);
      continue;
    }
    float m_both = m_acc > m ? m_acc : m;
    float f_acc = duet_expf(m_acc - m_both);
    float f_chunk = duet_expf(m - m_both);
    l_acc = duet_fmaf(l, f_chunk, l_acc * f_acc);
    for (uint32_t d = 0; d < head_dim; d++) out[d] = duet_fmaf(o[d], f_chunk, out[d] * f_acc);
    m_acc = m_both;
  }
  for (uint32_t d = 0; d < head_dim; d++) out[d] = out[d] / l_acc;
}

static void plain_attention(const duet_attention_args *args) {
  duet_attention_args row = *args;
  for (uint32_t r = 0; r < args->row_count; r++, row.key_count++) {
    for (uint32_t head = 0; head < args->query_head_count; head++) {
      size_t offset = (size_t)head * args->head_dim;
      attend_one_head(&row, args->q + r * args->q_stride + offset, args->out + r * args->out_stride + offset);
    }
  }
}

static const duet_kernel_table plain_table = {
  .isa = DUET_ISA_PLAIN,
  .quantise_row = plain_quantise_row,
  .matmul = {[DUET_QUANT_F32] = plain_matmul_f32, [DUET_QUANT_F16] = plain_matmul_f16, [DUET_QUANT_Q8] = plain_matmul_q8, [DUET_QUANT_Q4] = plain_matmul_q4},
  .rms_norm_row = plain_rms_norm_row,
  .exchange_add_row = plain_exchange_add_row,
  .swiglu_row = plain_swiglu_row,
  .scaled_add_row = plain_scaled_add_row,
  .exp_sum_row = plain_exp_sum_row,
  .max_row = plain_max_row,
  .attention = plain_attention,
};

const duet_kernel_table *duet_kernels_plain(void) { return &plain_table; }
