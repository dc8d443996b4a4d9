/* Compares a kernel table with the plain twin, bit for bit, over random shapes and extreme values.
 *
 * Usage: twin-test avx512|avxvnni|avx2|neon|plain|wrong SEED ROUNDS. Prints one JSON object: the comparisons made and the mismatches per
 * entry, and a hash of all plain outputs, which must not depend on the compiler. Exits with 2 when the table cannot run here.
 * Outputs are guarded on both sides, so that a write out of bounds is a mismatch.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "duet-math.h"
#include "kernel-table.h"

/* A program may be linked without some units. */
#pragma weak duet_kernels_avx2
#pragma weak duet_kernels_avxvnni
#pragma weak duet_kernels_avx512
#pragma weak duet_kernels_neon

enum { GUARD = 64 };

static const duet_kernel_table *plain;
static const duet_kernel_table *fast;
static uint64_t state;
static uint64_t output_hash = 14695981039346656037u;

/* ---- random operands ---- */

static uint64_t random_u64(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}
static uint32_t below(uint32_t n) { return (uint32_t)((random_u64() >> 32) * n >> 32); }
static uint32_t between(uint32_t low, uint32_t high) { return low + below(high - low + 1); }
static float random_unit(void) { return (float)(int32_t)(uint32_t)random_u64() * 0x1p-31f; }
/* A float of any exponent from low to high - 1. (Here as everywhere: one draw a statement, as C leaves the order open.) */
static float random_scaled(int low, int high) {
  const float x = random_unit();
  return ldexpf(x, low + (int)below((uint32_t)(high - low)));
}

/* Row values: mostly of one size, some rows of wild exponents, zeros, ties and signed zeros. */
static void fill_row(float *x, uint32_t n) {
  const uint32_t kind = below(6);
  for (uint32_t i = 0; i < n; i++) {
    float v = random_unit() * 4;
    if (kind == 1) v = random_scaled(-40, 21);
    if (kind == 2 && below(3) > 0) v = below(2) ? 0.0f : -0.0f;
    if (kind == 3) v = (float)((int)between(0, 254) - 127) * 0.5f;
    if (kind == 4) v = below(2) ? 127.0f : -127.0f;
    x[i] = v;
  }
  if (kind == 5) { /* a zero block and one that is too small to have a scale */
    for (uint32_t i = 0; i < n && i < 32; i++) x[i] = 0.0f;
    for (uint32_t i = 32; i < n && i < 64; i++) x[i] = random_scaled(-140, -139);
  }
}

static void *make(size_t bytes) {
  void *p = aligned_alloc(64, (bytes + 127) / 64 * 64);
  if (!p) {
    fprintf(stderr, "twin-test: no memory for %zu bytes\n", bytes);
    exit(3);
  }
  return p;
}

/* An output of n bytes between guards of a known pattern. */
static uint8_t *make_output(size_t n) {
  uint8_t *p = make(n + 2 * GUARD);
  memset(p, 0xa5, n + 2 * GUARD);
  return p + GUARD;
}

/* ---- results ---- */

typedef struct report {
  const char *name;
  long count;
  long mismatches;
} report;

enum { QUANTISE, MATMUL_F32, MATMUL_F16, MATMUL_Q8, MATMUL_Q4, RMS_NORM, EXCHANGE, SWIGLU, SCALED_ADD, EXP_SUM, MAX_ROW, ATTENTION, REPORTS };
static report reports[REPORTS] = {
    [QUANTISE] = {"quantise_row", 0, 0},      [MATMUL_F32] = {"matmul_f32", 0, 0}, [MATMUL_F16] = {"matmul_f16", 0, 0},
    [MATMUL_Q8] = {"matmul_q8", 0, 0},        [MATMUL_Q4] = {"matmul_q4", 0, 0},   [RMS_NORM] = {"rms_norm_row", 0, 0},
    [EXCHANGE] = {"exchange_add_row", 0, 0},  [SWIGLU] = {"swiglu_row", 0, 0},     [SCALED_ADD] = {"scaled_add_row", 0, 0},
    [EXP_SUM] = {"exp_sum_row", 0, 0},        [MAX_ROW] = {"max_row", 0, 0},       [ATTENTION] = {"attention", 0, 0},
};

