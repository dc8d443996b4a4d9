/* Sampling for all rows of a step: checks of requests, lanes, results, and log-probabilities. How one row is sampled is in
 * sample_row.c; what an accepted draft means is the engine's.
 */
#include "duet-math.h"
#include "internal.h"
#include "ranking.h"

#include <stdlib.h>
#include <string.h>

#pragma weak duet_sample_row_avx2

#define INVALID(...) return duet_fail(DUET_STATUS_INVALID, __VA_ARGS__)

duet_row_sampler *duet_row_sampler_for(const duet_kernel_table *kernels) {
  return duet_sample_row_avx2 != NULL && kernels->isa != DUET_ISA_PLAIN ? duet_sample_row_avx2 : duet_sample_row;
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
  duet_rank_best(logits, vocabulary_size, count, scratch->keys);
  for (uint32_t rank = 0; rank < count; rank++) {
    uint32_t id = duet_rank_id(scratch->keys[rank]);
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
  duet_row_sampler *sample_row = duet_row_sampler_for(kernels);
  const size_t mask_words = duet_ceil_div(vocabulary_size, 32);
  for (uint32_t row = 0; row < request->row_count; row++) {
    const float *row_logits = logits + (request->first_logit_row + (size_t)row) * logit_stride;
    const uint32_t *mask = request->mask == NULL ? NULL : request->mask + row * mask_words;
    duet_sample_extra extra = {result->tokens, row};
    result->tokens[row] = sample_row(kernels, row_logits, vocabulary_size, request, mask, request->position + row, extra, scratch);
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
} sampling_work;

/* One phase of independent requests, every second one on stream 1. */
static uint32_t count_requests(void *context, uint32_t phase, uint32_t stream) {
  const sampling_work *work = context;
  (void)phase;
  return (work->count + 1 - stream) / 2;
}

static void sample_items(void *context, uint32_t phase, uint32_t stream, uint32_t begin, uint32_t end, duet_lane *lane) {
  const sampling_work *work = context;
  duet_model *model = work->model;
  (void)phase;
  for (uint32_t i = 2 * begin + stream; i < 2 * end; i += 2)
    sample_request(model->kernels, model->logits, model->logit_stride, model->vocabulary_size, &work->requests[i],
                   &model->lanes[lane->index].sample, &work->results[i]);
}

static int always(void *context) {
  (void)context;
  return 1;
}

int32_t duet_model_sample(duet_model *model, const duet_sample_request *requests, duet_sample_result *results, uint32_t count) {
  if (model == NULL || requests == NULL || results == NULL) INVALID("duet_model_sample: an argument is null");
  for (uint32_t i = 0; i < count; i++) {
    int32_t status = duet_sample_check(&requests[i], model->vocabulary_size, model->logit_row_count);
    if (status != DUET_STATUS_OK) return status;
    if (!has_room(&requests[i], &results[i])) INVALID("duet_model_sample: result %u lacks an array", i);
  }
  if (count > 1) {
    static const uint8_t joins[] = {1};
    sampling_work work = {.model = model, .requests = requests, .results = results, .count = count};
    const duet_phases phases = {1, joins, &work, count_requests, sample_items, always};
    duet_device_run(model->device, &phases);
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
