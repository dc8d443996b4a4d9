/* The library as a whole: its version, the thread's last error, what this CPU can run, and the choice of kernels.
 *
 * It must not run kernels. Units of other instruction sets are weak symbols: one that this build lacks is simply absent.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#pragma weak duet_kernels_avx2
#pragma weak duet_kernels_avxvnni
#pragma weak duet_kernels_avx512
#pragma weak duet_kernels_neon

#define CHECK_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "size of " #type)
CHECK_SIZE(duet_cpu_info, 144);
CHECK_SIZE(duet_tensor, 40);
CHECK_SIZE(duet_slot, 16);
CHECK_SIZE(duet_op, 48);
CHECK_SIZE(duet_shape, 96);
CHECK_SIZE(duet_model_options, 16);
CHECK_SIZE(duet_batch, 72);
CHECK_SIZE(duet_step_stats, 24);
CHECK_SIZE(duet_sample_request, 136);
CHECK_SIZE(duet_sample_result, 40);
#define CHECK_OFFSET(type, field, bytes) _Static_assert(offsetof(type, field) == (bytes), "offset of " #type "." #field)
CHECK_OFFSET(duet_cpu_info, compiler, 16);
CHECK_OFFSET(duet_tensor, quant_type, 24);
CHECK_OFFSET(duet_op, weight, 20);
CHECK_OFFSET(duet_op, reserved, 44);
CHECK_OFFSET(duet_shape, rms_norm_eps, 80);
CHECK_OFFSET(duet_shape, inverse_frequencies, 88);
CHECK_OFFSET(duet_batch, token_ids, 16);
CHECK_OFFSET(duet_batch, abort_word, 64);
CHECK_OFFSET(duet_step_stats, distinct_experts, 16);
CHECK_OFFSET(duet_sample_request, temperature, 48);
CHECK_OFFSET(duet_sample_request, top_k, 72);
CHECK_OFFSET(duet_sample_request, history, 88);
CHECK_OFFSET(duet_sample_request, mask, 128);
CHECK_OFFSET(duet_sample_result, emitted_count, 32);

static _Thread_local char last_error[512];

int32_t duet_fail(int32_t status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  return status;
}

uint32_t duet_abi_version(void) { return DUET_ABI_VERSION; }

uint32_t duet_last_error(char *out, uint32_t cap) {
  uint32_t length = (uint32_t)strlen(last_error);
  if (out == NULL || cap == 0) return length;
  uint32_t copied = duet_min_u32(length, cap - 1);
  memcpy(out, last_error, copied);
  out[copied] = 0;
  return length;
}

void *duet_memory_reserve(size_t bytes) {
  if (bytes == 0) bytes = 1;
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? NULL : memory;
}

void duet_memory_release(void *memory, size_t bytes) {
  if (memory != NULL) munmap(memory, bytes == 0 ? 1 : bytes);
}

uint32_t duet_online_cpus(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    int count = CPU_COUNT(&set);
    if (count > 0) return (uint32_t)count;
  }
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? (uint32_t)online : 1;
}

/* ---- what the CPU can run ---------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
static uint64_t read_xcr0(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((uint64_t)high << 32) | low;
}

/* Instruction sets that the CPU has and whose registers the system saves. */
static uint32_t detect_isa_mask(void) {
  uint32_t mask = 1u << DUET_ISA_PLAIN;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return mask;
  const uint32_t needed = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C;
  if ((c & needed) != needed) return mask;
  uint64_t xcr0 = read_xcr0();
  if ((xcr0 & 0x6) != 0x6) return mask; /* XMM and YMM state */
  uint32_t a7, b7, c7, d7;
  if (!__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7)) return mask;
  if (b7 & bit_AVX2) mask |= 1u << DUET_ISA_AVX2;
  const uint32_t avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); /* F, DQ, BW, VL */
  const uint32_t vnni512 = 1u << 11;
  if ((b7 & bit_AVX2) && (b7 & avx512) == avx512 && (c7 & vnni512) && (xcr0 & 0xe6) == 0xe6) mask |= 1u << DUET_ISA_AVX512;
  uint32_t a71 = 0, b71, c71, d71;
  if (a7 >= 1 && __get_cpuid_count(7, 1, &a71, &b71, &c71, &d71) && (b7 & bit_AVX2) && (a71 & (1u << 4)))
    mask |= 1u << DUET_ISA_AVXVNNI;
  return mask;
}

