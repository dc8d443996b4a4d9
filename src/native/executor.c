/* Runs a Program over a Batch: one call per step, every lane walks the op list, barriers where the Program needs them.
 *
 * Lanes of a team share their die's rowTiles; ops that are computed once (embed, rmsNorm, exchangeAdd, route) share rows over
 * all lanes. Nothing is locked; results do not depend on who computes what (docs/arithmetic.md: row independence).
 */
#include "duet-math.h"
#include "internal.h"

#include <string.h>

#pragma weak duet_op_rope_and_store_avx2

#define INVALID(...) return duet_fail(DUET_STATUS_INVALID, __VA_ARGS__)

/* ---- checking a Batch -------------------------------------------------------------------------------------------- */

static int32_t check_sequences(const duet_model *model, const duet_batch *batch) {
  for (uint32_t row = 0; row < batch->row_count; row++) {
    int32_t sequence = batch->sequence_index[row], position = batch->positions[row];
    if (sequence < 0 || (uint32_t)sequence >= batch->sequence_count)
      INVALID("batch row %u: sequence %d of %u", row, sequence, batch->sequence_count);
    if (position < 0 || (uint32_t)position >= model->shape.context_max)
      INVALID("batch row %u: position %d of %u", row, position, model->shape.context_max);
    if (row > 0 && sequence == batch->sequence_index[row - 1] && position != batch->positions[row - 1] + 1)
      INVALID("batch row %u: position %d does not follow %d", row, position, batch->positions[row - 1]);
    if (row > 0 && sequence < batch->sequence_index[row - 1])
      INVALID("batch row %u: sequence %d follows sequence %d", row, sequence, batch->sequence_index[row - 1]);
    if (!model->has_attention) continue;
    int32_t kv_slot = batch->kv_slots[row];
    if (kv_slot < 0 || (uint32_t)kv_slot / DUET_KV_BLOCK_TOKENS >= model->options.kv_block_count)
      INVALID("batch row %u: kvSlot %d of %u kvBlocks", row, kv_slot, model->options.kv_block_count);
    int is_last = row + 1 == batch->row_count || batch->sequence_index[row + 1] != sequence;
    if (!is_last) continue;
    uint32_t blocks = (uint32_t)position / DUET_KV_BLOCK_TOKENS + 1;
    if (blocks > batch->block_table_stride) INVALID("batch row %u: position %d is beyond the block table", row, position);
    const int32_t *table = batch->block_tables + (size_t)sequence * batch->block_table_stride;
    for (uint32_t i = 0; i < blocks; i++) {
      if (table[i] < 0 || (uint32_t)table[i] >= model->options.kv_block_count)
        INVALID("block table of sequence %d: entry %u is kvBlock %d of %u", sequence, i, table[i], model->options.kv_block_count);
    }
  }
  return DUET_STATUS_OK;
}

static int32_t check_batch(const duet_model *model, const duet_batch *batch) {
  if (batch->row_count == 0 || batch->row_count > model->options.row_max)
    INVALID("batch: row_count must be 1 to %u, got %u", model->options.row_max, batch->row_count);
  if (batch->logit_row_count > model->options.logit_row_max)
    INVALID("batch: logit_row_count must be at most %u, got %u", model->options.logit_row_max, batch->logit_row_count);
  if (batch->token_ids == NULL || batch->positions == NULL || batch->kv_slots == NULL || batch->sequence_index == NULL ||
      batch->block_tables == NULL || (batch->logit_rows == NULL && batch->logit_row_count > 0))
    INVALID("batch: an array is null");
  for (uint32_t row = 0; row < batch->row_count; row++) {
    if (batch->token_ids[row] < 0 || (uint32_t)batch->token_ids[row] >= model->embedding_rows)
      INVALID("batch row %u: token id %d of %u", row, batch->token_ids[row], model->embedding_rows);
  }
  for (uint32_t i = 0; i < batch->logit_row_count; i++) {
    int32_t row = batch->logit_rows[i];
    if (row < 0 || (uint32_t)row >= batch->row_count || (i > 0 && row <= batch->logit_rows[i - 1]))
      INVALID("batch: logit row %u is row %d; rows must ascend and be below %u", i, row, batch->row_count);
  }
  return check_sequences(model, batch);
}

