/* Ops that are computed once for both dies, row by row: embed, rmsNorm, exchangeAdd, route (docs/arithmetic.md, rules 2, 4 and 6).
 * A row goes through a whole run of them before the next one does.
 */
#include "duet-math.h"
#include "internal.h"

#include <string.h>

#define ROUTER_SPLIT_ROWS 32u /* from so many rows on they occupy all lanes, and a large router needs no phase of its own */
#define ROW_BYTES_PER_NS 16u

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


/* ---- the router -------------------------------------------------------------------------------------------------- */

/* Keeps the `active` largest logits of a group, ties to the lower id, ids ascending. */
static void choose(const float *logits, uint32_t first, uint32_t n, uint32_t active, uint32_t *ids) {
  uint32_t kept = 0;
  for (uint32_t id = first; id < first + n; id++) {
    uint32_t at;
    if (kept < active) {
      at = kept++;
    } else {
      /* The weakest kept one: smallest logit, the highest id among equals. */
      at = 0;
      for (uint32_t i = 1; i < kept; i++) at = logits[ids[i]] <= logits[ids[at]] ? i : at;
      if (!(logits[id] > logits[ids[at]])) continue;
      for (; at + 1 < kept; at++) ids[at] = ids[at + 1];
      at = kept - 1;
    }
    ids[at] = id;
  }
}

static void route_row(duet_model *model, const duet_op_state *op, uint32_t row) {
  float *logits = model->router_logits + row * model->router_stride;
  uint32_t *ids = model->routed_ids + (size_t)row * model->active_total;
  float *weights = model->routed_weights + (size_t)row * model->active_total;
  const duet_shape *shape = &model->shape;
  const uint32_t total = model->expert_total, active = model->active_total;
  for (uint32_t group = 0; group < shape->expert_group_count; group++)
    choose(logits, group * shape->experts_per_group, shape->experts_per_group, shape->active_per_group, ids + group * shape->active_per_group);
  float max = model->kernels->max_row(logits, total);
  float sum = model->kernels->exp_sum_row(logits, total, max, logits);
  float kept_sum = 0;
  for (uint32_t i = 0; i < active; i++) {
    weights[i] = logits[ids[i]] / sum;
    kept_sum = kept_sum + weights[i];
  }
  const float *router_scale = op->weight_2[0] == NULL ? NULL : (const float *)(const void *)op->weight_2[0]->data;
  for (uint32_t i = 0; i < active; i++) {
    if (op->op.flags & DUET_OP_FLAG_RENORMALISE) weights[i] = weights[i] / kept_sum;
    if (router_scale != NULL) weights[i] = weights[i] * router_scale[ids[i]];
  }
}

static int is_router_split(const duet_step *step, const duet_op_state *op) {
  return op->weight[0]->bytes >= DUET_ROUTER_SPLIT_BYTES && step->batch->row_count < ROUTER_SPLIT_ROWS;
}

static void router_logits(duet_step *step, const duet_op_state *op, uint32_t row_begin, uint32_t row_end, uint32_t tile_begin, uint32_t tile_end) {
  duet_model *model = step->model;
  const duet_weight *router = op->weight[0];
  const duet_slot_state *input = &model->slots[op->op.input];
  duet_quantised_rows qx = duet_slot_quantised(input, 0);
  if (input->slot.is_quantised) {
    qx.q += row_begin * qx.stride;
    qx.scales += row_begin * (qx.stride / DUET_QUANT_BLOCK);
    qx.sums += row_begin * (qx.stride / DUET_QUANT_BLOCK);
  }
  duet_matmul_args args = {
    .tiles = router->data + tile_begin * router->tile_bytes,
    .tile_bytes = router->tile_bytes,
    .tile_step = 1,
    .tile_count = tile_end - tile_begin,
    .column_count = router->padded_columns,
    .x = input->values[0] + row_begin * input->stride[0],
    .x_stride = input->stride[0],
    .qx = qx,
    .row_count = row_end - row_begin,
    .out = model->router_logits + row_begin * model->router_stride + (size_t)tile_begin * DUET_TILE_ROWS,
    .out_stride = model->router_stride,
  };
  duet_matmul_blocked(model->kernels, router->quant_type, &args);
}

