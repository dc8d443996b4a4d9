/* A model's memory and life: shape, slots, scratch and KV cache are checked and laid out here, in one allocation each.
 *
 * Memory is reserved, not touched: pages come when a row, a lane or a kvBlock first needs them. Ops are bound by program.c.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ROW_MAX 65536u
#define SLOT_MAX 512u
#define SLOT_BYTES_MAX ((uint64_t)1 << 44)
#define WORK_FLOATS_MIN (64u * 1024u)

#define INVALID(...) return duet_fail(DUET_STATUS_INVALID, __VA_ARGS__)

/* ---- checks ------------------------------------------------------------------------------------------------------ */

static int32_t check_shape(const duet_shape *shape, const duet_model_options *options) {
  if (shape->hidden_dim == 0 || shape->hidden_dim > DUET_DIMENSION_MAX) INVALID("shape: hidden_dim is %u", shape->hidden_dim);
  if (shape->head_dim == 0 || shape->head_dim % 2 != 0 || shape->head_dim > 1024)
    INVALID("shape: head_dim must be even, 2 to 1024, got %u", shape->head_dim);
  if (shape->inverse_frequencies == NULL) INVALID("shape: inverse_frequencies is null");
  if (!(shape->rms_norm_eps > 0 && shape->rms_norm_eps <= 1)) INVALID("shape: rms_norm_eps must be above 0, at most 1");
  if (shape->context_max == 0 || shape->context_max > DUET_DIMENSION_MAX) INVALID("shape: context_max is %u", shape->context_max);
  if (shape->kv_layer_count > 65536) INVALID("shape: kv_layer_count is %u", shape->kv_layer_count);
  for (uint32_t die = 0; die < DUET_DIE_COUNT; die++) {
    uint32_t queries = shape->query_heads[die], kvs = shape->kv_heads[die];
    if (queries > 65536 || kvs > 65536 || (kvs == 0 ? queries != 0 : queries % kvs != 0))
      INVALID("shape: die %u has %u query heads on %u KV heads; the first must be a multiple of the second", die, queries, kvs);
    if (shape->vocabulary_rows[die] > DUET_DIMENSION_MAX || shape->ffn_columns[die] > DUET_DIMENSION_MAX || shape->expert_count[die] > 65536)
      INVALID("shape: a dimension of die %u is too large", die);
  }
  if (shape->vocabulary_rows[1] != 0 && shape->vocabulary_rows[0] % DUET_TILE_ROWS != 0)
    INVALID("shape: vocabulary rows of die 0 must be a multiple of 16, got %u", shape->vocabulary_rows[0]);
  uint64_t total = (uint64_t)shape->expert_group_count * shape->experts_per_group;
  if (total != (uint64_t)shape->expert_count[0] + shape->expert_count[1] || shape->expert_first[0] != 0 ||
      shape->expert_first[1] != shape->expert_count[0])
    INVALID("shape: dies hold experts %u + %u and %u + %u, expected %llu in a row", shape->expert_first[0], shape->expert_count[0],
            shape->expert_first[1], shape->expert_count[1], (unsigned long long)total);
  if (total != 0 && (shape->active_per_group == 0 || shape->active_per_group > shape->experts_per_group || shape->expert_dim == 0 ||
                     shape->expert_dim > DUET_DIMENSION_MAX))
    INVALID("shape: %u active of %u experts per group, expert_dim %u", shape->active_per_group, shape->experts_per_group, shape->expert_dim);
  if (options->row_max == 0 || options->row_max > ROW_MAX) INVALID("options: row_max must be 1 to %u, got %u", ROW_MAX, options->row_max);
  if (options->logit_row_max > options->row_max)
    INVALID("options: logit_row_max %u is above row_max %u", options->logit_row_max, options->row_max);
  if (options->kv_type > DUET_KV_F32) INVALID("options: unknown KV type %u", options->kv_type);
  if (options->kv_block_count > (1u << 26)) INVALID("options: kv_block_count %u is above %u", options->kv_block_count, 1u << 26);
  return DUET_STATUS_OK;
}

