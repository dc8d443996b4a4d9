/* What this machine can do at most, measured on a device's own lanes: reading memory, integer and float arithmetic, barriers,
 * and the kernels on operands of a chosen size. It owns the operands of one task and the clock around it, and judges
 * nothing: how often to run, medians and shares are TypeScript's (src/bench/roof.ts).
 *
 * Every lane has operands of its own, written by itself (so that they lie in its memory), and does the same work; a run's
 * time is from where all begin to where all have ended.
 */
#define _GNU_SOURCE
#include "internal.h"
#include "roof-loops.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define INVALID(...) return duet_fail(DUET_STATUS_INVALID, __VA_ARGS__)
#define DIMENSION_MAX (1u << 20)
#define PHASES_MAX 4096u
#define SPINS_MAX 4096u

_Static_assert(sizeof(duet_roof_task) == 56, "size of duet_roof_task");
_Static_assert(sizeof(duet_roof_result) == 24, "size of duet_roof_result");

typedef struct roof_lane {
  _Alignas(64) uint8_t *memory;   /* owned */
  size_t memory_bytes;
  const uint8_t *read_data;
  size_t read_bytes;
  duet_matmul_args matmul;
  duet_attention_args attention;
  float *q;                       /* attention: [row][query head][head_dim] */
  uint64_t sink;                  /* what reading loops found: keeps them from being left out */
} roof_lane;

struct duet_roof {
  duet_device *device;
  const duet_kernel_table *kernels;
  duet_roof_task task;
  roof_lane *lanes;
  uint32_t lane_count;
  roof_read read;
  roof_arithmetic arithmetic;
  uint64_t pass_bytes;            /* one pass of all lanes */
  uint64_t pass_operations;
  uint64_t pass_count;
  uint64_t begin_ns;
  uint64_t end_ns;
  _Atomic uint32_t ready_count;   /* lanes */
  _Atomic uint32_t done_count;
  _Atomic uint64_t items_begun;
};

static uint64_t monotonic_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- operands ---------------------------------------------------------------------------------------------------- */

/* Cuts the next piece off a lane's memory; the first time through, with no memory yet, only counts. */
static uint8_t *cut(uint8_t *memory, size_t *used, size_t bytes) {
  uint8_t *piece = memory == NULL ? NULL : memory + *used;
  *used += duet_align_up(bytes, 4096);
  return piece;
}

static size_t matmul_tile_bytes(const duet_roof_task *task) {
  return (size_t)task->column_count / DUET_COLUMN_MULTIPLE * (task->quant_type == DUET_QUANT_Q4 ? 576 : 1088);
}

static size_t lay_out_matmul(const duet_roof_task *task, uint8_t *memory, roof_lane *lane) {
  const size_t columns = task->column_count, rows = task->row_count, blocks = columns / DUET_QUANT_BLOCK;
  const size_t tile_bytes = matmul_tile_bytes(task);
  const uint32_t tile_count = duet_max_u32(1, (uint32_t)(task->bytes / tile_bytes));
  size_t used = 0;
  duet_matmul_args *args = &lane->matmul;
  memset(args, 0, sizeof *args);
  args->tiles = cut(memory, &used, tile_count * tile_bytes);
  args->tile_bytes = tile_bytes;
  args->tile_step = 1;
  args->tile_count = tile_count;
  args->column_count = (uint32_t)columns;
  args->row_count = (uint32_t)rows;
  args->qx.q = (const int8_t *)cut(memory, &used, rows * columns);
  args->qx.scales = (const float *)(const void *)cut(memory, &used, rows * blocks * sizeof(float));
  args->qx.sums = (const int32_t *)(const void *)cut(memory, &used, rows * blocks * sizeof(int32_t));
  args->qx.stride = columns;
  args->x = (const float *)(const void *)cut(memory, &used, columns * sizeof(float));
  args->out = (float *)(void *)cut(memory, &used, rows * tile_count * DUET_TILE_ROWS * sizeof(float));
  args->out_stride = (size_t)tile_count * DUET_TILE_ROWS;
  return used;
}

