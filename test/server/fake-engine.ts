// A scripted engine on the test's own thread: it emits what the test says, keeps what it was asked, and counts what it holds, so that
// routes can be tested without a model.

import type { RequestError } from "../../src/base/errors.ts";
import type { EngineClient, OutputListener } from "../../src/engine/client.ts";
import type { ChoiceOutput, ChoiceUsage, EngineRequest, EngineStatus, StepReport } from "../../src/engine/messages.ts";

/** One output of one choice; what is left out is empty. */
export type ScriptedOutput = Partial<Omit<ChoiceOutput, "requestId" | "choiceIndex">>;

/** What a choice emits, one entry a step; a choice without finishReason in its last entry stays open until it is cancelled. */
export type Script = (request: EngineRequest, choiceIndex: number) => readonly ScriptedOutput[];

export const FAKE_USAGE: ChoiceUsage = {
  outputTokenCount: 2,
  draftedCount: 4,
  acceptedCount: 3,
  decodeMs: 2.5,
  cachedTokenCount: 1,
  prefillMs: 1.25,
  queueMs: 0.5,
};

export function tokensOf(text: string): number[] {
  return [...new TextEncoder().encode(text)];
}

/** One step for each piece of text, one token for each byte, then stop. */
export function says(...texts: readonly string[]): Script {
  return () => [
    ...texts.map((text) => ({ text, tokenIds: tokensOf(text) })),
    { finishReason: "stop" as const, usage: FAKE_USAGE },
  ];
}

interface Live {
  readonly request: EngineRequest;
  readonly listener: OutputListener;
  readonly open: Set<number>;
}

export class FakeEngine implements EngineClient {
  script: Script;
  /** Rejects the next submits. */
  refusal: RequestError | null = null;
  state: EngineStatus["state"] = "ready";
  readonly submitted: EngineRequest[] = [];
  readonly cancelled: string[] = [];
  readonly #live = new Map<string, Live>();
  readonly #stepListeners: ((report: StepReport) => void)[] = [];
  readonly #failureListeners: ((message: string) => void)[] = [];

  constructor(script: Script = says("Hello", " world")) {
    this.script = script;
  }

  get last(): EngineRequest {
    const request = this.submitted.at(-1);
    if (request === undefined) throw new Error("nothing was submitted");
    return request;
  }

  get liveCount(): number {
    return this.#live.size;
  }

  async submit(request: EngineRequest, listener: OutputListener): Promise<void> {
    if (this.refusal !== null) throw this.refusal;
    this.submitted.push(request);
    const open = new Set(Array.from({ length: request.choiceCount }, (_, index) => index));
    this.#live.set(request.requestId, { request, listener, open });
    void this.#play(request);
  }

  cancel(requestId: string): void {
    const live = this.#live.get(requestId);
    if (live === undefined) return;
    this.cancelled.push(requestId);
    for (const index of [...live.open]) this.emit(requestId, index, { finishReason: "cancelled", usage: FAKE_USAGE });
  }

  /** Emits by hand. */
  emit(requestId: string, choiceIndex: number, output: ScriptedOutput): void {
    const live = this.#live.get(requestId);
    if (live === undefined || !live.open.has(choiceIndex)) return;
    if (output.finishReason) live.open.delete(choiceIndex);
    if (live.open.size === 0) this.#live.delete(requestId);
    live.listener({
      requestId,
      choiceIndex,
      tokenIds: [],
      text: "",
      logprobs: null,
      finishReason: null,
      usage: null,
      stopString: null,
      errorMessage: null,
      ...output,
    });
  }

  fail(message: string): void {
    this.state = "unhealthy";
    this.#live.clear();
    for (const listener of this.#failureListeners) listener(message);
  }

  step(report: StepReport): void {
    for (const listener of this.#stepListeners) listener(report);
  }

  async status(): Promise<EngineStatus> {
    return this.lastStatus;
  }

  get lastStatus(): EngineStatus {
    return {
      state: this.state,
      unhealthyReason: this.state === "unhealthy" ? "scripted" : null,
      device: {
        kind: "reference",
        summary: "scripted",
        isa: "none",
        laneCount: 1,
        dies: ["scripted", "scripted"],
        ops: { matmul: "scripted" },
        warnings: [],
      },
      modelName: "fake",
      draftModelName: null,
      containerFingerprint: "0123456789abcdef0123456789abcdef",
      kvType: "f16",
      contextMax: 512,
      kvBlockCount: 64,
      kvBlocksUsed: this.#live.size,
      kvBlocksCached: 0,
      waitingCount: 0,
      runningCount: this.#live.size,
      sequences: [],
      totals: {
        stepCount: 7,
        prefillTokenCount: 0,
        cachedTokenCount: 0,
        outputTokenCount: 0,
        draftedCount: 9,
        acceptedCount: 5,
        verifyCount: 0,
        preemptionCount: 0,
        cancelledCount: this.cancelled.length,
        finishedCount: 0,
        stepMs: 0,
        draftMs: 0,
        weightBytesRead: 0,
        distinctExperts: 0,
        expertLayers: 0,
        proposers: { ngram: { draftedCount: 9, acceptedCount: 5 } },
      },
      weightBytes: 1,
      kvBytes: 1,
      integrity: "off",
    };
  }

  onStep(listener: (report: StepReport) => void): void {
    this.#stepListeners.push(listener);
  }

  onFailure(listener: (message: string) => void): void {
    this.#failureListeners.push(listener);
  }

  async drain(deadlineMs: number): Promise<void> {
    this.state = "draining";
    const endMs = performance.now() + deadlineMs;
    while (this.#live.size > 0 && performance.now() < endMs) await Bun.sleep(1);
    for (const requestId of [...this.#live.keys()]) this.cancel(requestId);
  }

  async close(): Promise<void> {}

  async #play(request: EngineRequest): Promise<void> {
    const scripts = Array.from({ length: request.choiceCount }, (_, index) => this.script(request, index));
    const stepMax = Math.max(...scripts.map((script) => script.length));
    for (let step = 0; step < stepMax; step++) {
      await new Promise((resolve) => setImmediate(resolve));
      for (const [index, script] of scripts.entries()) {
        const output = script[step];
        if (output !== undefined) this.emit(request.requestId, index, output);
      }
    }
  }
}
