/* The ABI of Duet's kernel library: the only header that TypeScript's binding is generated from.
 *
 * The library maps containers, owns the lanes (threads) of the two teams, the activation slots and the KV cache of every
 * loaded model, and runs a Program (a flat list of ops) over a Batch. It never parses a container header, never sees a
 * request, never exits and never prints: every function returns a duet_status and leaves a text for duet_last_error.
 *
 * Conventions: all structs are plain, little-endian, 64-bit, with explicit padding; sizes are asserted in library.c and in
 * the generated binding. Pointers given to a call are borrowed for that call only, unless a comment says otherwise.
 * Arithmetic: docs/arithmetic.md. Weight layouts: docs/container.md.
 */
#ifndef DUET_KERNELS_H
#define DUET_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define DUET_ABI_VERSION 1
#define DUET_API __attribute__((visibility("default")))

#define DUET_DIE_COUNT 2
#define DUET_TILE_ROWS 16         /* output rows of a rowTile */
#define DUET_QUANT_BLOCK 32       /* inputs that share a scale */
#define DUET_COLUMN_MULTIPLE 64   /* matrices are padded to this many inputs */
#define DUET_KV_BLOCK_TOKENS 32
#define DUET_ATTN_CHUNK 256       /* keys merged at once, aligned to absolute position 0 */
#define DUET_NONE 0xffffffffu     /* an absent tensor or slot */
#define DUET_TOP_LOGPROBS_MAX 20

typedef enum duet_status {
  DUET_STATUS_OK = 0,
  DUET_STATUS_CANCELLED = 1,      /* the abort word was set: nothing is to be committed */
  DUET_STATUS_INVALID = 2,        /* an argument breaks the contract (a bug in the caller) */
  DUET_STATUS_NO_MEMORY = 3,
  DUET_STATUS_IO = 4,             /* open, stat or mmap failed; the text has errno */
  DUET_STATUS_MAPPING_LOST = 5,   /* a mapped file shrank: zero pages stand in, the model is unhealthy */
  DUET_STATUS_NOT_FINITE = 6,     /* a NaN or infinity reached a quantiser or the logits */
  DUET_STATUS_UNSUPPORTED = 7,    /* this CPU or this build lacks what was asked for */
  DUET_STATUS_THREAD = 8          /* a lane could not be started */
} duet_status;

typedef enum duet_isa {
  DUET_ISA_PLAIN = 0,             /* portable C: the twin of every other */
  DUET_ISA_AVX2 = 1,
  DUET_ISA_AVX512 = 2,            /* AVX-512 F, BW, VL, DQ, VNNI */
  DUET_ISA_NEON = 3,
  DUET_ISA_AVXVNNI = 4            /* AVX2 with AVX-VNNI */
} duet_isa;

typedef enum duet_quant_type {
  DUET_QUANT_F32 = 0,
  DUET_QUANT_F16 = 1,
  DUET_QUANT_Q8 = 2,
  DUET_QUANT_Q4 = 3
} duet_quant_type;

typedef enum duet_kv_type {
  DUET_KV_F16 = 0,
  DUET_KV_INT8 = 1,               /* one float32 scale per token and KV head, for K and for V */
  DUET_KV_F32 = 2                 /* tests only */
} duet_kv_type;

/* One op of a Program. What each reads and writes is the table in src/model/program.ts; codes are the same there. */
typedef enum duet_op_code {
  DUET_OP_EMBED = 0,
  DUET_OP_RMS_NORM = 1,
  DUET_OP_MATMUL = 2,
  DUET_OP_ROPE_AND_STORE = 3,
  DUET_OP_ATTENTION = 4,
  DUET_OP_EXCHANGE_ADD = 5,
  DUET_OP_ROUTE = 6,
  DUET_OP_FFN = 7,
  DUET_OP_EXPERT_FFN = 8,
  DUET_OP_LOGITS = 9
} duet_op_code;

