/* Speed of one kernel table on one core: q4 and q8 decode from L2 and from DRAM, integer throughput for batched rows against
 * the measured peak of the product instruction, and attention. Owns its operands and its clock; judges nothing.
 *
 * Usage: kernel-bench avx512|avxvnni|avx2|plain. Times are the best of several runs in CPU time of this thread, so that
 * other processes disturb them little. Prints one JSON object a line; built and shown by scripts/kernel-bench.ts.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernel-table.h"

#define COLUMNS 2048u
#define ROWS_MAX 64u
#define L2_BYTES (512u << 10)
#define DRAM_BYTES ((size_t)384 << 20)

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t state = 88172645463325252u;
static uint64_t random_u64(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

static void *make(size_t bytes) {
  void *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (!p) {
    fprintf(stderr, "kernel-bench: no memory for %zu bytes\n", bytes);
    exit(1);
  }
  memset(p, 0, (bytes + 4095) / 4096 * 4096);
  return p;
}

/* rowTiles of random weights with the scale 2^-7. */
static void fill_tiles(uint8_t *tiles, size_t bytes, int is_q4) {
  const size_t pair_bytes = is_q4 ? 576 : 1088;
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    const uint64_t x = random_u64() | 0x0101010101010101u; /* q8: never -128 */
    memcpy(tiles + i, &x, 8);
  }
  for (size_t pair = 0; pair + pair_bytes <= bytes; pair += pair_bytes) {
    for (size_t i = 0; i < 32; i++) memcpy(tiles + pair + 2 * i, &(uint16_t){0x2000}, 2);
  }
}

#if defined(__x86_64__)
/* 16 independent chains; 64 multiply-adds each. */
__attribute__((target("avx512f,avx512vnni"))) static double peak_avx512(long loops) {
  const __m512i w = _mm512_set1_epi8(3);
  __m512i a0 = w, a1 = w, a2 = w, a3 = w, a4 = w, a5 = w, a6 = w, a7 = w;
  __m512i b0 = w, b1 = w, b2 = w, b3 = w, b4 = w, b5 = w, b6 = w, b7 = w;
  const double start = now();
#define DOT(x) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(x) : "v"(w))
  for (long i = 0; i < loops; i++) {
    DOT(a0); DOT(a1); DOT(a2); DOT(a3); DOT(a4); DOT(a5); DOT(a6); DOT(a7);
    DOT(b0); DOT(b1); DOT(b2); DOT(b3); DOT(b4); DOT(b5); DOT(b6); DOT(b7);
  }
  return (double)loops * 16 * 128 / (now() - start) * 1e-9;
}
/* The same for vpmaddubsw + vpmaddwd + vpaddd, what AVX2 has. */
__attribute__((target("avx2"))) static double peak_avx2(long loops) {
  const __m256i w = _mm256_set1_epi8(3);
  __m256i a[8], t[8];
  for (int i = 0; i < 8; i++) a[i] = w;
  const double start = now();
  for (long i = 0; i < loops; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
      __asm__ volatile("vpmaddubsw %2, %2, %1\n\tvpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0"
                       : "+x"(a[j]), "=&x"(t[j]) : "x"(w));
    }
  }
  return (double)loops * 8 * 64 / (now() - start) * 1e-9;
}
#endif

static double peak_gops(uint32_t isa) {
  double best = 0;
#if defined(__x86_64__)
  for (int run = 0; run < 5; run++) {
    const double gops = isa == DUET_ISA_AVX512 ? peak_avx512(1000000) : isa == DUET_ISA_AVX2 ? peak_avx2(1000000) : 0;
    if (gops > best) best = gops;
  }
#endif
  return best;
}

/* Seconds of one call, the best of several runs of at least 20 ms. */
static double time_matmul(const duet_kernel_table *table, int type, const duet_matmul_args *args, int runs) {
  double best = 1e9;
  for (int run = 0; run < runs; run++) {
    long calls = 0;
    const double start = now();
    double spent;
    do {
      table->matmul[type](args);
      calls++;
      spent = now() - start;
    } while (spent < 0.02);
    if (spent / (double)calls < best) best = spent / (double)calls;
  }
  return best;
}