/* ---- ops that are computed once ---------------------------------------------------------------------------------- */

void duet_embed_row(const duet_weight *weight, uint32_t row, float *out) {
  const uint8_t *tile = weight->data + (size_t)(row / DUET_TILE_ROWS) * weight->tile_bytes;
  const uint32_t r = row % DUET_TILE_ROWS;
  if (weight->quant_type == DUET_QUANT_F32) {
    for (uint32_t k = 0; k < weight->columns; k++) memcpy(&out[k], tile + ((size_t)k * DUET_TILE_ROWS + r) * 4, 4);
    return;
  }
  uint16_t half;
  if (weight->quant_type == DUET_QUANT_F16) {
    for (uint32_t k = 0; k < weight->columns; k++) {
      memcpy(&half, tile + ((size_t)k * DUET_TILE_ROWS + r) * 2, 2);
      out[k] = duet_f16_to_f32(half);
    }
    return;
  }
  const int is_q4 = weight->quant_type == DUET_QUANT_Q4;
  const size_t pair_bytes = is_q4 ? 576 : 1088;
  for (uint32_t k = 0; k < weight->columns; k++) {
    uint32_t block = k / DUET_QUANT_BLOCK, i = k % DUET_QUANT_BLOCK;
    const uint8_t *pair = tile + (block / 2) * pair_bytes;
    memcpy(&half, pair + (block % 2) * 32 + r * 2, 2);
    int32_t value;
    if (is_q4) {
      uint8_t byte = pair[64 + (block % 2) * 256 + (i / 8) * 64 + r * 4 + i % 4];
      value = (i % 8 < 4 ? byte & 15 : byte >> 4) - 8;
    } else {
      value = (int32_t)pair[64 + (block % 2) * 512 + (i / 4) * 64 + r * 4 + i % 4] - 128;
    }
    out[k] = (float)value * duet_f16_to_f32(half);
  }
}

int duet_slot_quantise(const duet_model *model, const duet_slot_state *slot, uint32_t die, uint32_t begin, uint32_t end) {
  if (!slot->slot.is_quantised) return 0;
  const uint32_t columns = slot->slot.columns[slot->slot.is_per_die ? die : 0];
  const size_t stride = slot->stride[die];
  int is_bad = 0;
  for (uint32_t row = begin; row < end; row++) {
    size_t block = row * (stride / DUET_QUANT_BLOCK);
    is_bad |= model->kernels->quantise_row(slot->values[die] + row * stride, columns, (uint32_t)stride, slot->q[die] + row * stride,
                                           slot->scales[die] + block, slot->sums[die] + block);
  }
  return is_bad;
}

static int op_embed(duet_step *step, const duet_op_state *op, duet_lane *lane) {
  duet_model *model = step->model;
  const duet_slot_state *output = &model->slots[op->op.output];
  uint32_t begin, end;
  duet_share(step->batch->row_count, lane->index, lane->lane_count, &begin, &end);
  for (uint32_t row = begin; row < end; row++) {
    uint32_t token = (uint32_t)step->batch->token_ids[row];
    uint32_t first_rows = op->weight[0]->rows;
    float *out = output->values[0] + row * output->stride[0];
    if (token < first_rows) duet_embed_row(op->weight[0], token, out);
    else duet_embed_row(op->weight[1], token - first_rows, out);
  }
  return duet_slot_quantise(model, output, 0, begin, end);
}

static int op_rms_norm(duet_step *step, const duet_op_state *op, duet_lane *lane) {
  duet_model *model = step->model;
  const duet_slot_state *input = &model->slots[op->op.input];
  const duet_slot_state *output = &model->slots[op->op.output];
  const float *weight = (const float *)(const void *)op->weight[0]->data;
  const int is_gathered = (op->op.flags & DUET_OP_FLAG_LOGIT_ROWS) != 0;
  uint32_t begin, end;
  duet_share(is_gathered ? step->batch->logit_row_count : step->batch->row_count, lane->index, lane->lane_count, &begin, &end);
  for (uint32_t row = begin; row < end; row++) {
    size_t from = is_gathered ? (size_t)step->batch->logit_rows[row] : row;
    model->kernels->rms_norm_row(input->values[0] + from * input->stride[0], weight, input->slot.columns[0], model->shape.rms_norm_eps,
                                 output->values[0] + row * output->stride[0]);
  }
  return duet_slot_quantise(model, output, 0, begin, end);
}

