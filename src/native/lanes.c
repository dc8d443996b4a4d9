/* Lanes: the threads of the two teams, their barriers, and how a step's work reaches them.
 *
 * The calling thread is lane 0. The others wait for an epoch: they spin for about 50 us after a piece of work, then sleep in
 * a futex, so that an idle appliance uses no CPU. Inside a step lanes only meet at sense-reversing barriers; no lock is held
 * anywhere. A lane that waits while there are more lanes than CPUs gives its CPU away instead of spinning.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define CACHE_LINE 64
#define SPIN_NS_MAX 50000
#define SPINS_BEFORE_YIELD 512u /* 5 to 25 us: more than lanes are apart where each has a CPU to itself */
#define SPINS_BEFORE_YIELD_CROWDED 32u
#define SPINS_PER_LOOK 32u

typedef struct duet_barrier {
  _Alignas(CACHE_LINE) _Atomic uint32_t waiting;
  _Alignas(CACHE_LINE) _Atomic uint32_t sense;
  uint32_t lane_count;
} duet_barrier;

struct duet_device {
  uint32_t lane_count;
  uint32_t team_count;
  uint32_t is_pinned;
  uint32_t spins_before_yield;
  const duet_kernel_table *kernels;
  duet_lane *lanes;
  pthread_t *threads;
  uint32_t started_count;
  duet_lane_work work;
  void *context;
  duet_barrier global;
  duet_barrier team[DUET_DIE_COUNT];
  _Alignas(CACHE_LINE) _Atomic uint32_t epoch;
  _Alignas(CACHE_LINE) _Atomic uint32_t sleeping_count;
  _Atomic uint32_t is_closing;
};

static inline void relax(void) {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");
#endif
}

static uint64_t monotonic_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t duet_fp_enter(void) {
#if defined(__x86_64__)
  uint64_t saved = _mm_getcsr();
  _mm_setcsr(0x1f80); /* all exceptions masked, round to nearest, denormals kept */
  return saved;
#elif defined(__aarch64__)
  uint64_t saved;
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
  __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
  return saved;
#else
  return 0;
#endif
}

void duet_fp_leave(uint64_t saved) {
#if defined(__x86_64__)
  _mm_setcsr((uint32_t)saved);
#elif defined(__aarch64__)
  __asm__ volatile("msr fpcr, %0" ::"r"(saved));
#else
  (void)saved;
#endif
}

/* ---- barriers ---------------------------------------------------------------------------------------------------- */

static void barrier_wait(duet_barrier *barrier, uint32_t *lane_sense, uint32_t spins_before_yield) {
  if (barrier->lane_count == 1) return;
  uint32_t sense = *lane_sense ^ 1u;
  *lane_sense = sense;
  if (atomic_fetch_add_explicit(&barrier->waiting, 1, memory_order_acq_rel) + 1 == barrier->lane_count) {
    atomic_store_explicit(&barrier->waiting, 0, memory_order_relaxed);
    atomic_store_explicit(&barrier->sense, sense, memory_order_release);
    return;
  }
  uint32_t spins = 0;
  while (atomic_load_explicit(&barrier->sense, memory_order_acquire) != sense) {
    if (++spins < spins_before_yield) {
      relax();
    } else {
      sched_yield();
    }
  }
}

void duet_barrier_global(duet_lane *lane) {
  duet_device *device = lane->device;
  barrier_wait(&device->global, &lane->sense[0], device->spins_before_yield);
}

void duet_barrier_team(duet_lane *lane) {
  duet_device *device = lane->device;
  barrier_wait(&device->team[lane->team], &lane->sense[1], device->spins_before_yield);
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

static long futex(_Atomic uint32_t *word, int operation, uint32_t value) {
  return syscall(SYS_futex, (uint32_t *)word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Returns when the epoch is no longer `seen`. */
static void wait_for_epoch(duet_device *device, uint32_t seen) {
  uint64_t sleep_at = monotonic_ns() + SPIN_NS_MAX;
  for (uint32_t spins = 1; atomic_load_explicit(&device->epoch, memory_order_acquire) == seen; spins++) {
    relax();
    if (spins % SPINS_PER_LOOK != 0) continue;
    /* Lane 0 may be waiting for this CPU. */
    if (spins >= device->spins_before_yield) sched_yield();
    if (monotonic_ns() < sleep_at) continue;
    /* Sequentially consistent on both sides: either this lane sees the new epoch or lane 0 sees it sleeping. */
    atomic_fetch_add(&device->sleeping_count, 1);
    while (atomic_load(&device->epoch) == seen) futex(&device->epoch, FUTEX_WAIT, seen);
    atomic_fetch_sub(&device->sleeping_count, 1);
    return;
  }
}

static void pin(uint32_t cpu) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &allowed)) return;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  (void)pthread_setaffinity_np(pthread_self(), sizeof one, &one); /* pinning is a wish */
}

/* The process's signals belong to other threads; only what a lane's own instruction raises may reach it. */
static void block_signals(void) {
  sigset_t blocked;
  sigfillset(&blocked);
  sigdelset(&blocked, SIGBUS);
  sigdelset(&blocked, SIGSEGV);
  sigdelset(&blocked, SIGFPE);
  sigdelset(&blocked, SIGILL);
  sigdelset(&blocked, SIGTRAP);
  sigdelset(&blocked, SIGABRT);
  (void)pthread_sigmask(SIG_SETMASK, &blocked, NULL);
}

