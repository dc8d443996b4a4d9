// When a native call has hung: a call can't be stopped from outside, so all that is left is to say so, which ends the process for
// its supervisor. Pure bookkeeping over times that it is given; who asks, and what follows, is the caller's.

/** Silence of an engine with work after which its call counts as hung; a step of a large model on few cores takes seconds. */
const SILENCE_MS = 300_000;
/** What a request's own deadline is given on top before the engine's silence counts. */
const DEADLINE_GRACE_MS = 5_000;

interface Limit {
  /** When the request should have ended; Infinity: it may take for ever. */
  readonly deadlineMs: number;
  isOverdue: boolean;
}

export class Watchdog {
  readonly #limits = new Map<string, Limit>();
  #heardMs = 0;

  /** A request was submitted; deadlineMs counts from now, null: it has none. */
  add(requestId: string, deadlineMs: number | null, nowMs: number): void {
    if (this.#limits.size === 0) this.#heardMs = nowMs;
    this.#limits.set(requestId, { deadlineMs: nowMs + (deadlineMs ?? Infinity), isOverdue: false });
  }

  /** The engine's thread said something. */
  hear(nowMs: number): void {
    this.#heardMs = nowMs;
  }

  /** Why the engine counts as hung; null while it doesn't. `isActive`: the request has not finished. */
  verdict(nowMs: number, isActive: (requestId: string) => boolean): string | null {
    let limitMs = this.#heardMs + SILENCE_MS;
    for (const [requestId, { deadlineMs }] of this.#limits) {
      if (!isActive(requestId)) this.#limits.delete(requestId);
      else if (this.#heardMs < deadlineMs) limitMs = Math.min(limitMs, deadlineMs + DEADLINE_GRACE_MS);
    }
    if (this.#limits.size === 0 || nowMs < limitMs) return null;
    return `a step has not returned for ${Math.round((nowMs - this.#heardMs) / 1000)} s`;
  }

  /** Whether some request's deadline has passed within the step under way: true once for each, for the step to be aborted. */
  isOverdue(nowMs: number): boolean {
    let isNew = false;
    for (const limit of this.#limits.values()) {
      if (limit.isOverdue || nowMs < limit.deadlineMs || this.#heardMs >= limit.deadlineMs) continue;
      limit.isOverdue = true;
      isNew = true;
    }
    return isNew;
  }
}