/* Compares two guarded outputs, hashes the plain one and frees both. */
static void compare(int entry, uint8_t *p, uint8_t *f, size_t bytes, const char *shape) {
  reports[entry].count++;
  if (memcmp(p - GUARD, f - GUARD, bytes + 2 * GUARD) != 0) {
    if (reports[entry].mismatches++ < 3) {
      size_t at = 0;
      while (p[(ptrdiff_t)at - GUARD] == f[(ptrdiff_t)at - GUARD]) at++;
      fprintf(stderr, "%s differs at byte %td of %zu (%s)\n", reports[entry].name, (ptrdiff_t)at - GUARD, bytes, shape);
    }
  }
  for (size_t i = 0; i < bytes; i++) output_hash = (output_hash ^ p[i]) * 1099511628211u;
  free(p - GUARD);
  free(f - GUARD);
}

/* ---- entries ---- */

static void test_quantise(void) {
  const uint32_t columns = between(1, 300);
  const uint32_t padded = (columns + 63) / 64 * 64;
  float *x = make(sizeof(float) * columns);
  fill_row(x, columns);
  if (below(4) == 0) {
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    const uint32_t at = below(columns);
    x[at] = bad[below(4)];
  }
  const size_t bytes = padded + 8 * (padded / 32) + 4;
  uint8_t *out[2];
  for (int i = 0; i < 2; i++) {
    out[i] = make_output(bytes);
    int8_t *q = (int8_t *)out[i];
    float *scales = (float *)(void *)(out[i] + padded);
    int32_t *sums = (int32_t *)(void *)(scales + padded / 32);
    sums[padded / 32] = (i ? fast : plain)->quantise_row(x, columns, padded, q, scales, sums) != 0;
  }
  char shape[64];
  snprintf(shape, sizeof shape, "columns %u", columns);
  compare(QUANTISE, out[0], out[1], bytes, shape);
  free(x);
}

static void put_f16(uint8_t *p, float x) { memcpy(p, &(uint16_t){duet_f32_to_f16(x)}, 2); }

static void fill_tile(uint8_t *p, int type, uint32_t columns) {
  const uint32_t kind = below(5);
  if (type == DUET_QUANT_F16 || type == DUET_QUANT_F32) {
    for (uint32_t i = 0; i < columns * 16; i++) {
      const float w = kind == 0 ? random_scaled(-23, 1) : random_unit();
      if (type == DUET_QUANT_F16) put_f16(p + 2 * i, w);
      else memcpy(p + 4 * i, &w, 4);
    }
    return;
  }
  const size_t pair_bytes = type == DUET_QUANT_Q4 ? 576 : 1088;
  for (uint32_t pair = 0; pair < columns / 64; pair++, p += pair_bytes) {
    for (size_t i = 0; i < 32; i++) put_f16(p + 2 * i, kind == 0 && below(4) == 0 ? 0.0f : random_scaled(-25, 1));
    for (size_t i = 64; i < pair_bytes; i++) {
      uint8_t byte = (uint8_t)random_u64();
      if (kind == 1) byte = 0xff;
      if (kind == 2) byte = 0x00;
      if (kind == 3) byte = below(2) ? 0xff : 0x00;
      if (type == DUET_QUANT_Q8 && byte == 0) byte = 1; /* values are -127..127 */
      p[i] = byte;
    }
  }
}