#define DUET_OP_FLAG_LOGIT_ROWS 1u   /* the output has one row per wanted logit row, gathered from the input's rows */
#define DUET_OP_FLAG_ACCUMULATE 2u   /* EXPERT_FFN: add to the output slot (it holds the shared experts' output) */
#define DUET_OP_FLAG_RENORMALISE 4u  /* ROUTE: kept scores are divided by their sum */

/* ---- memory-mapped container ------------------------------------------------------------------------------------- */

typedef struct duet_slab duet_slab;

/* Maps `bytes` bytes of the file read-only (the size was checked by the caller against the header; it is checked again
 * against fstat), at a huge page's boundary and with the hint that misses shall bring huge pages where the system has them.
 * Installs the SIGBUS guard on first use. */
DUET_API int32_t duet_slab_map(const char *path, uint64_t bytes, duet_slab **out);
DUET_API int32_t duet_slab_unmap(duet_slab *slab);
/* XXH64 (seed 0) of [offset, offset+bytes). Reads through the mapping; MAPPING_LOST when pages were lost. */
DUET_API int32_t duet_slab_hash(duet_slab *slab, uint64_t offset, uint64_t bytes, uint64_t *out);
/* advice: 0 normal, 1 will need, 2 random, 3 sequential, 4 don't need, 5 huge pages, 6 populate (read), 7 lock in memory
 * until unmapped (NO_MEMORY where the system refuses; the text has the limit), 8 page out (leave the page cache). */
DUET_API int32_t duet_slab_advise(duet_slab *slab, uint64_t offset, uint64_t bytes, int32_t advice);
/* How many bytes of [offset, offset+bytes) are in the page cache. */
DUET_API int32_t duet_slab_resident(duet_slab *slab, uint64_t offset, uint64_t bytes, uint64_t *out);
/* How many faults the SIGBUS guard has repaired in this slab since it was mapped. */
DUET_API uint32_t duet_slab_fault_count(const duet_slab *slab);

/* ---- device: lanes and teams ------------------------------------------------------------------------------------- */

typedef struct duet_device duet_device;

typedef struct duet_cpu_info {
  uint32_t isa_mask;              /* bit i: duet_isa i can run here and was compiled in */
  uint32_t isa_best;
  uint32_t online_cpus;
  uint32_t reserved;
  char compiler[64];
  char cpu_name[64];
} duet_cpu_info;

DUET_API uint32_t duet_abi_version(void);
DUET_API int32_t duet_cpu_describe(duet_cpu_info *out);
/* Copies the calling thread's last error text (NUL-terminated) and returns its length. */
DUET_API uint32_t duet_last_error(char *out, uint32_t cap);

/* lane_count >= 1 counts the calling thread's lane (lane 0 of die 0; always the thread that calls duet_model_run).
 * Even: two teams of half the lanes; odd: one team that runs both dies' halves. `pin`: lane i to CPU i where allowed. */
DUET_API int32_t duet_device_create(uint32_t lane_count, uint32_t isa, uint32_t pin, duet_device **out);
DUET_API int32_t duet_device_destroy(duet_device *device);

/* ---- model: tensors, slots, Program, KV cache -------------------------------------------------------------------- */

typedef struct duet_model duet_model;

/* A tensor of the container, or one expert range (gate-up first, down at down_offset). rows and columns are unpadded.
 * Vectors have rows = 1. Gate and up are one matrix of interleaved rowTiles (g0 u0 g1 u1 ...) of 2 * align16(dim) rows; an
 * expert is that, then its down part of hiddenDim x expertDim at down_offset. */
typedef struct duet_tensor {
  uint64_t offset;                /* in the slab */
  uint64_t bytes;
  uint64_t down_offset;           /* experts only, else 0 */
  uint32_t quant_type;
  uint32_t rows;
  uint32_t columns;
  uint32_t down_quant_type;       /* experts only */
} duet_tensor;

/* An activation slot: float32 [rows][columns[die]]; when shared, die 0's is the only one. With is_quantised the op that
 * writes the slot also leaves its int8 form beside it (docs/arithmetic.md, rule 2). */
