// `duet inspect`: what a container holds, and whether its bytes are what was packed.

import { formatBytes } from "../base/units.ts";
import type { InspectCommand } from "../config.ts";
import { compileProgram } from "../model/compile.ts";
import { describeProgram } from "../model/describe.ts";
import { describePlacement } from "../model/placement.ts";
import { readContainer } from "../weights/container.ts";
import { formatInspectReport, inspectContainer } from "../weights/inspect.ts";
import { createProgress, formatTable, print } from "./terminal.ts";

export function inspect(command: InspectCommand): number {
  const container = readContainer(command.containerPath);
  const progress = createProgress("checking");
  const report = inspectContainer(container, {
    verify: command.isVerified,
    onProgress: ({ bytesDone, bytesTotal, tensorName }) => progress.update(bytesDone, bytesTotal, tensorName),
  });
  progress.stop();
  const tensors = command.listsTensors ? container.header.tensors : null;
  if (command.isJson) {
    print(JSON.stringify(tensors === null ? report : { ...report, tensors }, null, 2));
  } else {
    print(formatInspectReport(report));
    if (tensors !== null) {
      print();
      print(
        formatTable(
          tensors.map((tensor) => ({
            tensor: tensor.name,
            kind: tensor.kind,
            type: tensor.quantType,
            rows: String(tensor.rows),
            columns: String(tensor.columns),
            offset: String(tensor.offset),
            size: formatBytes(tensor.bytes),
            xxh64: tensor.checksum,
          })),
        ),
      );
    }
    if (command.listsProgram) {
      print(`\n${describePlacement(container)}\n\n${describeProgram(compileProgram(container), container)}`);
    }
  }
  return report.checksums === "failed" ? 1 : 0;
}
