/* One row's sample, keyed and not drawn from a stream (docs/arithmetic.md, rule 9): a function of the logits, the history, the
 * seed, the position and the choice. It owns no state beyond scratch. Compiled twice: sample_row_avx2.c.
 *
 * Work is only done where it can matter: without top_k and top_p no candidate is ordered, with top_p only those that may be
 * kept are, and a token's Gumbel noise is made only while it could still win.
 */
#include "duet-math.h"
#include "internal.h"
#include "ranking.h"

#include <string.h>

#define IN_HISTORY 0x80000000u
/* The noise of x = 0, the largest, is below this (rule 9). */
#define GUMBEL_MAX 22.9f

/* ---- Philox4x32-10 (Salmon et al., SC 2011) ---------------------------------------------------------------------- */

static inline void philox4x32(uint32_t k0, uint32_t k1, const uint32_t *counter, uint32_t *out) {
  uint32_t x0 = counter[0], x1 = counter[1], x2 = counter[2], x3 = counter[3];
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xd2511f53u * x0, p1 = (uint64_t)0xcd9e8d57u * x2;
    x0 = (uint32_t)(p1 >> 32) ^ x1 ^ k0;
    x1 = (uint32_t)p1;
    x2 = (uint32_t)(p0 >> 32) ^ x3 ^ k1;
    x3 = (uint32_t)p0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  out[0] = x0;
  out[1] = x1;
  out[2] = x2;
  out[3] = x3;
}

static float gumbel_of(uint32_t x) {
  double v = ((double)x + 0.5) * 0x1p-32;
  return (float)-duet_log(-duet_log1p(-v));
}

/* ---- processors -------------------------------------------------------------------------------------------------- */

typedef struct sampled_row {
  const duet_sample_request *request;
  const uint32_t *mask;
  uint32_t position;
  uint32_t vocabulary_size;
  duet_sample_extra extra;
} sampled_row;

static void penalise(const sampled_row *row, float *z, uint32_t *counts) {
  const duet_sample_request *request = row->request;
  const float repetition = request->repetition_penalty, presence = request->presence_penalty, frequency = request->frequency_penalty;
  if (repetition == 1 && presence == 0 && frequency == 0) return;
  const uint32_t total = request->history_count + row->extra.count;
  for (uint32_t i = 0; i < total; i++) {
    uint32_t id = (uint32_t)(i < request->history_count ? request->history[i] : row->extra.tokens[i - request->history_count]);
    counts[id] = (counts[id] | IN_HISTORY) + (i >= request->prompt_count);
  }
  for (uint32_t i = 0; i < total; i++) {
    uint32_t id = (uint32_t)(i < request->history_count ? request->history[i] : row->extra.tokens[i - request->history_count]);
    if (counts[id] == 0) continue; /* done at its first occurrence */
    uint32_t output_count = counts[id] & ~IN_HISTORY;
    counts[id] = 0;
    float value = z[id];
    if (repetition != 1) value = value > 0 ? value / repetition : value * repetition;
    if (output_count > 0) {
      value = value - presence;
      value = duet_fmaf(-frequency, (float)output_count, value);
    }
    z[id] = value;
  }
}

static void process_logits(const sampled_row *row, float *z, uint32_t *counts) {
  const duet_sample_request *request = row->request;
  const float minus_infinity = -__builtin_inff();
  for (uint32_t i = 0; i < request->bias_count; i++) z[request->bias_ids[i]] = z[request->bias_ids[i]] + request->bias_values[i];
  if (row->mask != NULL) {
    for (uint32_t id = 0; id < row->vocabulary_size; id++) {
      if ((row->mask[id / 32] >> (id % 32) & 1u) == 0) z[id] = minus_infinity;
    }
  }
  if (request->banned_until == 0xffffffffu || row->position < request->banned_until) {
    for (uint32_t i = 0; i < request->banned_count; i++) z[request->banned_ids[i]] = minus_infinity;
  }
  penalise(row, z, counts);
}

/* ---- choosing ---------------------------------------------------------------------------------------------------- */

typedef struct contest {
  const sampled_row *row;
  uint32_t counter[4];
  uint32_t words[4];
  uint32_t words_of;              /* token id / 4 that the words belong to */
  float best_value;
  uint32_t best_id;
  int has_best;
} contest;

/* Whether z + G can reach the best value. G is below -log v, v is above 2^-(zeros + 1) for x with so many leading zeros: that rules
 * out nearly all without a logarithm. Else G >= t needs v <= exp(-t); the factor covers all rounding while |best| < 8192. */
static inline int can_win(float z, float best, uint32_t x) {
  float t = best - z;
  if (!(best < 8192.0f && best > -8192.0f) || t <= 0.5f) return 1;
  float zeros = x == 0 ? 32.0f : (float)__builtin_clz(x);
  if (t > 0.6931472f * (zeros + 1.0f) + 0.01f) return 0;
  return t <= 1.0f || (float)x * (0x1p-32f * 0.98f) <= duet_expf(-t);
}

static inline void contend(contest *c, uint32_t id, float z) {
  if (z == -__builtin_inff()) return;
  const duet_sample_request *request = c->row->request;
  if (c->words_of != id / 4) {
    c->words_of = id / 4;
    c->counter[2] = id / 4;
    philox4x32(request->seed_low, request->seed_high, c->counter, c->words);
  }
  uint32_t x = c->words[id % 4];
  if (c->has_best && !can_win(z, c->best_value, x)) return;
  float value = z + gumbel_of(x);
  if (!c->has_best || value > c->best_value || (value == c->best_value && id < c->best_id)) {
    c->best_value = value;
    c->best_id = id;
    c->has_best = 1;
  }
}