uint32_t duet_count_router(duet_step *step, const duet_phase *phase, uint32_t stream) {
  const duet_op_state *op = phase->first;
  if (!is_router_split(step, op)) return 0;
  const duet_weight *router = op->weight[0];
  return duet_deal_units(step, stream, duet_ceil_div(router->rows, DUET_TILE_ROWS),
                         duet_tile_ns(router->tile_bytes, router->padded_columns, 4 * step->batch->row_count)); /* float32 is slower */
}

int duet_run_router(duet_step *step, const duet_phase *phase, uint32_t stream, uint32_t begin, uint32_t end, duet_lane_scratch *scratch) {
  (void)stream;
  (void)scratch;
  router_logits(step, phase->first, 0, step->batch->row_count, begin, end);
  return 0;
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static void embed(const duet_step *step, const duet_op_state *op, uint32_t row) {
  const duet_slot_state *output = &step->model->slots[op->op.output];
  const uint32_t token = (uint32_t)step->batch->token_ids[row], first_rows = op->weight[0]->rows;
  float *out = output->values[0] + row * output->stride[0];
  if (token < first_rows) duet_embed_row(op->weight[0], token, out);
  else duet_embed_row(op->weight[1], token - first_rows, out);
}

static void rms_norm(const duet_step *step, const duet_op_state *op, uint32_t row) {
  const duet_model *model = step->model;
  const duet_slot_state *input = &model->slots[op->op.input], *output = &model->slots[op->op.output];
  const size_t from = op->op.flags & DUET_OP_FLAG_LOGIT_ROWS ? (size_t)step->batch->logit_rows[row] : row;
  model->kernels->rms_norm_row(input->values[0] + from * input->stride[0], (const float *)(const void *)op->weight[0]->data, input->slot.columns[0],
                               model->shape.rms_norm_eps, output->values[0] + row * output->stride[0]);
}

static void exchange_add(const duet_step *step, const duet_op_state *op, uint32_t row) {
  const duet_model *model = step->model;
  const duet_slot_state *input = &model->slots[op->op.input], *output = &model->slots[op->op.output];
  model->kernels->exchange_add_row(output->values[0] + row * output->stride[0], input->values[0] + row * input->stride[0],
                                   input->values[1] + row * input->stride[1], output->slot.columns[0]);
}

uint32_t duet_count_rows(duet_step *step, const duet_phase *phase, uint32_t stream) {
  const duet_model *model = step->model;
  uint64_t row_bytes = 0;
  for (const duet_op_state *op = phase->first; op <= phase->last; op++) {
    row_bytes += 16 * (uint64_t)model->shape.hidden_dim;
    if (op->op.code == DUET_OP_ROUTE) row_bytes += 32 * (uint64_t)model->expert_total + (is_router_split(step, op) ? 0 : op->weight[0]->bytes);
  }
  return duet_deal_units(step, stream, duet_step_rows(step, phase->first), row_bytes / ROW_BYTES_PER_NS);
}

int duet_run_rows(duet_step *step, const duet_phase *phase, uint32_t stream, uint32_t begin, uint32_t end, duet_lane_scratch *scratch) {
  (void)stream;
  (void)scratch;
  duet_model *model = step->model;
  int is_bad = 0;
  if (phase->first == model->ops && model->has_attention && phase->first->op.code == DUET_OP_EMBED) duet_rope_tables(step, begin, end);
  const duet_op_state *route = phase->last->op.code == DUET_OP_ROUTE ? phase->last : NULL;
  for (uint32_t row = begin; row < end; row++) {
    for (const duet_op_state *op = phase->first; op <= phase->last && op != route; op++) {
      if (op->op.code == DUET_OP_EMBED) embed(step, op, row);
      else if (op->op.code == DUET_OP_RMS_NORM) rms_norm(step, op, row);
      else exchange_add(step, op, row);
      is_bad |= duet_slot_quantise(model, &model->slots[op->op.output], 0, row, row + 1);
    }
  }
  if (route == NULL) return is_bad;
  if (!is_router_split(step, route)) router_logits(step, route, begin, end, 0, duet_ceil_div(route->weight[0]->rows, DUET_TILE_ROWS));
  for (uint32_t row = begin; row < end; row++) route_row(model, route, row);
  return is_bad;
}
