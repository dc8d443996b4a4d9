// `duet eval`: perplexity of a text file.

import { readFileSync, statSync } from "node:fs";
import { DuetError } from "../base/errors.ts";
import { ceilDiv } from "../base/units.ts";
import { evaluatePerplexity } from "../bench/evaluate.ts";
import type { EvalCommand } from "../config.ts";
import { KV_BLOCK_TOKENS } from "../device/batch.ts";
import { readContainer } from "../weights/container.ts";
import { openModel } from "./open-model.ts";
import { openServedText } from "./served-text.ts";
import { createProgress, print } from "./terminal.ts";

function readText(path: string): { text: string; bytes: number } {
  try {
    if (!statSync(path).isFile()) throw new Error("not a regular file");
    const bytes = readFileSync(path);
    return { text: new TextDecoder("utf-8", { fatal: true }).decode(bytes), bytes: bytes.byteLength };
  } catch (error) {
    throw new DuetError("file_unreadable", "the text cannot be read", {
      where: path,
      expected: "a UTF-8 text file",
      got: error instanceof Error ? error.message : String(error),
      next: "name another file",
    });
  }
}

export async function evaluate(command: EvalCommand): Promise<number> {
  const container = readContainer(command.engine.containerPath);
  const { tokenizer } = openServedText(container);
  const { text, bytes } = readText(command.textPath);
  // Held-out files carry the model's own separators, which are tokens and not text.
  const tokens = Int32Array.from(tokenizer.encode(text, { allowSpecial: true }));
  const windowTokens = Math.min(command.windowTokens, container.header.shape.contextMax);
  if (tokens.length < 2) {
    throw new DuetError("config_invalid", "the text is too short to evaluate", {
      where: command.textPath,
      expected: "at least 2 tokens",
      got: String(tokens.length),
    });
  }
  const rowMax = Math.min(windowTokens, command.engine.prefillChunkMax);
  const sizes = { rowMax, logitRowMax: rowMax, kvBlockCount: ceilDiv(windowTokens, KV_BLOCK_TOKENS) };
  using open = await openModel(container, command.engine, sizes);
  const device = open.device.describe();
  for (const warning of device.warnings) process.stderr.write(`WARNING: ${warning}\n`);
  const progress = createProgress("evaluating");
  const result = await evaluatePerplexity(open.model, tokens, {
    windowTokens,
    windowMax: command.windowMax,
    textBytes: bytes,
    onProgress: (done, total) => progress.update(done, total, `window ${done} of ${total}`),
  });
  progress.stop();
  const { provenance, recipe } = container.header;
  if (command.isJson) {
    const about = { model: provenance.modelName, recipe: recipe.name, kvType: command.engine.kvType };
    print(
      JSON.stringify({ ...about, device: device.summary, text: command.textPath, windowTokens, ...result }, null, 2),
    );
    return 0;
  }
  print(`model          ${provenance.modelName}, recipe ${recipe.name}, KV ${command.engine.kvType}`);
  print(`device         ${device.summary}`);
  print(`text           ${command.textPath} (${tokens.length} tokens)`);
  print(`windows        ${result.windowCount} of ${windowTokens} tokens, every position counted`);
  print(`loss           ${result.loss.toFixed(4)} per token`);
  print(`perplexity     ${result.perplexity.toFixed(3)}`);
  print(`bits per byte  ${result.bitsPerByte.toFixed(4)}`);
  print(`speed          ${result.tokensPerSecond.toFixed(0)} tokens/s (${result.seconds.toFixed(1)} s)`);
  return 0;
}
