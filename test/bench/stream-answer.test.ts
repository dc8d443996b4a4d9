import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { errorMessage, StreamAnswerReader } from "../../src/bench/stream-answer.ts";

type Timed = readonly [nowMs: number, event: unknown];

function read(...events: Timed[]) {
  const reader = new StreamAnswerReader();
  for (const [nowMs, event] of events) {
    reader.take(typeof event === "string" ? event : JSON.stringify(event), nowMs);
  }
  return reader.end();
}

const text = (piece: string, finish: string | null = null) => ({ choices: [{ text: piece, finish_reason: finish }] });
const delta = (fields: object, finish: string | null = null) => ({
  choices: [{ delta: fields, finish_reason: finish }],
});
const usage = {
  choices: [],
  usage: { prompt_tokens: 7, completion_tokens: 3, prompt_tokens_details: { cached_tokens: 2 } },
};

describe("whole answers", () => {
  test("of completions: the first chunk with text counts, the end is the last of a choice", () => {
    const answer = read(
      [1, text("")],
      [5, text("a")],
      [9, text("b")],
      [12, text("", "stop")],
      [15, usage],
      [16, "[DONE]"],
    );
    expect(answer).toEqual({
      chunkMs: [5, 9],
      endMs: 12,
      promptTokens: 7,
      outputTokens: 3,
      cachedTokens: 2,
      failure: null,
      failureMessage: null,
    });
  });

  test("of chat: a role is no text, reasoning is", () => {
    const role = delta({ role: "assistant", content: "" });
    const answer = read([1, role], [2, delta({ reasoning_content: "hm" })], [3, delta({ content: "a" }, "length")]);
    expect(answer).toMatchObject({ chunkMs: [2, 3], endMs: 3, failure: null, outputTokens: null, promptTokens: null });
  });

  test("with null usage in chunks, and usage in a chunk with choices", () => {
    const answer = read(
      [1, { ...text("a"), usage: null }],
      [2, { ...text("b", "stop"), usage: { completion_tokens: 2 } }],
    );
    expect(answer).toMatchObject({ outputTokens: 2, promptTokens: null, failure: null });
  });
});

describe("failures", () => {
  const cases: [string, Timed[], string, string | null][] = [
    ["cut off", [[1, text("a")]], "an answer that broke off", null],
    ["nothing", [], "an answer that broke off", null],
    ["no text", [[1, text("", "stop")]], "an answer without text", null],
    ["only [DONE]", [[1, "[DONE]"]], "an answer without text", null],
    [
      "not JSON",
      [
        [1, text("a")],
        [2, "{"],
      ],
      "an event that is not JSON",
      null,
    ],
    [
      "an error",
      [
        [1, text("a")],
        [2, { error: { message: "the\nengine" } }],
      ],
      "an error in the stream",
      "the engine",
    ],
    [
      "an error ends it",
      [
        [1, { error: "x" }],
        [2, text("a", "stop")],
      ],
      "an error in the stream",
      "x",
    ],
  ];
  test.each(cases)("%s", (_name, events, failure, failureMessage) => {
    expect(read(...events)).toMatchObject({ failure, failureMessage });
  });

  test("messages are one line of bounded length, from any JSON", () => {
    expect(errorMessage({ error: { message: `a\n${"b".repeat(1000)}` } })).toHaveLength(200);
    expect([null, 1, "x", [], {}, { error: null }, { error: { message: 5 } }].map(errorMessage)).toEqual(
      new Array(7).fill(null),
    );
  });
});

test("no event, whatever it holds, is more than a failure", () => {
  fc.assert(
    fc.property(fc.array(fc.oneof(fc.json(), fc.string(), fc.constant("[DONE]"))), (events) => {
      const answer = read(...events.map((event, i) => [i, event] as const));
      expect(answer.chunkMs.length).toBeLessThanOrEqual(events.length);
      if (answer.chunkMs.length === 0) expect(answer.failure).not.toBeNull();
    }),
  );
});
