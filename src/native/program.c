/* A Program bound to a slab: every index, dimension and byte count of its tensors, slots and ops is checked here, so that
 * the executor checks nothing. It lays out no memory and runs nothing (model.c, executor.c).
 */
#include "internal.h"

#include <string.h>

#define DIMENSION_MAX DUET_DIMENSION_MAX

/* Its own return: behind duet_fail's result a compiler cannot see that an output is set wherever CHECK goes on. */
#define INVALID(...)                                     \
  do {                                                   \
    (void)duet_fail(DUET_STATUS_INVALID, __VA_ARGS__);   \
    return DUET_STATUS_INVALID;                          \
  } while (0)
#define CHECK(call)                                      \
  do {                                                   \
    int32_t check_status = (call);                       \
    if (check_status != DUET_STATUS_OK) return check_status; \
  } while (0)

static const char *const op_names[] = {"embed", "rmsNorm", "matmul", "ropeAndStore", "attention", "exchangeAdd", "route", "ffn", "expertFfn", "logits"};
#define OP_CODE_COUNT (sizeof op_names / sizeof op_names[0])

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

static size_t tile_bytes_of(uint32_t quant_type, uint32_t columns) {
  size_t padded = duet_align_up(columns, DUET_COLUMN_MULTIPLE);
  switch (quant_type) {
    case DUET_QUANT_F32: return padded * DUET_TILE_ROWS * 4;
    case DUET_QUANT_F16: return padded * DUET_TILE_ROWS * 2;
    case DUET_QUANT_Q8: return padded / 64 * 1088;
    default: return padded / 64 * 576;
  }
}

int32_t duet_program_bind_tensor(const duet_slab *slab, const duet_tensor *tensor, uint32_t index, duet_weight *out) {
  if (tensor->quant_type > DUET_QUANT_Q4 || tensor->down_quant_type > DUET_QUANT_Q4)
    INVALID("tensor %u: quant type must be 0 to 3, got %u and %u", index, tensor->quant_type, tensor->down_quant_type);
  if (tensor->rows == 0 || tensor->rows > DIMENSION_MAX || tensor->columns == 0 || tensor->columns > DIMENSION_MAX)
    INVALID("tensor %u: rows and columns must be 1 to %u, got %u x %u", index, DIMENSION_MAX, tensor->rows, tensor->columns);
  if (tensor->offset % DUET_ALIGNMENT != 0)
    INVALID("tensor %u: offset %llu is not a multiple of 64", index, (unsigned long long)tensor->offset);
  if (tensor->bytes > slab->bytes || tensor->offset > slab->bytes - tensor->bytes)
    INVALID("tensor %u: bytes %llu at %llu are outside the slab of %llu", index, (unsigned long long)tensor->bytes,
            (unsigned long long)tensor->offset, (unsigned long long)slab->bytes);
  if (tensor->down_offset % DUET_ALIGNMENT != 0 || tensor->down_offset > tensor->bytes)
    INVALID("tensor %u: down offset %llu must be a multiple of 64 within %llu bytes", index,
            (unsigned long long)tensor->down_offset, (unsigned long long)tensor->bytes);
  memset(out, 0, sizeof *out);
  out->data = slab->base + tensor->offset;
  out->bytes = tensor->bytes;
  out->quant_type = tensor->quant_type;
  out->rows = tensor->rows;
  out->columns = tensor->columns;
  out->padded_columns = (uint32_t)duet_align_up(tensor->columns, DUET_COLUMN_MULTIPLE);
  out->tile_bytes = tile_bytes_of(tensor->quant_type, tensor->columns);
  if (tensor->down_offset != 0) {
    out->down = out->data + tensor->down_offset;
    out->down_quant_type = tensor->down_quant_type;
  }
  return DUET_STATUS_OK;
}

typedef struct op_place {
  const duet_model *model;
  uint32_t index;
  const char *name;
} op_place;

static int32_t get_weight(op_place at, const char *what, uint32_t tensor, const duet_weight **out) {
  *out = NULL;
  if (tensor == DUET_NONE) return DUET_STATUS_OK;
  if (tensor >= at.model->weight_count)
    INVALID("op %u (%s): %s is tensor %u of %u", at.index, at.name, what, tensor, at.model->weight_count);
  *out = &at.model->weights[tensor];
  return DUET_STATUS_OK;
}

static int32_t check_vector(op_place at, const char *what, const duet_weight *weight, uint32_t n) {
  if (weight == NULL) INVALID("op %u (%s): %s is missing", at.index, at.name, what);
  if (weight->rows != 1 || weight->columns != n || weight->quant_type != DUET_QUANT_F32 || weight->bytes != (size_t)n * 4)
    INVALID("op %u (%s): %s must be a float32 vector of %u, got %u x %u of %zu bytes", at.index, at.name, what, n, weight->rows,
            weight->columns, weight->bytes);
  return DUET_STATUS_OK;
}

