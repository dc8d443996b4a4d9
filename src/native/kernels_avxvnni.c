/* The kernel table for AVX2 with AVX-VNNI: kernels-256.h with integer products by vpdpbusd.
 *
 * With DUET_AVXVNNI_AS_EVEX (tests only) the same source uses AVX-512's 256-bit form, so that a machine without AVX-VNNI can
 * compare its bits.
 */
#if defined(__x86_64__)
#include <immintrin.h>

#define DUET_HAS_DPBUSD 1
#if defined(DUET_AVXVNNI_AS_EVEX)
#define DUET_DPBUSD _mm256_dpbusd_epi32
#else
#define DUET_DPBUSD _mm256_dpbusd_avx_epi32
#endif

#include "kernels-256.h"

DUET_KERNEL_TABLE(DUET_ISA_AVXVNNI);

const duet_kernel_table *duet_kernels_avxvnni(void) {
  __builtin_cpu_init();
#if defined(DUET_AVXVNNI_AS_EVEX)
  const int can_run = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
#else
  const int can_run = __builtin_cpu_supports("avxvnni") && __builtin_cpu_supports("avx2") &&
                      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return can_run ? &table : 0;
}
#endif