static void test_matmul(int type) {
  static const uint32_t row_choices[] = {1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 64};
  const uint32_t rows = row_choices[below(13)];
  const uint32_t tiles = between(1, 5);
  const uint32_t step = between(1, 2);
  const uint32_t columns = 64 * (rows == 64 ? between(1, 4) : between(1, 16));
  const size_t tile_bytes = (size_t)columns * (type == DUET_QUANT_F32 ? 64 : type == DUET_QUANT_F16 ? 32 : type == DUET_QUANT_Q8 ? 17 : 9);
  const uint32_t activation_rows = rows + below(4);
  const uint32_t stride = columns + 64 * below(3);
  const uint32_t out_stride = tiles * 16 + 16 * below(3);
  uint8_t *weights = make(tile_bytes * tiles * step);
  for (uint32_t t = 0; t < tiles * step; t++) fill_tile(weights + t * tile_bytes, type, columns);
  float *x = make(sizeof(float) * activation_rows * stride);
  int8_t *q = make((size_t)activation_rows * stride);
  float *scales = make(sizeof(float) * activation_rows * stride / 32);
  int32_t *sums = make(sizeof(int32_t) * activation_rows * stride / 32);
  uint32_t row_index[64];
  for (uint32_t r = 0; r < rows; r++) row_index[r] = below(activation_rows);
  for (uint32_t r = 0; r < activation_rows; r++) {
    fill_row(x + r * stride, stride);
    plain->quantise_row(x + r * stride, columns, stride, q + r * stride, scales + r * stride / 32, sums + r * stride / 32);
  }
  float bias[5 * 16];
  for (uint32_t i = 0; i < 80; i++) bias[i] = random_unit();
  const int is_gathered = below(2) == 1;
  const int has_bias = below(2) == 1;
  duet_matmul_args args = {.tiles = weights, .tile_bytes = tile_bytes, .tile_step = step, .tile_count = tiles,
                           .column_count = columns, .x = x, .x_stride = stride, .qx = {q, scales, sums, stride},
                           .row_index = is_gathered ? row_index : NULL, .row_count = rows,
                           .bias = has_bias ? bias : NULL, .out_stride = out_stride};
  const size_t bytes = sizeof(float) * ((rows - 1) * out_stride + tiles * 16);
  uint8_t *out[2];
  for (int i = 0; i < 2; i++) {
    out[i] = make_output(bytes);
    args.out = (float *)(void *)out[i];
    (i ? fast : plain)->matmul[type](&args);
  }
  char shape[96];
  snprintf(shape, sizeof shape, "rows %u tiles %u step %u columns %u", rows, tiles, step, columns);
  compare(MATMUL_F32 + type, out[0], out[1], bytes, shape);
  free(weights);
  free(x);
  free(q);
  free(scales);
  free(sums);
}

static void test_rows(void) {
  const uint32_t n = between(1, 600);
  const size_t bytes = sizeof(float) * n;
  const uint32_t padded = (n + 15) / 16 * 16;
  char shape[32];
  snprintf(shape, sizeof shape, "n %u", n);
  float *a = make(bytes), *b = make(bytes), *c = make(bytes);
  float *gu = make(sizeof(float) * 2 * padded);
  fill_row(a, n);
  fill_row(b, n);
  fill_row(c, n);
  for (uint32_t i = 0; i < 2 * padded; i++) gu[i] = random_unit() * (below(8) ? 8.0f : 200.0f);
  const float weight = random_unit();
  const float max = plain->max_row(a, n);
  uint8_t *out[REPORTS][2];
  float results[2][2];
  for (int i = 0; i < 2; i++) {
    const duet_kernel_table *t = i ? fast : plain;
    for (int entry = RMS_NORM; entry <= EXP_SUM; entry++) out[entry][i] = make_output(bytes);
    t->rms_norm_row(a, b, n, 1e-6f, (float *)(void *)out[RMS_NORM][i]);
    memcpy(out[EXCHANGE][i], c, bytes);
    t->exchange_add_row((float *)(void *)out[EXCHANGE][i], a, b, n);
    t->swiglu_row(gu, n, (float *)(void *)out[SWIGLU][i]);
    memcpy(out[SCALED_ADD][i], c, bytes);
    t->scaled_add_row((float *)(void *)out[SCALED_ADD][i], a, weight, n);
    results[i][0] = t->exp_sum_row(a, n, max, (float *)(void *)out[EXP_SUM][i]);
    results[i][1] = t->max_row(a, n) + 0.0f; /* which zero is the larger one is nobody's business */
  }
  for (int entry = RMS_NORM; entry <= EXP_SUM; entry++) compare(entry, out[entry][0], out[entry][1], bytes, shape);
  reports[EXP_SUM].mismatches += memcmp(&results[0][0], &results[1][0], 4) != 0;
  reports[MAX_ROW].mismatches += memcmp(&results[0][1], &results[1][1], 4) != 0;
  reports[MAX_ROW].count++;
  free(a);
  free(b);
  free(c);
  free(gu);
}

