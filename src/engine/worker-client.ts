// The engine in a Bun Worker of its own, seen from the HTTP thread. It owns the worker, the promises that wait for it, the
// shared cancel words, and the watchdog over steps that don't return.

import { DuetError, type DuetErrorCode, RequestError } from "../base/errors.ts";
import type { LoadingListener } from "../device/cpu/residency.ts";
import { CANCEL_WORDS_BYTES, CancelWords } from "./cancel-words.ts";
import type { EngineClient, EngineOptions, OutputListener } from "./client.ts";
import type { EngineRequest, EngineStatus, FromEngine, StepReport, ToEngine } from "./messages.ts";
import { OutputRouter } from "./output-router.ts";
import { Watchdog } from "./watchdog.ts";

/** How long a worker may take to end once everything is cancelled; a step can't be interrupted from outside for longer. */
const CLOSE_MS = 5_000;
const WATCH_MS = 1_000;

/** Starts the worker and opens the engine in it. Throws DuetError when it can't be opened. */
export async function startWorkerEngine(options: EngineOptions, onLoading?: LoadingListener): Promise<EngineClient> {
  const worker = new Worker(new URL("./worker.ts", import.meta.url));
  const shared = new SharedArrayBuffer(CANCEL_WORDS_BYTES);
  try {
    const status = await waitUntilReady(worker, { type: "open", options, words: shared }, onLoading);
    return new WorkerEngine(worker, new CancelWords(shared), status);
  } catch (error) {
    worker.terminate();
    throw error;
  }
}

function waitUntilReady(worker: Worker, open: ToEngine, onLoading?: LoadingListener): Promise<EngineStatus> {
  const { promise, resolve, reject } = Promise.withResolvers<EngineStatus>();
  const crash = (why: string) =>
    reject(new DuetError("engine_unhealthy", `the engine's worker ended at start: ${why}`));
  worker.addEventListener("message", (event: MessageEvent<FromEngine>) => {
    const message = event.data;
    if (message.type === "ready") resolve(message.status);
    else if (message.type === "loading") onLoading?.(message.bytesDone, message.bytesTotal);
    else if (message.type === "failed") reject(new DuetError(message.code as DuetErrorCode, message.message));
  });
  worker.addEventListener("error", (event) => crash(event.message));
  worker.addEventListener("close", () => crash("no reason given"));
  worker.postMessage(open);
  return promise;
}

interface Waiter<T> {
  resolve(value: T): void;
  reject(error: Error): void;
}

class WorkerEngine implements EngineClient {
  readonly #worker: Worker;
  readonly #words: CancelWords;
  readonly #router = new OutputRouter();
  readonly #watchdog = new Watchdog();
  readonly #watchTimer: Timer;
  readonly #stepListeners: ((report: StepReport) => void)[] = [];
  readonly #failureListeners: ((message: string) => void)[] = [];
  readonly #submitting = new Map<string, Waiter<void>>();
  readonly #statusWaiters = new Map<number, Waiter<EngineStatus>>();
  #whenDrained: (() => void)[] = [];
  #whenClosed: () => void = () => {};
  #lastStatus: EngineStatus;
  #replyCount = 0;
  #failure: string | null = null;
  #isClosing = false;

