// An open loop: requests start when their time has come, whether or not earlier ones have been answered, since users do not wait for
// each other. Only the number of open connections is bounded; who waits for one is late, and his time counts from when he
// should have been sent. What is sent, and what an answer means, is the caller's.

import type { Lengths } from "./load-schedule.ts";
import { failedAnswer, type StreamAnswer } from "./stream-answer.ts";

export interface PlannedRequest extends Lengths {
  /** From the start of the loop. */
  readonly arrivalMs: number;
  /** Of all requests of the loop. */
  readonly index: number;
}

/** All times in ms from the start of the loop. */
export interface LoadRecord extends PlannedRequest {
  /** null: never. */
  readonly sentMs: number | null;
  readonly answer: StreamAnswer;
}

export interface OpenLoop {
  /** In the order of arrival. */
  readonly requests: readonly PlannedRequest[];
  /** When the loop ends at the earliest; afterwards it waits for answers at most `drainMs`. */
  readonly durationMs: number;
  readonly drainMs: number;
  readonly connectionMax: number;
  /** Ends the loop at once. */
  readonly signal: AbortSignal;
  /** Must not reject, and must settle soon after its signal. */
  readonly send: (request: PlannedRequest, nowMs: () => number, signal: AbortSignal) => Promise<StreamAnswer>;
  readonly onProgress: (nowMs: number, openCount: number) => void;
}

/** Failures that are the loop's doing. */
export const UNFINISHED = "unfinished";
export const INTERRUPTED = "interrupted";

const PROGRESS_MS = 250;

/** Resolves at the time or when the signal is aborted, whichever is first. */
function sleep(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  const { promise, resolve } = Promise.withResolvers<void>();
  const wake = () => resolve();
  const timer = setTimeout(wake, ms);
  signal.addEventListener("abort", wake);
  return promise.finally(() => {
    clearTimeout(timer);
    signal.removeEventListener("abort", wake);
  });
}

/** Resolves with a record for each request, in the order of arrival, and the time at which the loop ended. */
export async function runOpenLoop(loop: OpenLoop): Promise<{ records: LoadRecord[]; endMs: number }> {
  const startMs = performance.now();
  const nowMs = () => performance.now() - startMs;
  const stopping = new AbortController();
  const records: LoadRecord[] = [];
  const ready: PlannedRequest[] = [];
  let [nextReady, openCount] = [0, 0];
  let onIdle = () => {};

  const start = async (request: PlannedRequest) => {
    openCount++;
    const sentMs = nowMs();
    const answer = await loop.send(request, nowMs, stopping.signal);
    records.push({ ...request, sentMs, answer });
    openCount--;
    startReady();
    if (openCount === 0) onIdle();
  };
  const startReady = () => {
    while (openCount < loop.connectionMax && !stopping.signal.aborted) {
      const request = ready[nextReady];
      if (request === undefined) return;
      nextReady++;
      void start(request);
    }
  };
  // A timer may fire early by a part of a millisecond, and nothing shall happen before its time.
  const sleepUntil = async (atMs: number) => {
    for (let ms = atMs - nowMs(); ms > 0 && !stopping.signal.aborted; ms = atMs - nowMs()) {
      await sleep(ms, stopping.signal);
    }
  };
  const idle = () => (openCount === 0 ? Promise.resolve() : new Promise<void>((resolve) => (onIdle = resolve)));

  const interrupt = () => stopping.abort(INTERRUPTED);
  if (loop.signal.aborted) interrupt();
  loop.signal.addEventListener("abort", interrupt, { once: true });
  const progress = setInterval(() => loop.onProgress(nowMs(), openCount), PROGRESS_MS);
  try {
    for (const request of loop.requests) {
      await sleepUntil(request.arrivalMs);
      if (stopping.signal.aborted) break;
      ready.push(request);
      startReady();
    }
    await sleepUntil(loop.durationMs);
    const drain = setTimeout(() => stopping.abort(UNFINISHED), loop.drainMs);
    await idle();
    clearTimeout(drain);
    const endMs = nowMs();
    for (const request of ready.slice(nextReady)) {
      records.push({ ...request, sentMs: null, answer: failedAnswer(String(stopping.signal.reason)) });
    }
    return { records: records.sort((a, b) => a.index - b.index), endMs };
  } finally {
    clearInterval(progress);
    loop.signal.removeEventListener("abort", interrupt);
  }
}
