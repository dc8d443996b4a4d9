import { expect, test } from "bun:test";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { packCheckpoint } from "../../src/weights/packer.ts";
import { openCheckpoint } from "../../src/weights/checkpoint.ts";
import { expectDuetError } from "./expect-duet-error.ts";
import { temporaryFolder } from "./temporary-folder.ts";
import { encodeSafetensors, TINY_DENSE, type TinyTensor, writeTinyCheckpoint } from "./tiny-checkpoint.ts";

const root = temporaryFolder("checkpoint");
const outPath = join(root, "out.duet");

test("shape, end tokens and tokenizer texts of a folder", () => {
  const { folder, shape } = writeTinyCheckpoint(join(root, "whole"), {
    isEmbeddingTied: false,
    generationConfig: { eos_token_id: [0, 3] },
  });
  using checkpoint = openCheckpoint(folder);
  expect(checkpoint.shape).toEqual(shape);
  expect(checkpoint.endTokenIds).toEqual([0, 3]);
  expect(JSON.parse(checkpoint.tokenizer.tokenizerJson).model.type).toBe("BPE");
  expect(checkpoint.filePaths.map((path) => path.slice(folder.length + 1))).toEqual([
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
  ]);
});

test("generation and tokenizer configs may be absent, config and tokenizer may not", () => {
  const { folder } = writeTinyCheckpoint(join(root, "bare"), TINY_DENSE);
  rmSync(join(folder, "generation_config.json"));
  rmSync(join(folder, "tokenizer_config.json"));
  {
    using checkpoint = openCheckpoint(folder);
    expect(checkpoint.tokenizer.generationConfigJson).toBe("{}");
    expect(checkpoint.endTokenIds).toEqual([0]); // from config.json
  }
  writeFileSync(join(folder, "tokenizer.json"), "{");
  expectDuetError(() => openCheckpoint(folder), "checkpoint_invalid", "tokenizer.json", "not JSON");
  rmSync(join(folder, "tokenizer.json"));
  expectDuetError(() => openCheckpoint(folder), "file_missing", "tokenizer.json");
  expectDuetError(() => openCheckpoint(join(root, "nowhere")), "file_missing", "config.json");
});

test.each<[string, (tensors: Map<string, TinyTensor>) => void, string[]]>([
  [
    "missing",
    (tensors) => tensors.delete("model.layers.1.mlp.experts.5.up_proj.weight"),
    ["layers.1.mlp.experts.5.up_proj.weight is missing"],
  ],
  [
    "unexpected",
    (tensors) =>
      tensors.set("model.layers.0.mlp.shared_expert_gate.weight", { dims: [1], values: new Float32Array(1) }),
    ["shared_expert_gate.weight is not part of this model"],
  ],
  [
    "mis-shaped",
    (tensors) => tensors.set("model.norm.weight", { dims: [47], values: new Float32Array(47) }),
    ["tensor model.norm.weight has the wrong dims", "[48]", "[47]"],
  ],
  [
    "transposed",
    (tensors) => {
      const name = "model.layers.0.mlp.experts.0.down_proj.weight";
      const { values } = tensors.get(name) as TinyTensor;
      tensors.set(name, { dims: [24, 48], values });
    },
    ["experts.0.down_proj.weight has the wrong dims", "[48, 24]", "[24, 48]"],
  ],
  [
    "not finite",
    (tensors) => {
      const { dims, values } = tensors.get("model.layers.1.self_attn.v_proj.weight") as TinyTensor;
      values[100] = NaN;
      tensors.set("model.layers.1.self_attn.v_proj.weight", { dims, values });
    },
    ["a value is not finite", "layers.1.attn_qkv"],
  ],
])("a tensor that is %s is named", (name, change, texts) => {
  const { folder, tensors } = writeTinyCheckpoint(join(root, name));
  const changed = new Map(tensors);
  change(changed);
  writeFileSync(join(folder, "model.safetensors"), encodeSafetensors(changed, "BF16"));
  expectDuetError(() => packCheckpoint({ folder, recipe: "q4", outPath }), "checkpoint_invalid", ...texts);
});

test("a tied head that is written twice and old rotary buffers are passed over", () => {
  const { folder, tensors, shape } = writeTinyCheckpoint(join(root, "extra"));
  const extra = new Map(tensors)
    .set("lm_head.weight", tensors.get("model.embed_tokens.weight") as TinyTensor)
    .set("model.layers.0.self_attn.rotary_emb.inv_freq", { dims: [6], values: new Float32Array(6) });
  writeFileSync(join(folder, "model.safetensors"), encodeSafetensors(extra, "BF16"));
  expect(packCheckpoint({ folder, recipe: "q8", outPath }).tensorCount).toBeGreaterThan(shape.layerCount);
});