static void *lane_main(void *argument) {
  duet_lane *lane = argument;
  duet_device *device = lane->device;
  block_signals();
  if (device->is_pinned) pin(lane->index);
  duet_fp_enter();
  uint32_t seen = 0;
  for (;;) {
    wait_for_epoch(device, seen);
    seen++;
    if (atomic_load_explicit(&device->is_closing, memory_order_acquire)) return NULL;
    device->work(device->context, lane);
    duet_barrier_global(lane);
  }
}

static void open_epoch(duet_device *device) {
  atomic_fetch_add(&device->epoch, 1);
  if (atomic_load(&device->sleeping_count) != 0) futex(&device->epoch, FUTEX_WAKE, 0x7fffffff);
}

void duet_device_run(duet_device *device, duet_lane_work work, void *context) {
  uint64_t saved = duet_fp_enter();
  device->work = work;
  device->context = context;
  if (device->lane_count > 1) open_epoch(device);
  work(context, &device->lanes[0]);
  duet_barrier_global(&device->lanes[0]);
  duet_fp_leave(saved);
}

static void close_lanes(duet_device *device) {
  atomic_store(&device->is_closing, 1);
  open_epoch(device);
  for (uint32_t i = 0; i < device->started_count; i++) pthread_join(device->threads[i], NULL);
}

static void free_device(duet_device *device) {
  free(device->lanes);
  free(device->threads);
  free(device);
}

static void place_lane(duet_device *device, uint32_t index) {
  uint32_t per_team = device->lane_count / device->team_count;
  duet_lane *lane = &device->lanes[index];
  memset(lane, 0, sizeof *lane);
  lane->device = device;
  lane->index = index;
  lane->lane_count = device->lane_count;
  lane->team = index / per_team;
  lane->team_lane = index % per_team;
  lane->team_lane_count = per_team;
  lane->die_begin = device->team_count == 2 ? lane->team : 0;
  lane->die_end = device->team_count == 2 ? lane->team + 1 : DUET_DIE_COUNT;
}

int32_t duet_device_create(uint32_t lane_count, uint32_t isa, uint32_t is_pinned, duet_device **out) {
  if (out == NULL) return duet_fail(DUET_STATUS_INVALID, "duet_device_create: out is null");
  *out = NULL;
  if (lane_count == 0 || lane_count > DUET_LANE_MAX)
    return duet_fail(DUET_STATUS_INVALID, "lane count must be 1 to %u, got %u", DUET_LANE_MAX, lane_count);
  const duet_kernel_table *kernels = duet_kernels_for(isa);
  if (kernels == NULL)
    return duet_fail(DUET_STATUS_UNSUPPORTED, "instruction set %u cannot run on this CPU or is not in this build", isa);

  duet_device *device = aligned_alloc(CACHE_LINE, duet_align_up(sizeof *device, CACHE_LINE));
  if (device == NULL) return duet_fail(DUET_STATUS_NO_MEMORY, "no memory for a device");
  memset(device, 0, sizeof *device);
  device->lane_count = lane_count;
  device->team_count = lane_count % 2 == 0 ? 2 : 1;
  device->is_pinned = is_pinned;
  device->spins_before_yield = lane_count > duet_online_cpus() ? SPINS_BEFORE_YIELD_CROWDED : SPINS_BEFORE_YIELD;
  device->kernels = kernels;
  device->global.lane_count = lane_count;
  for (uint32_t t = 0; t < device->team_count; t++) device->team[t].lane_count = lane_count / device->team_count;
  device->lanes = aligned_alloc(CACHE_LINE, lane_count * sizeof *device->lanes);
  device->threads = calloc(lane_count, sizeof *device->threads);
  if (device->lanes == NULL || device->threads == NULL) {
    free_device(device);
    return duet_fail(DUET_STATUS_NO_MEMORY, "no memory for %u lanes", lane_count);
  }
  for (uint32_t i = 0; i < lane_count; i++) place_lane(device, i);
  for (uint32_t i = 1; i < lane_count; i++) {
    int error = pthread_create(&device->threads[i - 1], NULL, lane_main, &device->lanes[i]);
    if (error != 0) {
      close_lanes(device);
      free_device(device);
      return duet_fail(DUET_STATUS_THREAD, "cannot start lane %u of %u: %s (errno %d)", i, lane_count, strerror(error), error);
    }
    device->started_count++;
  }
  if (is_pinned) pin(0);
  *out = device;
  return DUET_STATUS_OK;
}

int32_t duet_device_destroy(duet_device *device) {
  if (device == NULL) return duet_fail(DUET_STATUS_INVALID, "duet_device_destroy: device is null");
  close_lanes(device);
  free_device(device);
  return DUET_STATUS_OK;
}

uint32_t duet_device_lane_count(const duet_device *device) { return device->lane_count; }
const duet_kernel_table *duet_device_kernels(const duet_device *device) { return device->kernels; }
