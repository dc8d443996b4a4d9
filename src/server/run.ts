// One call on its way through the engine: submits its requests, hands on what they emit, and ends once: when every choice has
// finished, something failed, or the caller went away (then the engine is told at once). It knows nothing of formats.

import { defined } from "../base/assert.ts";
import type { Clock } from "../base/clock.ts";
import { RequestError } from "../base/errors.ts";
import type { EngineClient } from "../engine/client.ts";
import type { ChoiceOutput, ChoiceUsage } from "../engine/messages.ts";
import type { Generation } from "./generation.ts";
import type { ActiveAnswer, Lifecycle } from "./lifecycle.ts";
import type { GenerationMetrics } from "./metrics.ts";
import { sumUsage } from "./usage.ts";
import type { Usage } from "./usage.ts";

export interface RunServices {
  readonly engine: EngineClient;
  readonly lifecycle: Lifecycle;
  readonly metrics: GenerationMetrics;
  readonly clock: Clock;
}

/** Receives the outputs of the answer's choices (`choiceIndex` over all prompts), then the end. */
export interface RunListener {
  output(choiceIndex: number, output: ChoiceOutput): void;
  /** Once. `failure` is what the caller should be told, if anything failed. */
  end(failure: RequestError | null): void;
}

export class Run implements ActiveAnswer {
  readonly generation: Generation;
  readonly #services: RunServices;
  readonly #listener: RunListener;
  readonly #usages: (ChoiceUsage | null)[];
  /** Time of the last output per choice; 0: none yet. */
  readonly #lastMs: number[];
  readonly #startMs: number;
  #openCount: number;
  #hasOutput = false;
  #hasEnded = false;

  constructor(generation: Generation, services: RunServices, listener: RunListener) {
    const count = generation.requests.length * generation.choiceCount;
    this.generation = generation;
    this.#services = services;
    this.#listener = listener;
    this.#usages = new Array<ChoiceUsage | null>(count).fill(null);
    this.#lastMs = new Array<number>(count).fill(0);
    this.#startMs = services.clock.nowMs();
    this.#openCount = count;
  }

  get hasEnded(): boolean {
    return this.#hasEnded;
  }

  /** Queues all requests at once, so that they share steps. Rejects, with nothing left in the engine, when one is refused. */
  async start(): Promise<void> {
    const { engine, lifecycle, metrics } = this.#services;
    const { requests, choiceCount } = this.generation;
    lifecycle.checkReady();
    lifecycle.enter(this);
    const queued = await Promise.allSettled(
      requests.map((request, i) =>
        engine.submit(request, (output) => this.#take(i * choiceCount + output.choiceIndex, output)),
      ),
    );
    const refused = queued.find((result) => result.status === "rejected");
    if (refused !== undefined) {
      this.#close();
      this.#cancelAll();
      throw refused.reason;
    }
    // The caller may have gone away before the engine knew of every request.
    if (this.#hasEnded) this.#cancelAll();
    for (const { promptTokens } of requests) metrics.promptTokens(promptTokens.length);
  }

  /** The caller went away: ends at once, and the engine within a layer. */
  abandon(): void {
    this.#end(null);
  }

  fail(message: string): void {
    this.#end(new RequestError(503, message, null, "engine_unhealthy"));
  }

  usage(): Usage {
    const { requests, choiceCount } = this.generation;
    return sumUsage(
      requests.map((request) => request.promptTokens.length),
      requests.map((_, i) => this.#usages.slice(i * choiceCount, (i + 1) * choiceCount)),
    );
  }

  #take(index: number, output: ChoiceOutput): void {
    if (this.#hasEnded) return;
    this.#measure(index, output.tokenIds.length);
    if (output.finishReason === "error") {
      const message = `the engine failed while answering: ${output.errorMessage ?? "no reason given"}`;
      this.#end(new RequestError(500, message, null, "generation_failed"));
      return;
    }
    if (output.finishReason !== null) {
      this.#openCount -= 1;
      this.#usages[index] = output.usage;
    }
    this.#listener.output(index, output);
    if (this.#openCount === 0) this.#end(null);
  }

  #measure(index: number, tokenCount: number): void {
    if (tokenCount === 0) return;
    const { metrics, clock } = this.#services;
    const nowMs = clock.nowMs();
    const lastMs = defined(this.#lastMs[index]);
    if (!this.#hasOutput) metrics.firstToken(nowMs - this.#startMs);
    if (lastMs > 0) metrics.betweenTokens((nowMs - lastMs) / tokenCount, tokenCount);
    this.#hasOutput = true;
    this.#lastMs[index] = nowMs;
    metrics.outputTokens(tokenCount);
  }

  #end(failure: RequestError | null): void {
    if (this.#hasEnded) return;
    // First, as the engine may report the cancelled choices at once.
    this.#close();
    if (this.#openCount > 0) this.#cancelAll();
    this.#services.metrics.answered(this.#services.clock.nowMs() - this.#startMs);
    this.#listener.end(failure);
  }

  #close(): void {
    this.#hasEnded = true;
    this.#services.lifecycle.leave(this);
  }

  #cancelAll(): void {
    for (const request of this.generation.requests) this.#services.engine.cancel(request.requestId);
  }
}
