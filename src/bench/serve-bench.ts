// Load on one server at one rate after the other: plans the requests, runs the open loop, and sums up what came back. It chooses
// no server and prints nothing.

import { createUniform } from "../base/prng.ts";
import { type RequestForm, requestBody, streamAnswer, type Target, usableContext } from "./load-client.ts";
import type { PromptSource } from "./load-prompts.ts";
import { drawLengths, fitContext, type LengthMix, poissonArrivals } from "./load-schedule.ts";
import { type Slo, summarise } from "./load-summary.ts";
import { type PlannedRequest, runOpenLoop } from "./open-loop.ts";
import { type RateLine, requestLine } from "./serve-report.ts";

export interface ServeBenchOptions {
  readonly target: Target;
  readonly form: RequestForm;
  readonly prompts: PromptSource;
  readonly mix: LengthMix;
  /** Requests a second. */
  readonly rates: readonly number[];
  readonly seconds: number;
  readonly warmUpSeconds: number;
  readonly drainSeconds: number;
  readonly connectionMax: number;
  readonly slo: Slo;
  readonly seed: number;
  /** Ends everything at once; what is there is summed up. */
  readonly signal: AbortSignal;
  readonly onProgress: (doneSeconds: number, totalSeconds: number, note: string) => void;
}

/** Streams of random numbers: keys differ for every seed up to a million, rate and use. */
const STREAMS_PER_SEED = 4096;
const STREAMS_PER_RATE = 4;
const ARRIVALS = 0;
const LENGTHS = 1;
const PROMPTS = 2;

const stream = (seed: number, rateIndex: number, use: number) =>
  createUniform(seed * STREAMS_PER_SEED + rateIndex * STREAMS_PER_RATE + use);

/** The requests of a rate. All rates of a seed share gaps (stretched) and lengths, so that they differ in the rate alone. */
export function planRequests(
  mix: LengthMix,
  rate: number,
  durationMs: number,
  seed: number,
  contextTokens: number,
): PlannedRequest[] {
  const lengths = stream(seed, 0, LENGTHS);
  return poissonArrivals(rate, durationMs, stream(seed, 0, ARRIVALS)).map((arrivalMs, index) => ({
    ...fitContext(drawLengths(mix, lengths), contextTokens),
    arrivalMs,
    index,
  }));
}

/** A line for each rate; fewer when the signal came first. */
export async function runServeBench(options: ServeBenchOptions): Promise<RateLine[]> {
  const { target, form, rates, warmUpSeconds, seconds, signal } = options;
  const durationMs = (warmUpSeconds + seconds) * 1000;
  const contextTokens = usableContext(form);
  const lines: RateLine[] = [];
  for (const [rateIndex, rate] of rates.entries()) {
    if (signal.aborted) break;
    // Prompts differ from rate to rate: nothing shall be found in a prefix cache that another rate has filled.
    const uniform = stream(options.seed, rateIndex, PROMPTS);
    const { records, endMs } = await runOpenLoop({
      requests: planRequests(options.mix, rate, durationMs, options.seed, contextTokens),
      durationMs,
      drainMs: options.drainSeconds * 1000,
      connectionMax: options.connectionMax,
      signal,
      send(request, nowMs, stopping) {
        const prompt = options.prompts.draw(request.promptTokens, uniform);
        const seed = (rateIndex * 1e6 + request.index) % 2 ** 31;
        return streamAnswer(target, form.api, requestBody(form, prompt, request.outputTokens, seed), nowMs, stopping);
      },
      onProgress(nowMs, openCount) {
        const done = rateIndex * durationMs + Math.min(nowMs, durationMs);
        const note = `${rate} requests/s, ${openCount} open`;
        options.onProgress(done / 1000, (rates.length * durationMs) / 1000, note);
      },
    });
    const window = { fromMs: warmUpSeconds * 1000, toMs: Math.min(durationMs, endMs) };
    if (window.toMs <= window.fromMs) break;
    const isInside = (arrivalMs: number) => arrivalMs >= window.fromMs && arrivalMs < window.toMs;
    lines.push({
      ...summarise(records, rate, window, options.slo),
      requests: records.filter(({ arrivalMs }) => isInside(arrivalMs)).map(requestLine),
    });
  }
  return lines;
}