static size_t kv_element_bytes(uint32_t kv_type) { return kv_type == DUET_KV_F16 ? 2 : kv_type == DUET_KV_INT8 ? 1 : 4; }

static size_t lay_out_attention(const duet_roof_task *task, uint8_t *memory, roof_lane *lane) {
  const uint32_t blocks = duet_ceil_div(task->key_count, DUET_KV_BLOCK_TOKENS);
  const size_t half = DUET_KV_BLOCK_TOKENS * task->head_dim * kv_element_bytes(task->kv_type);
  const size_t stride = 2 * half + 2 * DUET_KV_BLOCK_TOKENS * sizeof(float);
  const size_t row_floats = (size_t)task->query_head_count * task->head_dim;
  size_t used = 0;
  duet_attention_args *args = &lane->attention;
  memset(args, 0, sizeof *args);
  uint8_t *kv = cut(memory, &used, blocks * stride);
  args->block_table = (const int32_t *)(const void *)cut(memory, &used, blocks * sizeof(int32_t));
  lane->q = (float *)(void *)cut(memory, &used, task->row_count * row_floats * sizeof(float));
  const uint32_t rows_max = duet_attention_rows(task->query_head_count);
  args->out = (float *)(void *)cut(memory, &used, rows_max * row_floats * sizeof(float));
  args->scratch = (float *)(void *)cut(memory, &used, DUET_ATTENTION_SCRATCH(rows_max * task->query_head_count, task->head_dim) * sizeof(float));
  if (memory == NULL) return used;
  args->q_stride = args->out_stride = row_floats;
  args->query_head_count = task->query_head_count;
  args->head_dim = task->head_dim;
  args->kv_type = task->kv_type;
  args->k_base = kv;
  args->v_base = kv + half;
  args->k_scales = (const float *)(const void *)(kv + 2 * half);
  args->v_scales = args->k_scales + DUET_KV_BLOCK_TOKENS;
  args->block_stride = stride;
  return used;
}

/* Memory that a lane needs, and its operands within `memory` when that is not null. */
static size_t lay_out(const duet_roof_task *task, uint8_t *memory, roof_lane *lane) {
  switch (task->kind) {
    case DUET_ROOF_KIND_READ: return task->slab == NULL ? duet_align_up(task->bytes, ROOF_CHUNK) : 0;
    case DUET_ROOF_KIND_MATMUL: return lay_out_matmul(task, memory, lane);
    case DUET_ROOF_KIND_ATTENTION: return lay_out_attention(task, memory, lane);
    default: return 0;
  }
}

static void fill_matmul(const duet_roof *roof, roof_lane *lane) {
  const duet_roof_task *task = &roof->task;
  duet_matmul_args *args = &lane->matmul;
  const size_t pair_bytes = task->quant_type == DUET_QUANT_Q4 ? 576 : 1088;
  const size_t tiles_bytes = args->tile_count * args->tile_bytes;
  uint8_t *tiles = (uint8_t *)(uintptr_t)args->tiles;
  uint64_t state = 88172645463325252u;
  for (size_t i = 0; i < tiles_bytes; i += sizeof state) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const uint64_t value = state | 0x0101010101010101u; /* a q8 weight is never -128 */
    memcpy(tiles + i, &value, sizeof value);
  }
  const uint16_t scale = 0x2000; /* 2^-7 */
  for (size_t pair = 0; pair < tiles_bytes; pair += pair_bytes)
    for (size_t i = 0; i < 32; i++) memcpy(tiles + pair + 2 * i, &scale, sizeof scale);
  float *x = (float *)(uintptr_t)args->x;
  const size_t blocks = args->column_count / DUET_QUANT_BLOCK;
  for (uint32_t row = 0; row < args->row_count; row++) {
    for (uint32_t k = 0; k < args->column_count; k++) x[k] = (float)((k * 37u + row * 11u) % 255u) - 127.0f;
    roof->kernels->quantise_row(x, args->column_count, args->column_count, (int8_t *)(uintptr_t)args->qx.q + row * args->qx.stride,
                                (float *)(uintptr_t)args->qx.scales + row * blocks, (int32_t *)(uintptr_t)args->qx.sums + row * blocks);
  }
}

