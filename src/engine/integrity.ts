// Checksums of containers: at once, or in a thread of its own while the engine works. A tensor that differs makes the engine
// unhealthy: its answers can't be trusted.

import { DuetError } from "../base/errors.ts";
import { verifyTensors } from "../weights/container.ts";
import type { Container } from "../weights/header.ts";
import type { Engine } from "./engine.ts";

/** What integrity-worker.ts answers; failure null: all is well. */
export interface IntegrityReport {
  readonly failure: string | null;
}

/** Throws DuetError `container_corrupt` naming the first tensor whose bytes differ from its checksum. */
export function checkIntegrity(containers: readonly Container[]): void {
  for (const container of containers) {
    const [failure] = verifyTensors(container);
    if (failure === undefined) continue;
    throw new DuetError("container_corrupt", `tensor ${failure.name} differs from its checksum`, {
      where: container.path,
      expected: failure.expected,
      got: failure.got,
      next: "copy the container again, or pack the model again",
    });
  }
}

/** Checks in the background and tells the engine. Returns what stops it. */
export function watchIntegrity(containers: readonly Container[], engine: Engine): () => void {
  engine.integrity = "pending";
  const worker = new Worker(new URL("./integrity-worker.ts", import.meta.url));
  const settle = (failure: string | null) => {
    worker.terminate();
    engine.integrity = failure === null ? "verified" : "failed";
    if (failure !== null) engine.fail(failure);
  };
  worker.addEventListener("message", (event: MessageEvent<IntegrityReport>) => settle(event.data.failure));
  worker.addEventListener("error", (event) => settle(`the integrity check ended early: ${event.message}`));
  worker.postMessage(containers.map((container) => container.path));
  worker.unref();
  return () => worker.terminate();
}
