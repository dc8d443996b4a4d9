/* Sampling, keyed and not drawn from a stream (docs/arithmetic.md, rule 9): a sample is a function of the logits, the history,
 * the seed, the position and the choice. It owns no state beyond scratch; what an accepted draft means is the engine's.
 *
 * Work is only done where it can matter: without top_k and top_p no candidate is ordered, and a token's Gumbel noise is made
 * only while it could still win.
 */
#include "duet-math.h"
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define INVALID(...) return duet_fail(DUET_STATUS_INVALID, __VA_ARGS__)
#define IN_HISTORY 0x80000000u
/* exp(z - zmax) below 2^-28: beside a sum of at least 1 it changes neither that sum nor a share accumulated to 0.5 or more. */
#define NEGLIGIBLE_DROP 20.0f
/* The noise of x = 0xffffffff in rule 9 is below 3.14 on the low side and that of x = 0 below 22.9 on the high side. */
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

/* ---- candidates in order ----------------------------------------------------------------------------------------- */

/* Descending keys are (z descending, id ascending). Adding 0 makes -0 equal to 0. */
static inline uint64_t key_of(float z, uint32_t id) {
  uint32_t bits = duet_f32_bits(z + 0.0f);
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (uint64_t)bits << 32 | (uint32_t)~id;
}
static inline uint32_t id_of(uint64_t key) { return ~(uint32_t)key; }

