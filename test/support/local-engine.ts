// An engine on the caller's thread: for tests. A step blocks the caller's event loop.

import { CancelWords } from "../../src/engine/cancel-words.ts";
import type { EngineClient, EngineOptions, OutputListener } from "../../src/engine/client.ts";
import { EngineHost } from "../../src/engine/host.ts";
import type { EngineRequest, EngineStatus, StepReport } from "../../src/engine/messages.ts";
import { OutputRouter } from "../../src/engine/output-router.ts";

/** Throws DuetError when the engine can't be opened. */
export async function startLocalEngine(options: EngineOptions): Promise<EngineClient> {
  const router = new OutputRouter();
  const stepListeners: ((report: StepReport) => void)[] = [];
  const failureListeners: ((message: string) => void)[] = [];
  const host = await EngineHost.open(options, new CancelWords(), {
    onOutputs(outputs, report) {
      router.dispatch(outputs);
      if (report !== null) for (const listener of stepListeners) listener(report);
    },
    onFailure(message) {
      for (const listener of failureListeners) listener(message);
    },
  });
  return new LocalEngine(host, router, stepListeners, failureListeners);
}

class LocalEngine implements EngineClient {
  #isClosed = false;
  #lastStatus: EngineStatus;

  constructor(
    private readonly host: EngineHost,
    private readonly router: OutputRouter,
    private readonly stepListeners: ((report: StepReport) => void)[],
    private readonly failureListeners: ((message: string) => void)[],
  ) {
    this.#lastStatus = host.status();
  }

  get lastStatus(): EngineStatus {
    return this.#isClosed ? this.#lastStatus : this.host.status();
  }

  async submit(request: EngineRequest, listener: OutputListener): Promise<void> {
    this.host.submit(request);
    this.router.add(request.requestId, request.choiceCount, listener);
  }

  cancel(requestId: string): void {
    this.host.cancel(requestId);
  }

  async status(): Promise<EngineStatus> {
    return this.lastStatus;
  }

  onStep(listener: (report: StepReport) => void): void {
    this.stepListeners.push(listener);
  }

  onFailure(listener: (message: string) => void): void {
    this.failureListeners.push(listener);
  }

  drain(deadlineMs: number): Promise<void> {
    return this.host.drain(deadlineMs);
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.host.close();
    this.#lastStatus = this.host.status();
    this.#isClosed = true;
  }
}
