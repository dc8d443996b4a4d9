/* Runs a Program over a Batch: one call per step. It checks the Batch, hands the phases to the lanes, and keeps the step's account.
 *
 * A phase's work on a stream is cut into units (rowTiles, rows, heads), dealt in items that are worth a hand-off. Nothing is locked;
 * results do not depend on who computes what (docs/arithmetic.md: row independence).
 */
#include "duet-math.h"
#include "internal.h"

#include <string.h>

#define INVALID(...) return duet_fail(DUET_STATUS_INVALID, __VA_ARGS__)
#define ITEM_NS 2000u             /* smaller items cost more in hand-offs than they save in waiting */
#define WEIGHT_BYTES_PER_NS 40u
#define OPS_PER_NS 300u
#define BLOCK_BYTES (320u * 1024u) /* activations, or weights, of a block in the second-level cache */
#define BLOCK_ROWS 8u

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

/* ---- cutting work ------------------------------------------------------------------------------------------------ */

uint64_t duet_tile_ns(size_t tile_bytes, uint32_t columns, uint32_t row_count) {
  return tile_bytes / WEIGHT_BYTES_PER_NS + (uint64_t)row_count * columns * (2 * DUET_TILE_ROWS) / OPS_PER_NS;
}

uint32_t duet_deal_units(duet_step *step, uint32_t stream, uint32_t unit_count, uint64_t unit_ns) {
  duet_deal *deal = &step->deals[stream];
  const uint64_t per_item = unit_ns == 0 ? unit_count : duet_ceil_div(ITEM_NS, (uint32_t)(unit_ns > ITEM_NS ? ITEM_NS : unit_ns));
  deal->unit_count = unit_count;
  deal->units_per_item = duet_max_u32(1, duet_min_u32(unit_count, (uint32_t)per_item));
  deal->first_item = 0;
  return duet_ceil_div(unit_count, deal->units_per_item);
}

void duet_matmul_blocked(const duet_kernel_table *kernels, uint32_t quant_type, const duet_matmul_args *args) {
  const size_t row_bytes = args->column_count * (duet_is_integer(quant_type) ? sizeof(int8_t) : sizeof(float));
  const uint32_t rows_max = duet_max_u32(1, (uint32_t)(BLOCK_BYTES / row_bytes / BLOCK_ROWS)) * BLOCK_ROWS;
  if (args->row_count <= rows_max) {
    kernels->matmul[quant_type](args);
    return;
  }
  const uint32_t tiles_max = duet_max_u32(1, (uint32_t)(BLOCK_BYTES / args->tile_bytes));
  for (uint32_t tile = 0; tile < args->tile_count; tile += tiles_max) {
    for (uint32_t row = 0; row < args->row_count; row += rows_max) {
      duet_matmul_args block = *args;
      block.tiles += tile * args->tile_step * args->tile_bytes;
      block.tile_count = duet_min_u32(tiles_max, args->tile_count - tile);
      block.row_count = duet_min_u32(rows_max, args->row_count - row);
      if (block.bias != NULL) block.bias += (size_t)tile * DUET_TILE_ROWS;
      block.out += row * args->out_stride + (size_t)tile * DUET_TILE_ROWS;
      if (args->row_index != NULL) {
        block.row_index += row;
      } else if (duet_is_integer(quant_type)) {
        block.qx.q += row * args->qx.stride;
        block.qx.scales += row * (args->qx.stride / DUET_QUANT_BLOCK);
        block.qx.sums += row * (args->qx.stride / DUET_QUANT_BLOCK);
      } else {
        block.x += row * args->x_stride;
      }
      kernels->matmul[quant_type](&block);
    }
  }
}

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

