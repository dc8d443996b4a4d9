/* Lanes: the threads of the two teams, and how the work of a step reaches them.
 *
 * A step is a list of phases. A phase has items on two streams, one per die. Lanes take items, those of their own team's stream
 * first, and a phase is over when its items are done, not when the lanes have met: a lane that the system has put aside between
 * two items holds nobody up, the others do its share, and it joins whatever phase is open when it comes back. Whoever
 * does the last item of a phase opens the next one.
 *
 * Why a late lane is harmless: the only way into a step is to take items off a stream's `remaining`, and the step cannot end, nor its
 * phase, before they are done. Only then are the phase and the step's memory looked at. A count that was read long ago and
 * still fits takes items of the phase that is open now, which is as good as any.
 *
 * Without work a lane spins for about 50 us and then sleeps in a futex: an idle appliance uses no CPU. No lock is held anywhere.
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
#define SPINS_BEFORE_YIELD 256u /* a few us: longer than most items where each lane has a CPU to itself */
#define SPINS_BEFORE_YIELD_CROWDED 32u
#define SPINS_PER_LOOK 32u

/* `remaining` is what lanes fight for; the rest is written by the lane that opens a phase, read by lanes that hold items of it. */
typedef struct duet_stream {
  _Alignas(CACHE_LINE) _Atomic uint32_t remaining; /* items that nobody has taken */
  _Alignas(CACHE_LINE) _Atomic uint32_t unfinished;
  uint32_t phase;
  uint32_t item_count;
} duet_stream;

