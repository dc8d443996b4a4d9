// The thread of a background integrity check. It takes container paths, answers one IntegrityReport, and gives way to all
// other work.

import os from "node:os";
import { readContainer } from "../weights/container.ts";
import { checkIntegrity, type IntegrityReport } from "./integrity.ts";

declare const self: Worker;

const LOWEST_PRIORITY = 19;

self.addEventListener("message", (event: MessageEvent<readonly string[]>) => {
  let failure: string | null = null;
  try {
    // On Linux this is the calling thread's priority alone.
    if (process.platform === "linux") os.setPriority(LOWEST_PRIORITY);
    checkIntegrity(event.data.map(readContainer));
  } catch (error) {
    failure = error instanceof Error ? error.message : String(error);
  }
  const report: IntegrityReport = { failure };
  self.postMessage(report);
});