static uint32_t count_matmul(duet_step *step, const duet_phase *phase, uint32_t die) {
  const duet_op_state *op = phase->first;
  const duet_weight *weight = op->weight[die];
  const uint32_t rows = duet_step_rows(step, op);
  if (rows == 0) return 0;
  if (weight == NULL) return op->op.code == DUET_OP_LOGITS ? 0 : duet_deal_units(step, die, 1, 0); /* zeros */
  return duet_deal_units(step, die, duet_ceil_div(weight->rows, DUET_TILE_ROWS), duet_tile_ns(weight->tile_bytes, weight->padded_columns, rows));
}

static int run_matmul(duet_step *step, const duet_phase *phase, uint32_t die, uint32_t begin, uint32_t end, duet_lane_scratch *scratch) {
  (void)scratch;
  duet_model *model = step->model;
  const duet_op_state *op = phase->first;
  const duet_slot_state *input = &model->slots[op->op.input], *output = &model->slots[op->op.output];
  const duet_weight *weight = op->weight[die];
  if (weight == NULL) {
    memset(output->values[die], 0, step->batch->row_count * output->stride[die] * sizeof(float));
    return 0;
  }
  duet_matmul_args args = {
    .tiles = weight->data + begin * weight->tile_bytes,
    .tile_bytes = weight->tile_bytes,
    .tile_step = 1,
    .tile_count = end - begin,
    .column_count = weight->padded_columns,
    .x = input->values[die],
    .x_stride = input->stride[die],
    .qx = duet_slot_quantised(input, die),
    .row_count = step->batch->row_count,
    .bias = op->bias[die] == NULL ? NULL : op->bias[die] + (size_t)begin * DUET_TILE_ROWS,
    .out = output->values[die] + (size_t)begin * DUET_TILE_ROWS,
    .out_stride = output->stride[die],
  };
  duet_matmul_blocked(model->kernels, weight->quant_type, &args);
  return 0;
}

