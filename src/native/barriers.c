/* Which barrier stands in front of each op of a Program.
 *
 * Barriers follow from data: an op states which lanes touch which resource (a slot, the KV cache, the routing, ...), and waits
 * only where a lane may need what another lane wrote, or overwrite what another may still read. Ops that split rows over all
 * lanes in the same way (exchangeAdd, rmsNorm, route) follow each other without any.
 */
#include "internal.h"

#include <string.h>

/* How the work on a resource is spread. */
typedef enum spread {
  SPREAD_ROWS,       /* rows over all lanes */
  SPREAD_LOGIT_ROWS, /* logit rows over all lanes */
  SPREAD_DIE,        /* a die's part, in any way, over its team */
  SPREAD_DIE_TILES,  /* a die's part, by output rowTiles over its team */
  SPREAD_ALL,        /* in any way over all lanes */
  SPREAD_COUNT
} spread;

/* Resources beside the slots. */
enum { KV_CACHE, ROPE_TABLE, ROUTER_LOGITS, ROUTING, FFN_ACT, EXPERT_ACT, LOGITS, OTHER_COUNT };

#define RESOURCE_MAX 512u

typedef struct touched {
  uint8_t read;  /* bit per spread */
  uint8_t written;
} touched;

typedef struct tracker {
  uint32_t slot_count;
  touched since_global[RESOURCE_MAX];
  touched since_team[RESOURCE_MAX];
  duet_sync needed; /* by the op at hand */
  touched now[RESOURCE_MAX];
} tracker;

/* What must lie between two accesses of one resource, at least one of which writes. */
static duet_sync between(spread a, spread b) {
  if (a == b && (a == SPREAD_ROWS || a == SPREAD_LOGIT_ROWS || a == SPREAD_DIE_TILES)) return DUET_SYNC_NONE;
  int is_within_team = (a == SPREAD_DIE || a == SPREAD_DIE_TILES) && (b == SPREAD_DIE || b == SPREAD_DIE_TILES);
  return is_within_team ? DUET_SYNC_TEAM : DUET_SYNC_GLOBAL;
}

static void touch(tracker *t, uint32_t resource, spread how, int is_write) {
  for (uint32_t other = 0; other < SPREAD_COUNT; other++) {
    duet_sync sync = between(how, (spread)other);
    const touched *since = sync == DUET_SYNC_GLOBAL ? &t->since_global[resource] : &t->since_team[resource];
    uint32_t conflicting = is_write ? since->read | since->written : since->written;
    if ((conflicting & (1u << other)) && sync > t->needed) t->needed = sync;
  }
  if (is_write) t->now[resource].written |= (uint8_t)(1u << how);
  else t->now[resource].read |= (uint8_t)(1u << how);
}

static void touch_op(tracker *t, const duet_model *model, const duet_op_state *state) {
  const duet_op *op = &state->op;
  const uint32_t other = t->slot_count;
  switch (op->code) {
    case DUET_OP_EMBED:
      touch(t, op->output, SPREAD_ROWS, 1);
      return;
    case DUET_OP_RMS_NORM: {
      spread rows = op->flags & DUET_OP_FLAG_LOGIT_ROWS ? SPREAD_LOGIT_ROWS : SPREAD_ROWS;
      touch(t, op->input, rows, 0);
      touch(t, op->output, rows, 1);
      return;
    }
    case DUET_OP_MATMUL:
      touch(t, op->input, SPREAD_DIE, 0);
      touch(t, op->output, SPREAD_DIE, 1);
      return;
    case DUET_OP_ROPE_AND_STORE:
      touch(t, other + ROPE_TABLE, SPREAD_ALL, 0);
      touch(t, op->input, SPREAD_DIE, 1);
      touch(t, other + KV_CACHE, SPREAD_DIE, 1);
      return;
    case DUET_OP_ATTENTION:
      touch(t, op->input, SPREAD_DIE, 0);
      touch(t, other + KV_CACHE, SPREAD_DIE, 0);
      touch(t, op->output, SPREAD_DIE, 1);
      return;
    case DUET_OP_EXCHANGE_ADD:
      touch(t, op->input, SPREAD_ROWS, 0);
      touch(t, op->output, SPREAD_ROWS, 1);
      return;
    case DUET_OP_ROUTE: {
      spread how = state->is_tile_split ? SPREAD_ALL : SPREAD_ROWS;
      touch(t, op->input, how, 0);
      touch(t, other + ROUTER_LOGITS, how, 1);
      touch(t, other + ROUTING, SPREAD_ROWS, 1);
      return;
    }
    case DUET_OP_FFN:
    case DUET_OP_EXPERT_FFN: {
      /* The int8 form of an output is made by rows, after a barrier of the op's own. */
      spread output = model->slots[op->output].slot.is_quantised ? SPREAD_DIE : SPREAD_DIE_TILES;
      touch(t, op->input, SPREAD_DIE, 0);
      touch(t, other + (op->code == DUET_OP_FFN ? FFN_ACT : EXPERT_ACT), SPREAD_DIE, 1);
      if (op->code == DUET_OP_EXPERT_FFN) touch(t, other + ROUTING, SPREAD_DIE, 0);
      touch(t, op->output, output, 1);
      return;
    }
    default:
      touch(t, op->input, SPREAD_DIE, 0);
      touch(t, other + LOGITS, SPREAD_DIE, 1);
  }
}

_Static_assert(DUET_SYNC_NONE < DUET_SYNC_TEAM && DUET_SYNC_TEAM < DUET_SYNC_GLOBAL, "syncs are ordered by strength");

uint32_t duet_program_slot_max(void) { return RESOURCE_MAX - OTHER_COUNT; }

void duet_program_place_barriers(duet_model *model) {
  tracker t;
  memset(&t, 0, sizeof t);
  t.slot_count = model->slot_count;
  /* The step's first act, in front of op 0. */
  t.since_global[t.slot_count + ROPE_TABLE].written = t.since_team[t.slot_count + ROPE_TABLE].written = 1u << SPREAD_ROWS;
  for (uint32_t i = 0; i < model->op_count; i++) {
    t.needed = DUET_SYNC_NONE;
    memset(t.now, 0, sizeof t.now);
    touch_op(&t, model, &model->ops[i]);
    model->ops[i].sync = t.needed;
    if (t.needed >= DUET_SYNC_TEAM) memset(t.since_team, 0, sizeof t.since_team);
    if (t.needed >= DUET_SYNC_GLOBAL) memset(t.since_global, 0, sizeof t.since_global);
    for (uint32_t r = 0; r < t.slot_count + OTHER_COUNT; r++) {
      t.since_global[r].read |= t.now[r].read;
      t.since_global[r].written |= t.now[r].written;
      t.since_team[r].read |= t.now[r].read;
      t.since_team[r].written |= t.now[r].written;
    }
  }
}
