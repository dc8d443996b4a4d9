/* Rotary embedding and what is stored in the KV cache (docs/arithmetic.md, rule 5).
 *
 * A kvBlock holds all layers; within it, per layer, die and KV head: K [head_dim][32 tokens], V [32 tokens][head_dim], then for
 * int8 the scales of K and of V, [32] each. Every die's team reads and writes its own heads only.
 */
#include "duet-math.h"
#include "internal.h"

#include <string.h>

void duet_rope_tables(duet_step *step, uint32_t begin, uint32_t end) {
  duet_model *model = step->model;
  for (uint32_t row = begin; row < end; row++) {
    float *cosines = model->rope_cos + row * model->rope_stride;
    float *sines = model->rope_sin + row * model->rope_stride;
    const double position = (double)step->batch->positions[row];
    for (uint32_t i = 0; i < model->rope_stride; i++) {
      double sine, cosine;
      duet_sincos(position * model->inverse_frequencies[i], &sine, &cosine);
      sines[i] = (float)sine;
      cosines[i] = (float)cosine;
    }
  }
}

/* The half-split form, in place. */
static void rotate(float *x, const float *cosines, const float *sines, uint32_t half) {
  for (uint32_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    x[i] = duet_fmaf(-b, sines[i], a * cosines[i]);
    x[i + half] = duet_fmaf(a, sines[i], b * cosines[i]);
  }
}

/* One head's row as int8 with one scale (rule 2's arithmetic over the whole head). Returns non-zero when not finite. */
static int head_to_int8(const float *x, uint32_t n, uint8_t *out, size_t out_step, float *scale) {
  float m = 0;
  uint32_t bad = 0;
  for (uint32_t d = 0; d < n; d++) {
    uint32_t bits = duet_f32_bits(x[d]) & 0x7fffffffu;
    bad |= bits >= 0x7f800000u;
    float magnitude = duet_f32_from_bits(bits);
    m = magnitude > m ? magnitude : m;
  }
  float r = bad || m == 0 ? 0 : 127.0f / m;
  if ((duet_f32_bits(r) & 0x7f800000u) == 0x7f800000u) r = 0;
  for (uint32_t d = 0; d < n; d++) {
    int32_t value = r == 0 ? 0 : duet_rne_i32(x[d] * r);
    value = value > 127 ? 127 : value < -127 ? -127 : value;
    out[d * out_step] = (uint8_t)(int8_t)value;
  }
  *scale = r == 0 ? 0 : m / 127.0f;
  return bad != 0;
}

static inline int is_infinite_half(uint16_t half) { return (half & 0x7c00u) == 0x7c00u; }

/* K as a column of [head_dim][32], V as a row of [32][head_dim]. Returns non-zero for a value that the KV type cannot hold. */
static int store_head(const duet_model *model, uint8_t *head, uint32_t token, const float *k, const float *v) {
  const uint32_t n = model->shape.head_dim;
  uint8_t *values = head + model->kv_v_offset;
  int is_bad = 0;
  switch (model->options.kv_type) {
    case DUET_KV_F16: {
      uint16_t *k16 = (uint16_t *)(void *)head, *v16 = (uint16_t *)(void *)values;
      for (uint32_t d = 0; d < n; d++) {
        uint16_t kd = duet_f32_to_f16(k[d]), vd = duet_f32_to_f16(v[d]);
        is_bad |= is_infinite_half(kd) | is_infinite_half(vd);
        k16[(size_t)d * DUET_KV_BLOCK_TOKENS + token] = kd;
        v16[(size_t)token * n + d] = vd;
      }
      return is_bad;
    }
    case DUET_KV_INT8: {
      float *k_scales = (float *)(void *)(head + model->kv_k_scale_offset), *v_scales = (float *)(void *)(head + model->kv_v_scale_offset);
      is_bad |= head_to_int8(k, n, head + token, DUET_KV_BLOCK_TOKENS, &k_scales[token]);
      is_bad |= head_to_int8(v, n, values + (size_t)token * n, 1, &v_scales[token]);
      return is_bad;
    }
    default: {
      float *k32 = (float *)(void *)head, *v32 = (float *)(void *)values;
      for (uint32_t d = 0; d < n; d++) {
        is_bad |= (duet_f32_bits(k[d]) & 0x7f800000u) == 0x7f800000u || (duet_f32_bits(v[d]) & 0x7f800000u) == 0x7f800000u;
        k32[(size_t)d * DUET_KV_BLOCK_TOKENS + token] = k[d];
        v32[(size_t)token * n + d] = v[d];
      }
      return is_bad;
    }
  }
}

int duet_rope_and_store(duet_step *step, const duet_op_state *op, uint32_t die, uint32_t row, uint32_t head) {
  duet_model *model = step->model;
  const duet_shape *shape = &model->shape;
  const duet_slot_state *slot = &model->slots[op->op.input];
  const uint32_t head_dim = shape->head_dim, half = head_dim / 2;
  const uint32_t kv_heads = shape->kv_heads[die], queries_per_kv = shape->query_heads[die] / kv_heads;
  const float q_scale = 1.0f / __builtin_sqrtf((float)head_dim);
  const float *cosines = model->rope_cos + row * model->rope_stride, *sines = model->rope_sin + row * model->rope_stride;
  float *qkv = slot->values[die] + row * slot->stride[die];
  float *q = qkv + (size_t)head * queries_per_kv * head_dim;
  for (uint32_t i = 0; i < queries_per_kv; i++, q += head_dim) {
    rotate(q, cosines, sines, half);
    for (uint32_t d = 0; d < head_dim; d++) q[d] = q[d] * q_scale;
  }
  float *k = qkv + ((size_t)shape->query_heads[die] + head) * head_dim;
  const float *v = qkv + ((size_t)shape->query_heads[die] + kv_heads + head) * head_dim;
  rotate(k, cosines, sines, half);
  const uint32_t kv_slot = (uint32_t)step->batch->kv_slots[row];
  uint8_t *block = duet_kv_head(model, op->op.layer, die, head) + (kv_slot / DUET_KV_BLOCK_TOKENS) * model->kv_block_stride;
  return store_head(model, block, kv_slot % DUET_KV_BLOCK_TOKENS, k, v);
}