static void fill_attention(const duet_roof *roof, roof_lane *lane) {
  const duet_roof_task *task = &roof->task;
  const uint32_t blocks = duet_ceil_div(task->key_count, DUET_KV_BLOCK_TOKENS);
  memset((uint8_t *)(uintptr_t)lane->attention.k_base, DUET_KV_FILL_BYTE, blocks * lane->attention.block_stride);
  for (uint32_t i = 0; i < blocks; i++) ((int32_t *)(uintptr_t)lane->attention.block_table)[i] = (int32_t)i;
  const size_t floats = (size_t)task->row_count * task->query_head_count * task->head_dim;
  for (size_t i = 0; i < floats; i++) lane->q[i] = 0.01f * (float)(i % 7);
}

static void fill_lane(void *context, duet_lane *lane) {
  duet_roof *roof = context;
  roof_lane *own = &roof->lanes[lane->index];
  if (roof->task.kind == DUET_ROOF_KIND_READ && own->memory != NULL) memset(own->memory, 1, own->memory_bytes);
  if (roof->task.kind == DUET_ROOF_KIND_MATMUL) fill_matmul(roof, own);
  if (roof->task.kind == DUET_ROOF_KIND_ATTENTION) fill_attention(roof, own);
}

/* ---- what one pass does ------------------------------------------------------------------------------------------ */

static void choose_read(duet_roof *roof) {
  const int is_ahead = roof->task.is_prefetched != 0;
#if defined(__x86_64__)
  if (roof->kernels->isa == DUET_ISA_AVX512) roof->read = is_ahead ? read_64_ahead : read_64_near;
  else if (roof->kernels->isa != DUET_ISA_PLAIN) roof->read = is_ahead ? read_32_ahead : read_32_near;
  else
#endif
    roof->read = is_ahead ? read_16_ahead : read_16_near;
}

/* Leaves `arithmetic` null where the instruction set has no such instruction. */
static void choose_arithmetic(duet_roof *roof) {
  const int is_dot = roof->task.kind == DUET_ROOF_KIND_INTEGER_DOT;
  (void)is_dot;
  switch (roof->kernels->isa) {
#if defined(__x86_64__)
    case DUET_ISA_AVX512:
      roof->arithmetic = is_dot ? dot_512 : fma_512;
      roof->pass_operations = is_dot ? DOT_512_OPS : FMA_512_OPS;
      break;
    case DUET_ISA_AVXVNNI:
      roof->arithmetic = is_dot ? dot_vnni_256 : fma_256;
      roof->pass_operations = is_dot ? DOT_VNNI_256_OPS : FMA_256_OPS;
      break;
    case DUET_ISA_AVX2:
      roof->arithmetic = is_dot ? dot_256 : fma_256;
      roof->pass_operations = is_dot ? DOT_256_OPS : FMA_256_OPS;
      break;
#elif defined(__aarch64__)
    case DUET_ISA_NEON:
      roof->arithmetic = is_dot ? dot_neon : fma_neon;
      roof->pass_operations = is_dot ? DOT_NEON_OPS : FMA_NEON_OPS;
      break;
#endif
    default: break;
  }
}

/* Rows of a prefill: the last one sees key_count keys, each one before it a key less. */
static void attend_pass(const duet_roof *roof, roof_lane *own) {
  const duet_roof_task *task = &roof->task;
  duet_attention_args args = own->attention;
  const uint32_t rows_max = duet_attention_rows(task->query_head_count);
  for (uint32_t row = 0; row < task->row_count; row += rows_max) {
    args.row_count = duet_min_u32(rows_max, task->row_count - row);
    args.q = own->q + row * args.q_stride;
    args.key_count = task->key_count - task->row_count + 1 + row;
    roof->kernels->attention(&args);
  }
}

