// An open engine with its step loop, as the thread that runs it holds it: the same for the worker and for an engine on the
// caller's thread.

import type { CancelWords } from "./cancel-words.ts";
import type { EngineOptions } from "./client.ts";
import type { Engine } from "./engine.ts";
import type { EngineEvents } from "./engine-parts.ts";
import type { EngineRequest, EngineStatus } from "./messages.ts";
import { openEngine, type OpenEngine } from "./open.ts";
import { StepLoop } from "./step-loop.ts";

export class EngineHost {
  readonly #open: OpenEngine;
  readonly #engine: Engine;
  readonly #loop: StepLoop;
  #whenIdle: (() => void)[] = [];

  /** Throws what openEngine throws. */
  static async open(options: EngineOptions, words: CancelWords, events: EngineEvents): Promise<EngineHost> {
    return new EngineHost(await openEngine(options, words, events), words);
  }

  constructor(open: OpenEngine, words: CancelWords) {
    this.#open = open;
    this.#engine = open.engine;
    this.#loop = new StepLoop(open.engine, words, () => this.#settleIdle());
  }

  /** Throws RequestError. */
  submit(request: EngineRequest): void {
    this.#engine.submit(request);
    this.#loop.wake();
  }

  cancel(requestId: string): void {
    this.#engine.cancel(requestId);
  }

  status(): EngineStatus {
    return this.#engine.status();
  }

  /** Refuses new requests and resolves when all are finished; those left after deadlineMs are cancelled. */
  async drain(deadlineMs: number): Promise<void> {
    this.#engine.startDraining();
    if (!this.#engine.hasWork) return;
    const timer = setTimeout(() => this.#engine.cancelAll(), deadlineMs);
    await new Promise<void>((resolve) => this.#whenIdle.push(resolve));
    clearTimeout(timer);
  }

  close(): void {
    this.#engine.startDraining();
    this.#engine.cancelAll();
    this.#loop.close();
    this.#settleIdle();
    this.#open.close();
  }

  #settleIdle(): void {
    const waiting = this.#whenIdle;
    this.#whenIdle = [];
    for (const resolve of waiting) resolve();
  }
}
