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

/* The part of [0, count) that belongs to `index` of `of`: contiguous, sizes differ by one at most, index 0 never empty. */
static inline void duet_share(uint32_t count, uint32_t index, uint32_t of, uint32_t *begin, uint32_t *end) {
  *begin = (uint32_t)(((uint64_t)count * index + of - 1) / of);
  *end = (uint32_t)(((uint64_t)count * (index + 1) + of - 1) / of);
}

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
  _Alignas(64) uint32_t index;    /* a cache line each: the senses change at every barrier */
  uint32_t team;
  uint32_t team_lane;             /* index within the team */
  uint32_t team_lane_count;
  uint32_t lane_count;
  uint32_t die_begin;             /* the dies whose halves this lane's team computes: [begin, end) */
  uint32_t die_end;
  uint32_t sense[2];              /* of the global and of the team barrier */
  duet_device *device;
} duet_lane;

typedef void (*duet_lane_work)(void *context, duet_lane *lane);

/* Runs `work` once on every lane, the caller's as lane 0, and returns when all are done. */
void duet_device_run(duet_device *device, duet_lane_work work, void *context);
void duet_barrier_global(duet_lane *lane);
void duet_barrier_team(duet_lane *lane);
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

typedef enum duet_sync { DUET_SYNC_NONE, DUET_SYNC_TEAM, DUET_SYNC_GLOBAL } duet_sync;

typedef struct duet_op_state {
  duet_op op;
  duet_sync sync;                 /* what must be waited for in front of it */
  uint32_t is_tile_split;         /* ROUTE: the router's rowTiles are spread over all lanes */
  const duet_weight *weight[DUET_DIE_COUNT];
  const duet_weight *weight_2[DUET_DIE_COUNT];
  const float *bias[DUET_DIE_COUNT];
  uint64_t weight_bytes;          /* read once per step; experts apart */
  uint64_t integer_ops_per_row;
} duet_op_state;

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

typedef struct duet_lane_scratch {
  float *work;                    /* work_floats of the model */
  uint32_t *pair_start;           /* [experts of a die + 1]: the pairs of an expert in the sorted order */
  uint32_t *pair_row;             /* [row_max * active] */
  float *pair_weight;
  uint32_t *expert_list;          /* distinct experts of the die, ascending */
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
/* Decides what every op waits for (barriers.c). */
void duet_program_place_barriers(duet_model *model);
uint32_t duet_program_slot_max(void);

/* Reserves zeroed, lazily committed memory; null when there is none. */
void *duet_memory_reserve(size_t bytes);
void duet_memory_release(void *memory, size_t bytes);

/* ---- a step (executor.c, experts.c, attend.c, embed.c) ------------------------------------------------------------ */

typedef struct duet_step {
  duet_model *model;
  const duet_batch *batch;
  _Atomic uint32_t stop_before_op; /* lanes leave in front of this op; written by lane 0 only, in front of a barrier */
  int32_t stop_status;
  uint32_t distinct_experts[DUET_DIE_COUNT]; /* counted by lane 0 of each team */
  uint32_t expert_layers;
  uint64_t expert_bytes[DUET_DIE_COUNT];
  uint64_t expert_integer_ops[DUET_DIE_COUNT];
} duet_step;

static inline duet_quantised_rows duet_slot_quantised(const duet_slot_state *slot, uint32_t die) {
  duet_quantised_rows rows = {slot->q[die], slot->scales[die], slot->sums[die], slot->stride[die]};
  return rows;
}
static inline int duet_is_integer(uint32_t quant_type) { return quant_type == DUET_QUANT_Q8 || quant_type == DUET_QUANT_Q4; }

/* Rule 2 for rows [begin, end) of a slot, when it has an int8 form. Returns non-zero for a non-finite value. */
int duet_slot_quantise(const duet_model *model, const duet_slot_state *slot, uint32_t die, uint32_t begin, uint32_t end);
/* One row of an embedding matrix as float32; columns beyond the unpadded ones are left alone. */
void duet_embed_row(const duet_weight *weight, uint32_t row, float *out);
/* Ops return non-zero when they met a value that is not finite. */
int duet_op_rope_and_store(duet_step *step, const duet_op_state *op, duet_lane *lane);
/* The same bits, compiled for AVX2 and FMA; null on other architectures (attend_avx2.c). */
int duet_op_rope_and_store_avx2(duet_step *step, const duet_op_state *op, duet_lane *lane);
int duet_op_attention(duet_step *step, const duet_op_state *op, duet_lane *lane);
void duet_rope_tables(duet_step *step, duet_lane *lane);
int duet_op_route(duet_step *step, const duet_op_state *op, duet_lane *lane);
int duet_op_ffn(duet_step *step, const duet_op_state *op, duet_lane *lane);
int duet_op_expert_ffn(duet_step *step, const duet_op_state *op, duet_lane *lane);

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
