/* The innermost loops that find a machine's limits: reading memory, int8 multiply-adds and float32 fma, one set for each
 * instruction set. They compute nothing that anybody wants. Included by roof.c alone.
 *
 * An arithmetic loop runs `loops` times over independent accumulators (16 where there are registers for them), so that the
 * units and not the latency of one instruction bind; `_OPS` is what one loop counts as: two operations a multiply-add.
 */
#ifndef DUET_ROOF_LOOPS_H
#define DUET_ROOF_LOOPS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ROOF_CHUNK 512u /* bytes that a reading loop takes at once; shares are multiples of it */
#define ROOF_PREFETCH 4096u

typedef uint64_t (*roof_read)(const uint8_t *data, size_t bytes);
typedef void (*roof_arithmetic)(uint64_t loops);

/* Two variants: `_ahead` asks for lines in advance, which pays from DRAM and costs in caches. */
#define DEFINE_READ_LOOP(name, target, vector, ahead)                                                              \
  target static uint64_t name(const uint8_t *data, size_t bytes) {                                                 \
    enum { COUNT = 8, STRIDE = (int)sizeof(vector) * COUNT };                                                      \
    vector sum[COUNT] = {{0}};                                                                                     \
    for (size_t i = 0; i < bytes; i += STRIDE) {                                                                   \
      for (int j = 0; (ahead) != 0 && j < STRIDE; j += 64) __builtin_prefetch(data + i + (ahead) + j, 0, 3);       \
      for (int j = 0; j < COUNT; j++) sum[j] ^= *(const vector *)(const void *)(data + i + j * sizeof(vector));    \
    }                                                                                                              \
    for (int j = 1; j < COUNT; j++) sum[0] ^= sum[j];                                                              \
    return sum[0][0];                                                                                              \
  }
#define DEFINE_READ(name, target, vector)             \
  DEFINE_READ_LOOP(name##_near, target, vector, 0)    \
  DEFINE_READ_LOOP(name##_ahead, target, vector, ROOF_PREFETCH)

#define TIMES_8(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7)
#define TIMES_12(M) TIMES_8(M) M(8) M(9) M(10) M(11)
#define TIMES_16(M) TIMES_12(M) M(12) M(13) M(14) M(15)

typedef uint64_t vector_16 __attribute__((vector_size(16), may_alias));
DEFINE_READ(read_16, , vector_16)

#if defined(__x86_64__)

#define TARGET_512 __attribute__((target("avx512f,avx512vnni")))
#define TARGET_256 __attribute__((target("avx2,fma")))
typedef uint64_t vector_32 __attribute__((vector_size(32), may_alias));
typedef uint64_t vector_64 __attribute__((vector_size(64), may_alias));
DEFINE_READ(read_32, TARGET_256, vector_32)
DEFINE_READ(read_64, TARGET_512, vector_64)

#define DOT_512_OPS (16u * 128u)
TARGET_512 static void dot_512(uint64_t loops) {
  const __m512i w = _mm512_set1_epi8(3);
#define DECLARE(i) __m512i a##i = w;
#define STEP(i) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(a##i) : "v"(w));
  TIMES_16(DECLARE)
  for (uint64_t i = 0; i < loops; i++) { TIMES_16(STEP) }
#undef DECLARE
#undef STEP
}

/* 12: of 16 registers, and 10 would do (5 cycles, two a cycle). */
#define DOT_VNNI_256_OPS (12u * 64u)
TARGET_256 static void dot_vnni_256(uint64_t loops) {
  const __m256i w = _mm256_set1_epi8(3);
#define DECLARE(i) __m256i a##i = w;
#define STEP(i) __asm__ volatile("%{vex%} vpdpbusd %1, %1, %0" : "+x"(a##i) : "x"(w));
  TIMES_12(DECLARE)
  for (uint64_t i = 0; i < loops; i++) { TIMES_12(STEP) }
#undef DECLARE
#undef STEP
}

/* What AVX2 has instead of a dot product. Only the last addition depends on the accumulator: 6 chains of one cycle. */
#define DOT_256_OPS (6u * 64u)
TARGET_256 static void dot_256(uint64_t loops) {
  const __m256i w = _mm256_set1_epi8(3);
#define DECLARE(i) __m256i a##i = w, t##i = w;
#define STEP(i)                                                                              \
  __asm__ volatile("vpmaddubsw %2, %2, %1\n\tvpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0"       \
                   : "+x"(a##i), "+x"(t##i)                                                  \
                   : "x"(w));
#define TIMES_6(M) M(0) M(1) M(2) M(3) M(4) M(5)
  TIMES_6(DECLARE)
  for (uint64_t i = 0; i < loops; i++) { TIMES_6(STEP) }
#undef DECLARE
#undef STEP
}

#define FMA_512_OPS (16u * 32u)
TARGET_512 static void fma_512(uint64_t loops) {
  const __m512 w = _mm512_set1_ps(0.5f);
#define DECLARE(i) __m512 a##i = w;
#define STEP(i) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(a##i) : "v"(w));
  TIMES_16(DECLARE)
  for (uint64_t i = 0; i < loops; i++) { TIMES_16(STEP) }
#undef DECLARE
#undef STEP
}

#define FMA_256_OPS (12u * 16u)
TARGET_256 static void fma_256(uint64_t loops) {
  const __m256 w = _mm256_set1_ps(0.5f);
#define DECLARE(i) __m256 a##i = w;
#define STEP(i) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(a##i) : "x"(w));
  TIMES_12(DECLARE)
  for (uint64_t i = 0; i < loops; i++) { TIMES_12(STEP) }
#undef DECLARE
#undef STEP
}

#elif defined(__aarch64__)

#include <arm_neon.h>

#define DOT_NEON_OPS (16u * 32u)
static void dot_neon(uint64_t loops) {
  const int8x16_t w = vdupq_n_s8(3);
#define DECLARE(i) int32x4_t a##i = vdupq_n_s32(3);
#define STEP(i) __asm__ volatile(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %1.16b" : "+w"(a##i) : "w"(w));
  TIMES_16(DECLARE)
  for (uint64_t i = 0; i < loops; i++) { TIMES_16(STEP) }
#undef DECLARE
#undef STEP
}

#define FMA_NEON_OPS (16u * 8u)
static void fma_neon(uint64_t loops) {
  const float32x4_t w = vdupq_n_f32(0.5f);
#define DECLARE(i) float32x4_t a##i = w;
#define STEP(i) __asm__ volatile("fmla %0.4s, %1.4s, %1.4s" : "+w"(a##i) : "w"(w));
  TIMES_16(DECLARE)
  for (uint64_t i = 0; i < loops; i++) { TIMES_16(STEP) }
#undef DECLARE
#undef STEP
}

#endif
#endif
