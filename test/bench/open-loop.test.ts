// Times are real here, and none is asserted: only order, bounds and what must not come before its time.
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { INTERRUPTED, type OpenLoop, type PlannedRequest, runOpenLoop, UNFINISHED } from "../../src/bench/open-loop.ts";
import { failedAnswer, type StreamAnswer } from "../../src/bench/stream-answer.ts";

const WHOLE: StreamAnswer = { ...failedAnswer(""), failure: null };
const at = (...arrivals: number[]): PlannedRequest[] =>
  arrivals.map((arrivalMs, index) => ({ arrivalMs, index, promptTokens: 1, outputTokens: 1 }));

function run(fields: Partial<OpenLoop>) {
  return runOpenLoop({
    requests: [],
    durationMs: 0,
    drainMs: 10_000,
    connectionMax: 100,
    signal: new AbortController().signal,
    send: async () => WHOLE,
    onProgress: () => {},
    ...fields,
  });
}

/** An answer that comes when the signal does. */
function untilStopped(signal: AbortSignal): Promise<StreamAnswer> {
  if (signal.aborted) return Promise.resolve(failedAnswer(String(signal.reason)));
  const { promise, resolve } = Promise.withResolvers<StreamAnswer>();
  signal.addEventListener("abort", () => resolve(failedAnswer(String(signal.reason))));
  return promise;
}

test("every request is sent once, never before its time, in order, within the bound of connections", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.integer({ min: 0, max: 12 }), { maxLength: 25 }),
      fc.integer({ min: 1, max: 4 }),
      async (arrivals, connectionMax) => {
        const requests = at(...arrivals.toSorted((a, b) => a - b));
        const sent: number[] = [];
        let openCount = 0;
        const { records, endMs } = await run({
          requests,
          connectionMax,
          async send(request, nowMs) {
            expect(nowMs()).toBeGreaterThanOrEqual(request.arrivalMs);
            sent.push(request.index);
            expect(++openCount).toBeLessThanOrEqual(connectionMax);
            await Bun.sleep(request.index % 3);
            openCount--;
            return WHOLE;
          },
        });
        expect(sent).toEqual(requests.map(({ index }) => index));
        expect(records.map(({ arrivalMs, index }) => [index, arrivalMs])).toEqual(
          requests.map(({ arrivalMs, index }) => [index, arrivalMs]),
        );
        for (const { sentMs, arrivalMs } of records) {
          expect(sentMs).toBeGreaterThanOrEqual(arrivalMs);
          expect(sentMs).toBeLessThanOrEqual(endMs);
        }
      },
    ),
    { numRuns: 25 },
  );
});

test("nobody waits for an answer in front of him", async () => {
  let release = () => {};
  const released = new Promise<void>((resolve) => (release = resolve));
  const { records } = await run({
    requests: at(0, 1, 2),
    async send({ index }) {
      // The first is answered only because the last was sent.
      if (index === 2) release();
      else await released;
      return WHOLE;
    },
  });
  expect(records.map(({ answer }) => answer.failure)).toEqual([null, null, null]);
});

describe("an end", () => {
  test("at the drain's: what is open or waits is unfinished", async () => {
    const { records } = await run({
      requests: at(0, 0, 0),
      connectionMax: 2,
      drainMs: 5,
      send: ({ index }, _nowMs, signal) => (index === 0 ? Promise.resolve(WHOLE) : untilStopped(signal)),
    });
    expect(records.map(({ answer }) => answer.failure)).toEqual([null, UNFINISHED, UNFINISHED]);
    const { records: blocked } = await run({
      requests: at(0, 0),
      connectionMax: 1,
      drainMs: 5,
      send: (_request, _nowMs, signal) => untilStopped(signal),
    });
    expect(blocked.map(({ answer, sentMs }) => [answer.failure, sentMs === null])).toEqual([
      [UNFINISHED, false],
      [UNFINISHED, true],
    ]);
  });

  test("by the user: at once, and what has not arrived yet is not there", async () => {
    const user = new AbortController();
    const { records, endMs } = await run({
      requests: at(0, 0, 1, 3_600_000),
      durationMs: 3_600_000,
      drainMs: 3_600_000,
      signal: user.signal,
      send({ index }, _nowMs, signal) {
        if (index === 2) setTimeout(() => user.abort(), 1);
        return index === 0 ? Promise.resolve(WHOLE) : untilStopped(signal);
      },
    });
    expect(records.map(({ answer }) => answer.failure)).toEqual([null, INTERRUPTED, INTERRUPTED]);
    expect(endMs).toBeLessThan(3_600_000);
  });

  test("before the start sends nothing", async () => {
    const { records } = await run({ requests: at(0, 5), signal: AbortSignal.abort() });
    expect(records).toEqual([]);
  });

  test("without requests is at the duration", async () => {
    const { records, endMs } = await run({ durationMs: 3 });
    expect(records).toEqual([]);
    expect(endMs).toBeGreaterThanOrEqual(3);
  });
});
