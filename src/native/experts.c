/* Feed-forward: the router, the shared experts (or a dense FFN), and the routed experts (docs/arithmetic.md, rules 6 and 7).
 *
 * gate-up is split over a team by units of two rowTile pairs: 32 intermediate columns, one quantBlock, so that a lane makes the
 * int8 form of what it computed without waiting. down is split by output rowTiles, so that a lane adds a row's experts in
 * ascending id without waiting. Between the two stands the only barrier. Each distinct expert is read once per step.
 */
#include "internal.h"

#include <string.h>

#define UNIT_COLUMNS DUET_QUANT_BLOCK
#define UNIT_TILES 4u /* g u g u */

static inline duet_quantised_rows act_quantised(const duet_act_rows *act, size_t first_row) {
  duet_quantised_rows rows = {act->q + first_row * act->stride, act->scales + first_row * (act->stride / DUET_QUANT_BLOCK),
                              act->sums + first_row * (act->stride / DUET_QUANT_BLOCK), act->stride};
  return rows;
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

static void route_row(duet_model *model, const duet_op_state *op, float *logits, uint32_t *ids, float *weights) {
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

int duet_op_route(duet_step *step, const duet_op_state *op, duet_lane *lane) {
  duet_model *model = step->model;
  const duet_weight *router = op->weight[0];
  const duet_slot_state *input = &model->slots[op->op.input];
  uint32_t begin, end, tile_begin = 0, tile_end = duet_ceil_div(router->rows, DUET_TILE_ROWS);
  duet_share(step->batch->row_count, lane->index, lane->lane_count, &begin, &end);
  uint32_t row_begin = begin, row_end = end;
  if (op->is_tile_split) {
    duet_share(tile_end, lane->index, lane->lane_count, &tile_begin, &tile_end);
    row_begin = 0;
    row_end = step->batch->row_count;
  }
  if (row_begin < row_end && tile_begin < tile_end) {
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
    model->kernels->matmul[router->quant_type](&args);
  }
  if (op->is_tile_split) duet_barrier_global(lane);
  for (uint32_t row = begin; row < end; row++) {
    size_t first = (size_t)row * model->active_total;
    route_row(model, op, model->router_logits + row * model->router_stride, model->routed_ids + first, model->routed_weights + first);
  }
  return 0;
}

/* ---- gate-up and down -------------------------------------------------------------------------------------------- */

/* A feed-forward's matrices over some rows: `dim` intermediate columns, `hidden` outputs. */
typedef struct ffn_weights {
  const uint8_t *gate_up;
  size_t gate_up_tile_bytes;
  uint32_t gate_up_quant_type;
  uint32_t input_columns;         /* padded */
  const uint8_t *down;
  size_t down_tile_bytes;
  uint32_t down_quant_type;
  uint32_t dim;
} ffn_weights;

/* Units [begin, end) of gate-up for row_count rows (row_index gathers them from the input), into act rows first_act_row ... */
static int gate_up(duet_model *model, const ffn_weights *w, const duet_slot_state *input, const uint32_t *row_index, uint32_t row_count,
                   uint32_t begin, uint32_t end, const duet_act_rows *act, size_t first_act_row, duet_lane_scratch *scratch) {
  const duet_kernel_table *kernels = model->kernels;
  const int is_quantised = duet_is_integer(w->down_quant_type);
  const uint32_t tile_total = 2 * duet_ceil_div(w->dim, DUET_TILE_ROWS);
  /* A row of the work buffer: a run of units of gate-up, and in front of int8 the run's activations. */
  const size_t unit_floats = (size_t)UNIT_TILES * DUET_TILE_ROWS + UNIT_COLUMNS;
  const uint32_t run_max = duet_max_u32(1, (uint32_t)(model->work_floats / (unit_floats * row_count)));
  int is_bad = 0;
  for (uint32_t unit = begin; unit < end;) {
    const uint32_t run = duet_min_u32(run_max, end - unit);
    const uint32_t tile = unit * UNIT_TILES;
    const uint32_t tile_count = duet_min_u32(run * UNIT_TILES, tile_total - tile);
    const size_t gu_stride = (size_t)run * UNIT_TILES * DUET_TILE_ROWS;
    float *run_act = scratch->work + gu_stride * row_count;
    duet_matmul_args args = {
      .tiles = w->gate_up + tile * w->gate_up_tile_bytes,
      .tile_bytes = w->gate_up_tile_bytes,
      .tile_step = 1,
      .tile_count = tile_count,
      .column_count = w->input_columns,
      .x = input->values[0],
      .x_stride = input->stride[0],
      .qx = duet_slot_quantised(input, 0),
      .row_index = row_index,
      .row_count = row_count,
      .out = scratch->work,
      .out_stride = gu_stride,
    };
    kernels->matmul[w->gate_up_quant_type](&args);
    const uint32_t first_column = unit * UNIT_COLUMNS;
    const uint32_t columns = duet_min_u32(run * UNIT_COLUMNS, w->dim - first_column);
    /* The unit with the last column also clears the padding to 64. */
    const int is_last = first_column + columns == w->dim;
    const uint32_t padded = is_last ? (uint32_t)act->stride - first_column : run * UNIT_COLUMNS;
    for (uint32_t row = 0; row < row_count; row++) {
      size_t to = (first_act_row + row) * act->stride + first_column;
      float *values = is_quantised ? run_act : act->values + to;
      kernels->swiglu_row(scratch->work + row * gu_stride, columns, values);
      if (is_quantised) {
        is_bad |= kernels->quantise_row(values, columns, padded, act->q + to, act->scales + to / DUET_QUANT_BLOCK, act->sums + to / DUET_QUANT_BLOCK);
      } else if (is_last) {
        memset(values + columns, 0, (padded - columns) * sizeof *values);
      }
    }
    unit += run;
  }
  return is_bad;
}

static void down(duet_model *model, const ffn_weights *w, const duet_act_rows *act, size_t first_act_row, uint32_t row_count,
                 uint32_t tile_begin, uint32_t tile_count, float *out, size_t out_stride) {
  duet_matmul_args args = {
    .tiles = w->down + tile_begin * w->down_tile_bytes,
    .tile_bytes = w->down_tile_bytes,
    .tile_step = 1,
    .tile_count = tile_count,
    .column_count = (uint32_t)duet_align_up(w->dim, DUET_COLUMN_MULTIPLE),
    .x = act->values + first_act_row * act->stride,
    .x_stride = act->stride,
    .qx = act_quantised(act, first_act_row),
    .row_count = row_count,
    .out = out,
    .out_stride = out_stride,
  };
  model->kernels->matmul[w->down_quant_type](&args);
}

static int quantise_output(duet_step *step, const duet_slot_state *output, duet_lane *lane) {
  if (!output->slot.is_quantised) return 0;
  duet_barrier_team(lane);
  int is_bad = 0;
  uint32_t begin, end;
  duet_share(step->batch->row_count, lane->team_lane, lane->team_lane_count, &begin, &end);
  for (uint32_t die = lane->die_begin; die < lane->die_end; die++) is_bad |= duet_slot_quantise(step->model, output, die, begin, end);
  return is_bad;
}

/* ---- shared experts or a dense FFN ------------------------------------------------------------------------------- */

int duet_op_ffn(duet_step *step, const duet_op_state *op, duet_lane *lane) {
  duet_model *model = step->model;
  const duet_slot_state *input = &model->slots[op->op.input], *output = &model->slots[op->op.output];
  duet_lane_scratch *scratch = &model->lanes[lane->index];
  const uint32_t rows = step->batch->row_count;
  ffn_weights weights[DUET_DIE_COUNT];
  duet_act_rows act[DUET_DIE_COUNT];
  int is_bad = 0;
  uint32_t begin, end;
  for (uint32_t die = lane->die_begin; die < lane->die_end; die++) {
    const duet_weight *g = op->weight[die], *d = op->weight_2[die];
    if (g == NULL) continue;
    ffn_weights w = {g->data, g->tile_bytes, g->quant_type, g->padded_columns, d->data, d->tile_bytes, d->quant_type, d->columns};
    weights[die] = w;
    act[die] = model->ffn_act[die];
    act[die].stride = d->padded_columns;
    duet_share(duet_ceil_div(w.dim, UNIT_COLUMNS), lane->team_lane, lane->team_lane_count, &begin, &end);
    if (begin < end) is_bad |= gate_up(model, &w, input, NULL, rows, begin, end, &act[die], 0, scratch);
  }
  duet_barrier_team(lane);
  for (uint32_t die = lane->die_begin; die < lane->die_end; die++) {
    duet_share(duet_ceil_div(output->slot.columns[die], DUET_TILE_ROWS), lane->team_lane, lane->team_lane_count, &begin, &end);
    if (begin == end) continue;
    float *out = output->values[die] + (size_t)begin * DUET_TILE_ROWS;
    if (op->weight[die] == NULL) {
      for (uint32_t row = 0; row < rows; row++) memset(out + row * output->stride[die], 0, (size_t)(end - begin) * DUET_TILE_ROWS * sizeof *out);
    } else {
      down(model, &weights[die], &act[die], 0, rows, begin, end - begin, out, output->stride[die]);
    }
  }
  return is_bad | quantise_output(step, output, lane);
}

/* ---- routed experts ---------------------------------------------------------------------------------------------- */

/* (row, expert) pairs of one die in ascending expert, then row. Every lane makes its own copy: cheaper than waiting. */
typedef struct pair_list {
  uint32_t distinct_count;
  const uint32_t *experts;        /* [distinct_count], ids relative to the die's first */
  const uint32_t *start;          /* [distinct_count + 1] */
  const uint32_t *row;
  const float *weight;
} pair_list;

static pair_list sort_pairs(const duet_model *model, uint32_t row_count, uint32_t die, duet_lane_scratch *scratch) {
  const uint32_t first = model->shape.expert_first[die], count = model->shape.expert_count[die];
  const uint32_t active = model->active_total;
  uint32_t *start = scratch->pair_start, *experts = scratch->expert_list;
  uint32_t distinct = 0;
  if (row_count == 1) { /* a kept list is ascending already */
    uint32_t pairs = 0;
    for (uint32_t i = 0; i < active; i++) {
      uint32_t local = model->routed_ids[i] - first;
      if (local >= count) continue;
      experts[pairs] = local;
      start[pairs] = pairs;
      scratch->pair_row[pairs] = 0;
      scratch->pair_weight[pairs++] = model->routed_weights[i];
    }
    start[pairs] = pairs;
    pair_list list = {pairs, experts, start, scratch->pair_row, scratch->pair_weight};
    return list;
  }
  memset(start, 0, ((size_t)count + 1) * sizeof *start);
  const uint32_t entries = row_count * active;
  for (uint32_t i = 0; i < entries; i++) {
    uint32_t local = model->routed_ids[i] - first;
    if (local < count) start[local + 1]++;
  }
  for (uint32_t e = 0; e < count; e++) start[e + 1] += start[e];
  /* start[e] is expert e's next free place while pairs are put down, and its end afterwards. */
  for (uint32_t row = 0; row < row_count; row++) {
    for (uint32_t i = row * active; i < (row + 1) * active; i++) {
      uint32_t local = model->routed_ids[i] - first;
      if (local >= count) continue;
      uint32_t at = start[local]++;
      scratch->pair_row[at] = row;
      scratch->pair_weight[at] = model->routed_weights[i];
    }
  }
  uint32_t begin = 0;
  for (uint32_t e = 0; e < count; e++) {
    uint32_t end = start[e];
    if (end == begin) continue;
    experts[distinct] = e;
    start[distinct++] = begin; /* distinct <= e: the ends that are still needed lie further on */
    begin = end;
  }
  start[distinct] = begin;
  pair_list list = {distinct, experts, start, scratch->pair_row, scratch->pair_weight};
  return list;
}

static ffn_weights expert_weights(const duet_model *model, const duet_op_state *op, uint32_t expert) {
  const duet_weight *e = &op->weight[0][expert];
  ffn_weights w = {e->data, e->tile_bytes, e->quant_type, e->padded_columns, e->down, e->down_tile_bytes, e->down_quant_type, model->shape.expert_dim};
  return w;
}

static void count_experts(duet_step *step, const duet_op_state *op, uint32_t die, const pair_list *list) {
  const duet_model *model = step->model;
  uint32_t pairs = list->start[list->distinct_count];
  step->distinct_experts[die] += list->distinct_count;
  for (uint32_t i = 0; i < list->distinct_count; i++) step->expert_bytes[die] += op->weight[0][model->shape.expert_first[die] + list->experts[i]].bytes;
  const duet_weight *e = op->weight[0];
  uint64_t per_matrix = 2 * (uint64_t)model->shape.expert_dim * e->columns * pairs;
  if (duet_is_integer(e->quant_type)) step->expert_integer_ops[die] += 2 * per_matrix;
  if (duet_is_integer(e->down_quant_type)) step->expert_integer_ops[die] += per_matrix;
}

/* This lane's units of every expert's gate-up. A unit costs its weights once and then each of its rows. */
static int gate_up_share(duet_step *step, const duet_op_state *op, uint32_t die, const pair_list *list, duet_lane *lane) {
  duet_model *model = step->model;
  const duet_slot_state *input = &model->slots[op->op.input];
  const uint32_t units = duet_ceil_div(model->shape.expert_dim, UNIT_COLUMNS);
  const uint64_t load_cost = 4;
  uint64_t total = (uint64_t)list->distinct_count * load_cost + list->start[list->distinct_count];
  total *= units;
  const uint64_t from = (total * lane->team_lane + lane->team_lane_count - 1) / lane->team_lane_count;
  const uint64_t to = (total * (lane->team_lane + 1) + lane->team_lane_count - 1) / lane->team_lane_count;
  uint64_t at = 0;
  int is_bad = 0;
  for (uint32_t i = 0; i < list->distinct_count && at < to; i++) {
    const uint32_t rows = list->start[i + 1] - list->start[i];
    const uint64_t cost = load_cost + rows; /* of one unit; it belongs to the lane in whose share it begins */
    uint64_t first = at >= from ? 0 : (from - at + cost - 1) / cost;
    uint64_t last = (to - at + cost - 1) / cost;
    at += cost * units;
    if (last > units) last = units;
    if (first >= last) continue;
    ffn_weights w = expert_weights(model, op, model->shape.expert_first[die] + list->experts[i]);
    is_bad |= gate_up(model, &w, input, list->row + list->start[i], rows, (uint32_t)first, (uint32_t)last, &model->expert_act[die],
                      list->start[i], &model->lanes[lane->index]);
  }
  return is_bad;
}

/* This lane's output rowTiles of every expert's down, added to the partial in ascending id. */
static void down_share(duet_step *step, const duet_op_state *op, uint32_t die, const pair_list *list, duet_lane *lane) {
  duet_model *model = step->model;
  const duet_slot_state *output = &model->slots[op->op.output];
  float *work = model->lanes[lane->index].work;
  uint32_t begin, end;
  duet_share(duet_ceil_div(output->slot.columns[die], DUET_TILE_ROWS), lane->team_lane, lane->team_lane_count, &begin, &end);
  if (begin == end) return;
  if (!(op->op.flags & DUET_OP_FLAG_ACCUMULATE)) {
    for (uint32_t row = 0; row < step->batch->row_count; row++)
      memset(output->values[die] + row * output->stride[die] + (size_t)begin * DUET_TILE_ROWS, 0, (size_t)(end - begin) * DUET_TILE_ROWS * sizeof(float));
  }
  for (uint32_t i = 0; i < list->distinct_count; i++) {
    const uint32_t first = list->start[i], rows = list->start[i + 1] - first;
    ffn_weights w = expert_weights(model, op, model->shape.expert_first[die] + list->experts[i]);
    const uint32_t run_max = duet_max_u32(1, (uint32_t)(model->work_floats / ((size_t)rows * DUET_TILE_ROWS)));
    for (uint32_t tile = begin; tile < end; tile += run_max) {
      const uint32_t run = duet_min_u32(run_max, end - tile);
      const uint32_t floats = run * DUET_TILE_ROWS;
      down(model, &w, &model->expert_act[die], first, rows, tile, run, work, floats);
      for (uint32_t row = 0; row < rows; row++) {
        float *partial = output->values[die] + list->row[first + row] * output->stride[die] + (size_t)tile * DUET_TILE_ROWS;
        model->kernels->scaled_add_row(partial, work + (size_t)row * floats, list->weight[first + row], floats);
      }
    }
  }
}

int duet_op_expert_ffn(duet_step *step, const duet_op_state *op, duet_lane *lane) {
  duet_model *model = step->model;
  duet_lane_scratch *scratch = &model->lanes[lane->index];
  int is_bad = 0;
  /* A lane that runs both dies sorts anew for the second phase: the list is scratch. */
  for (uint32_t die = lane->die_begin; die < lane->die_end; die++) {
    pair_list list = sort_pairs(model, step->batch->row_count, die, scratch);
    if (lane->team_lane == 0) count_experts(step, op, die, &list);
    is_bad |= gate_up_share(step, op, die, &list, lane);
  }
  if (lane->index == 0) step->expert_layers++;
  duet_barrier_team(lane);
  for (uint32_t die = lane->die_begin; die < lane->die_end; die++) {
    pair_list list = sort_pairs(model, step->batch->row_count, die, scratch);
    down_share(step, op, die, &list, lane);
  }
  return is_bad | quantise_output(step, &model->slots[op->op.output], lane);
}