typedef struct duet_slot {
  uint32_t columns[DUET_DIE_COUNT];
  uint32_t is_per_die;
  uint32_t is_quantised;
} duet_slot;

typedef struct duet_op {
  uint32_t code;
  uint32_t flags;
  uint32_t layer;                 /* KV layer (ROPE_AND_STORE, ATTENTION), else the transformer layer */
  uint32_t input;                 /* slot */
  uint32_t output;                /* slot */
  uint32_t weight[DUET_DIE_COUNT];    /* tensor; EXPERT_FFN: weight[0] is expert 0's, the others follow by id */
  uint32_t weight_2[DUET_DIE_COUNT];  /* FFN: down; ROUTE: router_scale */
  uint32_t bias[DUET_DIE_COUNT];
  uint32_t reserved;
} duet_op;

typedef struct duet_shape {
  uint32_t hidden_dim;
  uint32_t head_dim;
  uint32_t kv_layer_count;
  uint32_t context_max;
  uint32_t query_heads[DUET_DIE_COUNT];
  uint32_t kv_heads[DUET_DIE_COUNT];
  uint32_t vocabulary_rows[DUET_DIE_COUNT];
  uint32_t ffn_columns[DUET_DIE_COUNT];  /* shared-expert or dense intermediate columns per die (the largest of the Program) */
  uint32_t expert_first[DUET_DIE_COUNT]; /* routed experts of a die: [first, first + count) */
  uint32_t expert_count[DUET_DIE_COUNT];
  uint32_t expert_dim;
  uint32_t expert_group_count;    /* 0 when there are no routed experts */
  uint32_t experts_per_group;
  uint32_t active_per_group;
  float rms_norm_eps;
  uint32_t reserved;
  const double *inverse_frequencies; /* [head_dim / 2]; copied */
} duet_shape;

typedef struct duet_model_options {
  uint32_t row_max;               /* rows of the largest Batch */
  uint32_t logit_row_max;
  uint32_t kv_block_count;
  uint32_t kv_type;
} duet_model_options;

/* All arrays are copied; the slab is borrowed until duet_model_destroy. Every index, dimension and byte count is checked
 * against the slab and the shape: INVALID with a text naming the op or tensor. */
DUET_API int32_t duet_model_create(duet_device *device, duet_slab *slab, const duet_shape *shape, const duet_tensor *tensors,
                                   uint32_t tensor_count, const duet_slot *slots, uint32_t slot_count, const duet_op *ops,
                                   uint32_t op_count, const duet_model_options *options, duet_model **out);
DUET_API int32_t duet_model_destroy(duet_model *model);
DUET_API uint64_t duet_model_kv_bytes(const duet_model *model);
DUET_API uint64_t duet_model_scratch_bytes(const duet_model *model);

/* ---- a step ------------------------------------------------------------------------------------------------------ */

/* Rows are ordered by sequence, positions ascending and consecutive within a sequence. Key position p of sequence s lies in
 * kvBlock block_tables[s * block_table_stride + p / 32], at token p % 32. */
typedef struct duet_batch {
  uint32_t row_count;
  uint32_t sequence_count;
  uint32_t logit_row_count;
  uint32_t block_table_stride;
  const int32_t *token_ids;       /* [row] */
  const int32_t *positions;       /* [row] */
  const int32_t *kv_slots;        /* [row]: kvBlock * 32 + token; where this row's K and V are written */
  const int32_t *sequence_index;  /* [row]: into block_tables */
  const int32_t *block_tables;    /* [sequence][block_table_stride] */
  const int32_t *logit_rows;      /* [logit_row_count]: ascending row indices */
  const int32_t *abort_word;      /* may be null; polled once per layer; non-zero ends the call with CANCELLED */
} duet_batch;

typedef struct duet_step_stats {
  uint64_t weight_bytes;          /* weight bytes read (each distinct expert once) */
  uint64_t integer_ops;           /* 2 x int8 multiply-adds */
  uint32_t distinct_experts;      /* summed over layers */
  uint32_t expert_layers;         /* layers that had routed experts: the divisor of the mean */
} duet_step_stats;