static void run_passes(duet_roof *roof, roof_lane *own) {
  const uint64_t count = roof->pass_count;
  switch (roof->task.kind) {
    case DUET_ROOF_KIND_READ:
      for (uint64_t i = 0; i < count; i++) {
        own->sink += roof->read(own->read_data, own->read_bytes);
        __asm__ volatile("" ::: "memory"); /* read again */
      }
      return;
    case DUET_ROOF_KIND_MATMUL:
      for (uint64_t i = 0; i < count; i++) roof->kernels->matmul[roof->task.quant_type](&own->matmul);
      return;
    case DUET_ROOF_KIND_ATTENTION:
      for (uint64_t i = 0; i < count; i++) attend_pass(roof, own);
      return;
    default: roof->arithmetic(count);
  }
}

/* Lanes begin together, and the last to end stops the clock. */
static void meet(_Atomic uint32_t *arrived, uint32_t lane_count) {
  atomic_fetch_add_explicit(arrived, 1, memory_order_acq_rel);
  while (atomic_load_explicit(arrived, memory_order_acquire) < lane_count) sched_yield();
}

static void run_lane(void *context, duet_lane *lane) {
  duet_roof *roof = context;
  meet(&roof->ready_count, roof->lane_count);
  if (lane->index == 0) roof->begin_ns = monotonic_ns();
  run_passes(roof, &roof->lanes[lane->index]);
  meet(&roof->done_count, roof->lane_count);
  if (lane->index == 0) roof->end_ns = monotonic_ns();
}

/* Steps of phases that have an item for every lane. Of kind BARRIER, an item is over when every lane has begun one, so that a phase
 * takes what it takes to reach all lanes and come back. */
static uint32_t count_lanes(void *context, uint32_t phase, uint32_t stream) {
  const duet_roof *roof = context;
  (void)phase;
  return (roof->lane_count + 1 - stream) / 2;
}

static void wait_for_lanes(void *context, uint32_t phase, uint32_t stream, uint32_t begin, uint32_t end, duet_lane *lane) {
  duet_roof *roof = context;
  (void)phase;
  (void)stream;
  (void)begin;
  (void)end;
  (void)lane;
  if (roof->task.kind != DUET_ROOF_KIND_BARRIER) return;
  const uint64_t begun = atomic_fetch_add_explicit(&roof->items_begun, 1, memory_order_acq_rel);
  const uint64_t all = (begun / roof->lane_count + 1) * roof->lane_count;
  for (uint32_t spins = 0; atomic_load_explicit(&roof->items_begun, memory_order_acquire) < all; spins++) {
    if (spins > SPINS_MAX) sched_yield();
  }
}

static int always(void *context) {
  (void)context;
  return 1;
}

static void run_phases(duet_roof *roof, uint32_t phase_count) {
  static const uint8_t joins[PHASES_MAX] = {[0 ... PHASES_MAX - 1] = 1};
  const duet_phases phases = {phase_count, joins, roof, count_lanes, wait_for_lanes, always};
  duet_device_run(roof->device, &phases);
}

/* ---- entry points ------------------------------------------------------------------------------------------------ */

static int32_t check_task(const duet_roof_task *task) {
  const uint64_t lane_bytes_max = (uint64_t)1 << 40;
  if (task->bytes > lane_bytes_max) INVALID("roof: %llu bytes are too many", (unsigned long long)task->bytes);
  switch (task->kind) {
    case DUET_ROOF_KIND_READ:
      if (task->bytes == 0 || task->bytes % ROOF_CHUNK != 0) INVALID("roof: bytes must be a multiple of %u", ROOF_CHUNK);
      return DUET_STATUS_OK;
    case DUET_ROOF_KIND_MATMUL:
      if (!duet_is_integer(task->quant_type)) INVALID("roof: matmul is timed for q4 and q8");
      if (task->column_count == 0 || task->column_count > DIMENSION_MAX || task->column_count % DUET_COLUMN_MULTIPLE != 0)
        INVALID("roof: column_count must be a multiple of %u", DUET_COLUMN_MULTIPLE);
      if (task->row_count == 0 || task->row_count > DIMENSION_MAX) INVALID("roof: row_count must be 1 to %u", DIMENSION_MAX);
      return DUET_STATUS_OK;
    case DUET_ROOF_KIND_ATTENTION:
      if (task->kv_type > DUET_KV_F32) INVALID("roof: there is no KV type %u", task->kv_type);
      if (task->head_dim == 0 || task->head_dim > 1024 || task->head_dim % 16 != 0) INVALID("roof: head_dim must be a multiple of 16, up to 1024");
      if (task->query_head_count == 0 || task->query_head_count > 256) INVALID("roof: query_head_count must be 1 to 256");
      if (task->row_count == 0 || task->row_count > task->key_count || task->key_count > DIMENSION_MAX)
        INVALID("roof: row_count must be 1 to key_count, key_count at most %u", DIMENSION_MAX);
      return DUET_STATUS_OK;
    case DUET_ROOF_KIND_INTEGER_DOT:
    case DUET_ROOF_KIND_FLOAT_FMA:
    case DUET_ROOF_KIND_BARRIER:
    case DUET_ROOF_KIND_HAND_OFF: return DUET_STATUS_OK;
    default: INVALID("roof: there is no kind %u", task->kind);
  }
}