static void cpu_name(char *out, size_t cap) {
  uint32_t words[12];
  uint32_t a, b, c, d;
  if (!__get_cpuid(0x80000000u, &a, &b, &c, &d) || a < 0x80000004u) {
    snprintf(out, cap, "x86-64");
    return;
  }
  for (uint32_t i = 0; i < 3; i++)
    __get_cpuid(0x80000002u + i, &words[i * 4], &words[i * 4 + 1], &words[i * 4 + 2], &words[i * 4 + 3]);
  snprintf(out, cap, "%.48s", (const char *)words);
}
#elif defined(__aarch64__)
#include <sys/auxv.h>
#define HWCAP_DOT_PRODUCT (1ul << 20)
#define HWCAP_HALF_ARITHMETIC (1ul << 10)
static uint32_t detect_isa_mask(void) {
  unsigned long features = getauxval(AT_HWCAP);
  uint32_t mask = 1u << DUET_ISA_PLAIN;
  if ((features & HWCAP_DOT_PRODUCT) && (features & HWCAP_HALF_ARITHMETIC)) mask |= 1u << DUET_ISA_NEON;
  return mask;
}
static void cpu_name(char *out, size_t cap) { snprintf(out, cap, "aarch64"); }
#else
static uint32_t detect_isa_mask(void) { return 1u << DUET_ISA_PLAIN; }
static void cpu_name(char *out, size_t cap) { snprintf(out, cap, "unknown"); }
#endif

const duet_kernel_table *duet_kernels_for(uint32_t isa) {
  if (isa > 31 || (detect_isa_mask() & (1u << isa)) == 0) return NULL;
  switch (isa) {
    case DUET_ISA_PLAIN: return duet_kernels_plain();
    case DUET_ISA_AVX2: return duet_kernels_avx2 ? duet_kernels_avx2() : NULL;
    case DUET_ISA_AVX512: return duet_kernels_avx512 ? duet_kernels_avx512() : NULL;
    case DUET_ISA_NEON: return duet_kernels_neon ? duet_kernels_neon() : NULL;
    case DUET_ISA_AVXVNNI: return duet_kernels_avxvnni ? duet_kernels_avxvnni() : NULL;
    default: return NULL;
  }
}

int32_t duet_cpu_describe(duet_cpu_info *out) {
  if (out == NULL) return duet_fail(DUET_STATUS_INVALID, "duet_cpu_describe: out is null");
  memset(out, 0, sizeof *out);
  static const uint32_t by_speed[] = {DUET_ISA_PLAIN, DUET_ISA_NEON, DUET_ISA_AVX2, DUET_ISA_AVXVNNI, DUET_ISA_AVX512};
  for (size_t i = 0; i < sizeof by_speed / sizeof by_speed[0]; i++) {
    if (duet_kernels_for(by_speed[i]) == NULL) continue;
    out->isa_mask |= 1u << by_speed[i];
    out->isa_best = by_speed[i];
  }
  out->online_cpus = duet_online_cpus();
#if defined(__clang__)
  snprintf(out->compiler, sizeof out->compiler, "clang %d.%d", __clang_major__, __clang_minor__);
#elif defined(__GNUC__)
  snprintf(out->compiler, sizeof out->compiler, "gcc %d.%d", __GNUC__, __GNUC_MINOR__);
#else
  snprintf(out->compiler, sizeof out->compiler, "unknown");
#endif
  cpu_name(out->cpu_name, sizeof out->cpu_name);
  return DUET_STATUS_OK;
}
