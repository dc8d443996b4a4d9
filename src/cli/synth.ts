// `duet synth`: a container with random weights of any shape.

import { statSync } from "node:fs";
import { DuetError } from "../base/errors.ts";
import { formatBytes, formatMs } from "../base/units.ts";
import type { SynthCommand } from "../config.ts";
import { readTokenizerJson } from "../tokenizer/tokenizer-json.ts";
import { readTokenizerFolder } from "../weights/checkpoint.ts";
import { readContainer } from "../weights/container.ts";
import { openRegularFile, readAt } from "../weights/files.ts";
import { NAMED_SHAPES } from "../weights/named-shapes.ts";
import type { ModelShape } from "../weights/shape.ts";
import { shapeFromText, synthesise, type SynthTokenizer } from "../weights/synth.ts";
import { createProgress, print } from "./terminal.ts";

const SHAPE_BYTES_MAX = 1 << 20;

/** A name, JSON, or a file of JSON. */
function readShape(text: string): ModelShape {
  if (Object.hasOwn(NAMED_SHAPES, text) || text.trimStart().startsWith("{")) return shapeFromText(text, "--shape");
  if (statSync(text, { throwIfNoEntry: false }) === undefined) {
    throw new DuetError("config_invalid", "there is no such shape", {
      where: "--shape",
      expected: `${Object.keys(NAMED_SHAPES).join(", ")}, a JSON file, or JSON of a model shape`,
      got: text,
      next: "choose one of them",
    });
  }
  using file = openRegularFile(text, "shape", "name a JSON file, or one of the shapes that --help lists");
  const bytes = new Uint8Array(Math.min(file.bytes, SHAPE_BYTES_MAX));
  return shapeFromText(new TextDecoder().decode(bytes.subarray(0, readAt(file, bytes, 0))), text);
}

/** The tokenizer of a container or of a Hugging Face folder. */
function readTokenizer(path: string): SynthTokenizer {
  const isFolder = statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
  const { tokenizer: files, endTokenIds } = isFolder ? readTokenizerFolder(path) : readContainer(path).header;
  const { idLimit } = readTokenizerJson(JSON.parse(files.tokenizerJson));
  return { files, endTokenIds, idCount: idLimit, name: path };
}

export function synth(command: SynthCommand): number {
  const shape = readShape(command.shape);
  const tokenizer = command.tokenizerPath === null ? null : readTokenizer(command.tokenizerPath);
  const progress = createProgress("writing");
  const startMs = performance.now();
  try {
    const result = synthesise({
      shape,
      recipe: command.recipe,
      outPath: command.outPath,
      modelName: command.modelName ?? (Object.hasOwn(NAMED_SHAPES, command.shape) ? command.shape : "synthetic"),
      seed: command.seed,
      tokenizer,
      onProgress: ({ bytesDone, bytesTotal, tensorName }) => progress.update(bytesDone, bytesTotal, tensorName),
    });
    progress.stop();
    print(
      `${result.path}: ${formatBytes(result.fileBytes)}, ${result.tensorCount} tensors, recipe ${command.recipe}, ` +
        `fingerprint ${result.fingerprint}, written in ${formatMs(performance.now() - startMs)}`,
    );
    return 0;
  } finally {
    progress.stop();
  }
}