static int32_t set_slot(const duet_slot *slot, uint32_t index, uint32_t row_max, duet_slot_state *out) {
  memset(out, 0, sizeof *out);
  out->slot = *slot;
  uint32_t die_count = slot->is_per_die ? DUET_DIE_COUNT : 1;
  if (slot->is_per_die > 1 || slot->is_quantised > 1) INVALID("slot %u: is_per_die and is_quantised must be 0 or 1", index);
  for (uint32_t die = 0; die < die_count; die++) {
    if (slot->columns[die] > DUET_DIMENSION_MAX) INVALID("slot %u: %u columns", index, slot->columns[die]);
    out->stride[die] = duet_align_up(slot->columns[die], DUET_COLUMN_MULTIPLE);
    if ((uint64_t)out->stride[die] * row_max * 4 > SLOT_BYTES_MAX) INVALID("slot %u: %u rows of %u columns", index, row_max, slot->columns[die]);
  }
  if (!slot->is_per_die) out->stride[1] = out->stride[0];
  return DUET_STATUS_OK;
}

/* ---- layout ------------------------------------------------------------------------------------------------------ */

/* Cuts a slab of memory; with base null it only counts. */
typedef struct cutter {
  uint8_t *base;
  size_t used;
} cutter;

static void *cut(cutter *c, uint64_t count, size_t element_bytes) {
  void *at = c->base == NULL ? NULL : c->base + c->used;
  c->used += duet_align_up(count * element_bytes, DUET_ALIGNMENT);
  return at;
}

static void cut_act_rows(cutter *c, duet_act_rows *act, uint64_t rows, uint32_t columns) {
  act->stride = duet_align_up(columns, DUET_COLUMN_MULTIPLE);
  act->values = cut(c, rows * act->stride, sizeof(float));
  act->q = cut(c, rows * act->stride, 1);
  act->scales = cut(c, rows * (act->stride / DUET_QUANT_BLOCK), sizeof(float));
  act->sums = cut(c, rows * (act->stride / DUET_QUANT_BLOCK), sizeof(int32_t));
}

static void cut_slots(duet_model *model, cutter *c) {
  const uint64_t rows = model->options.row_max;
  for (uint32_t i = 0; i < model->slot_count; i++) {
    duet_slot_state *slot = &model->slots[i];
    for (uint32_t die = 0; die < DUET_DIE_COUNT; die++) {
      if (die == 1 && !slot->slot.is_per_die) {
        slot->values[1] = slot->values[0];
        slot->q[1] = slot->q[0];
        slot->scales[1] = slot->scales[0];
        slot->sums[1] = slot->sums[0];
        break;
      }
      uint64_t elements = rows * slot->stride[die];
      slot->values[die] = cut(c, elements, sizeof(float));
      if (!slot->slot.is_quantised) continue;
      slot->q[die] = cut(c, elements, 1);
      slot->scales[die] = cut(c, elements / DUET_QUANT_BLOCK, sizeof(float));
      slot->sums[die] = cut(c, elements / DUET_QUANT_BLOCK, sizeof(int32_t));
    }
  }
}

static void cut_scratch(duet_model *model, cutter *c) {
  const duet_shape *shape = &model->shape;
  const uint64_t rows = model->options.row_max;
  cut_slots(model, c);
  model->logits = cut(c, (uint64_t)model->options.logit_row_max * model->logit_stride, sizeof(float));
  model->rope_cos = cut(c, rows * model->rope_stride, sizeof(float));
  model->rope_sin = cut(c, rows * model->rope_stride, sizeof(float));
  model->router_logits = cut(c, rows * model->router_stride, sizeof(float));
  model->routed_ids = cut(c, rows * model->active_total, sizeof(uint32_t));
  model->routed_weights = cut(c, rows * model->active_total, sizeof(float));
  for (uint32_t die = 0; die < DUET_DIE_COUNT; die++) {
    cut_act_rows(c, &model->ffn_act[die], rows, shape->ffn_columns[die]);
    duet_pair_list *list = &model->pairs[die];
    const uint64_t pairs = rows * duet_min_u32(model->active_total, shape->expert_count[die]);
    list->experts = cut(c, shape->expert_count[die], sizeof(uint32_t));
    list->start = cut(c, (uint64_t)shape->expert_count[die] + 1, sizeof(uint32_t));
    list->row = cut(c, pairs, sizeof(uint32_t));
    list->weight = cut(c, pairs, sizeof(float));
    cut_act_rows(c, &model->expert_act[die], pairs, shape->expert_dim);
  }
  for (uint32_t i = 0; i < duet_device_lane_count(model->device); i++) {
    duet_lane_scratch *lane = &model->lanes[i];
    lane->work = cut(c, model->work_floats, sizeof(float));
    lane->sample.z = cut(c, model->vocabulary_size, sizeof(float));
    lane->sample.counts = cut(c, model->vocabulary_size, sizeof(uint32_t));
    lane->sample.keys = cut(c, model->vocabulary_size, sizeof(uint64_t));
  }
}