static void bench_matmul(const duet_kernel_table *table, double peak) {
  float *x = make(sizeof(float) * ROWS_MAX * COLUMNS);
  int8_t *q = make((size_t)ROWS_MAX * COLUMNS);
  float *scales = make(sizeof(float) * ROWS_MAX * COLUMNS / 32);
  int32_t *sums = make(sizeof(int32_t) * ROWS_MAX * COLUMNS / 32);
  for (uint32_t r = 0; r < ROWS_MAX; r++) {
    for (uint32_t k = 0; k < COLUMNS; k++) x[r * COLUMNS + k] = (float)((double)(random_u64() >> 40) * 0x1p-23 - 1);
    table->quantise_row(x + r * COLUMNS, COLUMNS, COLUMNS, q + r * COLUMNS, scales + r * COLUMNS / 32,
                        sums + r * COLUMNS / 32);
  }
  uint8_t *tiles = make(DRAM_BYTES);
  for (int is_q4 = 1; is_q4 >= 0; is_q4--) {
    const int type = is_q4 ? DUET_QUANT_Q4 : DUET_QUANT_Q8;
    const size_t tile_bytes = (size_t)COLUMNS / 64 * (is_q4 ? 576 : 1088);
    fill_tiles(tiles, DRAM_BYTES / tile_bytes * tile_bytes, is_q4);
    duet_matmul_args args = {.tiles = tiles, .tile_bytes = tile_bytes, .tile_step = 1, .column_count = COLUMNS,
                             .qx = {q, scales, sums, COLUMNS}, .row_count = 1};
    for (int is_dram = 0; is_dram < 2; is_dram++) {
      args.tile_count = (uint32_t)((is_dram ? DRAM_BYTES : L2_BYTES) / tile_bytes);
      args.out_stride = args.tile_count * 16;
      args.out = make(sizeof(float) * args.out_stride);
      const double seconds = time_matmul(table, type, &args, is_dram ? 5 : 10);
      printf("{\"what\":\"decode\",\"quant\":\"%s\",\"from\":\"%s\",\"GBps\":%.1f}\n", is_q4 ? "q4" : "q8",
             is_dram ? "DRAM" : "L2", (double)args.tile_count * (double)tile_bytes / seconds * 1e-9);
      free(args.out);
    }
    args.tile_count = (uint32_t)(L2_BYTES / tile_bytes);
    args.out_stride = args.tile_count * 16;
    args.out = make(sizeof(float) * args.out_stride * ROWS_MAX);
    for (uint32_t rows = 1; rows <= ROWS_MAX; rows *= 2) {
      args.row_count = rows;
      const double seconds = time_matmul(table, type, &args, 7);
      const double gops = 2.0 * rows * COLUMNS * 16 * args.tile_count / seconds * 1e-9;
      printf("{\"what\":\"rows\",\"quant\":\"%s\",\"rows\":%u,\"GOPS\":%.1f,\"shareOfPeak\":%.3f}\n", is_q4 ? "q4" : "q8",
             rows, gops, peak > 0 ? gops / peak : 0);
    }
    free(args.out);
  }
  free(x);
  free(q);
  free(scales);
  free(sums);
  free(tiles);
}

static void bench_attention(const duet_kernel_table *table) {
  enum { HEADS = 4, KEYS = 2048, BLOCKS = KEYS / 32 };
  static const char *const names[] = {"f16", "int8", "f32"};
  static const size_t element_bytes[] = {2, 1, 4};
  for (uint32_t head_dim = 64; head_dim <= 128; head_dim *= 2) {
    for (uint32_t type = 0; type < 3; type++) {
      const size_t half = 32 * head_dim * element_bytes[type];
      const size_t stride = 2 * half + 256;
      uint8_t *kv = make(stride * BLOCKS);
      for (size_t i = 0; i < stride * BLOCKS; i++) kv[i] = (uint8_t)(random_u64() & 0x3f);
      int32_t table_of_blocks[BLOCKS];
      for (int b = 0; b < BLOCKS; b++) {
        table_of_blocks[b] = b;
        float *s = (float *)(void *)(kv + stride * (size_t)b + 2 * half);
        for (int i = 0; i < 64; i++) s[i] = 0.01f;
        if (type == DUET_KV_F32) {
          for (size_t i = 0; i < 2 * half / 4; i++) ((float *)(void *)(kv + stride * (size_t)b))[i] = 0.5f;
        }
      }
      float *q = make(sizeof(float) * HEADS * head_dim);
      float *out = make(sizeof(float) * HEADS * head_dim);
      float *scratch = make(sizeof(float) * DUET_ATTENTION_SCRATCH(HEADS, head_dim));
      for (uint32_t i = 0; i < HEADS * head_dim; i++) q[i] = 0.01f * (float)(i % 7);
      const duet_attention_args args = {.q = q, .out = out, .query_head_count = HEADS, .head_dim = head_dim,
                                        .key_count = KEYS, .kv_type = type, .block_table = table_of_blocks,
                                        .k_base = kv, .v_base = kv + half,
                                        .k_scales = (const float *)(const void *)(kv + 2 * half),
                                        .v_scales = (const float *)(const void *)(kv + 2 * half) + 32,
                                        .block_stride = stride, .scratch = scratch};
      double best = 1e9;
      for (int run = 0; run < 7; run++) {
        long calls = 0;
        const double start = now();
        double spent;
        do {
          table->attention(&args);
          calls++;
          spent = now() - start;
        } while (spent < 0.01);
        if (spent / (double)calls < best) best = spent / (double)calls;
      }
      printf("{\"what\":\"attention\",\"kv\":\"%s\",\"headDim\":%u,\"queryHeads\":%d,\"keys\":%d,\"GFLOPS\":%.1f,"
             "\"usPerRow\":%.2f}\n", names[type], head_dim, HEADS, KEYS,
             4.0 * HEADS * KEYS * head_dim / best * 1e-9, best * 1e6);
      free(kv);
      free(q);
      free(out);
      free(scratch);
    }
  }
}

int main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "";
  const duet_kernel_table *table = 0;
#if defined(__x86_64__)
  if (strcmp(name, "avx512") == 0) table = duet_kernels_avx512();
  if (strcmp(name, "avxvnni") == 0) table = duet_kernels_avxvnni();
  if (strcmp(name, "avx2") == 0) table = duet_kernels_avx2();
#elif defined(__aarch64__)
  if (strcmp(name, "neon") == 0) table = duet_kernels_neon();
#endif
  if (strcmp(name, "plain") == 0) table = duet_kernels_plain();
  if (!table) {
    fprintf(stderr, "kernel-bench: this CPU or this build has no kernel table \"%s\"\n", name);
    return 2;
  }
  const double peak = peak_gops(table->isa);
  printf("{\"what\":\"peak\",\"isa\":\"%s\",\"GOPS\":%.1f}\n", name, peak);
  bench_matmul(table, peak);
  bench_attention(table);
  return 0;
}