static int op_exchange_add(duet_step *step, const duet_op_state *op, duet_lane *lane) {
  duet_model *model = step->model;
  const duet_slot_state *input = &model->slots[op->op.input];
  const duet_slot_state *output = &model->slots[op->op.output];
  uint32_t begin, end;
  duet_share(step->batch->row_count, lane->index, lane->lane_count, &begin, &end);
  for (uint32_t row = begin; row < end; row++) {
    model->kernels->exchange_add_row(output->values[0] + row * output->stride[0], input->values[0] + row * input->stride[0],
                                     input->values[1] + row * input->stride[1], output->slot.columns[0]);
  }
  return duet_slot_quantise(model, output, 0, begin, end);
}

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

static int op_matmul(duet_step *step, const duet_op_state *op, duet_lane *lane) {
  duet_model *model = step->model;
  const duet_slot_state *input = &model->slots[op->op.input];
  const duet_slot_state *output = &model->slots[op->op.output];
  const uint32_t rows = step->batch->row_count;
  for (uint32_t die = lane->die_begin; die < lane->die_end; die++) {
    const duet_weight *weight = op->weight[die];
    if (weight == NULL) {
      uint32_t begin, end;
      duet_share(rows, lane->team_lane, lane->team_lane_count, &begin, &end);
      memset(output->values[die] + begin * output->stride[die], 0, (size_t)(end - begin) * output->stride[die] * sizeof(float));
      continue;
    }
    uint32_t begin, end;
    duet_share(duet_ceil_div(weight->rows, DUET_TILE_ROWS), lane->team_lane, lane->team_lane_count, &begin, &end);
    if (begin == end) continue;
    duet_matmul_args args = {
      .tiles = weight->data + begin * weight->tile_bytes,
      .tile_bytes = weight->tile_bytes,
      .tile_step = 1,
      .tile_count = end - begin,
      .column_count = weight->padded_columns,
      .x = input->values[die],
      .x_stride = input->stride[die],
      .qx = duet_slot_quantised(input, die),
      .row_count = rows,
      .bias = op->bias[die] == NULL ? NULL : op->bias[die] + (size_t)begin * DUET_TILE_ROWS,
      .out = output->values[die] + (size_t)begin * DUET_TILE_ROWS,
      .out_stride = output->stride[die],
    };
    model->kernels->matmul[weight->quant_type](&args);
  }
  if (!output->slot.is_quantised) return 0;
  duet_barrier_team(lane);
  int is_bad = 0;
  for (uint32_t die = lane->die_begin; die < lane->die_end; die++) {
    uint32_t begin, end;
    duet_share(rows, lane->team_lane, lane->team_lane_count, &begin, &end);
    is_bad |= duet_slot_quantise(model, output, die, begin, end);
  }
  return is_bad;
}

