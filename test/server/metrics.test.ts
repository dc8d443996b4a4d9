import { expect, test } from "bun:test";
import { Metrics } from "../../src/server/metrics.ts";
import { FakeEngine } from "./fake-engine.ts";
import { createFixture } from "./fixture.ts";

/** Value of a series, written as in the exposition text. */
const valueOf = (text: string, series: string) => {
  const line = text.split("\n").find((entry) => entry.startsWith(`${series} `));
  return line === undefined ? undefined : Number(line.slice(series.length + 1));
};

test("what a run reports adds up, in seconds", async () => {
  const metrics = new Metrics(new FakeEngine());
  metrics.promptTokens(5);
  metrics.promptTokens(2);
  metrics.outputTokens(3);
  metrics.firstToken(20);
  metrics.betweenTokens(2, 4);
  metrics.answered(1500);
  const text = await metrics.text();
  expect(valueOf(text, "duet_prompt_tokens_total")).toBe(7);
  expect(valueOf(text, "duet_output_tokens_total")).toBe(3);
  expect(valueOf(text, "duet_ttft_seconds_sum")).toBe(0.02);
  expect([valueOf(text, "duet_itl_seconds_count"), valueOf(text, 'duet_itl_seconds_bucket{le="0.0025"}')]).toEqual([
    4, 4,
  ]);
  expect([
    valueOf(text, 'duet_answer_seconds_bucket{le="1"}'),
    valueOf(text, 'duet_answer_seconds_bucket{le="2.5"}'),
  ]).toEqual([0, 1]);
});

test("steps come from the engine, gauges and totals from its status at the scrape", async () => {
  const engine = new FakeEngine();
  const metrics = new Metrics(engine);
  engine.step({ rowCount: 3, sequenceCount: 1, stepMs: 4, draftMs: 0 });
  let text = await metrics.text();
  expect([valueOf(text, "duet_step_seconds_sum"), valueOf(text, "duet_step_rows_sum")]).toEqual([0.004, 3]);
  expect([valueOf(text, "duet_ready"), valueOf(text, "duet_kv_blocks"), valueOf(text, "duet_steps_total")]).toEqual([
    1, 64, 7,
  ]);
  expect(valueOf(text, 'duet_draft_tokens_accepted_total{proposer="ngram"}')).toBe(5);
  engine.state = "unhealthy";
  text = await metrics.text();
  expect([valueOf(text, "duet_ready"), valueOf(text, "duet_steps_total")]).toEqual([0, 7]);
});

test("a caller cannot make series grow", async () => {
  const { get, app } = createFixture();
  const seriesOf = async () =>
    (await (await get("/metrics")).text()).split("\n").filter((line) => line.startsWith("duet_http"));
  await get("/nothing");
  await get("/v1/models/none");
  const before = (await seriesOf()).length;
  for (let i = 0; i < 50; i++) {
    await get(`/nothing/${i}`);
    await get(`/v1/models/${i}`);
    await app.request(`http://localhost/${i}`, { method: "GET", headers: { host: `evil${i}.example` } });
  }
  const after = await seriesOf();
  // /metrics itself and the refused Hosts.
  expect(after.length).toBe(before + 2);
  expect(after).toContain('duet_http_requests_total{route="other",status="404"} 51');
  expect(after).toContain('duet_http_requests_total{route="/v1/models/:id",status="404"} 51');
  expect(after).toContain('duet_http_requests_total{route="other",status="403"} 50');
});

test("an answer is counted from its prompt to its last token", async () => {
  const { post, get } = createFixture();
  await (await post("/v1/completions", { prompt: "abc" })).text();
  const text = await (await get("/metrics")).text();
  expect([valueOf(text, "duet_prompt_tokens_total"), valueOf(text, "duet_output_tokens_total")]).toEqual([3, 11]);
  expect([valueOf(text, "duet_ttft_seconds_count"), valueOf(text, "duet_answer_seconds_count")]).toEqual([1, 1]);
});