static int32_t check_matrix(op_place at, const char *what, const duet_weight *weight, uint32_t rows, uint32_t columns) {
  if (weight == NULL) INVALID("op %u (%s): %s is missing", at.index, at.name, what);
  if (weight->rows != rows || weight->columns != columns)
    INVALID("op %u (%s): %s must be %u x %u, got %u x %u", at.index, at.name, what, rows, columns, weight->rows, weight->columns);
  size_t expected = weight->tile_bytes * duet_ceil_div(rows, DUET_TILE_ROWS);
  if (weight->bytes != expected)
    INVALID("op %u (%s): %s of %u x %u must have %zu bytes, got %zu", at.index, at.name, what, rows, columns, expected, weight->bytes);
  return DUET_STATUS_OK;
}

/* Gate and up of `dim` rows each; `rows` may be stated with or without the padding of a rowTile. */
static int32_t check_gate_up(op_place at, const duet_weight *weight, uint32_t dim, uint32_t columns, size_t bytes) {
  uint32_t pairs = duet_ceil_div(dim, DUET_TILE_ROWS);
  if (weight->columns != columns || (weight->rows != 2 * dim && weight->rows != 2 * pairs * DUET_TILE_ROWS))
    INVALID("op %u (%s): gate-up must be %u x %u, got %u x %u", at.index, at.name, 2 * dim, columns, weight->rows, weight->columns);
  if (bytes < weight->tile_bytes * 2 * pairs)
    INVALID("op %u (%s): gate-up must have %zu bytes, got %zu", at.index, at.name, weight->tile_bytes * 2 * pairs, bytes);
  return DUET_STATUS_OK;
}

/* ---- ops --------------------------------------------------------------------------------------------------------- */

static int32_t get_slot(op_place at, const char *what, uint32_t slot, uint32_t is_per_die, const duet_slot_state **out) {
  if (slot >= at.model->slot_count)
    INVALID("op %u (%s): %s is slot %u of %u", at.index, at.name, what, slot, at.model->slot_count);
  *out = &at.model->slots[slot];
  if ((*out)->slot.is_per_die != is_per_die)
    INVALID("op %u (%s): %s (slot %u) must be %s", at.index, at.name, what, slot, is_per_die ? "per die" : "shared");
  return DUET_STATUS_OK;
}

static int32_t expect_columns(op_place at, const char *what, const duet_slot_state *slot, uint32_t die, uint32_t columns) {
  uint32_t got = slot->slot.columns[slot->slot.is_per_die ? die : 0];
  if (got != columns) INVALID("op %u (%s): %s must have %u columns on die %u, got %u", at.index, at.name, what, columns, die, got);
  return DUET_STATUS_OK;
}

static int32_t expect_quantised(op_place at, const duet_slot_state *input, uint32_t quant_type) {
  if (duet_is_integer(quant_type) && !input->slot.is_quantised)
    INVALID("op %u (%s): the input of a q4 or q8 weight must be a quantised slot", at.index, at.name);
  return DUET_STATUS_OK;
}

static int32_t expect_kv_layer(op_place at, uint32_t layer) {
  if (layer >= at.model->shape.kv_layer_count)
    INVALID("op %u (%s): KV layer %u of %u", at.index, at.name, layer, at.model->shape.kv_layer_count);
  return DUET_STATUS_OK;
}

static uint64_t integer_ops(uint32_t quant_type, uint64_t rows, uint64_t columns) {
  return duet_is_integer(quant_type) ? 2 * rows * columns : 0;
}

static int32_t bind_embed(duet_model *model, op_place at, duet_op_state *state) {
  const duet_slot_state *output;
  CHECK(get_slot(at, "output", state->op.output, 0, &output));
  uint32_t rows = 0;
  for (uint32_t part = 0; part < DUET_DIE_COUNT; part++) {
    const duet_weight *weight = state->weight[part];
    if (part == 1 && weight == NULL) break;
    CHECK(check_matrix(at, "embedding", weight, weight == NULL ? 1 : weight->rows, output->slot.columns[0]));
    rows += weight->rows;
  }
  model->embedding_rows = duet_min_u32(model->embedding_rows, rows);
  return DUET_STATUS_OK;
}

static int32_t bind_rms_norm(op_place at, duet_op_state *state) {
  const duet_slot_state *input, *output;
  CHECK(get_slot(at, "input", state->op.input, 0, &input));
  CHECK(get_slot(at, "output", state->op.output, 0, &output));
  if (state->op.input == state->op.output) INVALID("op %u (%s): input and output are one slot", at.index, at.name);
  CHECK(expect_columns(at, "output", output, 0, input->slot.columns[0]));
  CHECK(check_vector(at, "weight", state->weight[0], input->slot.columns[0]));
  return DUET_STATUS_OK;
}

