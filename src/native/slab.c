/* The slab: a container mapped read-only, its checksums, its page-cache state, and the guard that keeps a truncated file
 * from killing the process.
 *
 * The guard (a SIGBUS handler) acts only on addresses inside our mappings: it puts anonymous zero pages over the rest of the
 * mapping, counts the fault and returns; steps poll the count and fail with MAPPING_LOST. Any other address goes to the
 * handler that was there before. The handler takes no lock: the table below has fixed places that are only ever claimed and
 * given back through atomics.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define GUARDED_MAX 64u

static _Atomic(duet_slab *) guarded[GUARDED_MAX];
static struct sigaction previous_handler;
static pthread_once_t guard_once = PTHREAD_ONCE_INIT;
static int guard_error;
static uintptr_t guard_page_bytes = 4096; /* read by the handler, which must not call sysconf */

static uint64_t page_bytes(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

static void pass_on(int signal_number, siginfo_t *info, void *context) {
  if ((previous_handler.sa_flags & SA_SIGINFO) && previous_handler.sa_sigaction != NULL) {
    previous_handler.sa_sigaction(signal_number, info, context);
  } else if (previous_handler.sa_handler != SIG_DFL && previous_handler.sa_handler != SIG_IGN) {
    previous_handler.sa_handler(signal_number);
  } else {
    signal(signal_number, SIG_DFL); /* the instruction runs again and the system ends the process, as it would have */
  }
}

static void on_bus_error(int signal_number, siginfo_t *info, void *context) {
  uintptr_t address = (uintptr_t)info->si_addr;
  int saved_errno = errno;
  for (uint32_t i = 0; i < GUARDED_MAX; i++) {
    duet_slab *slab = atomic_load_explicit(&guarded[i], memory_order_acquire);
    if (slab == NULL) continue;
    uintptr_t base = (uintptr_t)slab->base;
    uintptr_t end = base + slab->mapped_bytes;
    if (address < base || address >= end) continue;
    uintptr_t page = address & ~(guard_page_bytes - 1);
    void *repaired = mmap((void *)page, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (repaired == MAP_FAILED) break;
    atomic_fetch_add_explicit(&slab->fault_count, 1, memory_order_release);
    errno = saved_errno;
    return;
  }
  errno = saved_errno;
  pass_on(signal_number, info, context);
}

static void install_guard(void) {
  guard_page_bytes = (uintptr_t)page_bytes();
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigemptyset(&action.sa_mask);
  if (sigaction(SIGBUS, &action, &previous_handler) != 0) guard_error = errno;
}

static int guard_add(duet_slab *slab) {
  for (uint32_t i = 0; i < GUARDED_MAX; i++) {
    duet_slab *expected = NULL;
    slab->registration = i;
    if (atomic_compare_exchange_strong(&guarded[i], &expected, slab)) return 1;
  }
  return 0;
}

#define HUGE_PAGE_BYTES (2ull << 20)

/* A file mapping that begins at a huge page's boundary, so that huge pages of the page cache can be mapped as such: some
 * file systems see to it and some don't. Pages that are missing then come in as huge pages, not as the small ones that
 * single faults bring, and stay so for whoever maps the file next. */
static void *map_aligned(int file, uint64_t bytes) {
  const uint64_t reserved_bytes = bytes + HUGE_PAGE_BYTES;
  uint8_t *reserved = mmap(NULL, reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return MAP_FAILED;
  uint8_t *aligned = (uint8_t *)duet_align_up((uintptr_t)reserved, HUGE_PAGE_BYTES);
  uint8_t *base = mmap(aligned, bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, file, 0);
  if (base == MAP_FAILED) {
    int error = errno;
    munmap(reserved, reserved_bytes);
    errno = error;
    return MAP_FAILED;
  }
  uint8_t *end = base + duet_align_up(bytes, page_bytes());
  uint8_t *reserved_end = reserved + duet_align_up(reserved_bytes, page_bytes());
  if (base > reserved) munmap(reserved, (size_t)(base - reserved));
  if (reserved_end > end) munmap(end, (size_t)(reserved_end - end));
  (void)madvise(base, bytes, MADV_HUGEPAGE); /* a hint: systems without huge pages refuse it */
  return base;
}

int32_t duet_slab_map(const char *path, uint64_t bytes, duet_slab **out) {
  if (path == NULL || out == NULL || bytes == 0)
    return duet_fail(DUET_STATUS_INVALID, "duet_slab_map: path and out must not be null, bytes not 0");
  *out = NULL;
  pthread_once(&guard_once, install_guard);
  if (guard_error != 0)
    return duet_fail(DUET_STATUS_IO, "cannot guard mappings: sigaction failed: %s (errno %d)", strerror(guard_error), guard_error);

  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return duet_fail(DUET_STATUS_IO, "cannot open %s: %s (errno %d)", path, strerror(errno), errno);
  struct stat state;
  if (fstat(file, &state) != 0) {
    int error = errno;
    close(file);
    return duet_fail(DUET_STATUS_IO, "cannot stat %s: %s (errno %d)", path, strerror(error), error);
  }
  if (!S_ISREG(state.st_mode) || state.st_size < 0 || (uint64_t)state.st_size != bytes) {
    close(file);
    return duet_fail(DUET_STATUS_IO, "%s has changed: expected a file of %llu bytes, got %lld", path, (unsigned long long)bytes,
                     (long long)state.st_size);
  }
  void *base = map_aligned(file, bytes);
  int map_error = errno;
  close(file);
  if (base == MAP_FAILED) {
    return duet_fail(map_error == ENOMEM ? DUET_STATUS_NO_MEMORY : DUET_STATUS_IO, "cannot map %llu bytes of %s: %s (errno %d)",
                     (unsigned long long)bytes, path, strerror(map_error), map_error);
  }
  duet_slab *slab = calloc(1, sizeof *slab);
  if (slab == NULL) {
    munmap(base, bytes);
    return duet_fail(DUET_STATUS_NO_MEMORY, "no memory for a slab");
  }
  slab->base = base;
  slab->bytes = bytes;
  slab->mapped_bytes = duet_align_up(bytes, page_bytes());
  if (!guard_add(slab)) {
    munmap(base, bytes);
    free(slab);
    return duet_fail(DUET_STATUS_NO_MEMORY, "more than %u containers are mapped at once", GUARDED_MAX);
  }
  *out = slab;
  return DUET_STATUS_OK;
}

int32_t duet_slab_unmap(duet_slab *slab) {
  if (slab == NULL) return duet_fail(DUET_STATUS_INVALID, "duet_slab_unmap: slab is null");
  atomic_store(&guarded[slab->registration], NULL);
  int failed = munmap(slab->base, slab->mapped_bytes) != 0;
  int error = errno;
  free(slab);
  if (failed) return duet_fail(DUET_STATUS_IO, "munmap failed: %s (errno %d)", strerror(error), error);
  return DUET_STATUS_OK;
}

uint32_t duet_slab_fault_count(const duet_slab *slab) {
  return slab == NULL ? 0 : atomic_load_explicit(&slab->fault_count, memory_order_acquire);
}

static int32_t check_range(const char *what, const duet_slab *slab, uint64_t offset, uint64_t bytes) {
  if (slab == NULL) return duet_fail(DUET_STATUS_INVALID, "%s: slab is null", what);
  if (offset > slab->bytes || bytes > slab->bytes - offset) {
    return duet_fail(DUET_STATUS_INVALID, "%s: range %llu + %llu is outside the slab of %llu bytes", what,
                     (unsigned long long)offset, (unsigned long long)bytes, (unsigned long long)slab->bytes);
  }
  return DUET_STATUS_OK;
}

/* ---- XXH64 (Collet, xxHash specification 0.1.1; seed 0) ---------------------------------------------------------- */

#define PRIME_1 0x9e3779b185ebca87ull
#define PRIME_2 0xc2b2ae3d27d4eb4full
#define PRIME_3 0x165667b19e3779f9ull
#define PRIME_4 0x85ebca77c2b2ae63ull
#define PRIME_5 0x27d4eb2f165667c5ull

static inline uint64_t rotate_left(uint64_t x, unsigned bits) { return (x << bits) | (x >> (64 - bits)); }
static inline uint64_t read_u64(const uint8_t *p) {
  uint64_t value;
  memcpy(&value, p, sizeof value);
  return value;
}
static inline uint32_t read_u32(const uint8_t *p) {
  uint32_t value;
  memcpy(&value, p, sizeof value);
  return value;
}
static inline uint64_t mix_round(uint64_t acc, uint64_t input) { return rotate_left(acc + input * PRIME_2, 31) * PRIME_1; }
static inline uint64_t merge_round(uint64_t hash, uint64_t acc) { return (hash ^ mix_round(0, acc)) * PRIME_1 + PRIME_4; }

static uint64_t xxh64(const uint8_t *p, uint64_t bytes) {
  const uint8_t *end = p + bytes;
  uint64_t hash;
  if (bytes >= 32) {
    uint64_t v1 = PRIME_1 + PRIME_2, v2 = PRIME_2, v3 = 0, v4 = 0 - PRIME_1;
    for (; end - p >= 32; p += 32) {
      v1 = mix_round(v1, read_u64(p));
      v2 = mix_round(v2, read_u64(p + 8));
      v3 = mix_round(v3, read_u64(p + 16));
      v4 = mix_round(v4, read_u64(p + 24));
    }
    hash = rotate_left(v1, 1) + rotate_left(v2, 7) + rotate_left(v3, 12) + rotate_left(v4, 18);
    hash = merge_round(merge_round(merge_round(merge_round(hash, v1), v2), v3), v4);
  } else {
    hash = PRIME_5;
  }
  hash += bytes;
  for (; end - p >= 8; p += 8) hash = rotate_left(hash ^ mix_round(0, read_u64(p)), 27) * PRIME_1 + PRIME_4;
  if (end - p >= 4) {
    hash = rotate_left(hash ^ (read_u32(p) * PRIME_1), 23) * PRIME_2 + PRIME_3;
    p += 4;
  }
  for (; p < end; p++) hash = rotate_left(hash ^ (*p * PRIME_5), 11) * PRIME_1;
  hash = (hash ^ (hash >> 33)) * PRIME_2;
  hash = (hash ^ (hash >> 29)) * PRIME_3;
  return hash ^ (hash >> 32);
}

int32_t duet_slab_hash(duet_slab *slab, uint64_t offset, uint64_t bytes, uint64_t *out) {
  int32_t status = check_range("duet_slab_hash", slab, offset, bytes);
  if (status != DUET_STATUS_OK) return status;
  if (out == NULL) return duet_fail(DUET_STATUS_INVALID, "duet_slab_hash: out is null");
  *out = xxh64(slab->base + offset, bytes);
  if (duet_slab_fault_count(slab) != 0)
    return duet_fail(DUET_STATUS_MAPPING_LOST, "the mapped file shrank; zero pages stand in for what was lost");
  return DUET_STATUS_OK;
}

/* ---- page cache -------------------------------------------------------------------------------------------------- */

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

#define ADVICE_LOCK 7

static int32_t lock_range(uint8_t *begin, uint64_t bytes) {
  if (mlock(begin, bytes) == 0) return DUET_STATUS_OK;
  int error = errno;
  struct rlimit limit = {0, 0};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  return duet_fail(DUET_STATUS_NO_MEMORY, "mlock failed: %s (errno %d, RLIMIT_MEMLOCK %llu bytes)", strerror(error), error,
                   (unsigned long long)limit.rlim_cur);
}

int32_t duet_slab_advise(duet_slab *slab, uint64_t offset, uint64_t bytes, int32_t advice) {
  static const int by_advice[] = {MADV_NORMAL,   MADV_WILLNEED, MADV_RANDOM, MADV_SEQUENTIAL, MADV_DONTNEED,
                                  MADV_HUGEPAGE, MADV_POPULATE_READ, -1,     MADV_PAGEOUT};
  int32_t status = check_range("duet_slab_advise", slab, offset, bytes);
  if (status != DUET_STATUS_OK) return status;
  if (advice < 0 || (size_t)advice >= sizeof by_advice / sizeof by_advice[0])
    return duet_fail(DUET_STATUS_INVALID, "duet_slab_advise: advice must be 0 to 8, got %d", advice);
  uint64_t begin = offset / page_bytes() * page_bytes();
  uint64_t end = duet_align_up(offset + bytes, page_bytes());
  if (end == begin) return DUET_STATUS_OK;
  if (advice == ADVICE_LOCK) return lock_range(slab->base + begin, end - begin);
  if (madvise(slab->base + begin, end - begin, by_advice[advice]) != 0)
    return duet_fail(DUET_STATUS_IO, "madvise(%d) failed: %s (errno %d)", advice, strerror(errno), errno);
  return DUET_STATUS_OK;
}

int32_t duet_slab_resident(duet_slab *slab, uint64_t offset, uint64_t bytes, uint64_t *out) {
  int32_t status = check_range("duet_slab_resident", slab, offset, bytes);
  if (status != DUET_STATUS_OK) return status;
  if (out == NULL) return duet_fail(DUET_STATUS_INVALID, "duet_slab_resident: out is null");
  const uint64_t page = page_bytes();
  uint64_t end = offset + bytes;
  uint64_t resident = 0;
  unsigned char pages[4096];
  for (uint64_t at = offset / page * page; at < end; at += sizeof pages * page) {
    uint64_t span = duet_align_up(end - at, page);
    if (span > sizeof pages * page) span = sizeof pages * page;
    if (mincore(slab->base + at, span, pages) != 0)
      return duet_fail(DUET_STATUS_IO, "mincore failed: %s (errno %d)", strerror(errno), errno);
    for (uint64_t i = 0; i < span / page; i++) {
      if ((pages[i] & 1) == 0) continue;
      uint64_t first = at + i * page < offset ? offset : at + i * page;
      uint64_t last = at + (i + 1) * page > end ? end : at + (i + 1) * page;
      resident += last - first;
    }
  }
  *out = resident;
  return DUET_STATUS_OK;
}