/* Runs the Program over the Batch; logits of row i of logit_rows are then logit row i. `stats` may be null. */
DUET_API int32_t duet_model_run(duet_model *model, const duet_batch *batch, duet_step_stats *stats);

/* Float32 copies of what a step left behind; for evaluation and tests. die is 0 for shared slots. */
DUET_API int32_t duet_model_logits(duet_model *model, uint32_t logit_row, float *out);
DUET_API int32_t duet_model_slot_read(duet_model *model, uint32_t slot, uint32_t die, uint32_t row_count, float *out);
/* Also refreshes the int8 form when the slot is quantised. */
DUET_API int32_t duet_model_slot_write(duet_model *model, uint32_t slot, uint32_t die, uint32_t row_count, const float *in);
/* log softmax of logit row i at token_ids[i], for i < count. */
DUET_API int32_t duet_model_score(duet_model *model, const int32_t *token_ids, uint32_t count, float *out);

/* ---- sampling ---------------------------------------------------------------------------------------------------- */

/* One sequence's sampling: rows first_logit_row .. +row_count-1 follow consecutive positions. Row 0's sample is the token at
 * `position`; draft_tokens[j] (row_count - 1 of them) is the draft for row j's sample. Sampling goes in row order and stops
 * after the first row whose sample differs from its draft. */
typedef struct duet_sample_request {
  uint32_t first_logit_row;
  uint32_t row_count;
  uint32_t position;              /* absolute position of the token sampled from row 0 */
  uint32_t choice_index;
  uint32_t seed_low;
  uint32_t seed_high;
  uint32_t purpose;               /* 0 for output tokens */
  uint32_t prompt_count;          /* history[0 .. prompt_count) is the prompt */
  uint32_t history_count;         /* prompt and output so far */
  uint32_t bias_count;
  uint32_t banned_count;          /* end tokens that min_tokens forbids */
  uint32_t banned_until;          /* banned while the sampled position is below this; 0xffffffff: always */
  float temperature;              /* 0: greedy */
  float top_p;                    /* 1: off */
  float min_p;                    /* 0: off */
  float repetition_penalty;       /* 1: off */
  float presence_penalty;         /* 0: off */
  float frequency_penalty;        /* 0: off */
  uint32_t top_k;                 /* 0: off */
  uint32_t top_logprobs;          /* 0xffffffff: no logprobs; 0: the sampled token's only */
  float draft_sharpness;          /* factor on the penalised logits in front of temperature (1 for the target) */
  uint32_t reserved;
  const int32_t *history;         /* [history_count] */
  const int32_t *draft_tokens;    /* [row_count - 1] */
  const int32_t *bias_ids;        /* [bias_count] */
  const float *bias_values;       /* [bias_count] */
  const int32_t *banned_ids;      /* [banned_count] */
  const uint32_t *mask;           /* grammar: bit set = allowed, [row][ceil(vocabulary / 32)]; null: all */
} duet_sample_request;

/* Outputs of one request, row_count long (top_*: row_count x DUET_TOP_LOGPROBS_MAX). Pointers belong to the caller. */
typedef struct duet_sample_result {
  int32_t *tokens;                /* target tokens, emitted_count of them */
  float *logprobs;                /* of tokens, unmodified distribution; NaN when not asked for */
  int32_t *top_ids;
  float *top_logprobs;
  uint32_t emitted_count;         /* out: accepted drafts + 1 */
  uint32_t reserved;
} duet_sample_result;

DUET_API int32_t duet_model_sample(duet_model *model, const duet_sample_request *requests, duet_sample_result *results,
                                   uint32_t count);
/* The same for logits that the caller holds: logits[row][vocabulary_size]; used by tests and by the plain twin check. */
DUET_API int32_t duet_sample_logits(uint32_t isa, const float *logits, uint32_t vocabulary_size,
                                    const duet_sample_request *request, duet_sample_result *result);

