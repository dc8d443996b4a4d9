/* A Program's ops as phases: what may run together, and where the dies have to wait for each other.
 *
 * Ops on shared slots (embed, rmsNorm, exchangeAdd, route) work row by row, so a run of them is one phase. Everything else belongs
 * to a die and only needs what the same die made, until the next shared phase: a die's phases are a chain of their own between two joins.
 * The shared experts and the routed ones that add to them are one pair of phases: gate-up, then down.
 */
#include "internal.h"

static duet_phase *add(duet_model *model, duet_phase_kind kind, const duet_op_state *first, const duet_op_state *last) {
  duet_phase *phase = &model->phases[model->phase_count++];
  phase->kind = kind;
  phase->is_shared = kind == DUET_PHASE_ROWS || kind == DUET_PHASE_ROUTER;
  phase->first = first;
  phase->last = last;
  return phase;
}

static int is_row_op(const duet_op_state *op) {
  switch (op->op.code) {
    case DUET_OP_EMBED:
    case DUET_OP_RMS_NORM:
    case DUET_OP_EXCHANGE_ADD:
    case DUET_OP_ROUTE: return 1;
    default: return 0;
  }
}

static int is_logit_norm(const duet_op_state *op) { return op->op.code == DUET_OP_RMS_NORM && op->op.flags & DUET_OP_FLAG_LOGIT_ROWS; }

/* The last op of the run of row ops that begins at `op`. Routing ends a run, a large router whose rowTiles may be spread over lanes stands
 * alone, and so do rows that are gathered from others. */
static const duet_op_state *end_of_rows(const duet_op_state *op, const duet_op_state *end) {
  if (is_logit_norm(op)) return op;
  while (op->op.code != DUET_OP_ROUTE && op + 1 < end && is_row_op(op + 1) && !is_logit_norm(op + 1)) {
    if (op[1].op.code == DUET_OP_ROUTE && op[1].weight[0]->bytes >= DUET_ROUTER_SPLIT_BYTES) break;
    op++;
  }
  return op;
}

static int are_one_ffn(const duet_op_state *shared, const duet_op_state *routed) {
  return routed->op.code == DUET_OP_EXPERT_FFN && routed->op.flags & DUET_OP_FLAG_ACCUMULATE && routed->op.input == shared->op.input &&
         routed->op.output == shared->op.output;
}

/* The phases of the ops from `op` on that go together; returns the first op behind them. */
static const duet_op_state *add_phases(duet_model *model, const duet_op_state *op, const duet_op_state *end) {
  const duet_op_state *last = op;
  switch (op->op.code) {
    case DUET_OP_MATMUL: add(model, DUET_PHASE_MATMUL, op, op); break;
    case DUET_OP_ROPE_AND_STORE: add(model, DUET_PHASE_ROPE, op, op + 1 < end ? op + 1 : op); return op + 1;
    case DUET_OP_ATTENTION: add(model, DUET_PHASE_ATTENTION, op > model->ops ? op - 1 : op, op); break;
    case DUET_OP_FFN:
      if (op + 1 < end && are_one_ffn(op, op + 1)) last = op + 1;
      /* fall through */
    case DUET_OP_EXPERT_FFN:
      add(model, DUET_PHASE_GATE_UP, op, last);
      add(model, DUET_PHASE_DOWN, op, last);
      break;
    case DUET_OP_LOGITS: add(model, DUET_PHASE_LOGITS, op, op); return op + 1;
    default:
      last = end_of_rows(op, end);
      if (op->op.code == DUET_OP_ROUTE) add(model, DUET_PHASE_ROUTER, op, op);
      add(model, DUET_PHASE_ROWS, op, last);
      return last + 1;
  }
  if (model->slots[op->op.output].slot.is_quantised) add(model, DUET_PHASE_QUANTISE, op, last);
  return last + 1;
}

void duet_program_set_phases(duet_model *model) {
  const duet_op_state *end = model->ops + model->op_count;
  for (const duet_op_state *op = model->ops; op < end;) op = add_phases(model, op, end);
  for (uint32_t i = 0; i < model->phase_count; i++)
    model->phase_joins[i] = i + 1 == model->phase_count || model->phases[i].is_shared || model->phases[i + 1].is_shared;
}
