// `duet pack`: a Hugging Face folder becomes a container.

import { formatBytes, formatMs } from "../base/units.ts";
import type { PackCommand } from "../config.ts";
import { packCheckpoint } from "../weights/packer.ts";
import { createProgress, print } from "./terminal.ts";

export function pack(command: PackCommand): number {
  const progress = createProgress("packing");
  const startMs = performance.now();
  try {
    const result = packCheckpoint({
      folder: command.folder,
      recipe: command.recipe,
      outPath: command.outPath,
      ...(command.modelName === null ? {} : { modelName: command.modelName }),
      onProgress: ({ bytesDone, bytesTotal, tensorName }) => progress.update(bytesDone, bytesTotal, tensorName),
    });
    progress.stop();
    print(
      `${result.path}: ${formatBytes(result.fileBytes)}, ${result.tensorCount} tensors, recipe ${command.recipe}, ` +
        `fingerprint ${result.fingerprint}, packed in ${formatMs(performance.now() - startMs)}`,
    );
    return 0;
  } finally {
    progress.stop();
  }
}
