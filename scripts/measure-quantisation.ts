// Prints what each recipe and KV type costs on fable's held-out text: perplexity, and how often the best next token stays the
// same. `bun scripts/measure-quantisation.ts <checkpoint folder> [--windows n]`.

import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { evaluatePerplexity } from "../src/bench/evaluate.ts";
import type { KvType } from "../src/device/device.ts";
import { readContainer } from "../src/weights/container.ts";
import type { RecipeName } from "../src/weights/header.ts";
import { packCheckpoint } from "../src/weights/packer.ts";
import { measureAgreement, windowsOf } from "../test/support/agreement.ts";
import { fastCpu, referenceEntry } from "../test/support/devices.ts";
import { validationTokens } from "../test/support/fable.ts";
import { openSingleSequence } from "../test/support/single-sequence.ts";

const WINDOW_TOKENS = 512;
const CASES: readonly (readonly [RecipeName, KvType])[] = [
  ["f16", "f32"],
  ["f16", "f16"],
  ["f16", "int8"],
  ["q8", "f16"],
  ["q4", "f16"],
  ["q4", "int8"],
];

const { values, positionals } = parseArgs({ allowPositionals: true, options: { windows: { type: "string" } } });
const folder = positionals[0];
if (folder === undefined || !existsSync(join(folder, "model.safetensors"))) {
  console.error("usage: bun scripts/measure-quantisation.ts <checkpoint folder> [--windows n]");
  process.exit(2);
}
const windowMax = values.windows === undefined ? null : Number(values.windows);
const entry = fastCpu ?? referenceEntry;
const temporary = mkdtempSync(join(tmpdir(), "duet-measure-"));
try {
  const device = entry.create();
  const containers = new Map(
    (["f16", "q8", "q4"] as const).map((recipe) => {
      const outPath = join(temporary, `${recipe}.duet`);
      packCheckpoint({ folder, recipe, outPath });
      return [recipe, readContainer(outPath)] as const;
    }),
  );
  const open = (recipe: RecipeName, kvType: KvType) => {
    const container = containers.get(recipe);
    if (container === undefined) throw new Error(`${recipe} was not packed`);
    return openSingleSequence(device, container, kvType, WINDOW_TOKENS);
  };
  const first = containers.values().next().value;
  if (first === undefined) throw new Error("nothing was packed");
  const tokens = validationTokens(first);
  const windows = windowsOf(tokens, WINDOW_TOKENS, windowMax ?? Infinity);
  console.log(`${cpus()[0]?.model ?? "unknown CPU"}; ${entry.name}; windows of ${WINDOW_TOKENS} tokens`);
  const rows = [];
  let base = NaN;
  for (const [recipe, kvType] of CASES) {
    using baseline = open("f16", "f32");
    using sequence = open(recipe, kvType);
    const options = { windowTokens: WINDOW_TOKENS, windowMax, textBytes: 1 };
    const { perplexity, tokenCount } = await evaluatePerplexity(sequence.model, Int32Array.from(tokens), options);
    if (Number.isNaN(base)) base = perplexity;
    const agreement = measureAgreement(baseline, sequence, windows);
    rows.push({
      recipe,
      KV: kvType,
      tokens: tokenCount,
      perplexity: perplexity.toFixed(4),
      "against f16/f32": `${((perplexity / base - 1) * 100).toFixed(3)} %`,
      "top-1": `${(agreement.overall * 100).toFixed(3)} %`,
      "top-1, gap over 0.5": `${(agreement.whereClear * 100).toFixed(3)} %`,
    });
  }
  console.log(Bun.inspect.table(rows, { colors: false }));
  device.close();
} finally {
  rmSync(temporary, { recursive: true, force: true });
}