static void test_attention(void) {
  static const uint32_t dims[] = {32, 64, 80, 128, 32, 64, 24, 8};
  static const uint32_t key_counts[] = {1, 2, 31, 32, 33, 64, 255, 256, 257, 512, 513, 600};
  static const size_t element_bytes[] = {[DUET_KV_F16] = 2, [DUET_KV_INT8] = 1, [DUET_KV_F32] = 4};
  const uint32_t type = below(3);
  const uint32_t head_dim = dims[below(8)];
  const uint32_t heads = between(1, 9);
  const uint32_t first_keys = key_counts[below(12)];
  const uint32_t rows = below(2) ? 1 : between(2, DUET_ATTENTION_ROWS);
  const uint32_t keys = first_keys + rows - 1;
  const uint32_t blocks = (keys + 31) / 32;
  const size_t half = 32 * head_dim * element_bytes[type];
  const size_t stride = 2 * half + 256 + 64 * below(3);
  uint8_t *kv = make(stride * (blocks + 2));
  const float spread = below(2) ? 1.0f : 30.0f;
  for (uint32_t b = 0; b < blocks + 2; b++) {
    uint8_t *p = kv + stride * b;
    for (size_t i = 0; i < 2 * 32 * head_dim; i++) {
      const float v = random_unit() * spread;
      if (type == DUET_KV_F16) put_f16(p + 2 * i, v);
      else if (type == DUET_KV_F32) memcpy(p + 4 * i, &v, 4);
      else p[i] = (uint8_t)(int8_t)((int)below(255) - 127);
    }
    for (uint32_t i = 0; i < 64; i++) memcpy(p + 2 * half + 4 * i, &(float){fabsf(random_unit()) * 0.1f}, 4);
  }
  /* The tokens of the last block that are not there yet hold anything. */
  for (uint32_t t = keys % 32 ? keys % 32 : 32; t < 32; t++) {
    const size_t e = element_bytes[type];
    uint8_t *last = kv + stride * (blocks - 1);
    for (uint32_t d = 0; d < head_dim; d++) memset(last + (d * 32 + t) * e, 0x7f, e);
    memset(last + half + (size_t)t * head_dim * e, 0xff, head_dim * e);
    memset(last + 2 * half + 4 * t, 0xff, 4);
    memset(last + 2 * half + 128 + 4 * t, 0xff, 4);
  }
  int32_t block_table[32];
  for (uint32_t b = 0; b < blocks; b++) block_table[b] = (int32_t)b;
  for (uint32_t b = 0; b + 1 < blocks; b++) { /* shuffled, but for the last */
    const uint32_t other = below(blocks - 1);
    const int32_t t = block_table[b];
    block_table[b] = block_table[other];
    block_table[other] = t;
  }
  const size_t q_stride = heads * head_dim + 16 * below(3), out_stride = heads * head_dim + 16 * below(3);
  float *q = make(sizeof(float) * rows * q_stride);
  for (uint32_t r = 0; r < rows; r++) fill_row(q + r * q_stride, heads * head_dim);
  float *scratch = make(sizeof(float) * DUET_ATTENTION_SCRATCH(rows * heads, head_dim));
  memset(scratch, 0xff, sizeof(float) * DUET_ATTENTION_SCRATCH(rows * heads, head_dim));
  duet_attention_args args = {.q = q, .q_stride = q_stride, .out_stride = out_stride, .row_count = rows,
                              .query_head_count = heads, .head_dim = head_dim, .key_count = first_keys,
                              .kv_type = type, .block_table = block_table, .k_base = kv, .v_base = kv + half,
                              .k_scales = (const float *)(const void *)(kv + 2 * half),
                              .v_scales = (const float *)(const void *)(kv + 2 * half + 128),
                              .block_stride = stride, .scratch = scratch};
  const size_t bytes = sizeof(float) * rows * out_stride;
  uint8_t *out[2];
  for (int i = 0; i < 2; i++) {
    out[i] = make_output(bytes);
    args.out = (float *)(void *)out[i];
    (i ? fast : plain)->attention(&args);
  }
  char shape[96];
  snprintf(shape, sizeof shape, "kv type %u rows %u heads %u head_dim %u keys %u", type, rows, heads, head_dim, first_keys);
  compare(ATTENTION, out[0], out[1], bytes, shape);
  free(kv);
  free(q);
  free(scratch);
}

