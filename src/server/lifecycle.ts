// Whether new work is taken, and what is running: draining at the end, failing when the engine has failed. It owns the set of active
// answers; it does not own the engine.

import { RequestError } from "../base/errors.ts";
import type { EngineClient } from "../engine/client.ts";

/** An answer that waits for the engine. */
export interface ActiveAnswer {
  /** The engine is gone: end the answer with this message. */
  fail(message: string): void;
}

/** How long answers may take to leave after the engine has finished or cancelled everything. */
const LEAVE_MS = 2_000;

export class Lifecycle {
  readonly #engine: EngineClient;
  readonly #active = new Set<ActiveAnswer>();
  #isDraining = false;
  #failure: string | null = null;
  #whenIdle: (() => void) | null = null;

  constructor(engine: EngineClient) {
    this.#engine = engine;
    engine.onFailure((message) => {
      this.#failure = message;
      for (const answer of [...this.#active]) answer.fail(message);
    });
  }

  get activeCount(): number {
    return this.#active.size;
  }

  get isDraining(): boolean {
    return this.#isDraining;
  }

  /** Why no new work is taken, or null when it is. */
  get unreadyReason(): string | null {
    if (this.#failure !== null) return `the engine has failed: ${this.#failure}`;
    if (this.#isDraining) return "the server is shutting down";
    const { state, unhealthyReason } = this.#engine.lastStatus;
    if (state === "ready") return null;
    return state === "draining"
      ? "the engine is draining"
      : `the engine is unhealthy: ${unhealthyReason ?? "no reason given"}`;
  }

  /** Throws RequestError 503 when no new work is taken. */
  checkReady(): void {
    const reason = this.unreadyReason;
    if (reason !== null) throw new RequestError(503, reason, null, this.#isDraining ? "draining" : "engine_unhealthy");
  }

  enter(answer: ActiveAnswer): void {
    this.#active.add(answer);
  }

  leave(answer: ActiveAnswer): void {
    this.#active.delete(answer);
    if (this.#active.size === 0) this.#whenIdle?.();
  }

  /** Refuses new work, lets running answers finish for at most deadlineMs, has the rest cancelled. Never rejects. */
  async drain(deadlineMs: number): Promise<void> {
    this.#isDraining = true;
    const idle = new Promise<void>((resolve) => {
      this.#whenIdle = resolve;
      if (this.#active.size === 0) resolve();
    });
    const engineDone = this.#engine.drain(deadlineMs).catch(() => {});
    await withTimeout(Promise.all([engineDone, idle]), deadlineMs + LEAVE_MS);
  }
}

/** Resolves when `promise` does or after `ms`, whichever comes first. */
export async function withTimeout(promise: Promise<unknown>, ms: number): Promise<void> {
  const { promise: timeout, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  await Promise.race([promise, timeout]);
  clearTimeout(timer);
}