static void count_pass(duet_roof *roof) {
  const duet_roof_task *task = &roof->task;
  uint64_t bytes = 0, operations = roof->pass_operations;
  if (task->kind == DUET_ROOF_KIND_READ) bytes = task->bytes;
  if (task->kind == DUET_ROOF_KIND_MATMUL) {
    const duet_matmul_args *args = &roof->lanes[0].matmul;
    bytes = args->tile_count * args->tile_bytes;
    operations = (uint64_t)2 * DUET_TILE_ROWS * args->tile_count * args->column_count * args->row_count;
  }
  if (task->kind == DUET_ROOF_KIND_ATTENTION) {
    const uint64_t keys = (uint64_t)task->row_count * (2 * (uint64_t)task->key_count - task->row_count + 1) / 2; /* over rows */
    bytes = (uint64_t)2 * task->key_count * task->head_dim * kv_element_bytes(task->kv_type);
    operations = 4 * keys * task->query_head_count * task->head_dim;
  }
  roof->pass_bytes = bytes * roof->lane_count;
  roof->pass_operations = operations * roof->lane_count;
}

/* Each lane's memory and operands. */
static int32_t reserve_lanes(duet_roof *roof) {
  const duet_roof_task *task = &roof->task;
  for (uint32_t i = 0; i < roof->lane_count; i++) {
    roof_lane *lane = &roof->lanes[i];
    lane->memory_bytes = lay_out(task, NULL, lane);
    if (lane->memory_bytes > 0) {
      lane->memory = duet_memory_reserve(lane->memory_bytes);
      if (lane->memory == NULL) return duet_fail(DUET_STATUS_NO_MEMORY, "no memory for %zu bytes a lane", lane->memory_bytes);
      (void)madvise(lane->memory, lane->memory_bytes, MADV_HUGEPAGE); /* a wish */
      lay_out(task, lane->memory, lane);
    }
    if (task->kind != DUET_ROOF_KIND_READ) continue;
    lane->read_bytes = task->bytes;
    lane->read_data = task->slab == NULL ? lane->memory : task->slab->base + i * task->bytes;
  }
  return DUET_STATUS_OK;
}

int32_t duet_roof_close(duet_roof *roof) {
  if (roof == NULL) INVALID("duet_roof_close: roof is null");
  for (uint32_t i = 0; i < roof->lane_count; i++) duet_memory_release(roof->lanes[i].memory, roof->lanes[i].memory_bytes);
  free(roof->lanes);
  free(roof);
  return DUET_STATUS_OK;
}