static void set_dimensions(duet_model *model) {
  const duet_shape *shape = &model->shape;
  model->vocabulary_size = shape->vocabulary_rows[0] + shape->vocabulary_rows[1];
  model->logit_stride = (uint32_t)(duet_align_up(shape->vocabulary_rows[0], DUET_TILE_ROWS) + duet_align_up(shape->vocabulary_rows[1], DUET_TILE_ROWS));
  model->expert_total = shape->expert_count[0] + shape->expert_count[1];
  model->active_total = shape->expert_group_count * shape->active_per_group;
  model->router_stride = duet_align_up(model->expert_total, DUET_TILE_ROWS);
  model->rope_stride = shape->head_dim / 2;
  model->embedding_rows = UINT32_MAX;

  size_t attention = 0;
  for (uint32_t die = 0; die < DUET_DIE_COUNT; die++) {
    if (shape->kv_heads[die] == 0) continue;
    const uint32_t queries_per_kv = shape->query_heads[die] / shape->kv_heads[die];
    size_t floats = DUET_ATTENTION_SCRATCH((size_t)queries_per_kv * duet_attention_rows(queries_per_kv), shape->head_dim);
    if (floats > attention) attention = floats;
  }
  model->work_floats = WORK_FLOATS_MIN;
  if (attention > model->work_floats) model->work_floats = attention;

  static const size_t element_bytes[] = {[DUET_KV_F16] = 2, [DUET_KV_INT8] = 1, [DUET_KV_F32] = 4};
  size_t head_bytes = duet_align_up(shape->head_dim * (size_t)DUET_KV_BLOCK_TOKENS * element_bytes[model->options.kv_type], DUET_ALIGNMENT);
  size_t scale_bytes = model->options.kv_type == DUET_KV_INT8 ? DUET_KV_BLOCK_TOKENS * sizeof(float) : 0;
  model->kv_v_offset = head_bytes;
  model->kv_k_scale_offset = 2 * head_bytes;
  model->kv_v_scale_offset = 2 * head_bytes + scale_bytes;
  model->kv_head_stride = 2 * (head_bytes + scale_bytes);
  model->kv_die_offset[1] = shape->kv_heads[0] * model->kv_head_stride;
  model->kv_layer_stride = (shape->kv_heads[0] + (size_t)shape->kv_heads[1]) * model->kv_head_stride;
  model->kv_block_stride = model->kv_layer_stride * shape->kv_layer_count;
  model->kv_bytes = (uint64_t)model->kv_block_stride * model->options.kv_block_count;
}