  constructor(worker: Worker, words: CancelWords, status: EngineStatus) {
    this.#worker = worker;
    this.#words = words;
    this.#lastStatus = status;
    this.#watchTimer = setInterval(() => this.#watch(), WATCH_MS);
    this.#watchTimer.unref();
    worker.addEventListener("message", (event: MessageEvent<FromEngine>) => {
      this.#watchdog.hear(performance.now());
      this.#receive(event.data);
    });
    worker.addEventListener("error", (event) => this.#fail(`the engine's worker crashed: ${event.message}`));
    worker.addEventListener("close", () => {
      if (!this.#isClosing) this.#fail("the engine's worker ended");
      this.#whenClosed();
    });
  }

  get lastStatus(): EngineStatus {
    return this.#lastStatus;
  }

  submit(request: EngineRequest, listener: OutputListener): Promise<void> {
    const { requestId } = request;
    if (this.#failure !== null) return Promise.reject(unhealthy(this.#failure));
    if (this.#isClosing) return Promise.reject(new RequestError(503, "the engine is closed", null, "engine_draining"));
    if (this.#router.has(requestId)) {
      return Promise.reject(new RequestError(400, `request ${requestId} is running already`, "requestId"));
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#router.add(requestId, request.choiceCount, listener);
    this.#submitting.set(requestId, { resolve, reject });
    this.#watchdog.add(requestId, request.deadlineMs, performance.now());
    this.#send({ type: "submit", request });
    return promise;
  }

  cancel(requestId: string): void {
    if (this.#failure !== null || !this.#router.has(requestId)) return;
    this.#words.announce();
    this.#send({ type: "cancel", requestId });
  }

  status(): Promise<EngineStatus> {
    if (this.#failure !== null || this.#isClosing) return Promise.resolve(this.#lastStatus);
    const replyId = this.#replyCount++;
    const { promise, resolve, reject } = Promise.withResolvers<EngineStatus>();
    this.#statusWaiters.set(replyId, { resolve, reject });
    this.#send({ type: "status", replyId });
    return promise;
  }

  onStep(listener: (report: StepReport) => void): void {
    this.#stepListeners.push(listener);
  }

  onFailure(listener: (message: string) => void): void {
    this.#failureListeners.push(listener);
  }

  async drain(deadlineMs: number): Promise<void> {
    if (this.#failure !== null || this.#isClosing) return;
    this.#send({ type: "drain", deadlineMs });
    const timeout = Promise.withResolvers<void>();
    const timer = setTimeout(timeout.resolve, deadlineMs + CLOSE_MS);
    await Promise.race([new Promise<void>((resolve) => this.#whenDrained.push(resolve)), timeout.promise]);
    clearTimeout(timer);
  }

  async close(): Promise<void> {
    if (this.#isClosing) return;
    this.#isClosing = true;
    clearInterval(this.#watchTimer);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#whenClosed = resolve;
    // A step under way ends within a layer; its announcement stays unseen, so that no other starts.
    this.#words.announce();
    this.#send({ type: "close" });
    const timer = setTimeout(resolve, CLOSE_MS);
    await promise;
    clearTimeout(timer);
    this.#worker.terminate();
    for (const [requestId, waiter] of this.#submitting) {
      this.#router.remove(requestId);
      waiter.reject(new RequestError(503, "the engine is closed", null, "engine_draining"));
    }
    this.#router.fail("the engine is closed");
    for (const waiter of this.#statusWaiters.values()) waiter.resolve(this.#lastStatus);
    this.#settleDrained();
  }

  #watch(): void {
    const verdict = this.#watchdog.verdict(performance.now(), (requestId) => this.#router.has(requestId));
    if (verdict !== null) return this.#fail(verdict);
    if (!this.#watchdog.isOverdue(performance.now())) return;
    // The step under way ends within a layer, and the engine sees the deadline before the next.
    this.#words.announce();
    this.#send({ type: "abort" });
  }

  #send(message: ToEngine): void {
    this.#worker.postMessage(message);
  }

  #receive(message: FromEngine): void {
    switch (message.type) {
      case "step":
        this.#router.dispatch(message.outputs);
        if (message.report !== null) for (const listener of this.#stepListeners) listener(message.report);
        return;
      case "queued":
        this.#submitting.get(message.requestId)?.resolve();
        this.#submitting.delete(message.requestId);
        return;
      case "rejected": {
        const { requestId, httpStatus, param, code } = message;
        this.#router.remove(requestId);
        this.#submitting.get(requestId)?.reject(new RequestError(httpStatus, message.message, param, code));
        this.#submitting.delete(requestId);
        return;
      }
      case "status":
        this.#lastStatus = message.status;
        this.#statusWaiters.get(message.replyId)?.resolve(message.status);
        this.#statusWaiters.delete(message.replyId);
        return;
      case "drained":
        this.#settleDrained();
        return;
      case "closed":
        this.#whenClosed();
        return;
      case "failed":
        this.#fail(message.message);
        return;
      case "ready":
      case "loading":
        return;
    }
  }

  /** The engine is gone for good: whoever waits for it gets to know. */
  #fail(message: string): void {
    if (this.#failure !== null) return;
    this.#failure = message;
    clearInterval(this.#watchTimer);
    this.#lastStatus = { ...this.#lastStatus, state: "unhealthy", unhealthyReason: message };
    // Who has not been queued yet is refused, before any output.
    for (const [requestId, waiter] of this.#submitting) {
      this.#router.remove(requestId);
      waiter.reject(unhealthy(message));
    }
    this.#router.fail(message);
    for (const waiter of this.#statusWaiters.values()) waiter.resolve(this.#lastStatus);
    this.#submitting.clear();
    this.#statusWaiters.clear();
    this.#settleDrained();
    for (const listener of this.#failureListeners) listener(message);
  }

  #settleDrained(): void {
    const waiting = this.#whenDrained;
    this.#whenDrained = [];
    for (const resolve of waiting) resolve();
  }
}

function unhealthy(message: string): RequestError {
  return new RequestError(503, `the engine has failed: ${message}`, null, "engine_unhealthy");
}
