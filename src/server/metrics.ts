// Prometheus metrics. Labels come from closed sets only (known routes, statuses, proposers), so that no caller can make series grow.
// Gauges and totals are read from the engine's status when they are scraped.

import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { EngineClient } from "../engine/client.ts";
import type { EngineStatus } from "../engine/messages.ts";

/** What a Run reports. Times in ms. */
export interface GenerationMetrics {
  promptTokens(count: number): void;
  outputTokens(count: number): void;
  firstToken(ms: number): void;
  /** Mean time of each of `count` tokens that came together. */
  betweenTokens(ms: number, count: number): void;
  answered(ms: number): void;
}

const SECONDS_LATENCY = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];
const SECONDS_TOKEN = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5];

export class Metrics implements GenerationMetrics {
  readonly #registry = new Registry();
  readonly #requests: Counter<"route" | "status">;
  readonly #promptTokens: Counter;
  readonly #outputTokens: Counter;
  readonly #ttft: Histogram;
  readonly #itl: Histogram;
  readonly #answer: Histogram;

  constructor(engine: EngineClient) {
    this.#requests = new Counter({
      ...this.#named("duet_http_requests_total", "HTTP requests answered, by route and status"),
      labelNames: ["route", "status"],
    });
    this.#promptTokens = new Counter(this.#named("duet_prompt_tokens_total", "Prompt tokens of accepted requests"));
    this.#outputTokens = new Counter(this.#named("duet_output_tokens_total", "Output tokens emitted"));
    this.#ttft = this.#histogram("duet_ttft_seconds", "From a request's arrival to its first token", SECONDS_LATENCY);
    this.#itl = this.#histogram("duet_itl_seconds", "Between a choice's tokens", SECONDS_TOKEN);
    this.#answer = this.#histogram("duet_answer_seconds", "From a request's arrival to its end", SECONDS_LATENCY);
    const step = this.#histogram("duet_step_seconds", "Engine steps, drafts included", SECONDS_TOKEN);
    const rows = this.#histogram("duet_step_rows", "Rows of a step", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]);
    engine.onStep((report) => {
      step.observe(report.stepMs / 1000);
      rows.observe(report.rowCount);
    });

    this.#gauge(engine, "duet_requests_running", "Sequences that run", (status) => status.runningCount);
    this.#gauge(engine, "duet_requests_waiting", "Sequences in the queue", (status) => status.waitingCount);
    this.#gauge(engine, "duet_kv_blocks", "kvBlocks in all", (status) => status.kvBlockCount);
    this.#gauge(engine, "duet_kv_blocks_used", "kvBlocks held by sequences", (status) => status.kvBlocksUsed);
    this.#gauge(engine, "duet_kv_blocks_cached", "kvBlocks held by the prefix index only", (s) => s.kvBlocksCached);
    this.#gauge(engine, "duet_ready", "1 when the engine takes requests", (s) => (s.state === "ready" ? 1 : 0));
    this.#total(engine, "duet_steps_total", "Engine steps", (status) => status.totals.stepCount);
    this.#total(
      engine,
      "duet_cached_tokens_total",
      "Prompt tokens that the prefix index supplied",
      (status) => status.totals.cachedTokenCount,
    );
    this.#total(engine, "duet_preemptions_total", "Sequences preempted", (status) => status.totals.preemptionCount);
    this.#total(engine, "duet_cancelled_total", "Sequences cancelled", (status) => status.totals.cancelledCount);
    this.#total(engine, "duet_finished_total", "Sequences finished", (status) => status.totals.finishedCount);
    this.#byProposer(engine, "duet_draft_tokens_proposed_total", "Draft tokens verified", (p) => p.draftedCount);
    this.#byProposer(engine, "duet_draft_tokens_accepted_total", "Draft tokens accepted", (p) => p.acceptedCount);
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** The exposition text. */
  text(): Promise<string> {
    return this.#registry.metrics();
  }

  /** `route` is one of the server's own routes or "other". */
  request(route: string, httpStatus: number): void {
    this.#requests.inc({ route, status: String(httpStatus) });
  }

  promptTokens(count: number): void {
    this.#promptTokens.inc(count);
  }

  outputTokens(count: number): void {
    this.#outputTokens.inc(count);
  }

  firstToken(ms: number): void {
    this.#ttft.observe(ms / 1000);
  }

  betweenTokens(ms: number, count: number): void {
    for (let i = 0; i < count; i++) this.#itl.observe(ms / 1000);
  }

  answered(ms: number): void {
    this.#answer.observe(ms / 1000);
  }

  #named(name: string, help: string) {
    return { name, help, registers: [this.#registry] };
  }

  #histogram(name: string, help: string, buckets: number[]): Histogram {
    return new Histogram({ ...this.#named(name, help), buckets });
  }

  #gauge(engine: EngineClient, name: string, help: string, read: (status: EngineStatus) => number): void {
    new Gauge({
      ...this.#named(name, help),
      collect() {
        this.set(read(engine.lastStatus));
      },
    });
  }

  #total(engine: EngineClient, name: string, help: string, read: (status: EngineStatus) => number): void {
    new Counter({
      ...this.#named(name, help),
      collect() {
        this.reset();
        this.inc(read(engine.lastStatus));
      },
    });
  }

  #byProposer(
    engine: EngineClient,
    name: string,
    help: string,
    read: (counts: { readonly draftedCount: number; readonly acceptedCount: number }) => number,
  ): void {
    new Counter({
      ...this.#named(name, help),
      labelNames: ["proposer"],
      collect() {
        this.reset();
        for (const [proposer, counts] of Object.entries(engine.lastStatus.totals.proposers)) {
          this.inc({ proposer }, read(counts));
        }
      },
    });
  }
}
