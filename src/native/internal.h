/* What the units of the kernel library share and TypeScript never sees: errors, the slab, lanes, a model's resolved state.
 *
 * Ownership: a duet_slab owns a mapping; a duet_device owns the lanes (threads); a duet_model owns its slots, scratch and KV
 * cache in one allocation each and borrows both. Nothing here is re-entrant per device: one thread drives it.
 */
#ifndef DUET_INTERNAL_H
#define DUET_INTERNAL_H

#include "kernel-table.h"
#include "kernels.h"

#include <stdatomic.h>

#define DUET_ALIGNMENT 64u
#define DUET_LANE_MAX 256u

static inline size_t duet_align_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }
static inline uint32_t duet_ceil_div(uint32_t n, uint32_t d) { return n / d + (n % d != 0); }
static inline uint32_t duet_min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint32_t duet_max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* ---- errors and CPU (library.c) ---------------------------------------------------------------------------------- */

/* Leaves the text for duet_last_error of this thread and returns the status. */
int32_t duet_fail(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The table of an instruction set, or null where this CPU or this build lacks it. */
const duet_kernel_table *duet_kernels_for(uint32_t isa);
/* CPUs that this process may run on. */
uint32_t duet_online_cpus(void);

/* ---- slab (slab.c) ----------------------------------------------------------------------------------------------- */

struct duet_slab {
  uint8_t *base;
  uint64_t bytes;                 /* of the file */
  uint64_t mapped_bytes;          /* rounded up to pages */
  _Atomic uint32_t fault_count;
  uint32_t registration;          /* index in the SIGBUS guard's table */
};

/* ---- lanes (lanes.c) --------------------------------------------------------------------------------------------- */

typedef struct duet_lane {
  _Alignas(64) uint32_t index;
  uint32_t team;
  uint32_t team_lane;             /* index within the team */
  uint32_t team_lane_count;
  uint32_t lane_count;
  uint32_t stream;                /* whose items this lane takes first */
  duet_device *device;
} duet_lane;

/* Work for all lanes: phases of items on two streams, one per die. A stream's phases follow one another; where joins[phase] is set
 * (always so for the last), neither stream goes on before both are done. No callback is called for a phase before all items
 * that it has to wait for are done, and what they wrote is seen by it. */
typedef struct duet_phases {
  uint32_t phase_count;
  const uint8_t *joins;           /* [phase_count] */
  void *context;
  /* Items of a phase on a stream; 0 skips it. Called by one lane once per step; behind a join stream 0 is asked first. */
  uint32_t (*count)(void *context, uint32_t phase, uint32_t stream);
  /* Does items [begin, end). */
  void (*run)(void *context, uint32_t phase, uint32_t stream, uint32_t begin, uint32_t end, duet_lane *lane);
  /* Asked at the start and behind every join; 0 ends the work. */
  int (*goes_on)(void *context);
} duet_phases;

/* Runs the phases on all lanes, the caller's as lane 0, and returns when they are done. */
void duet_device_run(duet_device *device, const duet_phases *phases);

typedef void (*duet_lane_work)(void *context, duet_lane *lane);

/* Runs `work` once on every lane and returns when all are done: for what belongs to a lane, as it waits for the slowest. */
void duet_device_run_each(duet_device *device, duet_lane_work work, void *context);
uint32_t duet_device_lane_count(const duet_device *device);
const duet_kernel_table *duet_device_kernels(const duet_device *device);

/* The floating-point state that the arithmetic needs: round to nearest, no flush to zero, no traps. */
uint64_t duet_fp_enter(void);
void duet_fp_leave(uint64_t saved);

/* ---- model (model.c) --------------------------------------------------------------------------------------------- */

/* A tensor with its addresses resolved. Vectors use data as float32. */
typedef struct duet_weight {
  const uint8_t *data;
  size_t bytes;
  size_t tile_bytes;
  uint32_t quant_type;
  uint32_t rows;
  uint32_t columns;
  uint32_t padded_columns;
  const uint8_t *down;            /* experts only */
  size_t down_tile_bytes;
  uint32_t down_quant_type;
} duet_weight;

/* Rows of a slot: die 1 of a shared slot aliases die 0. stride = columns padded to 64; padding stays zero. */
typedef struct duet_slot_state {
  duet_slot slot;
  size_t stride[DUET_DIE_COUNT];
  float *values[DUET_DIE_COUNT];
  int8_t *q[DUET_DIE_COUNT];
  float *scales[DUET_DIE_COUNT];
  int32_t *sums[DUET_DIE_COUNT];
} duet_slot_state;

typedef struct duet_op_state {
  duet_op op;
  const duet_weight *weight[DUET_DIE_COUNT];
  const duet_weight *weight_2[DUET_DIE_COUNT];
  const float *bias[DUET_DIE_COUNT];
  uint64_t weight_bytes;          /* read once per step; experts apart */
  uint64_t integer_ops_per_row;
} duet_op_state;

/* A run of ops, or a part of one, whose items need nothing of each other (phases.c). */
typedef enum duet_phase_kind {
  DUET_PHASE_ROWS,                /* ops that are computed once, row by row: first to last */
  DUET_PHASE_ROUTER,              /* the router's rowTiles, where rows are few */
  DUET_PHASE_MATMUL,
  DUET_PHASE_ROPE,
  DUET_PHASE_ATTENTION,           /* with the rotary embedding in it where no row sees another row of the step */
  DUET_PHASE_GATE_UP,             /* shared experts (first), routed experts (last); either may be absent */
  DUET_PHASE_DOWN,
  DUET_PHASE_QUANTISE,            /* the int8 form of a die's output slot */
  DUET_PHASE_LOGITS
} duet_phase_kind;

typedef struct duet_phase {
  duet_phase_kind kind;
  uint32_t is_shared;             /* its items are spread over both streams */
  const duet_op_state *first;
  const duet_op_state *last;
} duet_phase;

/* Intermediate activations of a feed-forward on one die, in the form that `down` wants: int8, or float32. */
typedef struct duet_act_rows {
  size_t stride;
  float *values;
  int8_t *q;
  float *scales;
  int32_t *sums;
} duet_act_rows;

/* Candidates and counts of sampling, [vocabulary]. counts is zero between calls. */
typedef struct duet_sample_scratch {
  float *z;
  uint32_t *counts;
  uint64_t *keys;
} duet_sample_scratch;

/* (row, expert) pairs of one die in ascending expert, then row. */
typedef struct duet_pair_list {
  uint32_t distinct_count;
  uint32_t *experts;              /* [distinct_count] of the die's, ascending; relative to its first */
  uint32_t *start;                /* [distinct_count + 1] */
  uint32_t *row;                  /* [row_max * active] */
  float *weight;
} duet_pair_list;

typedef struct duet_lane_scratch {
  float *work;                    /* work_floats of the model */
  duet_sample_scratch sample;
  int32_t is_not_finite;
  char pad[60];
} duet_lane_scratch;

struct duet_model {
  duet_device *device;
  duet_slab *slab;
  const duet_kernel_table *kernels;
  duet_shape shape;
  double *inverse_frequencies;
  duet_model_options options;
  duet_weight *weights;
  uint32_t weight_count;
  duet_slot_state *slots;
  uint32_t slot_count;
  duet_op_state *ops;
  uint32_t op_count;
  duet_phase *phases;
  uint8_t *phase_joins;
  uint32_t phase_count;

  uint32_t vocabulary_size;
  uint32_t embedding_rows;        /* token ids must be below */
  uint32_t has_attention;
  uint32_t has_logits;
  uint32_t expert_total;
  uint32_t active_total;          /* experts a row chooses, both dies */
  uint32_t logit_stride;
  size_t router_stride;
  size_t rope_stride;             /* head_dim / 2 */

  float *logits;                  /* [logit_row_max][logit_stride] */
  float *rope_cos;                /* [row_max][rope_stride] */
  float *rope_sin;
  float *router_logits;           /* [row_max][router_stride] */
  uint32_t *routed_ids;           /* [row_max][active_total], ascending */
  float *routed_weights;
  duet_act_rows ffn_act[DUET_DIE_COUNT];    /* [row_max] */
  duet_act_rows expert_act[DUET_DIE_COUNT]; /* [row_max * active_total] */
  duet_pair_list pairs[DUET_DIE_COUNT];     /* of the step's current layer */
  duet_lane_scratch *lanes;
  size_t work_floats;

  uint8_t *kv;
  uint64_t kv_bytes;
  size_t kv_block_stride;
  size_t kv_layer_stride;
  size_t kv_die_offset[DUET_DIE_COUNT];
  size_t kv_head_stride;          /* K, V, then their scales */
  size_t kv_v_offset;
  size_t kv_k_scale_offset;
  size_t kv_v_scale_offset;

  void *scratch_memory;
  uint64_t scratch_bytes;
  uint32_t logit_row_count;       /* of the last finished step */
};

#define DUET_DIMENSION_MAX (1u << 24)

/* Check one tensor against the slab and one op against tensors, slots and shape (program.c). */
int32_t duet_program_bind_tensor(const duet_slab *slab, const duet_tensor *tensor, uint32_t index, duet_weight *out);
int32_t duet_program_bind_op(duet_model *model, uint32_t index, const duet_op *op);
/* Turns the ops into phases (phases.c); at most DUET_PHASES_PER_OP each. */
void duet_program_set_phases(duet_model *model);
#define DUET_PHASES_PER_OP 3u
#define DUET_ROUTER_SPLIT_BYTES (256u * 1024u) /* a router from this size on is worth a phase of its own */

/* Reserves zeroed, lazily committed memory; null when there is none. */
void *duet_memory_reserve(size_t bytes);
void duet_memory_release(void *memory, size_t bytes);

/* ---- a step (executor.c, rows.c, experts.c, rope.c, attend.c) ------------------------------------------------------------- */

/* How a phase's work on a stream is cut into items. */
typedef struct duet_deal {
  uint32_t unit_count;
  uint32_t units_per_item;
  uint32_t first_item;            /* of the stream, where both share one count of units */
} duet_deal;

typedef struct duet_step {
  duet_model *model;
  const duet_batch *batch;
  int32_t stop_status;
  uint32_t has_lone_rows;         /* no sequence has two rows: none sees another row of the step */
  duet_deal deals[DUET_DIE_COUNT];
  uint32_t shared_item_count;     /* of a shared phase, both streams together */
  uint32_t distinct_experts[DUET_DIE_COUNT];
  uint32_t expert_layers;
  uint64_t expert_bytes[DUET_DIE_COUNT];
  uint64_t expert_integer_ops[DUET_DIE_COUNT];
} duet_step;

/* Cuts `unit_count` units of about unit_ns each into items that are worth a hand-off, and returns their count. */
uint32_t duet_deal_units(duet_step *step, uint32_t stream, uint32_t unit_count, uint64_t unit_ns);
/* What a rowTile over some rows takes, roughly. */
uint64_t duet_tile_ns(size_t tile_bytes, uint32_t columns, uint32_t row_count);

/* Every phase kind: the items of a stream, and units [begin, end) of them. run returns non-zero when it met a value that is not
 * finite. For shared phases the stream is 0. */
typedef uint32_t duet_phase_count(duet_step *step, const duet_phase *phase, uint32_t stream);
typedef int duet_phase_run(duet_step *step, const duet_phase *phase, uint32_t stream, uint32_t begin, uint32_t end, duet_lane_scratch *scratch);
duet_phase_count duet_count_rows, duet_count_router, duet_count_rope, duet_count_attention, duet_count_gate_up, duet_count_down;
duet_phase_run duet_run_rows, duet_run_router, duet_run_rope, duet_run_attention, duet_run_gate_up, duet_run_down;

static inline duet_quantised_rows duet_slot_quantised(const duet_slot_state *slot, uint32_t die) {
  duet_quantised_rows rows = {slot->q[die], slot->scales[die], slot->sums[die], slot->stride[die]};
  return rows;
}
static inline int duet_is_integer(uint32_t quant_type) { return quant_type == DUET_QUANT_Q8 || quant_type == DUET_QUANT_Q4; }
static inline uint32_t duet_step_rows(const duet_step *step, const duet_op_state *op) {
  return op->op.code == DUET_OP_LOGITS || op->op.flags & DUET_OP_FLAG_LOGIT_ROWS ? step->batch->logit_row_count : step->batch->row_count;
}

/* matmul of a quant type, cut so that a block of rows and a group of rowTiles stay in the second-level cache together. */
void duet_matmul_blocked(const duet_kernel_table *kernels, uint32_t quant_type, const duet_matmul_args *args);
/* Rule 2 for rows [begin, end) of a slot, when it has an int8 form. Returns non-zero for a non-finite value. */
int duet_slot_quantise(const duet_model *model, const duet_slot_state *slot, uint32_t die, uint32_t begin, uint32_t end);
static inline uint8_t *duet_kv_head(const duet_model *model, uint32_t layer, uint32_t die, uint32_t head) {
  return model->kv + layer * model->kv_layer_stride + model->kv_die_offset[die] + head * model->kv_head_stride;
}
/* Rows that attention takes at once: so many queries fill the registers, more would only fill the cache. */
static inline uint32_t duet_attention_rows(uint32_t queries_per_kv) {
  const uint32_t queries = 64;
  return duet_max_u32(1, duet_min_u32(DUET_ATTENTION_ROWS, queries / duet_max_u32(1, queries_per_kv)));
}
/* Angles of rows [begin, end). */
void duet_rope_tables(duet_step *step, uint32_t begin, uint32_t end);
/* Rotates one row's q and k of a KV head and stores its k and v; non-zero for a value that the KV type cannot hold. */
typedef int duet_rope_head(duet_step *step, const duet_op_state *op, uint32_t die, uint32_t row, uint32_t head);
duet_rope_head duet_rope_and_store;
/* The same bits, compiled for AVX2 and FMA; null on other architectures (rope_avx2.c). */
duet_rope_head duet_rope_and_store_avx2;

/* ---- sampling (sampler.c, sample_row.c) ---------------------------------------------------------------------------------------- */

/* What the sampled row sees beyond the request's history: tokens emitted after it. */
typedef struct duet_sample_extra {
  const int32_t *tokens;
  uint32_t count;
} duet_sample_extra;

/* One sample from logits[vocabulary]; `mask` may be null. */
typedef int32_t duet_row_sampler(const duet_kernel_table *kernels, const float *logits, uint32_t vocabulary_size,
                                 const duet_sample_request *request, const uint32_t *mask, uint32_t position,
                                 duet_sample_extra extra, duet_sample_scratch *scratch);
duet_row_sampler duet_sample_row;
/* The same bits, compiled for AVX2 and FMA; null on other architectures (sample_row_avx2.c). */
duet_row_sampler duet_sample_row_avx2;
duet_row_sampler *duet_row_sampler_for(const duet_kernel_table *kernels);

/* A logit's log-probability is f32(z - max) - log_sum. */
typedef struct duet_normaliser {
  float max;
  float log_sum;
} duet_normaliser;
/* scratch: [vocabulary] floats. */
duet_normaliser duet_normalise(const duet_kernel_table *kernels, const float *logits, uint32_t vocabulary_size, float *scratch);
float duet_logprob(duet_normaliser normaliser, float logit);
/* INVALID with a text when a field or id of the request is out of range. */
int32_t duet_sample_check(const duet_sample_request *request, uint32_t vocabulary_size, uint32_t logit_row_count);

#endif