/* A table with one bit wrong now and then: what the comparison must notice. */
static void wrong_scaled_add_row(float *y, const float *x, float weight, uint32_t n) {
  plain->scaled_add_row(y, x, weight, n);
  y[n / 2] = duet_f32_from_bits(duet_f32_bits(y[n / 2]) ^ 1u);
}
static duet_kernel_table wrong;

/* The scalar functions join the hash: they too must not depend on the compiler. */
static void hash_math(void) {
  for (int i = 0; i < 2000; i++) {
    const float x = random_unit() * 100;
    const double v = ((double)(uint32_t)random_u64() + 0.5) * 0x1p-32;
    double s, c;
    duet_sincos((double)x * 10000, &s, &c);
    const uint64_t bits[] = {duet_f32_bits(duet_expf(x)), duet_f64_bits(duet_log(v)), duet_f64_bits(duet_log1p(-v)),
                             duet_f64_bits(s), duet_f64_bits(c), duet_f32_to_f16(x)};
    for (int j = 0; j < 6; j++) output_hash = (output_hash ^ bits[j]) * 1099511628211u;
  }
}

int main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "";
  state = (argc > 2 ? strtoull(argv[2], NULL, 10) : 1) * 0x9e3779b97f4a7c15u | 1;
  const long rounds = argc > 3 ? strtol(argv[3], NULL, 10) : 100;
  plain = duet_kernels_plain();
  if (strcmp(name, "avx512") == 0 && duet_kernels_avx512) fast = duet_kernels_avx512();
  if (strcmp(name, "avxvnni") == 0 && duet_kernels_avxvnni) fast = duet_kernels_avxvnni();
  if (strcmp(name, "avx2") == 0 && duet_kernels_avx2) fast = duet_kernels_avx2();
  if (strcmp(name, "neon") == 0 && duet_kernels_neon) fast = duet_kernels_neon();
  if (strcmp(name, "plain") == 0) fast = plain; /* for the hash alone */
  if (strcmp(name, "wrong") == 0) {
    wrong = *plain;
    wrong.scaled_add_row = wrong_scaled_add_row;
    fast = &wrong;
  }
  if (!fast) {
    fprintf(stderr, "twin-test: this CPU or this build has no kernel table \"%s\"\n", name);
    return 2;
  }
  for (long i = 0; i < rounds; i++) {
    test_quantise();
    for (int type = 0; type < 4; type++) test_matmul(type);
    test_rows();
    test_attention();
  }
  hash_math();
  printf("{\"table\":\"%s\",\"hash\":\"%016llx\",\"entries\":{", name, (unsigned long long)output_hash);
  for (int i = 0; i < REPORTS; i++) {
    printf("%s\"%s\":{\"count\":%ld,\"mismatches\":%ld}", i ? "," : "", reports[i].name, reports[i].count, reports[i].mismatches);
  }
  printf("}}\n");
  return 0;
}
