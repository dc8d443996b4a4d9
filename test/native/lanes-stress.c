/* Drives the lanes hard: phases whose items are counted, steps that end while lanes are late, work that every lane does once, and sleep.
 * Built and judged by lanes.test.ts. Exits with 1 where an item was done never, twice, out of its phase, or after its step.
 *
 * Usage: lanes-stress steps LANES STEPS PAUSE_US   random phases, now and then a pause that is long enough to fall asleep
 *        lanes-stress idle LANES MS                the process's CPU time in ms while a device has nothing to do
 */
#define _GNU_SOURCE
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { PHASE_MAX = 24, ITEM_MAX = 40 };

static _Atomic uint32_t mistakes;
static void expect(int is_right) {
  if (!is_right) atomic_fetch_add(&mistakes, 1);
}

/* A step on the caller's stack, as the executor's is: memory that later steps use for something else. */
typedef struct step {
  uint32_t phase_count;
  uint32_t stop_after;            /* joins */
  uint32_t join_count;
  uint32_t segment_begin;         /* first phase since the last join */
  uint8_t joins[PHASE_MAX];
  uint32_t items[PHASE_MAX][2];
  uint8_t marks[PHASE_MAX][2][ITEM_MAX]; /* plain: what a phase left must be seen by the next */
  uint32_t spin;
} step;

/* Everything of this stream, and before the last join everything of both, is done. */
static void check_before(const step *s, uint32_t phase, uint32_t stream) {
  for (uint32_t p = 0; p < phase; p++) {
    for (uint32_t other = 0; other < 2; other++) {
      if (other != stream && p >= s->segment_begin) continue;
      for (uint32_t i = 0; i < s->items[p][other]; i++) expect(s->marks[p][other][i] == 1);
    }
  }
}

static uint32_t count(void *context, uint32_t phase, uint32_t stream) {
  step *s = context;
  check_before(s, phase, stream);
  return s->items[phase][stream];
}

static void run(void *context, uint32_t phase, uint32_t stream, uint32_t begin, uint32_t end, duet_lane *lane) {
  step *s = context;
  (void)lane;
  expect(phase < s->phase_count && begin < end && end <= s->items[phase][stream]);
  check_before(s, phase, stream);
  for (uint32_t i = begin; i < end; i++) {
    for (volatile uint32_t n = 0; n < s->spin; n++) {}
    s->marks[phase][stream][i]++;
  }
#if defined(__x86_64__)
  expect((_mm_getcsr() & 0xffc0) == 0x1f80);
#endif
}

static int goes_on(void *context) {
  step *s = context;
  /* The phase behind the last join that was passed. */
  uint32_t phase = s->segment_begin;
  if (s->join_count > 0) {
    while (!s->joins[phase]) phase++;
    s->segment_begin = phase + 1;
  }
  return s->join_count++ < s->stop_after;
}

static uint32_t random_below(uint32_t n) {
  static uint64_t state = 88172645463325252u;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (uint32_t)(state >> 33) % n;
}

static void run_step(duet_device *device) {
  step s;
  memset(&s, 0, sizeof s);
  s.phase_count = 1 + random_below(PHASE_MAX);
  s.stop_after = random_below(8) == 0 ? random_below(4) : PHASE_MAX;
  s.spin = random_below(3) * 50;
  for (uint32_t p = 0; p < s.phase_count; p++) {
    s.joins[p] = p + 1 == s.phase_count || random_below(3) == 0;
    for (uint32_t stream = 0; stream < 2; stream++) s.items[p][stream] = random_below(3) == 0 ? random_below(3) : random_below(ITEM_MAX);
  }
  const duet_phases phases = {s.phase_count, s.joins, &s, count, run, goes_on};
  duet_device_run(device, &phases);
  for (uint32_t p = 0, joins = 0; p < s.phase_count; joins += s.joins[p++]) {
    const uint8_t expected = joins < s.stop_after;
    for (uint32_t stream = 0; stream < 2; stream++)
      for (uint32_t i = 0; i < s.items[p][stream]; i++) expect(s.marks[p][stream][i] == expected);
  }
  memset(&s, 0xff, sizeof s); /* whoever comes late finds this */
}

static void count_lane(void *context, duet_lane *lane) { ((uint32_t *)context)[lane->index]++; }

static int run_steps(duet_device *device, uint32_t lanes, uint32_t steps, uint32_t pause_us) {
  static uint32_t each[DUET_LANE_MAX];
  uint32_t each_count = 0;
#if defined(__x86_64__)
  const unsigned own_state = 0x9fc0; /* flush to zero: what a host program may have set */
  _mm_setcsr(own_state);
#endif
  for (uint32_t i = 0; i < steps; i++) {
    if (pause_us > 0 && i % 8 == 0) usleep(pause_us);
    run_step(device);
    if (i % 16 != 0) continue;
    duet_device_run_each(device, count_lane, each);
    each_count++;
    for (uint32_t lane = 0; lane < lanes; lane++) expect(each[lane] == each_count);
  }
#if defined(__x86_64__)
  expect((_mm_getcsr() & 0xffc0) == own_state);
#endif
  printf("{\"mistakes\": %u}\n", atomic_load(&mistakes));
  return atomic_load(&mistakes) == 0 ? 0 : 1;
}

static int idle(duet_device *device, uint32_t ms) {
  run_step(device);
  usleep(20000); /* lanes fall asleep */
  struct timespec begin, end;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
  usleep(ms * 1000);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
  printf("{\"cpuMs\": %.3f}\n", (double)(end.tv_sec - begin.tv_sec) * 1e3 + (double)(end.tv_nsec - begin.tv_nsec) * 1e-6);
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  const uint32_t lanes = (uint32_t)atoi(argv[2]);
  duet_device *device;
  if (duet_device_create(lanes, DUET_ISA_PLAIN, 0, &device) != DUET_STATUS_OK) return 3;
  const int status = strcmp(argv[1], "idle") == 0 ? idle(device, (uint32_t)atoi(argv[3]))
                                                  : run_steps(device, lanes, (uint32_t)atoi(argv[3]), (uint32_t)atoi(argv[4]));
  duet_device_destroy(device);
  return status;
}
