/* Drafting in one native call: catch up on a Batch, then feed every sequence its own samples, all sequences together.
 *
 * A draft is a wish: nothing here decides what is accepted. The grammar mask of a request covers its first token only.
 */
#include "duet-math.h"
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define INVALID(...) return duet_fail(DUET_STATUS_INVALID, __VA_ARGS__)

/* The arrays of a single-row-per-sequence Batch, [sequence] each. */
typedef struct draft_state {
  int32_t *token_ids;
  int32_t *positions;
  int32_t *kv_slots;
  int32_t *sequence_index;
  int32_t *logit_rows;
  void *memory;
} draft_state;

static int allocate(draft_state *state, uint32_t sequences) {
  int32_t *memory = malloc(5 * (size_t)sequences * sizeof *memory);
  state->memory = memory;
  if (memory == NULL) return 0;
  state->token_ids = memory;
  state->positions = memory + sequences;
  state->kv_slots = memory + 2 * (size_t)sequences;
  state->sequence_index = memory + 3 * (size_t)sequences;
  state->logit_rows = memory + 4 * (size_t)sequences;
  return 1;
}

static int32_t check_draft(const duet_model *model, const duet_batch *batch, const duet_sample_request *requests,
                           const uint32_t *step_counts, uint32_t step_stride) {
  if (batch->sequence_count == 0 || batch->logit_row_count != batch->sequence_count)
    INVALID("duet_model_draft: %u sequences want %u logit rows; each wants exactly its last", batch->sequence_count, batch->logit_row_count);
  for (uint32_t s = 0; s < batch->sequence_count; s++) {
    const duet_sample_request *request = &requests[s];
    if (step_counts[s] == 0 || step_counts[s] > step_stride) INVALID("duet_model_draft: sequence %u drafts %u of %u tokens", s, step_counts[s], step_stride);
    if (request->row_count != 1) INVALID("duet_model_draft: request %u has %u rows, expected 1", s, request->row_count);
    int32_t status = duet_sample_check(request, model->vocabulary_size, request->first_logit_row + 1);
    if (status != DUET_STATUS_OK) return status;
    int32_t row = batch->logit_rows[s];
    if (row < 0 || (uint32_t)row >= batch->row_count || batch->sequence_index[row] != (int32_t)s)
      INVALID("duet_model_draft: logit row %u is row %d, not sequence %u's last", s, row, s);
    uint64_t last = (uint64_t)request->position + step_counts[s] - 1; /* one beyond the last position that is fed */
    if (step_counts[s] > 1 && (last > model->shape.context_max || (last - 1) / DUET_KV_BLOCK_TOKENS >= batch->block_table_stride))
      INVALID("duet_model_draft: sequence %u reaches position %llu, beyond its block table or the context", s, (unsigned long long)last - 1);
  }
  return DUET_STATUS_OK;
}

/* Samples draft token `index` of the sequences behind the logit rows. */
static void sample_drafts(duet_model *model, const duet_batch *run, const duet_sample_request *requests, uint32_t index,
                          uint32_t step_stride, int32_t *draft_tokens, float *draft_probs) {
  uint64_t saved = duet_fp_enter();
  for (uint32_t i = 0; i < run->logit_row_count; i++) {
    const uint32_t s = (uint32_t)run->sequence_index[run->logit_rows[i]];
    const float *logits = model->logits + (size_t)i * model->logit_stride;
    int32_t *tokens = draft_tokens + (size_t)s * step_stride;
    duet_sample_extra extra = {tokens, index};
    tokens[index] = duet_row_sampler_for(model->kernels)(model->kernels, logits, model->vocabulary_size, &requests[s], index == 0 ? requests[s].mask : NULL,
                                    requests[s].position + index, extra, &model->lanes[0].sample);
    duet_normaliser normaliser = duet_normalise(model->kernels, logits, model->vocabulary_size, model->lanes[0].sample.z);
    draft_probs[(size_t)s * step_stride + index] = duet_expf(duet_logprob(normaliser, logits[tokens[index]]));
  }
  duet_fp_leave(saved);
}

/* The next Batch: every sequence with steps left takes its last sample. Returns its rows. */
static uint32_t fill_batch(const draft_state *state, const duet_batch *batch, const duet_sample_request *requests, const uint32_t *step_counts,
                           uint32_t index, uint32_t step_stride, const int32_t *draft_tokens) {
  uint32_t rows = 0;
  for (uint32_t s = 0; s < batch->sequence_count; s++) {
    if (index >= step_counts[s]) continue;
    uint32_t position = requests[s].position + index - 1;
    int32_t kv_block = batch->block_tables[(size_t)s * batch->block_table_stride + position / DUET_KV_BLOCK_TOKENS];
    state->token_ids[rows] = draft_tokens[(size_t)s * step_stride + index - 1];
    state->positions[rows] = (int32_t)position;
    state->kv_slots[rows] = kv_block * (int32_t)DUET_KV_BLOCK_TOKENS + (int32_t)(position % DUET_KV_BLOCK_TOKENS);
    state->sequence_index[rows] = (int32_t)s;
    state->logit_rows[rows] = (int32_t)rows;
    rows++;
  }
  return rows;
}

int32_t duet_model_draft(duet_model *model, const duet_batch *batch, const duet_sample_request *requests, const uint32_t *step_counts,
                         uint32_t step_stride, int32_t *draft_tokens, float *draft_probs) {
  if (model == NULL || batch == NULL || requests == NULL || step_counts == NULL || draft_tokens == NULL || draft_probs == NULL)
    INVALID("duet_model_draft: an argument is null");
  int32_t status = duet_model_run(model, batch, NULL);
  if (status != DUET_STATUS_OK) return status;
  status = check_draft(model, batch, requests, step_counts, step_stride);
  if (status != DUET_STATUS_OK) return status;
  draft_state state;
  if (!allocate(&state, batch->sequence_count)) return duet_fail(DUET_STATUS_NO_MEMORY, "no memory to draft for %u sequences", batch->sequence_count);

  sample_drafts(model, batch, requests, 0, step_stride, draft_tokens, draft_probs);
  duet_batch step = *batch;
  step.token_ids = state.token_ids;
  step.positions = state.positions;
  step.kv_slots = state.kv_slots;
  step.sequence_index = state.sequence_index;
  step.logit_rows = state.logit_rows;
  for (uint32_t index = 1; status == DUET_STATUS_OK; index++) {
    step.row_count = step.logit_row_count = fill_batch(&state, batch, requests, step_counts, index, step_stride, draft_tokens);
    if (step.row_count == 0) break;
    status = duet_model_run(model, &step, NULL);
    if (status == DUET_STATUS_OK) sample_drafts(model, &step, requests, index, step_stride, draft_tokens, draft_probs);
  }
  free(state.memory);
  return status;
}