static void sift_down(uint64_t *heap, uint32_t count, uint32_t at) {
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

static void make_heap(uint64_t *heap, uint32_t count) {
  for (uint32_t i = count / 2; i-- > 0;) sift_down(heap, count, i);
}

/* A heap with the smallest first becomes descending. */
static void sort_heap(uint64_t *heap, uint32_t count) {
  for (uint32_t n = count; n > 1; n--) {
    uint64_t smallest = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = smallest;
    sift_down(heap, n - 1, 0);
  }
}

/* The `count` best of z[vocabulary] in order. */
static void select_best(const float *z, uint32_t vocabulary_size, uint32_t count, uint64_t *keys) {
  for (uint32_t id = 0; id < count; id++) keys[id] = key_of(z[id], id);
  make_heap(keys, count);
  float weakest = z[id_of(keys[0])];
  for (uint32_t id = count; id < vocabulary_size; id++) {
    if (!(z[id] > weakest)) continue; /* an equal one has the higher id */
    keys[0] = key_of(z[id], id);
    sift_down(keys, count, 0);
    weakest = z[id_of(keys[0])];
  }
  sort_heap(keys, count);
}

/* All of z that is not negligible beside zmax, in order; returns how many. */
static uint32_t select_relevant(const float *z, uint32_t vocabulary_size, float zmax, uint64_t *keys) {
  uint32_t count = 0;
  for (uint32_t id = 0; id < vocabulary_size; id++) {
    if (z[id] >= zmax - NEGLIGIBLE_DROP) keys[count++] = key_of(z[id], id);
  }
  make_heap(keys, count);
  sort_heap(keys, count);
  return count;
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

/* Whether z + G can reach the best value: G >= t needs v <= exp(-t). The factor covers all rounding while |best| < 8192. */
static inline int can_win(float z, float best, uint32_t x) {
  float t = best - z;
  if (!(best < 8192.0f && best > -8192.0f) || t <= 1.0f) return 1;
  return (float)x * (0x1p-32f * 0.98f) <= duet_expf(-t);
}

static inline void contend(contest *c, uint32_t id, float z) {
  if (z == -__builtin_inff() || (c->has_best && z + GUMBEL_MAX < c->best_value)) return;
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

/* How many of the ordered candidates top_p keeps; the one that crosses is kept. count + 1 when none crosses. */
static uint32_t count_top_p(const float *z, const uint64_t *keys, uint32_t count, float zmax, float top_p) {
  float sum = 0;
  for (uint32_t i = 0; i < count; i++) sum = sum + duet_expf(z[id_of(keys[i])] - zmax);
  float accumulated = 0;
  for (uint32_t i = 0; i < count; i++) {
    accumulated = accumulated + duet_expf(z[id_of(keys[i])] - zmax) / sum;
    if (accumulated >= top_p) return i + 1;
  }
  return count + 1;
}

static uint32_t choose_keyed(const duet_kernel_table *kernels, const sampled_row *row, float *z, uint64_t *keys) {
  const duet_sample_request *request = row->request;
  const uint32_t n = row->vocabulary_size;
  for (uint32_t id = 0; id < n; id++) z[id] = (z[id] * request->draft_sharpness) / request->temperature;
  const uint32_t best = argmax(kernels, z, n);
  const float zmax = z[best];
  if (zmax == -__builtin_inff()) return 0; /* nothing is allowed */

  /* `count` ordered candidates in keys, or all ids in no order. */
  uint32_t count = 0;
  if (request->top_k > 0 && request->top_k < n) {
    count = request->top_k;
    select_best(z, n, count, keys);
  }
  if (request->top_p < 1) {
    const int is_all = count == 0;
    if (is_all) count = select_relevant(z, n, zmax, keys);
    const uint32_t kept = count_top_p(z, keys, count, zmax, request->top_p);
    /* The negligible ones follow the relevant ones: where none of these crosses, they are all in. */
    if (kept <= count) count = kept;
    else if (is_all) count = 0;
  }
  contest c = {.row = row, .counter = {row->position, request->choice_index, 0, request->purpose}, .words_of = UINT32_MAX};
  const float min_p = request->min_p;
  contend(&c, best, zmax); /* the likeliest winner first: it rules most others out */
  if (count > 0) {
    for (uint32_t i = 0; i < count; i++) {
      uint32_t id = id_of(keys[i]);
      if (min_p > 0 && !(duet_expf(z[id] - zmax) >= min_p)) continue;
      contend(&c, id, z[id]);
    }
  } else {
    for (uint32_t id = 0; id < n; id++) {
      if (min_p > 0 && !(duet_expf(z[id] - zmax) >= min_p)) continue;
      contend(&c, id, z[id]);
    }
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

/* ---- log-probabilities ------------------------------------------------------------------------------------------- */

duet_normaliser duet_normalise(const duet_kernel_table *kernels, const float *logits, uint32_t vocabulary_size, float *scratch) {
  duet_normaliser result;
  result.max = kernels->max_row(logits, vocabulary_size);
  result.log_sum = (float)duet_log((double)kernels->exp_sum_row(logits, vocabulary_size, result.max, scratch));
  return result;
}

float duet_logprob(duet_normaliser normaliser, float logit) { return (logit - normaliser.max) - normaliser.log_sum; }

static void write_logprobs(const duet_kernel_table *kernels, const float *logits, uint32_t vocabulary_size,
                           const duet_sample_request *request, duet_sample_scratch *scratch, uint32_t row, duet_sample_result *result) {
  if (request->top_logprobs == DUET_NONE) {
    result->logprobs[row] = duet_f32_from_bits(0x7fc00000u);
    return;
  }
  duet_normaliser normaliser = duet_normalise(kernels, logits, vocabulary_size, scratch->z);
  result->logprobs[row] = duet_logprob(normaliser, logits[result->tokens[row]]);
  const uint32_t count = duet_min_u32(request->top_logprobs, vocabulary_size);
  if (count == 0) return;
  select_best(logits, vocabulary_size, count, scratch->keys);
  for (uint32_t rank = 0; rank < count; rank++) {
    uint32_t id = id_of(scratch->keys[rank]);
    result->top_ids[(size_t)row * DUET_TOP_LOGPROBS_MAX + rank] = (int32_t)id;
    result->top_logprobs[(size_t)row * DUET_TOP_LOGPROBS_MAX + rank] = duet_logprob(normaliser, logits[id]);
  }
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static int32_t check_ids(const char *what, const int32_t *ids, uint32_t count, uint32_t vocabulary_size) {
  if (count > 0 && ids == NULL) INVALID("sample request: %s is null", what);
  for (uint32_t i = 0; i < count; i++) {
    if (ids[i] < 0 || (uint32_t)ids[i] >= vocabulary_size) INVALID("sample request: %s[%u] is token %d of %u", what, i, ids[i], vocabulary_size);
  }
  return DUET_STATUS_OK;
}

static inline int is_number(float x) { return (duet_f32_bits(x) & 0x7f800000u) != 0x7f800000u; }

int32_t duet_sample_check(const duet_sample_request *request, uint32_t vocabulary_size, uint32_t logit_row_count) {
  if (request->row_count == 0 || request->first_logit_row > logit_row_count || request->row_count > logit_row_count - request->first_logit_row)
    INVALID("sample request: logit rows %u + %u of %u", request->first_logit_row, request->row_count, logit_row_count);
  if (!(request->temperature >= 0) || !is_number(request->temperature)) INVALID("sample request: temperature must be a number from 0 on");
  if (!(request->top_p > 0) || !(request->min_p >= 0) || !(request->repetition_penalty > 0) || !is_number(request->repetition_penalty) ||
      !is_number(request->presence_penalty) || !is_number(request->frequency_penalty) || !(request->draft_sharpness > 0) ||
      !is_number(request->draft_sharpness))
    INVALID("sample request: top_p, repetition_penalty and draft_sharpness must be above 0, min_p not below, penalties finite");
  if (request->top_logprobs != DUET_NONE && request->top_logprobs > DUET_TOP_LOGPROBS_MAX)
    INVALID("sample request: top_logprobs must be at most %u, got %u", DUET_TOP_LOGPROBS_MAX, request->top_logprobs);
  if (request->prompt_count > request->history_count) INVALID("sample request: %u prompt tokens of %u", request->prompt_count, request->history_count);
  if (request->row_count > 1 && request->draft_tokens == NULL) INVALID("sample request: draft_tokens is null");
  if (request->bias_count > 0 && request->bias_values == NULL) INVALID("sample request: bias_values is null");
  int32_t status = check_ids("bias_ids", request->bias_ids, request->bias_count, vocabulary_size);
  if (status == DUET_STATUS_OK) status = check_ids("banned_ids", request->banned_ids, request->banned_count, vocabulary_size);
  const int has_penalties = request->repetition_penalty != 1 || request->presence_penalty != 0 || request->frequency_penalty != 0;
  if (status == DUET_STATUS_OK && has_penalties) status = check_ids("history", request->history, request->history_count, vocabulary_size);
  return status;
}

static void sample_request(const duet_kernel_table *kernels, const float *logits, size_t logit_stride, uint32_t vocabulary_size,
                           const duet_sample_request *request, duet_sample_scratch *scratch, duet_sample_result *result) {
  const size_t mask_words = duet_ceil_div(vocabulary_size, 32);
  for (uint32_t row = 0; row < request->row_count; row++) {
    const float *row_logits = logits + (request->first_logit_row + (size_t)row) * logit_stride;
    const uint32_t *mask = request->mask == NULL ? NULL : request->mask + row * mask_words;
    duet_sample_extra extra = {result->tokens, row};
    result->tokens[row] = duet_sample_row(kernels, row_logits, vocabulary_size, request, mask, request->position + row, extra, scratch);
    result->emitted_count = row + 1;
    write_logprobs(kernels, row_logits, vocabulary_size, request, scratch, row, result);
    if (row + 1 < request->row_count && result->tokens[row] != request->draft_tokens[row]) return;
  }
}

static int has_room(const duet_sample_request *request, const duet_sample_result *result) {
  return result->tokens != NULL && result->logprobs != NULL &&
         (request->top_logprobs == DUET_NONE || request->top_logprobs == 0 || (result->top_ids != NULL && result->top_logprobs != NULL));
}

typedef struct sampling_work {
  duet_model *model;
  const duet_sample_request *requests;
  duet_sample_result *results;
  uint32_t count;
  _Atomic uint32_t next;
} sampling_work;

/* Requests are independent: lanes take them as they come. */
static void sample_lane(void *context, duet_lane *lane) {
  sampling_work *work = context;
  duet_model *model = work->model;
  for (;;) {
    uint32_t i = atomic_fetch_add_explicit(&work->next, 1, memory_order_relaxed);
    if (i >= work->count) return;
    sample_request(model->kernels, model->logits, model->logit_stride, model->vocabulary_size, &work->requests[i],
                   &model->lanes[lane->index].sample, &work->results[i]);
  }
}

int32_t duet_model_sample(duet_model *model, const duet_sample_request *requests, duet_sample_result *results, uint32_t count) {
  if (model == NULL || requests == NULL || results == NULL) INVALID("duet_model_sample: an argument is null");
  for (uint32_t i = 0; i < count; i++) {
    int32_t status = duet_sample_check(&requests[i], model->vocabulary_size, model->logit_row_count);
    if (status != DUET_STATUS_OK) return status;
    if (!has_room(&requests[i], &results[i])) INVALID("duet_model_sample: result %u lacks an array", i);
  }
  sampling_work work = {.model = model, .requests = requests, .results = results, .count = count};
  if (count > 1) {
    duet_device_run(model->device, sample_lane, &work);
  } else if (count == 1) {
    uint64_t saved = duet_fp_enter();
    sample_request(model->kernels, model->logits, model->logit_stride, model->vocabulary_size, requests, &model->lanes[0].sample, results);
    duet_fp_leave(saved);
  }
  return DUET_STATUS_OK;
}

int32_t duet_sample_logits(uint32_t isa, const float *logits, uint32_t vocabulary_size, const duet_sample_request *request,
                           duet_sample_result *result) {
  if (logits == NULL || request == NULL || result == NULL || vocabulary_size == 0 || vocabulary_size > DUET_DIMENSION_MAX)
    INVALID("duet_sample_logits: an argument is null, or the vocabulary has %u tokens", vocabulary_size);
  const duet_kernel_table *kernels = duet_kernels_for(isa);
  if (kernels == NULL) return duet_fail(DUET_STATUS_UNSUPPORTED, "instruction set %u cannot run here", isa);
  int32_t status = duet_sample_check(request, vocabulary_size, request->first_logit_row + request->row_count);
  if (status != DUET_STATUS_OK) return status;
  if (!has_room(request, result)) INVALID("duet_sample_logits: the result lacks an array");
  duet_sample_scratch scratch = {malloc(vocabulary_size * sizeof(float)), calloc(vocabulary_size, sizeof(uint32_t)),
                                 malloc(vocabulary_size * sizeof(uint64_t))};
  if (scratch.z == NULL || scratch.counts == NULL || scratch.keys == NULL) {
    status = duet_fail(DUET_STATUS_NO_MEMORY, "no memory to sample from %u tokens", vocabulary_size);
  } else {
    uint64_t saved = duet_fp_enter();
    sample_request(kernels, logits, vocabulary_size, vocabulary_size, request, &scratch, result);
    duet_fp_leave(saved);
  }
  free(scratch.z);
  free(scratch.counts);
  free(scratch.keys);
  return status;
}

int32_t duet_model_score(duet_model *model, const int32_t *token_ids, uint32_t count, float *out) {
  if (model == NULL || token_ids == NULL || out == NULL) INVALID("duet_model_score: an argument is null");
  if (count > model->logit_row_count) INVALID("duet_model_score: %u tokens for %u logit rows", count, model->logit_row_count);
  int32_t status = check_ids("token_ids", token_ids, count, model->vocabulary_size);
  if (status != DUET_STATUS_OK) return status;
  uint64_t saved = duet_fp_enter();
  for (uint32_t i = 0; i < count; i++) {
    const float *logits = model->logits + (size_t)i * model->logit_stride;
    out[i] = duet_logprob(duet_normalise(model->kernels, logits, model->vocabulary_size, model->lanes[0].sample.z), logits[token_ids[i]]);
  }
  duet_fp_leave(saved);
  return DUET_STATUS_OK;
}
