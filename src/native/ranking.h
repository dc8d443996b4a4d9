/* Candidates in order (docs/arithmetic.md, rule 9): z descending, ids ascending, as 64-bit keys in a heap. */
#ifndef DUET_RANKING_H
#define DUET_RANKING_H

#include "duet-math.h"

/* Descending keys are (z descending, id ascending). Adding 0 makes -0 equal to 0. */
static inline uint64_t duet_rank_key(float z, uint32_t id) {
  uint32_t bits = duet_f32_bits(z + 0.0f);
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (uint64_t)bits << 32 | (uint32_t)~id;
}
static inline uint32_t duet_rank_id(uint64_t key) { return ~(uint32_t)key; }

/* A heap has its smallest value first. */
static inline void duet_heap_sift(uint64_t *heap, uint32_t count, uint32_t at) {
  uint64_t value = heap[at];
  for (;;) {
    uint32_t child = 2 * at + 1;
    if (child >= count) break;
    if (child + 1 < count && heap[child + 1] < heap[child]) child++;
    if (heap[child] >= value) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = value;
}

static inline void duet_heap_make(uint64_t *heap, uint32_t count) {
  for (uint32_t i = count / 2; i-- > 0;) duet_heap_sift(heap, count, i);
}

/* Takes the smallest out of a heap of `count`; it then lies behind the count - 1 that are left. */
static inline uint64_t duet_heap_pop(uint64_t *heap, uint32_t count) {
  uint64_t smallest = heap[0];
  heap[0] = heap[count - 1];
  heap[count - 1] = smallest;
  duet_heap_sift(heap, count - 1, 0);
  return smallest;
}

/* The keys of the `count` best of z[n], best first. */
static inline void duet_rank_best(const float *z, uint32_t n, uint32_t count, uint64_t *keys) {
  for (uint32_t id = 0; id < count; id++) keys[id] = duet_rank_key(z[id], id);
  duet_heap_make(keys, count);
  float weakest = z[duet_rank_id(keys[0])];
  for (uint32_t id = count; id < n; id++) {
    if (!(z[id] > weakest)) continue; /* an equal one has the higher id */
    keys[0] = duet_rank_key(z[id], id);
    duet_heap_sift(keys, count, 0);
    weakest = z[duet_rank_id(keys[0])];
  }
  for (uint32_t left = count; left > 1; left--) duet_heap_pop(keys, left);
}

#endif
