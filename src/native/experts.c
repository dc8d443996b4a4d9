/* Feed-forward: the shared experts (or a dense FFN) and the routed experts (docs/arithmetic.md, rule 7).
 *
 * gate-up is cut into units of two rowTile pairs: 32 intermediate columns, one quantBlock, so that whoever computes them also makes
 * their int8 form. down is cut by output rowTiles, so that whoever has one adds a row's experts in ascending id. Each distinct
 * expert is read once per step, its rows gathered.
 */
#include "internal.h"

#include <string.h>

#define UNIT_COLUMNS DUET_QUANT_BLOCK
#define UNIT_TILES 4u /* g u g u */
#define ROWS_BLOCK 64u            /* rows that a run of units is computed for at once: the activations of such a run stay in the cache */
#define RUN_BYTES (384u * 1024u)  /* weights of a run, when it is used for more rows than a block */

static inline duet_quantised_rows act_quantised(const duet_act_rows *act, size_t first_row) {
  duet_quantised_rows rows = {act->q + first_row * act->stride, act->scales + first_row * (act->stride / DUET_QUANT_BLOCK),
                              act->sums + first_row * (act->stride / DUET_QUANT_BLOCK), act->stride};
  return rows;
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
  const uint32_t block_max = duet_min_u32(row_count, ROWS_BLOCK);
  /* A row of the work buffer: a run of units of gate-up, and in front of int8 the run's activations. */
  const size_t unit_floats = (size_t)UNIT_TILES * DUET_TILE_ROWS + UNIT_COLUMNS;
  uint32_t run_max = (uint32_t)(model->work_floats / (unit_floats * block_max));
  if (row_count > block_max) run_max = duet_min_u32(run_max, (uint32_t)(RUN_BYTES / (UNIT_TILES * w->gate_up_tile_bytes)));
  run_max = duet_max_u32(1, run_max);
  int is_bad = 0;
  for (uint32_t unit = begin, run; unit < end; unit += run) {
    run = duet_min_u32(run_max, end - unit);
    const uint32_t tile = unit * UNIT_TILES;
    const size_t gu_stride = (size_t)run * UNIT_TILES * DUET_TILE_ROWS;
    const uint32_t first_column = unit * UNIT_COLUMNS;
    const uint32_t columns = duet_min_u32(run * UNIT_COLUMNS, w->dim - first_column);
    /* The unit with the last column also clears the padding to 64. */
    const int is_last = first_column + columns == w->dim;
    const uint32_t padded = is_last ? (uint32_t)act->stride - first_column : run * UNIT_COLUMNS;
    for (uint32_t first = 0, rows; first < row_count; first += rows) {
      rows = duet_min_u32(block_max, row_count - first);
      float *run_act = scratch->work + gu_stride * rows;
      duet_matmul_args args = {
        .tiles = w->gate_up + tile * w->gate_up_tile_bytes,
        .tile_bytes = w->gate_up_tile_bytes,
        .tile_step = 1,
        .tile_count = duet_min_u32(run * UNIT_TILES, tile_total - tile),
        .column_count = w->input_columns,
        .x = input->values[0],
        .x_stride = input->stride[0],
        .qx = duet_slot_quantised(input, 0),
        .row_index = row_index == NULL ? NULL : row_index + first,
        .row_count = rows,
        .out = scratch->work,
        .out_stride = gu_stride,
      };
      if (row_index == NULL) {
        args.x += first * args.x_stride;
        args.qx.q += first * args.qx.stride;
        args.qx.scales += first * (args.qx.stride / DUET_QUANT_BLOCK);
        args.qx.sums += first * (args.qx.stride / DUET_QUANT_BLOCK);
      }
      kernels->matmul[w->gate_up_quant_type](&args);
      for (uint32_t row = 0; row < rows; row++) {
        size_t to = (first_act_row + first + row) * act->stride + first_column;
        float *values = is_quantised ? run_act : act->values + to;
        kernels->swiglu_row(scratch->work + row * gu_stride, columns, values);
        if (is_quantised) {
          is_bad |= kernels->quantise_row(values, columns, padded, act->q + to, act->scales + to / DUET_QUANT_BLOCK, act->sums + to / DUET_QUANT_BLOCK);
        } else if (is_last) {
          memset(values + columns, 0, (padded - columns) * sizeof *values);
        }
      }
    }
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
  duet_matmul_blocked(model->kernels, w->down_quant_type, &args);
}

/* ---- which rows chose which expert ------------------------------------------------------------------------------- */

static void sort_pairs(duet_model *model, uint32_t row_count, uint32_t die) {
  duet_pair_list *list = &model->pairs[die];
  const uint32_t first = model->shape.expert_first[die], count = model->shape.expert_count[die];
  const uint32_t active = model->active_total;
  uint32_t *start = list->start, *experts = list->experts;
  uint32_t distinct = 0;
  if (row_count == 1) { /* a kept list is ascending already */
    uint32_t pairs = 0;
    for (uint32_t i = 0; i < active; i++) {
      uint32_t local = model->routed_ids[i] - first;
      if (local >= count) continue;
      experts[pairs] = local;
      start[pairs] = pairs;
      list->row[pairs] = 0;
      list->weight[pairs++] = model->routed_weights[i];
    }
    start[pairs] = pairs;
    list->distinct_count = pairs;
    return;
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
      list->row[at] = row;
      list->weight[at] = model->routed_weights[i];
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
  list->distinct_count = distinct;
}

static ffn_weights expert_weights(const duet_model *model, const duet_op_state *op, uint32_t expert) {
  const duet_weight *e = &op->weight[0][expert];
  ffn_weights w = {e->data, e->tile_bytes, e->quant_type, e->padded_columns, e->down, e->down_tile_bytes, e->down_quant_type, model->shape.expert_dim};
  return w;
}

static void count_experts(duet_step *step, const duet_op_state *op, uint32_t die, const duet_pair_list *list) {
  const duet_model *model = step->model;
  uint32_t pairs = list->start[list->distinct_count];
  step->distinct_experts[die] += list->distinct_count;
  for (uint32_t i = 0; i < list->distinct_count; i++) step->expert_bytes[die] += op->weight[0][model->shape.expert_first[die] + list->experts[i]].bytes;
  const duet_weight *e = op->weight[0];
  uint64_t per_matrix = 2 * (uint64_t)model->shape.expert_dim * e->columns * pairs;
  if (duet_is_integer(e->quant_type)) step->expert_integer_ops[die] += 2 * per_matrix;
  if (duet_is_integer(e->down_quant_type)) step->expert_integer_ops[die] += per_matrix;
}

/* ---- phases ------------------------------------------------------------------------------------------------------ */

/* The two halves of a phase: null where there are no shared experts, or no routed ones. */
static const duet_op_state *shared_op(const duet_phase *phase) { return phase->first->op.code == DUET_OP_FFN ? phase->first : NULL; }
static const duet_op_state *routed_op(const duet_phase *phase) { return phase->last->op.code == DUET_OP_EXPERT_FFN ? phase->last : NULL; }

static ffn_weights shared_weights(const duet_op_state *op, uint32_t die) {
  const duet_weight *g = op->weight[die], *d = op->weight_2[die];
  ffn_weights w = {g->data, g->tile_bytes, g->quant_type, g->padded_columns, d->data, d->tile_bytes, d->quant_type, d->columns};
  return w;
}

static duet_act_rows shared_act(const duet_model *model, const duet_op_state *op, uint32_t die) {
  duet_act_rows act = model->ffn_act[die];
  act.stride = op->weight_2[die]->padded_columns;
  return act;
}

static uint32_t shared_units(const duet_phase *phase, uint32_t die) {
  const duet_op_state *op = shared_op(phase);
  return op == NULL || op->weight[die] == NULL ? 0 : duet_ceil_div(op->weight_2[die]->columns, UNIT_COLUMNS);
}

/* Units of the shared experts, then those of each distinct routed one. */
uint32_t duet_count_gate_up(duet_step *step, const duet_phase *phase, uint32_t die) {
  duet_model *model = step->model;
  const duet_op_state *routed = routed_op(phase);
  uint32_t units = shared_units(phase, die), rows = step->batch->row_count;
  const duet_weight *weight = units > 0 ? shared_op(phase)->weight[die] : NULL;
  if (routed != NULL) {
    sort_pairs(model, step->batch->row_count, die);
    const duet_pair_list *list = &model->pairs[die];
    count_experts(step, routed, die, list);
    if (die == 0) step->expert_layers++;
    weight = routed->weight[0];
    rows = list->start[list->distinct_count] / duet_max_u32(1, list->distinct_count);
    units += list->distinct_count * duet_ceil_div(model->shape.expert_dim, UNIT_COLUMNS);
  }
  return units == 0 ? 0 : duet_deal_units(step, die, units, UNIT_TILES * duet_tile_ns(weight->tile_bytes, weight->padded_columns, rows));
}

int duet_run_gate_up(duet_step *step, const duet_phase *phase, uint32_t die, uint32_t begin, uint32_t end, duet_lane_scratch *scratch) {
  duet_model *model = step->model;
  const duet_slot_state *input = &model->slots[phase->first->op.input];
  const uint32_t shared = shared_units(phase, die);
  int is_bad = 0;
  if (begin < shared) {
    const ffn_weights w = shared_weights(shared_op(phase), die);
    const duet_act_rows act = shared_act(model, shared_op(phase), die);
    is_bad |= gate_up(model, &w, input, NULL, step->batch->row_count, begin, duet_min_u32(end, shared), &act, 0, scratch);
    begin = shared;
  }
  if (begin >= end) return is_bad;
  const duet_pair_list *list = &model->pairs[die];
  const uint32_t units = duet_ceil_div(model->shape.expert_dim, UNIT_COLUMNS);
  for (uint32_t i = (begin - shared) / units; shared + i * units < end; i++) {
    const uint32_t base = shared + i * units, pair = list->start[i];
    const ffn_weights w = expert_weights(model, routed_op(phase), model->shape.expert_first[die] + list->experts[i]);
    is_bad |= gate_up(model, &w, input, list->row + pair, list->start[i + 1] - pair, begin > base ? begin - base : 0,
                      duet_min_u32(end - base, units), &model->expert_act[die], pair, scratch);
  }
  return is_bad;
}

uint32_t duet_count_down(duet_step *step, const duet_phase *phase, uint32_t die) {
  const duet_model *model = step->model;
  const duet_op_state *shared = shared_op(phase), *routed = routed_op(phase);
  uint64_t ns = 0;
  if (shared != NULL && shared->weight[die] != NULL)
    ns += duet_tile_ns(shared->weight_2[die]->tile_bytes, shared->weight_2[die]->padded_columns, step->batch->row_count);
  if (routed != NULL) {
    const duet_pair_list *list = &model->pairs[die];
    const uint32_t rows = list->start[list->distinct_count] / duet_max_u32(1, list->distinct_count);
    ns += list->distinct_count * duet_tile_ns(routed->weight[0]->down_tile_bytes, model->shape.expert_dim, rows);
  }
  return duet_deal_units(step, die, duet_ceil_div(model->slots[phase->last->op.output].slot.columns[die], DUET_TILE_ROWS), ns);
}

/* Output rowTiles [begin, end) of every chosen expert's down, added to the partial in ascending id. */
static void add_experts(duet_step *step, const duet_op_state *op, uint32_t die, uint32_t begin, uint32_t end, float *work) {
  duet_model *model = step->model;
  const duet_slot_state *output = &model->slots[op->op.output];
  const duet_pair_list *list = &model->pairs[die];
  for (uint32_t i = 0; i < list->distinct_count; i++) {
    const ffn_weights w = expert_weights(model, op, model->shape.expert_first[die] + list->experts[i]);
    for (uint32_t first = list->start[i], rows; first < list->start[i + 1]; first += rows) {
      rows = duet_min_u32(list->start[i + 1] - first, ROWS_BLOCK);
      const uint32_t run_max = (uint32_t)(model->work_floats / ((size_t)rows * DUET_TILE_ROWS));
      for (uint32_t tile = begin, run; tile < end; tile += run) {
        run = duet_min_u32(run_max, end - tile);
        const uint32_t floats = run * DUET_TILE_ROWS;
        down(model, &w, &model->expert_act[die], first, rows, tile, run, work, floats);
        for (uint32_t row = 0; row < rows; row++) {
          float *partial = output->values[die] + list->row[first + row] * output->stride[die] + (size_t)tile * DUET_TILE_ROWS;
          model->kernels->scaled_add_row(partial, work + (size_t)row * floats, list->weight[first + row], floats);
        }
      }
    }
  }
}

int duet_run_down(duet_step *step, const duet_phase *phase, uint32_t die, uint32_t begin, uint32_t end, duet_lane_scratch *scratch) {
  duet_model *model = step->model;
  const duet_op_state *shared = shared_op(phase), *routed = routed_op(phase);
  const duet_slot_state *output = &model->slots[phase->last->op.output];
  const uint32_t rows = step->batch->row_count;
  float *out = output->values[die] + (size_t)begin * DUET_TILE_ROWS;
  if (shared != NULL && shared->weight[die] != NULL) {
    const ffn_weights w = shared_weights(shared, die);
    const duet_act_rows act = shared_act(model, shared, die);
    down(model, &w, &act, 0, rows, begin, end - begin, out, output->stride[die]);
  } else if (shared != NULL || !(routed->op.flags & DUET_OP_FLAG_ACCUMULATE)) {
    for (uint32_t row = 0; row < rows; row++) memset(out + row * output->stride[die], 0, (size_t)(end - begin) * DUET_TILE_ROWS * sizeof *out);
  }
  if (routed != NULL) add_experts(step, routed, die, begin, end, scratch->work);
  return 0;
}
