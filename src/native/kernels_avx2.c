/* The kernel table for AVX2, FMA and F16C: kernels-256.h with integer products by vpmaddubsw. */
#if defined(__x86_64__)
#define DUET_HAS_DPBUSD 0
#include "kernels-256.h"

DUET_KERNEL_TABLE(DUET_ISA_AVX2);

const duet_kernel_table *duet_kernels_avx2(void) {
  __builtin_cpu_init();
  const int can_run =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return can_run ? &table : 0;
}
#endif