static uint32_t argmax(const duet_kernel_table *kernels, const float *z, uint32_t n) {
  float max = kernels->max_row(z, n);
  for (uint32_t id = 0; id < n; id++) {
    if (z[id] == max) return id;
  }
  return 0;
}

/* How many of the `count` ordered candidates top_p keeps; the one that crosses is kept. */
static uint32_t count_top_p(const float *z, const uint64_t *keys, uint32_t count, float zmax, float top_p) {
  float sum = 0;
  for (uint32_t i = 0; i < count; i++) sum = sum + duet_expf(z[duet_rank_id(keys[i])] - zmax);
  float accumulated = 0;
  for (uint32_t i = 0; i < count; i++) {
    accumulated = accumulated + duet_expf(z[duet_rank_id(keys[i])] - zmax) / sum;
    if (accumulated >= top_p) return i + 1;
  }
  return count;
}

typedef struct kept {
  const uint64_t *keys;           /* null: all ids are kept */
  uint32_t count;
} kept;

/* top_p over all ids. Only as many as are kept are put in order, out of those with z >= floor: a heap gives them best first. */
static kept keep_top_p_above(const float *z, uint32_t n, float zmax, float top_p, float sum, float floor, uint64_t *keys) {
  uint32_t count = 0;
  for (uint32_t id = 0; id < n; id++) {
    keys[count] = ~duet_rank_key(z[id], id); /* inverted in the heap: its smallest is the best candidate */
    count += z[id] >= floor;
  }
  duet_heap_make(keys, count);
  float accumulated = 0;
  for (uint32_t left = count; left > 0; left--) {
    const uint64_t key = ~duet_heap_pop(keys, left);
    keys[left - 1] = key;
    accumulated = accumulated + duet_expf(z[duet_rank_id(key)] - zmax) / sum;
    if (accumulated >= top_p) return (kept){keys + left - 1, count - left + 1};
  }
  return (kept){NULL, 0};
}

static kept keep_top_p(const duet_kernel_table *kernels, const float *z, uint32_t n, float zmax, float top_p, uint64_t *keys) {
  /* The exponentials themselves are not kept: they go where the keys come later. */
  const float sum = kernels->exp_sum_row(z, n, zmax, (float *)keys);
  /* All candidates below this together have less than half of what top_p leaves out, so that the crossing lies above. */
  const float floor = zmax + (float)duet_log(0.5 * (1.0 - (double)top_p) * (double)sum / (double)n);
  kept result = keep_top_p_above(z, n, zmax, top_p, sum, floor, keys);
  return result.keys != NULL ? result : keep_top_p_above(z, n, zmax, top_p, sum, -__builtin_inff(), keys);
}

static kept keep_best(const duet_kernel_table *kernels, const sampled_row *row, const float *z, float zmax, uint64_t *keys) {
  const duet_sample_request *request = row->request;
  const uint32_t n = row->vocabulary_size, top_k = request->top_k;
  if (top_k > 0 && top_k < n) {
    duet_rank_best(z, n, top_k, keys);
    return (kept){keys, request->top_p < 1 ? count_top_p(z, keys, top_k, zmax, request->top_p) : top_k};
  }
  return request->top_p < 1 ? keep_top_p(kernels, z, n, zmax, request->top_p, keys) : (kept){NULL, 0};
}

static uint32_t choose_keyed(const duet_kernel_table *kernels, const sampled_row *row, float *z, uint64_t *keys) {
  const duet_sample_request *request = row->request;
  const uint32_t n = row->vocabulary_size;
  for (uint32_t id = 0; id < n; id++) z[id] = (z[id] * request->draft_sharpness) / request->temperature;
  const uint32_t best = argmax(kernels, z, n);
  const float zmax = z[best];
  if (zmax == -__builtin_inff()) return 0; /* nothing is allowed */
  const kept candidates = keep_best(kernels, row, z, zmax, keys);
  contest c = {.row = row, .counter = {row->position, request->choice_index, 0, request->purpose}, .words_of = UINT32_MAX};
  const float min_p = request->min_p;
  contend(&c, best, zmax); /* the likeliest winner first: it rules most others out */
  const uint32_t count = candidates.keys == NULL ? n : candidates.count;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t id = candidates.keys == NULL ? i : duet_rank_id(candidates.keys[i]);
    if (z[id] + GUMBEL_MAX < c.best_value) continue; /* -infinity, too */
    if (min_p > 0 && !(duet_expf(z[id] - zmax) >= min_p)) continue;
    contend(&c, id, z[id]);
  }
  return c.best_id;
}

int32_t duet_sample_row(const duet_kernel_table *kernels, const float *logits, uint32_t vocabulary_size,
                        const duet_sample_request *request, const uint32_t *mask, uint32_t position, duet_sample_extra extra,
                        duet_sample_scratch *scratch) {
  sampled_row row = {request, mask, position, vocabulary_size, extra};
  const int is_changed = request->temperature > 0 || request->bias_count > 0 || mask != NULL || request->banned_count > 0 ||
                         request->repetition_penalty != 1 || request->presence_penalty != 0 || request->frequency_penalty != 0;
  if (!is_changed) return (int32_t)argmax(kernels, logits, vocabulary_size);
  memcpy(scratch->z, logits, vocabulary_size * sizeof *logits);
  process_logits(&row, scratch->z, scratch->counts);
  if (request->temperature == 0) return (int32_t)argmax(kernels, scratch->z, vocabulary_size);
  return (int32_t)choose_keyed(kernels, &row, scratch->z, scratch->keys);
}
