/* Drives the lanes and their barriers hard: every lane counts its arrivals, and behind each barrier checks that nobody is late
 * or ahead. Built and judged by lanes.test.ts. Usage: lanes-stress LANES STEPS BARRIERS PAUSE_US. Exits with 1 at the first
 * wrong count.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

typedef struct lane_count {
  _Alignas(64) _Atomic uint32_t arrivals;
} lane_count;

typedef struct stress {
  uint32_t barriers;
  uint32_t team_size;
  lane_count lanes[DUET_LANE_MAX];
  _Atomic uint32_t mistakes;
  _Atomic uint32_t works;
} stress;

/* Lanes [begin, end) have made at least `arrivals`, and at most `ahead` more: then they wait for this lane. */
static void check(stress *s, uint32_t begin, uint32_t end, uint32_t arrivals, uint32_t ahead) {
  for (uint32_t i = begin; i < end; i++) {
    uint32_t got = atomic_load_explicit(&s->lanes[i].arrivals, memory_order_relaxed);
    if (got < arrivals || got > arrivals + ahead) atomic_fetch_add(&s->mistakes, 1);
  }
}

static void work(void *context, duet_lane *lane) {
  stress *s = context;
  atomic_fetch_add(&s->works, 1);
  lane_count *own = &s->lanes[lane->index];
  for (uint32_t i = 0; i < s->barriers; i++) {
    uint32_t arrivals = atomic_load_explicit(&own->arrivals, memory_order_relaxed) + 1;
    atomic_store_explicit(&own->arrivals, arrivals, memory_order_relaxed);
    if (i % 3 == 2) {
      duet_barrier_team(lane);
      check(s, lane->team * s->team_size, (lane->team + 1) * s->team_size, arrivals, 0);
      duet_barrier_team(lane); /* nobody counts on while another still checks */
    } else {
      duet_barrier_global(lane);
      check(s, 0, lane->lane_count, arrivals, 2); /* another team may have passed a barrier of its own */
    }
  }
#if defined(__x86_64__)
  if ((_mm_getcsr() & 0xffc0) != 0x1f80) atomic_fetch_add(&s->mistakes, 1);
#endif
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  const uint32_t lanes = (uint32_t)atoi(argv[1]), steps = (uint32_t)atoi(argv[2]);
  const uint32_t pause_us = (uint32_t)atoi(argv[4]);
  duet_device *device;
  if (duet_device_create(lanes, DUET_ISA_PLAIN, 0, &device) != DUET_STATUS_OK) return 3;
  static stress s;
  s.barriers = (uint32_t)atoi(argv[3]);
  s.team_size = lanes % 2 == 0 ? lanes / 2 : lanes;
#if defined(__x86_64__)
  const unsigned own_state = 0x9fc0; /* flush to zero: what a host program may have set */
  _mm_setcsr(own_state);
#endif
  for (uint32_t step = 0; step < steps; step++) {
    if (pause_us > 0 && step % 8 == 0) usleep(pause_us); /* long enough for the lanes to fall asleep */
    duet_device_run(device, work, &s);
  }
#if defined(__x86_64__)
  if ((_mm_getcsr() & 0xffc0) != own_state) atomic_fetch_add(&s.mistakes, 1);
#endif
  duet_device_destroy(device);
  printf("{\"works\": %u, \"arrivals\": %u, \"mistakes\": %u}\n", atomic_load(&s.works), atomic_load(&s.lanes[lanes - 1].arrivals), atomic_load(&s.mistakes));
  return atomic_load(&s.mistakes) == 0 ? 0 : 1;
}
