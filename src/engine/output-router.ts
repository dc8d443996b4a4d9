// Who listens to which request, on the side that submitted it.

import type { OutputListener } from "./client.ts";
import type { ChoiceOutput } from "./messages.ts";

interface Route {
  readonly listener: OutputListener;
  /** By choice: it has its finish reason. */
  readonly isFinished: boolean[];
}

export class OutputRouter {
  readonly #routes = new Map<string, Route>();

  add(requestId: string, choiceCount: number, listener: OutputListener): void {
    this.#routes.set(requestId, { listener, isFinished: Array.from({ length: choiceCount }, () => false) });
  }

  remove(requestId: string): void {
    this.#routes.delete(requestId);
  }

  has(requestId: string): boolean {
    return this.#routes.has(requestId);
  }

  dispatch(outputs: readonly ChoiceOutput[]): void {
    for (const output of outputs) {
      const route = this.#routes.get(output.requestId);
      if (route === undefined) continue;
      if (output.finishReason !== null) {
        route.isFinished[output.choiceIndex] = true;
        if (route.isFinished.every(Boolean)) this.#routes.delete(output.requestId);
      }
      route.listener(output);
    }
  }

  /** The engine is gone: every choice that is not finished ends with an error. */
  fail(errorMessage: string): void {
    for (const [requestId, route] of this.#routes) {
      this.#routes.delete(requestId);
      for (const [choiceIndex, isFinished] of route.isFinished.entries()) {
        if (isFinished) continue;
        route.listener({
          requestId,
          choiceIndex,
          tokenIds: [],
          text: "",
          logprobs: null,
          finishReason: "error",
          usage: null,
          stopString: null,
          errorMessage,
        });
      }
    }
  }
}