/* ---- drafting ---------------------------------------------------------------------------------------------------- */

/* Runs the Batch (known tokens that this model has not seen, the anchor last; every sequence wants exactly its last row's
 * logits), samples each sequence's first draft token with requests[s] (row_count 1; position, history and choice as for that
 * token), then runs single-row steps for the sequences whose step_counts[s] (>= 1) is not reached, feeding each its own last
 * sample (which joins its history). Block tables must reach position + step_counts[s] - 2 of every sequence.
 * draft_tokens, draft_probs (the sampled token's softmax probability): [sequence][step_stride]. */
DUET_API int32_t duet_model_draft(duet_model *model, const duet_batch *batch, const duet_sample_request *requests,
                                  const uint32_t *step_counts, uint32_t step_stride, int32_t *draft_tokens,
                                  float *draft_probs);

/* ---- the machine's limits ---------------------------------------------------------------------------------------- */

typedef enum duet_roof_kind {
  DUET_ROOF_KIND_READ = 0,        /* `bytes` of each lane, from memory of its own or from the mapped slab */
  DUET_ROOF_KIND_INTEGER_DOT = 1, /* the instruction set's int8 multiply-add, from registers */
  DUET_ROOF_KIND_FLOAT_FMA = 2,   /* the float32 fma, from registers */
  DUET_ROOF_KIND_BARRIER = 3,     /* one phase that every lane takes an item of */
  DUET_ROOF_KIND_HAND_OFF = 4,    /* from the caller to all lanes and back, with nothing to do */
  DUET_ROOF_KIND_MATMUL = 5,      /* the kernel over `bytes` of each lane's weights */
  DUET_ROOF_KIND_ATTENTION = 6    /* the kernel for one KV head; the last of row_count rows sees key_count keys */
} duet_roof_kind;

typedef struct duet_roof_task {
  uint32_t kind;
  uint32_t quant_type;            /* MATMUL: q4 or q8 */
  uint32_t kv_type;               /* ATTENTION */
  uint32_t row_count;             /* MATMUL, ATTENTION */
  uint32_t column_count;          /* MATMUL: a multiple of 64 */
  uint32_t query_head_count;      /* ATTENTION: heads that share the KV head */
  uint32_t head_dim;              /* ATTENTION */
  uint32_t key_count;             /* ATTENTION */
  uint32_t is_prefetched;         /* READ: ask for lines in advance */
  uint32_t reserved;
  uint64_t bytes;                 /* of each lane; READ: a multiple of 512 */
  duet_slab *slab;                /* READ: lane i reads from i * bytes; null: anonymous memory */
} duet_roof_task;

typedef struct duet_roof_result {
  uint64_t nanoseconds;           /* of all passes */
  uint64_t bytes;                 /* of all passes and lanes */
  uint64_t operations;
} duet_roof_result;

typedef struct duet_roof duet_roof;

#define DUET_KV_FILL_BYTE 60     /* a finite number when repeated, in every KV type and as a scale */

/* Makes the operands of a task, one set for each lane; the device and the slab are borrowed until duet_roof_close.
 * UNSUPPORTED when the device's instruction set has nothing to measure (plain C has no peak). */
DUET_API int32_t duet_roof_open(duet_device *device, const duet_roof_task *task, duet_roof **out);
DUET_API int32_t duet_roof_run(duet_roof *roof, uint64_t pass_count, duet_roof_result *out);
DUET_API int32_t duet_roof_close(duet_roof *roof);
/* Writes DUET_KV_FILL_BYTE over the first kv_block_count kvBlocks, so that a long context can be timed without a prefill:
 * speed depends on where KV lies, not on its values. */
DUET_API int32_t duet_model_kv_fill(duet_model *model, uint32_t kv_block_count);
/* Asks the system to drop a file's pages from the page cache; pages that are mapped elsewhere stay. */
DUET_API int32_t duet_file_evict(const char *path);

#endif
