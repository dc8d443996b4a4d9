/* Runs a whole Program on arm64 without TypeScript, since the test runner itself is not emulated.
 *
 * Usage: step-test PROGRAM CONTAINER LOGITS plain|best LANES TOKENS. PROGRAM is what arm64.test.ts writes: the arguments of
 * duet_model_create as the structs of kernels.h, then the prompts. Each prompt is fed in one step, then TOKENS - 1 greedy tokens
 * in one step each; the float32 logits of all rows go to LOGITS in that order. Prints the instruction set.
 * The caller's floating-point mode is set to one that would change the bits, and must be as it was afterwards.
 *
 * Usage: step-test truncate FILE. Maps a file of three pages that loses the last two, and prints the status of hashing it.
 */
#define _GNU_SOURCE
#include "kernels.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROW_MAX = 512 };

static void fail(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fprintf(stderr, "step-test: ");
  vfprintf(stderr, format, args);
  fprintf(stderr, "\n");
  exit(1);
}

static void check(int32_t status, const char *action) {
  if (status == DUET_STATUS_OK) return;
  char text[512];
  duet_last_error(text, sizeof text);
  fail("cannot %s: status %d: %s", action, status, text);
}

/* The next section of PROGRAM: a u64 byte count, then so many bytes. */
static void *read_section(FILE *file, uint64_t *bytes) {
  if (fread(bytes, sizeof *bytes, 1, file) != 1) fail("a section is missing");
  void *section = malloc(*bytes);
  if (section == NULL || fread(section, 1, *bytes, file) != *bytes) fail("a section of %llu bytes is short", (unsigned long long)*bytes);
  return section;
}

/* FPCR: flush to zero and round toward zero; and as a process starts with it. */
#define HOSTILE_MODE ((uint64_t)(1u << 24 | 3u << 22))
#define USUAL_MODE ((uint64_t)0)
static void set_float_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" ::"r"(mode)); }
static uint64_t get_float_mode(void) {
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}

typedef struct run {
  duet_model *model;
  uint32_t vocabulary_size;
  uint32_t kv_block_count;
  FILE *out;
} run;

/* Feeds rows [0, count) from `position` on, writes all their logits and returns the last row's best token. */
static int32_t feed(const run *r, const int32_t *tokens, uint32_t count, uint32_t position) {
  static int32_t positions[ROW_MAX], kv_slots[ROW_MAX], sequence_index[ROW_MAX], rows[ROW_MAX], blocks[ROW_MAX];
  for (uint32_t i = 0; i < count; i++) {
    rows[i] = (int32_t)i;
    positions[i] = kv_slots[i] = (int32_t)(position + i); /* block b of the sequence is kvBlock b */
  }
  for (uint32_t b = 0; b < r->kv_block_count; b++) blocks[b] = (int32_t)b;
  const duet_batch batch = {.row_count = count, .sequence_count = 1, .logit_row_count = count,
                            .block_table_stride = r->kv_block_count, .token_ids = tokens, .positions = positions,
                            .kv_slots = kv_slots, .sequence_index = sequence_index, .block_tables = blocks, .logit_rows = rows};
  set_float_mode(HOSTILE_MODE);
  check(duet_model_run(r->model, &batch, NULL), "run a step");
  if (get_float_mode() != HOSTILE_MODE) fail("the caller's floating-point mode has changed");
  set_float_mode(USUAL_MODE);
  float *logits = malloc(sizeof(float) * r->vocabulary_size);
  int32_t best = 0;
  for (uint32_t i = 0; i < count; i++) {
    check(duet_model_logits(r->model, i, logits), "read logits");
    if (fwrite(logits, sizeof(float), r->vocabulary_size, r->out) != r->vocabulary_size) fail("cannot write logits");
    best = 0;
    for (uint32_t id = 1; id < r->vocabulary_size; id++) {
      if (logits[id] > logits[best]) best = (int32_t)id;
    }
  }
  free(logits);
  return best;
}

static int truncate_mapped(const char *path) {
  const long page_bytes = sysconf(_SC_PAGESIZE);
  FILE *file = fopen(path, "wb");
  if (file == NULL) fail("cannot write %s", path);
  for (long i = 0; i < 3 * page_bytes; i++) fputc((int)(i % 251), file);
  if (fclose(file) != 0) fail("cannot write %s", path);
  duet_slab *slab;
  uint64_t before, hash;
  check(duet_slab_map(path, (uint64_t)(3 * page_bytes), &slab), "map the file");
  check(duet_slab_hash(slab, 0, (uint64_t)page_bytes, &before), "hash the first page");
  if (truncate(path, page_bytes) != 0) fail("cannot truncate %s", path);
  printf("%d\n", duet_slab_hash(slab, 0, (uint64_t)(3 * page_bytes), &hash));
  check(duet_slab_unmap(slab), "unmap the file");
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "truncate") == 0) return truncate_mapped(argv[2]);
  if (argc != 7) fail("expected PROGRAM CONTAINER LOGITS plain|best LANES TOKENS");
  FILE *file = fopen(argv[1], "rb");
  if (file == NULL) fail("cannot open %s", argv[1]);
  uint64_t bytes, tensor_bytes, slot_bytes, op_bytes, prompt_bytes;
  duet_shape *shape = read_section(file, &bytes);
  shape->inverse_frequencies = read_section(file, &bytes);
  const duet_tensor *tensors = read_section(file, &tensor_bytes);
  const duet_slot *slots = read_section(file, &slot_bytes);
  const duet_op *ops = read_section(file, &op_bytes);
  const duet_model_options *options = read_section(file, &bytes);
  const int32_t *prompts = read_section(file, &prompt_bytes); /* each its length, then its tokens */
  uint64_t container_bytes;
  if (fread(&container_bytes, sizeof container_bytes, 1, file) != 1) fail("the container's size is missing");
  fclose(file);

  duet_cpu_info cpu;
  check(duet_cpu_describe(&cpu), "describe the CPU");
  const uint32_t isa = strcmp(argv[4], "plain") == 0 ? DUET_ISA_PLAIN : cpu.isa_best;
  duet_device *device;
  duet_slab *slab;
  run r = {.vocabulary_size = shape->vocabulary_rows[0] + shape->vocabulary_rows[1],
           .kv_block_count = options->kv_block_count, .out = fopen(argv[3], "wb")};
  if (r.out == NULL) fail("cannot write %s", argv[3]);
  check(duet_device_create((uint32_t)atoi(argv[5]), isa, 0, &device), "start the lanes");
  check(duet_slab_map(argv[2], container_bytes, &slab), "map the container");
  check(duet_model_create(device, slab, shape, tensors, (uint32_t)(tensor_bytes / sizeof *tensors), slots,
                          (uint32_t)(slot_bytes / sizeof *slots), ops, (uint32_t)(op_bytes / sizeof *ops), options, &r.model),
        "create the model");
  const uint32_t token_count = (uint32_t)atoi(argv[6]);
  for (const int32_t *p = prompts; p < prompts + prompt_bytes / sizeof *p; p += 1 + p[0]) {
    uint32_t position = (uint32_t)p[0];
    int32_t token = feed(&r, p + 1, position, 0);
    for (uint32_t i = 1; i < token_count; i++) token = feed(&r, &token, 1, position++);
  }
  if (fclose(r.out) != 0) fail("cannot write %s", argv[3]);
  check(duet_model_destroy(r.model), "free the model");
  check(duet_slab_unmap(slab), "unmap the container");
  check(duet_device_destroy(device), "stop the lanes");
  printf("%u\n", isa);
  return 0;
}