struct duet_device {
  uint32_t lane_count;
  uint32_t team_count;
  uint32_t is_pinned;
  uint32_t spins_before_yield;
  uint32_t takes_per_stream;       /* a lane takes one part of so many of what remains */
  const duet_kernel_table *kernels;
  duet_lane *lanes;
  pthread_t *threads;
  uint32_t started_count;
  const duet_phases *phases;       /* of the step; lanes that hold items read it */
  duet_lane_work each_work;        /* what every lane is to run once */
  void *each_context;
  duet_stream streams[DUET_DIE_COUNT];
  _Alignas(CACHE_LINE) _Atomic uint32_t joined; /* streams that have come to the end of a segment */
  _Alignas(CACHE_LINE) _Atomic uint32_t epoch;  /* of the last piece of work handed out; lanes sleep on it */
  _Atomic uint32_t finished;                    /* epoch of the last one that is done */
  _Atomic uint32_t each_epoch;
  _Atomic uint32_t is_closing;
  _Alignas(CACHE_LINE) _Atomic uint32_t sleeping_count;
  _Atomic uint32_t each_done;
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

/* ---- phases ------------------------------------------------------------------------------------------------------ */

static void publish(duet_device *device, uint32_t stream, uint32_t phase, uint32_t item_count) {
  duet_stream *s = &device->streams[stream];
  s->phase = phase;
  s->item_count = item_count;
  atomic_store_explicit(&s->unfinished, item_count, memory_order_relaxed);
  atomic_store_explicit(&s->remaining, item_count, memory_order_release);
}

/* From a join on: both streams are done with everything before `phase`, and only this lane is at work. */
static void open_segment(duet_device *device, duet_lane *lane, uint32_t phase) {
  const duet_phases *work = device->phases;
  for (;;) {
    if (phase == work->phase_count || !work->goes_on(work->context)) {
      atomic_store_explicit(&device->finished, atomic_load_explicit(&device->epoch, memory_order_relaxed), memory_order_release);
      return;
    }
    uint32_t first[DUET_DIE_COUNT], count[DUET_DIE_COUNT];
    for (uint32_t stream = 0; stream < DUET_DIE_COUNT; stream++) {
      first[stream] = phase;
      while ((count[stream] = work->count(work->context, first[stream], stream)) == 0 && !work->joins[first[stream]]) first[stream]++;
    }
    const uint32_t busy = count[0] > 0 ? 0 : 1;
    if (count[0] + count[1] <= 1 && work->joins[first[busy]]) { /* cheaper than handing it out */
      if (count[0] + count[1] == 1) work->run(work->context, first[busy], busy, 0, 1, lane);
      phase = first[busy] + 1;
      continue;
    }
    atomic_store_explicit(&device->joined, (count[0] == 0) + (count[1] == 0), memory_order_relaxed);
    for (uint32_t i = 0; i < DUET_DIE_COUNT; i++) { /* the other team waits already */
      const uint32_t stream = lane->stream ^ 1u ^ i;
      if (count[stream] > 0) publish(device, stream, first[stream], count[stream]);
    }
    return;
  }
}

/* This lane has done the last item of the stream's phase. */
static void carry_on(duet_device *device, duet_lane *lane, uint32_t stream) {
  const duet_phases *work = device->phases;
  for (uint32_t phase = device->streams[stream].phase;; phase++) {
    if (work->joins[phase]) {
      if (atomic_fetch_add_explicit(&device->joined, 1, memory_order_acq_rel) + 1 == DUET_DIE_COUNT) open_segment(device, lane, phase + 1);
      return;
    }
    const uint32_t count = work->count(work->context, phase + 1, stream);
    if (count > 1) {
      publish(device, stream, phase + 1, count);
      return;
    }
    if (count == 1) work->run(work->context, phase + 1, stream, 0, 1, lane);
  }
}

/* Takes items of a stream and does them; 0 where none remain. The share taken shrinks towards the phase's end. */
static int work_on(duet_device *device, duet_lane *lane, uint32_t stream) {
  duet_stream *s = &device->streams[stream];
  uint32_t remaining = atomic_load_explicit(&s->remaining, memory_order_relaxed);
  while (remaining != 0) {
    const uint32_t count = duet_ceil_div(remaining, device->takes_per_stream);
    if (!atomic_compare_exchange_weak_explicit(&s->remaining, &remaining, remaining - count, memory_order_acquire, memory_order_relaxed)) continue;
    const duet_phases *work = device->phases;
    const uint32_t begin = s->item_count - remaining;
    work->run(work->context, s->phase, stream, begin, begin + count, lane);
    if (atomic_fetch_sub_explicit(&s->unfinished, count, memory_order_acq_rel) == count) carry_on(device, lane, stream);
    return 1;
  }
  return 0;
}

static int find_work(duet_device *device, duet_lane *lane) {
  return work_on(device, lane, lane->stream) || work_on(device, lane, lane->stream ^ 1u);
}

static void run_alone(const duet_phases *work, duet_lane *lane) {
  for (uint32_t phase = 0; phase < work->phase_count; phase++) {
    if ((phase == 0 || work->joins[phase - 1]) && !work->goes_on(work->context)) return;
    for (uint32_t stream = 0; stream < DUET_DIE_COUNT; stream++) {
      const uint32_t count = work->count(work->context, phase, stream);
      if (count > 0) work->run(work->context, phase, stream, 0, count, lane);
    }
  }
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

static long futex(_Atomic uint32_t *word, int operation, uint32_t value) {
  return syscall(SYS_futex, (uint32_t *)word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* One look without success; gives the CPU away now and then, as whoever holds the missing items may be waiting for it. */
static inline void wait_a_little(const duet_device *device, uint32_t *spins) {
  relax();
  if (++*spins >= device->spins_before_yield && *spins % SPINS_PER_LOOK == 0) sched_yield();
}

/* Sleeps until the epoch is no longer `seen`. Sequentially consistent on both sides: either this lane sees the new epoch or lane 0
 * sees it sleeping. */
static void sleep_until_epoch(duet_device *device, uint32_t seen) {
  atomic_fetch_add(&device->sleeping_count, 1);
  while (atomic_load(&device->epoch) == seen) futex(&device->epoch, FUTEX_WAIT, seen);
  atomic_fetch_sub(&device->sleeping_count, 1);
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

/* A lane's life: items of steps, what every lane is to run once, and sleep. */
static void *lane_main(void *argument) {
  duet_lane *lane = argument;
  duet_device *device = lane->device;
  block_signals();
  if (device->is_pinned) pin(lane->index);
  duet_fp_enter();
  uint32_t each_seen = 0, spins = 0;
  uint64_t idle_since = 0;
  for (;;) {
    const uint32_t epoch = atomic_load_explicit(&device->epoch, memory_order_acquire);
    if (find_work(device, lane)) {
      spins = 0;
      idle_since = 0;
      continue;
    }
    if (atomic_load_explicit(&device->each_epoch, memory_order_acquire) != each_seen) {
      each_seen++;
      device->each_work(device->each_context, lane);
      atomic_fetch_add_explicit(&device->each_done, 1, memory_order_release);
      spins = 0;
      idle_since = 0;
      continue;
    }
    if (atomic_load_explicit(&device->is_closing, memory_order_acquire)) return NULL;
    wait_a_little(device, &spins);
    if (spins % SPINS_PER_LOOK != 0) continue;
    if (atomic_load_explicit(&device->finished, memory_order_acquire) != epoch) {
      idle_since = 0;
    } else if (idle_since == 0) {
      idle_since = monotonic_ns();
    } else if (monotonic_ns() - idle_since > SPIN_NS_MAX) {
      sleep_until_epoch(device, epoch);
      spins = 0;
      idle_since = 0;
    }
  }
}

static uint32_t open_epoch(duet_device *device) {
  const uint32_t epoch = atomic_fetch_add(&device->epoch, 1) + 1;
  if (atomic_load(&device->sleeping_count) != 0) futex(&device->epoch, FUTEX_WAKE, 0x7fffffff);
  return epoch;
}

void duet_device_run(duet_device *device, const duet_phases *phases) {
  duet_lane *lane = &device->lanes[0];
  uint64_t saved = duet_fp_enter();
  if (device->lane_count == 1) {
    run_alone(phases, lane);
  } else {
    device->phases = phases;
    const uint32_t epoch = open_epoch(device);
    uint32_t spins = 0;
    open_segment(device, lane, 0);
    while (atomic_load_explicit(&device->finished, memory_order_acquire) != epoch) {
      if (find_work(device, lane)) spins = 0;
      else wait_a_little(device, &spins);
    }
  }
  duet_fp_leave(saved);
}

void duet_device_run_each(duet_device *device, duet_lane_work work, void *context) {
  uint64_t saved = duet_fp_enter();
  device->each_work = work;
  device->each_context = context;
  atomic_store_explicit(&device->each_done, 0, memory_order_relaxed);
  atomic_fetch_add_explicit(&device->each_epoch, 1, memory_order_release);
  const uint32_t epoch = open_epoch(device);
  work(context, &device->lanes[0]);
  for (uint32_t spins = 0; atomic_load_explicit(&device->each_done, memory_order_acquire) + 1 < device->lane_count;) wait_a_little(device, &spins);
  atomic_store_explicit(&device->finished, epoch, memory_order_release);
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
  lane->stream = device->team_count == 2 ? lane->team : index % DUET_DIE_COUNT;
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
  device->takes_per_stream = lane_count <= 2 ? 2 : lane_count; /* twice a team's lanes */
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