static int has_not_finite(const float *x, size_t n) {
  uint32_t bad = 0;
  for (size_t i = 0; i < n; i++) bad |= (duet_f32_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
  return bad != 0;
}

static int run_logits(duet_step *step, const duet_phase *phase, uint32_t die, uint32_t begin, uint32_t end, duet_lane_scratch *scratch) {
  (void)scratch;
  duet_model *model = step->model;
  const duet_op_state *op = phase->first;
  const duet_slot_state *input = &model->slots[op->op.input];
  const duet_weight *weight = op->weight[die];
  const uint32_t rows = step->batch->logit_row_count;
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
  duet_matmul_blocked(model->kernels, weight->quant_type, &args);
  int is_bad = 0;
  for (uint32_t row = 0; row < rows; row++) is_bad |= has_not_finite(out + (size_t)row * model->logit_stride, (size_t)(end - begin) * DUET_TILE_ROWS);
  return is_bad;
}

/* ---- the int8 form of a die's slot ------------------------------------------------------------------------------- */

static uint32_t count_quantise(duet_step *step, const duet_phase *phase, uint32_t die) {
  const duet_slot_state *output = &step->model->slots[phase->last->op.output];
  return duet_deal_units(step, die, step->batch->row_count, output->stride[die] / 8);
}

static int run_quantise(duet_step *step, const duet_phase *phase, uint32_t die, uint32_t begin, uint32_t end, duet_lane_scratch *scratch) {
  (void)scratch;
  return duet_slot_quantise(step->model, &step->model->slots[phase->last->op.output], die, begin, end);
}

/* ---- the step ---------------------------------------------------------------------------------------------------- */

static const struct {
  duet_phase_count *count;
  duet_phase_run *run;
} phase_kinds[] = {
  [DUET_PHASE_ROWS] = {duet_count_rows, duet_run_rows},
  [DUET_PHASE_ROUTER] = {duet_count_router, duet_run_router},
  [DUET_PHASE_MATMUL] = {count_matmul, run_matmul},
  [DUET_PHASE_ROPE] = {duet_count_rope, duet_run_rope},
  [DUET_PHASE_ATTENTION] = {duet_count_attention, duet_run_attention},
  [DUET_PHASE_GATE_UP] = {duet_count_gate_up, duet_run_gate_up},
  [DUET_PHASE_DOWN] = {duet_count_down, duet_run_down},
  [DUET_PHASE_QUANTISE] = {count_quantise, run_quantise},
  [DUET_PHASE_LOGITS] = {count_matmul, run_logits},
};

static uint32_t count_items(void *context, uint32_t index, uint32_t stream) {
  duet_step *step = context;
  const duet_phase *phase = &step->model->phases[index];
  if (!phase->is_shared) return phase_kinds[phase->kind].count(step, phase, stream);
  /* Half of the items each; stream 0 was asked first. */
  if (stream == 0) {
    step->shared_item_count = phase_kinds[phase->kind].count(step, phase, 0);
    step->deals[1] = step->deals[0];
    step->deals[1].first_item = duet_ceil_div(step->shared_item_count, 2);
    return step->deals[1].first_item;
  }
  return step->shared_item_count - step->deals[1].first_item;
}

static void run_items(void *context, uint32_t index, uint32_t stream, uint32_t begin, uint32_t end, duet_lane *lane) {
  duet_step *step = context;
  const duet_phase *phase = &step->model->phases[index];
  const duet_deal deal = step->deals[stream];
  duet_lane_scratch *scratch = &step->model->lanes[lane->index];
  const uint32_t first = (deal.first_item + begin) * deal.units_per_item;
  const uint32_t last = duet_min_u32((deal.first_item + end) * deal.units_per_item, deal.unit_count);
  scratch->is_not_finite |= phase_kinds[phase->kind].run(step, phase, phase->is_shared ? 0 : stream, first, last, scratch);
}

static int goes_on(void *context) {
  duet_step *step = context;
  if (step->batch->abort_word != NULL && __atomic_load_n(step->batch->abort_word, __ATOMIC_ACQUIRE) != 0) step->stop_status = DUET_STATUS_CANCELLED;
  else if (duet_slab_fault_count(step->model->slab) != 0) step->stop_status = DUET_STATUS_MAPPING_LOST;
  return step->stop_status == DUET_STATUS_OK;
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

static uint32_t has_lone_rows(const duet_batch *batch) {
  for (uint32_t row = 1; row < batch->row_count; row++) {
    if (batch->sequence_index[row] == batch->sequence_index[row - 1]) return 0;
  }
  return 1;
}

int32_t duet_model_run(duet_model *model, const duet_batch *batch, duet_step_stats *stats) {
  if (model == NULL || batch == NULL) INVALID("duet_model_run: model or batch is null");
  int32_t status = check_batch(model, batch);
  if (status != DUET_STATUS_OK) return status;
  model->logit_row_count = 0;
  duet_step step = {.model = model, .batch = batch, .has_lone_rows = has_lone_rows(batch)};
  const uint32_t lane_count = duet_device_lane_count(model->device);
  for (uint32_t i = 0; i < lane_count; i++) model->lanes[i].is_not_finite = 0;
  const duet_phases phases = {model->phase_count, model->phase_joins, &step, count_items, run_items, goes_on};
  if (model->has_attention && model->ops[0].op.code != DUET_OP_EMBED) { /* else embed's phase makes them */
    uint64_t saved = duet_fp_enter();
    duet_rope_tables(&step, 0, batch->row_count);
    duet_fp_leave(saved);
  }
  duet_device_run(model->device, &phases);
  if (step.stop_status == DUET_STATUS_CANCELLED) return duet_fail(DUET_STATUS_CANCELLED, "the abort word was set");
  if (duet_slab_fault_count(model->slab) != 0)
    return duet_fail(DUET_STATUS_MAPPING_LOST, "the mapped file shrank; zero pages stand in for what was lost");
  for (uint32_t i = 0; i < lane_count; i++) {
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