static int32_t reserve(duet_model *model) {
  cutter counting = {NULL, 0};
  cut_scratch(model, &counting);
  model->scratch_bytes = counting.used;
  model->scratch_memory = duet_memory_reserve(counting.used);
  if (model->scratch_memory == NULL)
    return duet_fail(DUET_STATUS_NO_MEMORY, "no memory for %zu bytes of scratch", counting.used);
  cutter cutting = {model->scratch_memory, 0};
  cut_scratch(model, &cutting);
  model->kv = duet_memory_reserve(model->kv_bytes);
  if (model->kv == NULL)
    return duet_fail(DUET_STATUS_NO_MEMORY, "no memory for a KV cache of %llu bytes", (unsigned long long)model->kv_bytes);
  /* A KV head's rows lie in many places: 5 to 10 % faster where they share pages. A wish. */
  (void)madvise(model->kv, model->kv_bytes, MADV_HUGEPAGE);
  return DUET_STATUS_OK;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static int32_t fill(duet_model *model, const duet_shape *shape, const duet_tensor *tensors, const duet_slot *slots, const duet_op *ops) {
  memcpy(model->inverse_frequencies, shape->inverse_frequencies, shape->head_dim / 2 * sizeof(double));
  model->shape.inverse_frequencies = model->inverse_frequencies;
  for (uint32_t i = 0; i < shape->head_dim / 2; i++) {
    if (!(model->inverse_frequencies[i] > 0 && model->inverse_frequencies[i] <= 1)) INVALID("shape: inverse_frequencies[%u] must be above 0, at most 1", i);
  }
  set_dimensions(model);
  for (uint32_t i = 0; i < model->weight_count; i++) {
    int32_t status = duet_program_bind_tensor(model->slab, &tensors[i], i, &model->weights[i]);
    if (status != DUET_STATUS_OK) return status;
  }
  for (uint32_t i = 0; i < model->slot_count; i++) {
    int32_t status = set_slot(&slots[i], i, model->options.row_max, &model->slots[i]);
    if (status != DUET_STATUS_OK) return status;
  }
  for (uint32_t i = 0; i < model->op_count; i++) {
    int32_t status = duet_program_bind_op(model, i, &ops[i]);
    if (status != DUET_STATUS_OK) return status;
  }
  if (model->has_attention && model->options.kv_block_count == 0) INVALID("options: a Program with attention needs kvBlocks");
  if (model->has_logits && model->options.logit_row_max == 0) INVALID("options: a Program with logits needs logit_row_max above 0");
  duet_program_set_phases(model);
  return reserve(model);
}

int32_t duet_model_create(duet_device *device, duet_slab *slab, const duet_shape *shape, const duet_tensor *tensors,
                          uint32_t tensor_count, const duet_slot *slots, uint32_t slot_count, const duet_op *ops,
                          uint32_t op_count, const duet_model_options *options, duet_model **out) {
  if (out == NULL) INVALID("duet_model_create: out is null");
  *out = NULL;
  if (device == NULL || slab == NULL || shape == NULL || tensors == NULL || slots == NULL || ops == NULL || options == NULL)
    INVALID("duet_model_create: an argument is null");
  if (tensor_count > DUET_DIMENSION_MAX || slot_count > SLOT_MAX || op_count > DUET_DIMENSION_MAX)
    INVALID("duet_model_create: %u tensors, %u slots, %u ops", tensor_count, slot_count, op_count);
  int32_t status = check_shape(shape, options);
  if (status != DUET_STATUS_OK) return status;

  duet_model *model = calloc(1, sizeof *model);
  if (model == NULL) return duet_fail(DUET_STATUS_NO_MEMORY, "no memory for a model");
  model->device = device;
  model->slab = slab;
  model->kernels = duet_device_kernels(device);
  model->shape = *shape;
  model->options = *options;
  model->weight_count = tensor_count;
  model->slot_count = slot_count;
  model->op_count = op_count;
  model->inverse_frequencies = calloc(shape->head_dim / 2, sizeof(double));
  model->weights = calloc((size_t)tensor_count + 1, sizeof *model->weights);
  model->slots = calloc((size_t)slot_count + 1, sizeof *model->slots);
  model->ops = calloc((size_t)op_count + 1, sizeof *model->ops);
  model->phases = calloc((size_t)op_count * DUET_PHASES_PER_OP + 1, sizeof *model->phases);
  model->phase_joins = calloc((size_t)op_count * DUET_PHASES_PER_OP + 1, 1);
  model->lanes = calloc(duet_device_lane_count(device), sizeof *model->lanes);
  if (model->inverse_frequencies && model->weights && model->slots && model->ops && model->phases && model->phase_joins && model->lanes) {
    status = fill(model, shape, tensors, slots, ops);
  } else {
    status = duet_fail(DUET_STATUS_NO_MEMORY, "no memory for the tables of a model");
  }
  if (status != DUET_STATUS_OK) {
    duet_model_destroy(model);
    return status;
  }
  *out = model;
  return DUET_STATUS_OK;
}

int32_t duet_model_destroy(duet_model *model) {
  if (model == NULL) INVALID("duet_model_destroy: model is null");
  duet_memory_release(model->scratch_memory, model->scratch_bytes);
  duet_memory_release(model->kv, model->kv_bytes);
  free(model->inverse_frequencies);
  free(model->weights);
  free(model->slots);
  free(model->ops);
  free(model->phases);
  free(model->phase_joins);
  free(model->lanes);
  free(model);
  return DUET_STATUS_OK;
}

uint64_t duet_model_kv_bytes(const duet_model *model) { return model == NULL ? 0 : model->kv_bytes; }
uint64_t duet_model_scratch_bytes(const duet_model *model) { return model == NULL ? 0 : model->scratch_bytes; }
