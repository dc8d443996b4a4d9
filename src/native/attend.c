/* Attention over the KV cache (docs/arithmetic.md, rule 5): which lane computes which heads of which rows.
 *
 * A kvBlock holds all layers; within it, per layer, die and KV head: K [head_dim][32 tokens], V [32 tokens][head_dim], then for
 * int8 the scales of K and of V, [32] each. A die's items read and write its own heads only. An item is a KV head of one row, or of a run of
 * rows of one sequence, which read a chunk of keys once.
 */
#include "internal.h"

#pragma weak duet_rope_and_store_avx2

#define FLOAT_OPS_PER_NS 32u
#define ITEM_OVERHEAD_NS 200u

static int rope_head(duet_step *step, const duet_op_state *op, uint32_t die, uint32_t row, uint32_t head) {
  /* Every vector table of x86 implies AVX2 and FMA. */
  if (duet_rope_and_store_avx2 != NULL && step->model->kernels->isa != DUET_ISA_PLAIN) return duet_rope_and_store_avx2(step, op, die, row, head);
  return duet_rope_and_store(step, op, die, row, head);
}

uint32_t duet_count_rope(duet_step *step, const duet_phase *phase, uint32_t die) {
  const duet_shape *shape = &step->model->shape;
  if (shape->kv_heads[die] == 0) return 0;
  if (step->has_lone_rows && phase->last->op.code == DUET_OP_ATTENTION) return 0; /* attention does it */
  const uint64_t floats = (uint64_t)(shape->query_heads[die] / shape->kv_heads[die] + 2) * shape->head_dim;
  return duet_deal_units(step, die, step->batch->row_count * shape->kv_heads[die], floats);
}

int duet_run_rope(duet_step *step, const duet_phase *phase, uint32_t die, uint32_t begin, uint32_t end, duet_lane_scratch *scratch) {
  (void)scratch;
  const uint32_t kv_heads = step->model->shape.kv_heads[die];
  int is_bad = 0;
  for (uint32_t item = begin; item < end; item++) is_bad |= rope_head(step, phase->first, die, item / kv_heads, item % kv_heads);
  return is_bad;
}

/* Rows [row, row + row_count) of one sequence. */
static void attend(duet_step *step, const duet_op_state *op, uint32_t die, uint32_t row, uint32_t row_count, uint32_t head, float *work) {
  duet_model *model = step->model;
  const duet_shape *shape = &model->shape;
  const duet_slot_state *input = &model->slots[op->op.input], *output = &model->slots[op->op.output];
  const uint32_t queries_per_kv = shape->query_heads[die] / shape->kv_heads[die];
  const size_t first_query = (size_t)head * queries_per_kv * shape->head_dim;
  const uint8_t *base = duet_kv_head(model, op->op.layer, die, head);
  duet_attention_args args = {
    .q = input->values[die] + row * input->stride[die] + first_query,
    .out = output->values[die] + row * output->stride[die] + first_query,
    .q_stride = input->stride[die],
    .out_stride = output->stride[die],
    .row_count = row_count,
    .query_head_count = queries_per_kv,
    .head_dim = shape->head_dim,
    .key_count = (uint32_t)step->batch->positions[row] + 1,
    .kv_type = model->options.kv_type,
    .block_table = step->batch->block_tables + (size_t)step->batch->sequence_index[row] * step->batch->block_table_stride,
    .k_base = base,
    .v_base = base + model->kv_v_offset,
    .k_scales = (const float *)(const void *)(base + model->kv_k_scale_offset),
    .v_scales = (const float *)(const void *)(base + model->kv_v_scale_offset),
    .block_stride = model->kv_block_stride,
    .scratch = work,
  };
  model->kernels->attention(&args);
}

/* Rows that are attended together where they are of one sequence. */
static uint32_t rows_per_unit(const duet_step *step, uint32_t die) {
  const duet_shape *shape = &step->model->shape;
  return step->has_lone_rows ? 1 : duet_attention_rows(shape->query_heads[die] / shape->kv_heads[die]);
}

uint32_t duet_count_attention(duet_step *step, const duet_phase *phase, uint32_t die) {
  (void)phase;
  const duet_shape *shape = &step->model->shape;
  const uint32_t kv_heads = shape->kv_heads[die], rows = step->batch->row_count;
  if (kv_heads == 0) return 0;
  uint64_t keys = 0;
  for (uint32_t row = 0; row < rows; row++) keys += (uint64_t)step->batch->positions[row] + 1;
  const uint64_t row_ns = keys * 4 * shape->head_dim * (shape->query_heads[die] / kv_heads) / rows / FLOAT_OPS_PER_NS;
  const uint32_t unit_rows = rows_per_unit(step, die);
  return duet_deal_units(step, die, duet_ceil_div(rows, unit_rows) * kv_heads, (row_ns + ITEM_OVERHEAD_NS) * unit_rows);
}

int duet_run_attention(duet_step *step, const duet_phase *phase, uint32_t die, uint32_t begin, uint32_t end, duet_lane_scratch *scratch) {
  const duet_op_state *rope = phase->first->op.code == DUET_OP_ROPE_AND_STORE && step->has_lone_rows ? phase->first : NULL;
  const uint32_t kv_heads = step->model->shape.kv_heads[die], unit_rows = rows_per_unit(step, die);
  const int32_t *sequence = step->batch->sequence_index;
  int is_bad = 0;
  for (uint32_t unit = begin; unit < end; unit++) {
    const uint32_t head = unit % kv_heads, row_end = duet_min_u32((unit / kv_heads + 1) * unit_rows, step->batch->row_count);
    for (uint32_t row = unit / kv_heads * unit_rows, count; row < row_end; row += count) {
      for (count = 1; row + count < row_end && sequence[row + count] == sequence[row]; count++) {}
      if (rope != NULL) is_bad |= rope_head(step, rope, die, row, head);
      attend(step, phase->last, die, row, count, head, scratch->work);
    }
  }
  return is_bad;
}
