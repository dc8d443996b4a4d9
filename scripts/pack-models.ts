// Makes models/ from the published checkpoints: packs both containers and copies what belongs beside them (model card,
// training recipe, held-out text, golden outputs). Tokenizer and config are inside the containers and are not copied.
//
//   bun scripts/pack-models.ts <fable-folder> <fable-draft-folder>

import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { formatBytes, formatMs, MIB } from "../src/base/units.ts";
import { packCheckpoint } from "../src/weights/packer.ts";

const MODELS_BYTES_MAX = 40 * MIB;
const modelsFolder = join(import.meta.dir, "../models");

const models = [
  {
    name: "fable",
    companions: [
      "README.md",
      "corpus-manifest.json",
      "corpus.py",
      "tokenizer.py",
      "train.py",
      "kernels.cpp",
      "reference.py",
      "training-log.txt",
      "golden.json",
      "validation.txt",
    ],
  },
  { name: "fable-draft", companions: ["README.md", "golden.json"] },
] as const;

const folders = process.argv.slice(2);
if (folders.length !== models.length || !folders.every((folder) => existsSync(folder))) {
  console.error("usage: bun scripts/pack-models.ts <fable-folder> <fable-draft-folder>");
  process.exit(2);
}

for (const [index, { name, companions }] of models.entries()) {
  const folder = folders[index] as string;
  const target = join(modelsFolder, name);
  mkdirSync(target, { recursive: true });
  const start = performance.now();
  const result = packCheckpoint({
    folder,
    recipe: "q4",
    outPath: join(target, `${name}.duet`),
    modelName: name,
    license: "Apache-2.0",
    source: `${name} checkpoint (models/${name}/README.md)`,
  });
  const packMs = performance.now() - start;
  for (const companion of companions) writeFileSync(join(target, companion), readFileSync(join(folder, companion)));
  console.log(`${name}: ${result.tensorCount} tensors, ${formatBytes(result.fileBytes)}, ${formatMs(packMs)}`);
}

const modelsBytes = readdirSync(modelsFolder, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile())
  .reduce((sum, entry) => sum + statSync(join(entry.parentPath, entry.name)).size, 0);
console.log(`models/: ${formatBytes(modelsBytes)}`);
if (modelsBytes >= MODELS_BYTES_MAX) {
  console.error(`models/ is larger than ${formatBytes(MODELS_BYTES_MAX)}`);
  process.exit(1);
}