static int32_t bind_matmul(op_place at, duet_op_state *state) {
  const duet_slot_state *output;
  if (state->op.input >= at.model->slot_count) INVALID("op %u (%s): input is slot %u of %u", at.index, at.name, state->op.input, at.model->slot_count);
  if (state->op.input == state->op.output) INVALID("op %u (%s): input and output are one slot", at.index, at.name);
  const duet_slot_state *input = &at.model->slots[state->op.input];
  CHECK(get_slot(at, "output", state->op.output, 1, &output));
  for (uint32_t die = 0; die < DUET_DIE_COUNT; die++) {
    const duet_weight *weight = state->weight[die];
    uint32_t rows = output->slot.columns[die];
    if (weight == NULL) continue; /* this die has no part of it: zeros */
    CHECK(check_matrix(at, "weight", weight, rows, input->slot.columns[input->slot.is_per_die ? die : 0]));
    CHECK(expect_quantised(at, input, weight->quant_type));
    state->weight_bytes += weight->bytes;
    state->integer_ops_per_row += integer_ops(weight->quant_type, rows, weight->columns);
  }
  return DUET_STATUS_OK;
}

static int32_t bind_attention(op_place at, duet_op_state *state, int is_store) {
  const duet_shape *shape = &at.model->shape;
  const duet_slot_state *input, *output = NULL;
  CHECK(get_slot(at, "input", state->op.input, 1, &input));
  if (!is_store) CHECK(get_slot(at, "output", state->op.output, 1, &output));
  CHECK(expect_kv_layer(at, state->op.layer));
  for (uint32_t die = 0; die < DUET_DIE_COUNT; die++) {
    CHECK(expect_columns(at, "input", input, die, (shape->query_heads[die] + 2 * shape->kv_heads[die]) * shape->head_dim));
    if (!is_store) CHECK(expect_columns(at, "output", output, die, shape->query_heads[die] * shape->head_dim));
  }
  return DUET_STATUS_OK;
}

static int32_t bind_exchange(op_place at, duet_op_state *state) {
  const duet_slot_state *input, *output;
  CHECK(get_slot(at, "input", state->op.input, 1, &input));
  CHECK(get_slot(at, "output", state->op.output, 0, &output));
  for (uint32_t die = 0; die < DUET_DIE_COUNT; die++) CHECK(expect_columns(at, "input", input, die, output->slot.columns[0]));
  return DUET_STATUS_OK;
}

static int32_t bind_route(op_place at, duet_op_state *state) {
  const duet_slot_state *input;
  CHECK(get_slot(at, "input", state->op.input, 0, &input));
  if (at.model->expert_total == 0) INVALID("op %u (%s): the shape has no routed experts", at.index, at.name);
  CHECK(check_matrix(at, "router", state->weight[0], at.model->expert_total, input->slot.columns[0]));
  CHECK(expect_quantised(at, input, state->weight[0]->quant_type));
  if (state->weight_2[0] != NULL) CHECK(check_vector(at, "router scale", state->weight_2[0], at.model->expert_total));
  state->weight_bytes = state->weight[0]->bytes;
  state->integer_ops_per_row = integer_ops(state->weight[0]->quant_type, at.model->expert_total, input->slot.columns[0]);
  return DUET_STATUS_OK;
}

static int32_t bind_ffn(op_place at, duet_op_state *state) {
  const duet_slot_state *input, *output;
  CHECK(get_slot(at, "input", state->op.input, 0, &input));
  CHECK(get_slot(at, "output", state->op.output, 1, &output));
  for (uint32_t die = 0; die < DUET_DIE_COUNT; die++) {
    const duet_weight *gate_up = state->weight[die], *down = state->weight_2[die];
    if (gate_up == NULL && down == NULL) continue;
    if (gate_up == NULL || down == NULL) INVALID("op %u (%s): die %u has one of gate-up and down only", at.index, at.name, die);
    if (down->columns > at.model->shape.ffn_columns[die])
      INVALID("op %u (%s): %u columns on die %u, the shape says at most %u", at.index, at.name, down->columns, die, at.model->shape.ffn_columns[die]);
    CHECK(check_gate_up(at, gate_up, down->columns, input->slot.columns[0], gate_up->bytes));
    CHECK(check_matrix(at, "down", down, output->slot.columns[die], down->columns));
    CHECK(expect_quantised(at, input, gate_up->quant_type));
    state->weight_bytes += gate_up->bytes + down->bytes;
    state->integer_ops_per_row += integer_ops(gate_up->quant_type, 2 * (uint64_t)down->columns, gate_up->columns) +
                                  integer_ops(down->quant_type, down->rows, down->columns);
  }
  return DUET_STATUS_OK;
}

