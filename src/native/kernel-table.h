/* The functions that differ per instruction set. Each unit (kernels_plain.c, kernels_avx2.c, kernels_avx512.c, ...) fills one
 * table; the executor only ever calls through it. Every entry equals the plain twin bit for bit (docs/arithmetic.md).
 *
 * Rows: activations are row-major with a stride in elements. `row_index` (may be null) gathers: logical row r reads
 * activation row row_index[r]. Outputs are written to logical row r of `out`. Padded columns of quantised rows are zero.
 */
#ifndef DUET_KERNEL_TABLE_H
#define DUET_KERNEL_TABLE_H

#include "kernels.h"

/* The int8 form of rows: q[row][stride], scales and sums [row][stride / 32]. stride is a multiple of 64; 64-byte aligned. */
typedef struct duet_quantised_rows {
  const int8_t *q;
  const float *scales;
  const int32_t *sums;
  size_t stride;
} duet_quantised_rows;

typedef struct duet_matmul_args {
  const uint8_t *tiles;           /* first rowTile */
  size_t tile_bytes;              /* bytes of one rowTile */
  size_t tile_step;               /* in rowTiles, from one taken tile to the next (1; 2 walks gate or up alone) */
  uint32_t tile_count;
  uint32_t column_count;          /* padded to 64 */
  const float *x;                 /* f16, f32: [row][x_stride], zero beyond the unpadded columns */
  size_t x_stride;
  duet_quantised_rows qx;         /* q4, q8 */
  const uint32_t *row_index;
  uint32_t row_count;
  const float *bias;              /* [tile_count * 16] (padded reads allowed) or null */
  float *out;                     /* [row][out_stride]; 16 * tile_count floats per row are written */
  size_t out_stride;
} duet_matmul_args;

/* Query rows of one sequence at consecutive positions against its KV, for one KV head of one die and layer. */
typedef struct duet_attention_args {
  const float *q;                 /* [row][q_stride]: [query_head_count][head_dim] rotated and scaled; heads that share this KV head */
  float *out;                     /* [row][out_stride]: [query_head_count][head_dim] */
  size_t q_stride;
  size_t out_stride;
  uint32_t row_count;             /* at most DUET_ATTENTION_ROWS */
  uint32_t query_head_count;
  uint32_t head_dim;
  uint32_t key_count;             /* of the first row: its position + 1; each row sees one key more */
  uint32_t kv_type;
  const int32_t *block_table;
  const uint8_t *k_base;          /* this layer, die and KV head within block 0: [head_dim][32] elements */
  const uint8_t *v_base;          /* [32][head_dim] */
  const float *k_scales;          /* int8 only: [32] within block 0 */
  const float *v_scales;
  size_t block_stride;            /* bytes from a block to the next, for all four */
  float *scratch;                 /* DUET_ATTENTION_SCRATCH(row_count * query_head_count, head_dim) floats, 64-byte aligned */
} duet_attention_args;

#define DUET_ATTENTION_ROWS 8u
#define DUET_ATTENTION_SCRATCH(queries, head_dim) ((size_t)(queries) * (DUET_ATTN_CHUNK + 3 * (size_t)(head_dim) + 32))

typedef struct duet_kernel_table {
  uint32_t isa;
  /* Rule 2. columns is unpadded; q, scales and sums are written to padded_columns. Returns non-zero for a non-finite input. */
  int (*quantise_row)(const float *x, uint32_t columns, uint32_t padded_columns, int8_t *q, float *scales, int32_t *sums);
  /* Rules 3 and 4, by duet_quant_type. */
  void (*matmul[4])(const duet_matmul_args *args);
  /* y = rmsNorm(x) * weight, rule 4. */
  void (*rms_norm_row)(const float *x, const float *weight, uint32_t n, float eps, float *y);
  /* h = h + (p0 + p1) */
  void (*exchange_add_row)(float *h, const float *p0, const float *p1, uint32_t n);
  /* Rule 7 over gate-up pairs: gu is [tile pair][16 gate, 16 up], act gets n = dim values. */
  void (*swiglu_row)(const float *gu, uint32_t n, float *act);
  /* y = fma(weight, x, y) */
  void (*scaled_add_row)(float *y, const float *x, float weight, uint32_t n);
  /* Rule 6: e_i = exp(logit_i - max), returns the sum; scores are divided by the caller. */
  float (*exp_sum_row)(const float *logits, uint32_t n, float max, float *e);
  float (*max_row)(const float *x, uint32_t n);
  void (*attention)(const duet_attention_args *args);
} duet_kernel_table;

/* Null when this build or this CPU cannot run it. */
const duet_kernel_table *duet_kernels_plain(void);
const duet_kernel_table *duet_kernels_avx2(void);
const duet_kernel_table *duet_kernels_avxvnni(void);
const duet_kernel_table *duet_kernels_avx512(void);
const duet_kernel_table *duet_kernels_neon(void);

#endif