static int has_not_finite(const float *x, size_t n) {
  uint32_t bad = 0;
  for (size_t i = 0; i < n; i++) bad |= (duet_f32_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
  return bad != 0;
}

static int op_logits(duet_step *step, const duet_op_state *op, duet_lane *lane) {
  duet_model *model = step->model;
  const duet_slot_state *input = &model->slots[op->op.input];
  const uint32_t rows = step->batch->logit_row_count;
  int is_bad = 0;
  if (rows == 0) return 0;
  for (uint32_t die = lane->die_begin; die < lane->die_end; die++) {
    const duet_weight *weight = op->weight[die];
    if (weight == NULL) continue;
    uint32_t begin, end;
    duet_share(duet_ceil_div(weight->rows, DUET_TILE_ROWS), lane->team_lane, lane->team_lane_count, &begin, &end);
    if (begin == end) continue;
    float *out = model->logits + (die == 0 ? 0 : model->shape.vocabulary_rows[0]) + (size_t)begin * DUET_TILE_ROWS;
    duet_matmul_args args = {
      .tiles = weight->data + begin * weight->tile_bytes,
      .tile_bytes = weight->tile_bytes,
      .tile_step = 1,
      .tile_count = end - begin,
      .column_count = weight->padded_columns,
      .x = input->values[0],
      .x_stride = input->stride[0],
      .qx = duet_slot_quantised(input, 0),
      .row_index = op->op.flags & DUET_OP_FLAG_LOGIT_ROWS ? (const uint32_t *)step->batch->logit_rows : NULL,
      .row_count = rows,
      .out = out,
      .out_stride = model->logit_stride,
    };
    model->kernels->matmul[weight->quant_type](&args);
    for (uint32_t row = 0; row < rows; row++)
      is_bad |= has_not_finite(out + (size_t)row * model->logit_stride, (size_t)(end - begin) * DUET_TILE_ROWS);
  }
  return is_bad;
}

/* ---- the step ---------------------------------------------------------------------------------------------------- */

/* Lane 0 decides in front of a barrier, and names the op: a lane that is still on its way from an earlier barrier cannot leave
 * before the others do. */
static void poll(duet_step *step, uint32_t op_index) {
  int32_t status = DUET_STATUS_OK;
  if (step->batch->abort_word != NULL && __atomic_load_n(step->batch->abort_word, __ATOMIC_ACQUIRE) != 0) status = DUET_STATUS_CANCELLED;
  else if (duet_slab_fault_count(step->model->slab) != 0) status = DUET_STATUS_MAPPING_LOST;
  if (status == DUET_STATUS_OK) return;
  step->stop_status = status;
  atomic_store_explicit(&step->stop_before_op, op_index, memory_order_relaxed);
}

static int run_op(duet_step *step, const duet_op_state *op, duet_lane *lane) {
  switch (op->op.code) {
    case DUET_OP_EMBED: return op_embed(step, op, lane);
    case DUET_OP_RMS_NORM: return op_rms_norm(step, op, lane);
    case DUET_OP_MATMUL: return op_matmul(step, op, lane);
    case DUET_OP_ROPE_AND_STORE:
      /* Every vector table of x86 implies AVX2 and FMA. */
      if (duet_op_rope_and_store_avx2 != NULL && step->model->kernels->isa != DUET_ISA_PLAIN) return duet_op_rope_and_store_avx2(step, op, lane);
      return duet_op_rope_and_store(step, op, lane);
    case DUET_OP_ATTENTION: return duet_op_attention(step, op, lane);
    case DUET_OP_EXCHANGE_ADD: return op_exchange_add(step, op, lane);
    case DUET_OP_ROUTE: return duet_op_route(step, op, lane);
    case DUET_OP_FFN: return duet_op_ffn(step, op, lane);
    case DUET_OP_EXPERT_FFN: return duet_op_expert_ffn(step, op, lane);
    default: return op_logits(step, op, lane);
  }
}

static void run_lane(void *context, duet_lane *lane) {
  duet_step *step = context;
  duet_model *model = step->model;
  int is_bad = 0;
  if (model->has_attention) duet_rope_tables(step, lane);
  for (uint32_t i = 0; i < model->op_count; i++) {
    const duet_op_state *op = &model->ops[i];
    if (op->sync == DUET_SYNC_TEAM) {
      duet_barrier_team(lane);
    } else if (op->sync == DUET_SYNC_GLOBAL) {
      if (lane->index == 0) poll(step, i);
      duet_barrier_global(lane);
      if (atomic_load_explicit(&step->stop_before_op, memory_order_relaxed) <= i) break;
    }
    is_bad |= run_op(step, op, lane);
  }
  model->lanes[lane->index].is_not_finite = is_bad;
}

static void fill_stats(const duet_step *step, duet_step_stats *stats) {
  const duet_model *model = step->model;
  memset(stats, 0, sizeof *stats);
  for (uint32_t i = 0; i < model->op_count; i++) {
    const duet_op_state *op = &model->ops[i];
    uint32_t rows = op->op.code == DUET_OP_LOGITS ? step->batch->logit_row_count : step->batch->row_count;
    if (rows > 0) stats->weight_bytes += op->weight_bytes;
    stats->integer_ops += op->integer_ops_per_row * rows;
  }
  for (uint32_t die = 0; die < DUET_DIE_COUNT; die++) {
    stats->weight_bytes += step->expert_bytes[die];
    stats->integer_ops += step->expert_integer_ops[die];
    stats->distinct_experts += step->distinct_experts[die];
  }
  stats->expert_layers = step->expert_layers;
}

int32_t duet_model_run(duet_model *model, const duet_batch *batch, duet_step_stats *stats) {
  if (model == NULL || batch == NULL) INVALID("duet_model_run: model or batch is null");
  int32_t status = check_batch(model, batch);
  if (status != DUET_STATUS_OK) return status;
  model->logit_row_count = 0;
  /* A Program without a barrier has no other place to ask. */
  if (batch->abort_word != NULL && __atomic_load_n(batch->abort_word, __ATOMIC_ACQUIRE) != 0)
    return duet_fail(DUET_STATUS_CANCELLED, "the abort word was set");
  duet_step step = {.model = model, .batch = batch};
  atomic_init(&step.stop_before_op, UINT32_MAX);
  duet_device_run(model->device, run_lane, &step);
  if (step.stop_status == DUET_STATUS_CANCELLED) return duet_fail(DUET_STATUS_CANCELLED, "the abort word was set");
  if (duet_slab_fault_count(model->slab) != 0)
    return duet_fail(DUET_STATUS_MAPPING_LOST, "the mapped file shrank; zero pages stand in for what was lost");
  for (uint32_t i = 0; i < duet_device_lane_count(model->device); i++) {
    if (model->lanes[i].is_not_finite)
      return duet_fail(DUET_STATUS_NOT_FINITE, "a NaN or infinity reached a quantiser, the KV cache or the logits");
  }
  model->logit_row_count = batch->logit_row_count;
  if (stats != NULL) fill_stats(&step, stats);
  return DUET_STATUS_OK;
}

/* ---- copies of what a step left ---------------------------------------------------------------------------------- */

int32_t duet_model_logits(duet_model *model, uint32_t logit_row, float *out) {
  if (model == NULL || out == NULL) INVALID("duet_model_logits: model or out is null");
  if (logit_row >= model->logit_row_count) INVALID("logit row %u of %u", logit_row, model->logit_row_count);
  memcpy(out, model->logits + (size_t)logit_row * model->logit_stride, model->vocabulary_size * sizeof *out);
  return DUET_STATUS_OK;
}

static int32_t check_slot_rows(const duet_model *model, uint32_t slot, uint32_t die, uint32_t row_count, const float *values) {
  if (model == NULL || values == NULL) INVALID("model or values is null");
  if (slot >= model->slot_count) INVALID("slot %u of %u", slot, model->slot_count);
  if (die >= (model->slots[slot].slot.is_per_die ? (uint32_t)DUET_DIE_COUNT : 1u)) INVALID("slot %u has no die %u", slot, die);
  if (row_count > model->options.row_max) INVALID("%u rows, at most %u", row_count, model->options.row_max);
  return DUET_STATUS_OK;
}

int32_t duet_model_slot_read(duet_model *model, uint32_t slot, uint32_t die, uint32_t row_count, float *out) {
  int32_t status = check_slot_rows(model, slot, die, row_count, out);
  if (status != DUET_STATUS_OK) return status;
  const duet_slot_state *state = &model->slots[slot];
  const size_t columns = state->slot.columns[die];
  for (uint32_t row = 0; row < row_count; row++) memcpy(out + row * columns, state->values[die] + row * state->stride[die], columns * sizeof *out);
  return DUET_STATUS_OK;
}

int32_t duet_model_slot_write(duet_model *model, uint32_t slot, uint32_t die, uint32_t row_count, const float *in) {
  int32_t status = check_slot_rows(model, slot, die, row_count, in);
  if (status != DUET_STATUS_OK) return status;
  const duet_slot_state *state = &model->slots[slot];
  const size_t columns = state->slot.columns[die];
  for (uint32_t row = 0; row < row_count; row++) memcpy(state->values[die] + row * state->stride[die], in + row * columns, columns * sizeof *in);
  uint64_t saved = duet_fp_enter();
  int is_bad = duet_slot_quantise(model, state, die, 0, row_count);
  duet_fp_leave(saved);
  if (is_bad) return duet_fail(DUET_STATUS_NOT_FINITE, "slot %u: a NaN or infinity reached the quantiser", slot);
  return DUET_STATUS_OK;
}