static int32_t bind_expert_ffn(op_place at, duet_op_state *state) {
  const duet_slot_state *input, *output;
  const duet_model *model = at.model;
  const uint32_t dim = model->shape.expert_dim;
  CHECK(get_slot(at, "input", state->op.input, 0, &input));
  CHECK(get_slot(at, "output", state->op.output, 1, &output));
  if (model->expert_total == 0 || dim == 0) INVALID("op %u (%s): the shape has no routed experts", at.index, at.name);
  uint32_t first = state->op.weight[0];
  if (first == DUET_NONE || first > model->weight_count || model->expert_total > model->weight_count - first)
    INVALID("op %u (%s): experts are tensors %u + %u of %u", at.index, at.name, first, model->expert_total, model->weight_count);
  if (output->slot.columns[0] != output->slot.columns[1]) INVALID("op %u (%s): output columns differ between dies", at.index, at.name);
  for (uint32_t expert = 0; expert < model->expert_total; expert++) {
    duet_weight *weight = &model->weights[first + expert];
    if (weight->down == NULL) INVALID("op %u (%s): tensor %u is not an expert", at.index, at.name, first + expert);
    if (weight->quant_type != model->weights[first].quant_type || weight->down_quant_type != model->weights[first].down_quant_type)
      INVALID("op %u (%s): expert %u has another quant type than expert 0", at.index, at.name, expert);
    size_t gate_up_bytes = (size_t)(weight->down - weight->data);
    CHECK(check_gate_up(at, weight, dim, input->slot.columns[0], gate_up_bytes));
    weight->down_tile_bytes = tile_bytes_of(weight->down_quant_type, dim);
    size_t down_bytes = weight->down_tile_bytes * duet_ceil_div(output->slot.columns[0], DUET_TILE_ROWS);
    if (down_bytes > weight->bytes - gate_up_bytes)
      INVALID("op %u (%s): expert %u needs %zu bytes of down, got %zu", at.index, at.name, expert, down_bytes, weight->bytes - gate_up_bytes);
  }
  return expect_quantised(at, input, model->weights[first].quant_type);
}

static int32_t bind_logits(op_place at, duet_op_state *state) {
  const duet_slot_state *input;
  CHECK(get_slot(at, "input", state->op.input, 0, &input));
  for (uint32_t die = 0; die < DUET_DIE_COUNT; die++) {
    const duet_weight *weight = state->weight[die];
    uint32_t rows = at.model->shape.vocabulary_rows[die];
    if (rows == 0 && weight == NULL) continue;
    CHECK(check_matrix(at, "head", weight, rows, input->slot.columns[0]));
    CHECK(expect_quantised(at, input, weight->quant_type));
    state->weight_bytes += weight->bytes;
    state->integer_ops_per_row += integer_ops(weight->quant_type, rows, weight->columns);
  }
  return DUET_STATUS_OK;
}

int32_t duet_program_bind_op(duet_model *model, uint32_t index, const duet_op *op) {
  if (op->code >= OP_CODE_COUNT) INVALID("op %u: unknown code %u", index, op->code);
  op_place at = {model, index, op_names[op->code]};
  duet_op_state *state = &model->ops[index];
  state->op = *op;
  for (uint32_t die = 0; die < DUET_DIE_COUNT; die++) {
    const duet_weight *bias;
    CHECK(get_weight(at, "weight", op->weight[die], &state->weight[die]));
    CHECK(get_weight(at, "weight 2", op->weight_2[die], &state->weight_2[die]));
    CHECK(get_weight(at, "bias", op->bias[die], &bias));
    if (bias == NULL) continue;
    if (op->code != DUET_OP_MATMUL || state->weight[die] == NULL) INVALID("op %u (%s): a bias without a matmul on die %u", index, at.name, die);
    CHECK(check_vector(at, "bias", bias, state->weight[die]->rows));
    state->bias[die] = (const float *)(const void *)bias->data;
  }
  switch (op->code) {
    case DUET_OP_EMBED: return bind_embed(model, at, state);
    case DUET_OP_RMS_NORM: return bind_rms_norm(at, state);
    case DUET_OP_MATMUL: return bind_matmul(at, state);
    case DUET_OP_ROPE_AND_STORE: model->has_attention = 1; return bind_attention(at, state, 1);
    case DUET_OP_ATTENTION: return bind_attention(at, state, 0);
    case DUET_OP_EXCHANGE_ADD: return bind_exchange(at, state);
    case DUET_OP_ROUTE: return bind_route(at, state);
    case DUET_OP_FFN: return bind_ffn(at, state);
    case DUET_OP_EXPERT_FFN: return bind_expert_ffn(at, state);
    default: model->has_logits = 1; return bind_logits(at, state);
  }
}