int32_t duet_roof_open(duet_device *device, const duet_roof_task *task, duet_roof **out) {
  if (device == NULL || task == NULL || out == NULL) INVALID("duet_roof_open: an argument is null");
  *out = NULL;
  int32_t status = check_task(task);
  if (status != DUET_STATUS_OK) return status;
  const uint32_t lane_count = duet_device_lane_count(device);
  if (task->kind == DUET_ROOF_KIND_READ && task->slab != NULL && task->bytes * lane_count > task->slab->bytes)
    INVALID("roof: the mapped file has %llu bytes, %u lanes want %llu each", (unsigned long long)task->slab->bytes, lane_count,
            (unsigned long long)task->bytes);
  duet_roof *roof = calloc(1, sizeof *roof);
  roof_lane *lanes = aligned_alloc(64, lane_count * sizeof *lanes);
  if (roof == NULL || lanes == NULL) {
    free(roof);
    free(lanes);
    return duet_fail(DUET_STATUS_NO_MEMORY, "no memory for %u lanes", lane_count);
  }
  memset(lanes, 0, lane_count * sizeof *lanes);
  roof->device = device;
  roof->kernels = duet_device_kernels(device);
  roof->task = *task;
  roof->lanes = lanes;
  roof->lane_count = lane_count;
  choose_read(roof);
  if (task->kind == DUET_ROOF_KIND_INTEGER_DOT || task->kind == DUET_ROOF_KIND_FLOAT_FMA) {
    choose_arithmetic(roof);
    if (roof->arithmetic == NULL) {
      duet_roof_close(roof);
      return duet_fail(DUET_STATUS_UNSUPPORTED, "plain C has no vector instruction whose peak could be measured");
    }
  }
  status = reserve_lanes(roof);
  if (status != DUET_STATUS_OK) {
    duet_roof_close(roof);
    return status;
  }
  count_pass(roof);
  duet_device_run_each(device, fill_lane, roof);
  *out = roof;
  return DUET_STATUS_OK;
}

int32_t duet_roof_run(duet_roof *roof, uint64_t pass_count, duet_roof_result *out) {
  if (roof == NULL || out == NULL || pass_count == 0) INVALID("duet_roof_run: roof and out must not be null, pass_count not 0");
  roof->pass_count = pass_count;
  const uint32_t kind = roof->task.kind;
  if (kind == DUET_ROOF_KIND_HAND_OFF || kind == DUET_ROOF_KIND_BARRIER) {
    const uint64_t phases_max = kind == DUET_ROOF_KIND_BARRIER ? PHASES_MAX : 1;
    roof->begin_ns = monotonic_ns();
    for (uint64_t left = pass_count; left > 0; left -= left < phases_max ? left : phases_max)
      run_phases(roof, (uint32_t)(left < phases_max ? left : phases_max));
    roof->end_ns = monotonic_ns();
  } else {
    atomic_store(&roof->ready_count, 0);
    atomic_store(&roof->done_count, 0);
    duet_device_run_each(roof->device, run_lane, roof);
  }
  out->nanoseconds = roof->end_ns - roof->begin_ns;
  out->bytes = roof->pass_bytes * pass_count;
  out->operations = roof->pass_operations * pass_count;
  if (roof->task.slab != NULL && duet_slab_fault_count(roof->task.slab) != 0)
    return duet_fail(DUET_STATUS_MAPPING_LOST, "the mapped file shrank; zero pages stand in for what was lost");
  return DUET_STATUS_OK;
}

int32_t duet_model_kv_fill(duet_model *model, uint32_t kv_block_count) {
  if (model == NULL) INVALID("duet_model_kv_fill: model is null");
  if (kv_block_count > model->options.kv_block_count) INVALID("duet_model_kv_fill: %u kvBlocks of %u", kv_block_count, model->options.kv_block_count);
  if (model->kv != NULL) memset(model->kv, DUET_KV_FILL_BYTE, kv_block_count * model->kv_block_stride);
  return DUET_STATUS_OK;
}

int32_t duet_file_evict(const char *path) {
  if (path == NULL) INVALID("duet_file_evict: path is null");
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return duet_fail(DUET_STATUS_IO, "cannot open %s: %s (errno %d)", path, strerror(errno), errno);
  (void)fdatasync(file); /* pages that are still to be written stay */
  int error = posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  close(file);
  if (error != 0) return duet_fail(DUET_STATUS_IO, "posix_fadvise failed for %s: %s (errno %d)", path, strerror(error), error);
  return DUET_STATUS_OK;
}
