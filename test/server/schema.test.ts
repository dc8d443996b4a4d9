// Every field at and beyond the ends of its range, over HTTP: a refusal is a 400 whose message names the field, what was expected and
// what was got; what passes reaches the engine.

import { describe, expect, test } from "bun:test";
import { createFixture, json, MODEL, USER_HI } from "./fixture.ts";

const CHAT = "/v1/chat/completions";
const COMPLETIONS = "/v1/completions";

/** The body with one field as JSON text, so that 1e400, duplicates and __proto__ can be said. */
const withField = (path: string, field: string, valueJson: string) =>
  path === CHAT
    ? `{"messages":${field === "messages" ? "[]" : JSON.stringify(USER_HI)},"${field}":${valueJson}}`.replace(
        '"messages":[],',
        "",
      )
    : `{${field === "prompt" ? "" : '"prompt":"x",'}"${field}":${valueJson}}`;

async function refusal(path: string, body: unknown) {
  const { post, engine } = createFixture();
  const response = await post(path, body);
  const { error } = await json(response);
  expect([response.status, error?.type]).toEqual([400, "invalid_request_error"]);
  expect(engine.submitted).toEqual([]);
  expect(error.message.length).toBeLessThan(400);
  return error as { message: string; param: string | null; code: string | null };
}

async function accepted(path: string, body: unknown) {
  const { post, engine } = createFixture();
  const response = await post(path, body);
  expect([response.status, response.status === 200 ? "" : await response.text()]).toEqual([200, ""]);
  return engine.last;
}

const INT = (min: number, max: number) => `an integer from ${min} to ${max}`;
const NUMBER = (min: number, max: number) => `a number from ${min} to ${max}`;
const COUNT = INT(1, 2 ** 31 - 1);
const LONG = JSON.stringify("s".repeat(2 ** 20));

/** Field, value as JSON, what is expected, what was got. All of these fields are on both routes. */
const REFUSED: readonly [string, string, string, string][] = [
  ["max_tokens", "-1", COUNT, "-1"],
  ["max_tokens", "0", COUNT, "0"],
  ["max_tokens", "2147483648", COUNT, "2147483648"],
  ["max_tokens", "9007199254740993", COUNT, "9007199254740992"],
  ["max_tokens", "1.5", COUNT, "1.5"],
  ["max_tokens", '"5"', COUNT, '"5"'],
  ["max_tokens", "1e400", COUNT, "Infinity"],
  ["max_tokens", "[1]", COUNT, "an array of 1"],
  ["max_tokens", "{}", COUNT, "an object"],
  ["max_tokens", "true", COUNT, "true"],
  ["min_tokens", "-1", INT(0, 2 ** 31 - 1), "-1"],
  ["n", "0", INT(1, 8), "0"],
  ["n", "-1", INT(1, 8), "-1"],
  ["n", "9", INT(1, 8), "9"],
  ["n", "1000000", INT(1, 8), "1000000"],
  ["temperature", "-1", NUMBER(0, 100), "-1"],
  ["temperature", "1e30", NUMBER(0, 100), "1e+30"],
  ["temperature", "1e400", NUMBER(0, 100), "Infinity"],
  ["temperature", '"hot"', NUMBER(0, 100), '"hot"'],
  ["top_p", "2", NUMBER(0, 1), "2"],
  ["top_p", "-0.1", NUMBER(0, 1), "-0.1"],
  ["min_p", "1.1", NUMBER(0, 1), "1.1"],
  ["top_k", "-2", INT(-1, 2 ** 31 - 1), "-2"],
  ["top_k", "0.5", INT(-1, 2 ** 31 - 1), "0.5"],
  ["repetition_penalty", "0", NUMBER(0.1, 10), "0"],
  ["presence_penalty", "2.1", NUMBER(-2, 2), "2.1"],
  ["frequency_penalty", "-3", NUMBER(-2, 2), "-3"],
  ["seed", "-1", INT(0, 2 ** 53 - 1), "-1"],
  ["seed", "18446744073709551616", INT(0, 2 ** 53 - 1), "18446744073709552000"],
  ["seed", "0.5", INT(0, 2 ** 53 - 1), "0.5"],
  ["deadline_ms", "0", INT(1, 86_400_000), "0"],
  ["stream", '"yes"', "true or false", '"yes"'],
  ["stream", "1", "true or false", "1"],
  ["ignore_eos", "0", "true or false", "0"],
  ["stop", "5", "an array of 0 to 16 stop strings", "5"],
  ["stop", JSON.stringify(new Array(17).fill("x")), "an array of 0 to 16 stop strings", "an array of 17"],
  ["stop", LONG, "a string of at most 1024 characters", `${JSON.stringify("s".repeat(60))}… (1048576 characters)`],
  ["stop_token_ids", JSON.stringify(new Array(65).fill(1)), "an array of 0 to 64 token ids", "an array of 65"],
  ["logit_bias", "[]", "an object from token ids", "an array of 0"],
  ["logit_bias", '"x"', "an object from token ids", '"x"'],
  ["stream_options", "true", "an object", "true"],
  ["speculation", '"off"', "an object with mode and max_draft_tokens", '"off"'],
  ["model", "1", "a string of at most 256 characters", "1"],
  ["store", "true", "false", "true"],
  ["service_tier", '"flex"', '"auto" or "default"', '"flex"'],
];

describe.each([CHAT, COMPLETIONS])("%s refuses", (path) => {
  test.each(REFUSED)("%s: %.40s", async (field, valueJson, what, got) => {
    const error = await refusal(path, withField(path, field, valueJson));
    expect(error.message).toStartWith(`${field}${field === "stop" && got.includes("…") ? "[0]" : ""}: `);
    expect(error.message).toContain(`expected ${what}`);
    expect(error.message).toEndWith(`, got ${got}`);
    expect(error.param).toStartWith(field);
  });

  test.each([
    ["stop", '""', "stop[0]", 'expected a string that is not empty, got ""'],
    ["stop", '["a",7]', "stop[1]", "got 7"],
    ["stop", '["\\ud800"]', "stop[0]", "unpaired surrogate"],
    ["stop_token_ids", "[1,-1]", "stop_token_ids[1]", "got -1"],
    ["stop_token_ids", "[1.5]", "stop_token_ids[0]", "got 1.5"],
    ["logit_bias", '{"-1":1}', "logit_bias.-1", 'expected a token id as the name of an entry, got "-1"'],
    ["logit_bias", '{"01":1}', "logit_bias.01", "expected a token id"],
    ["logit_bias", '{"1.5":1}', "logit_bias.1.5", "expected a token id"],
    ["logit_bias", '{"__proto__":1}', "logit_bias.__proto__", "expected a token id"],
    ["logit_bias", '{"5":1e400}', "logit_bias.5", "expected a number from -100 to 100, got Infinity"],
    ["logit_bias", '{"5":101}', "logit_bias.5", "got 101"],
    ["logit_bias", '{"5":null}', "logit_bias.5", "got null"],
    ["logit_bias", '{"260":0}', "logit_bias", "logit_bias.260: expected a token id from 0 to 259, got 260"],
    ["logit_bias", '{"9999999999":0}', "logit_bias", "expected a token id from 0 to 259"],
    [
      "speculation",
      '{"max_draft_tokens":-1}',
      "speculation.max_draft_tokens",
      "expected an integer from 0 to 64, got -1",
    ],
    [
      "speculation",
      '{"max_draft_tokens":1000}',
      "speculation.max_draft_tokens",
      "expected an integer from 0 to 64, got 1000",
    ],
    ["speculation", '{"mode":"fast"}', "speculation.mode", 'expected "auto", "off", "draft" or "ngram", got "fast"'],
    ["speculation", '{"tokens":1}', "speculation.tokens", 'unknown field "speculation.tokens"'],
    ["stream_options", '{"__proto__":{}}', "stream_options.__proto__", "unknown field"],
    ["temprature", "1", "temprature", 'unknown field "temprature"'],
    ["__proto__", '{"n":3}', "__proto__", 'unknown field "__proto__"'],
    ["constructor", "1", "constructor", 'unknown field "constructor"'],
    ["model", '"a\\ud800"', "model", "unpaired surrogate"],
  ])("%s: %s by the path of what is wrong", async (field, valueJson, param, message) => {
    const error = await refusal(path, withField(path, field, valueJson));
    expect(error.param).toBe(param);
    expect(error.message).toContain(message);
  });

  test("100,000 biases, unknown names of any length", async () => {
    const biases = Object.fromEntries(Array.from({ length: 100_000 }, (_, id) => [id, 0]));
    const error = await refusal(path, withField(path, "logit_bias", JSON.stringify(biases)));
    expect(error.message).toContain("at most 1024 entries, got 100000 entries");
    expect((await refusal(path, withField(path, "k".repeat(100_000), "1"))).code).toBe("unknown_field");
  });

  test.each([
    ["null", "got null"],
    ["[]", "got an array of 0"],
    ["1", "got 1"],
    ['"x"', 'got "x"'],
    ["true", "got true"],
  ])("the body %s", async (body, got) => {
    expect((await refusal(path, body)).message).toBe(`the body: expected an object, ${got}`);
  });

  test("null and absent fields are the default", async () => {
    const fields = REFUSED.map(([field]) => [field, null] as const);
    const request = await accepted(
      path,
      withField(path, "metadata", "{}").replace(
        "{",
        `{${fields
          .filter(([f], i) => fields.findIndex(([g]) => f === g) === i)
          .map(([f]) => `"${f}":null,`)
          .join("")}`,
      ),
    );
    expect(request.choiceCount).toBe(1);
  });

  test("the ends of the ranges", async () => {
    const body = (fields: object) => ({ ...(path === CHAT ? { messages: USER_HI } : { prompt: "x" }), ...fields });
    const low = await accepted(
      path,
      body({
        model: MODEL,
        max_tokens: 1,
        n: 1,
        temperature: 0,
        top_p: 0,
        min_p: 0,
        top_k: -1,
        repetition_penalty: 0.1,
        presence_penalty: -2,
        frequency_penalty: -2,
        seed: 0,
        stop: [],
        stop_token_ids: [],
        logit_bias: {},
        deadline_ms: 1,
        speculation: { max_draft_tokens: 0 },
      }),
    );
    expect([low.outputTokenMax, low.params.temperature, low.deadlineMs, low.speculation]).toEqual([1, 0, 1, "off"]);
    const high = await accepted(
      path,
      body({
        max_tokens: 2 ** 31 - 1,
        n: 8,
        temperature: 100,
        top_p: 1,
        min_p: 1,
        top_k: 2 ** 31 - 1,
        repetition_penalty: 10,
        presence_penalty: 2,
        frequency_penalty: 2,
        seed: 2 ** 53 - 1,
        stop: new Array(16).fill("s".repeat(1024)),
        stop_token_ids: new Array(64).fill(259),
        logit_bias: { 259: -100 },
        deadline_ms: 86_400_000,
        speculation: { mode: "draft", max_draft_tokens: 64 },
      }),
    );
    expect([high.choiceCount, high.stopStrings.length, high.draftTokenMax, high.params.topK]).toEqual([
      8,
      16,
      64,
      2 ** 31 - 1,
    ]);
  });
});

describe("chat", () => {
  test.each([
    ['{"messages":[]}', "messages", "expected an array of 1 to 16384 messages, got an array of 0"],
    ["{}", "messages", "expected an array of 1 to 16384 messages, got nothing"],
    ['{"messages":"hi"}', "messages", 'got "hi"'],
    ['{"messages":[1]}', "messages[0]", "expected an object with role and content, got 1"],
    [
      '{"messages":[{"role":"user"}]}',
      "messages[0].content",
      "expected a string or an array of text parts, got nothing",
    ],
    ['{"messages":[{"role":"user","content":5}]}', "messages[0].content", "got 5"],
    ['{"messages":[{"content":"x"}]}', "messages[0].role", "got nothing"],
    ['{"messages":[{"role":"user","content":"\\udc00"}]}', "messages[0].content[0].text", "unpaired surrogate"],
    [
      '{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}',
      "messages[0].content[0].type",
      'got "image_url"',
    ],
    ['{"messages":[{"role":"user","content":"x","__proto__":{}}]}', "messages[0].__proto__", "unknown field"],
    ['{"messages":[{"role":"user","content":"x","tool_calls":[{}]}]}', "messages[0].tool_calls", "not supported"],
    ['{"messages":[{"role":"wizard","content":"x"}]}', "messages[0].role", "wizard"],
  ])("%s", async (body, param, message) => {
    const error = await refusal(CHAT, body);
    expect(error.param).toBe(param);
    expect(error.message).toContain(message);
  });

  test("a million messages", async () => {
    const error = await refusal(CHAT, `{"messages":[${"{},".repeat(999_999)}{}]}`);
    expect(error.message).toContain("got an array of 1000000");
  });

  test.each([
    ["tools", '[{"type":"function"}]'],
    ["tool_choice", '"required"'],
    ["functions", "[{}]"],
    ["response_format", '{"type":"json_object"}'],
    ["modalities", '["audio"]'],
    ["audio", "{}"],
    ["prediction", "{}"],
    ["reasoning_effort", '"high"'],
    ["web_search_options", "{}"],
  ])("what this server lacks is refused by name: %s", async (field, valueJson) => {
    const error = await refusal(CHAT, withField(CHAT, field, valueJson));
    expect([error.param, error.message.startsWith(`${field}: not supported by this server; expected `)]).toEqual([
      field,
      true,
    ]);
  });

  test("what asks for nothing passes", async () => {
    await accepted(CHAT, {
      messages: USER_HI,
      tools: [],
      tool_choice: "none",
      response_format: { type: "text" },
      parallel_tool_calls: true,
      store: false,
      user: "u",
      metadata: { a: 1 },
    });
  });

  test.each([
    ["top_logprobs", "21", INT(0, 20), "21"],
    ["max_completion_tokens", "0", COUNT, "0"],
    ["logprobs", "5", "true or false", "5"],
  ])("%s: %s", async (field, valueJson, what, got) => {
    expect((await refusal(CHAT, withField(CHAT, field, valueJson))).message).toBe(
      `${field}: expected ${what}, got ${got}`,
    );
  });

  test("text parts and null content", async () => {
    const content = [
      { type: "text", text: "a" },
      { type: "text", text: "b" },
    ];
    const request = await accepted(CHAT, {
      messages: [
        { role: "user", content },
        { role: "assistant", content: null },
      ],
    });
    expect([...request.promptTokens].filter((id) => id < 256)).toEqual([97, 10, 98]);
  });
});

describe("completions", () => {
  test.each([
    ["{}", "prompt", "got nothing"],
    ['{"prompt":null}', "prompt", "got null"],
    ['{"prompt":[]}', "prompt", "got an array of 0"],
    ['{"prompt":""}', "prompt", "expected at least one token, got none"],
    ['{"prompt":[[]]}', "prompt[0]", "expected a string or an array of one or more integers, got an array of 0"],
    ['{"prompt":[1,1.5]}', "prompt[0]", "got 1.5"],
    ['{"prompt":[1,"a"]}', "prompt[0]", 'got "a"'],
    ['{"prompt":[1,null]}', "prompt[0]", "got null"],
    ['{"prompt":["a",1]}', "prompt[1]", "got 1"],
    ['{"prompt":[1e400]}', "prompt[0]", "got Infinity"],
    ['{"prompt":[-1]}', "prompt", "prompt[0]: expected a token id from 0 to 259, got -1"],
    ['{"prompt":[260]}', "prompt", "prompt[0]: expected a token id from 0 to 259, got 260"],
    ['{"prompt":"\\ud800x"}', "prompt[0]", "unpaired surrogate"],
    [`{"prompt":[${'"x",'.repeat(64)}"x"]}`, "prompt", "expected an array of 1 to 64 prompts, got an array of 65"],
    ['{"prompt":"x","logprobs":21}', "logprobs", "expected an integer from 0 to 20, got 21"],
    ['{"prompt":"x","logprobs":true}', "logprobs", "got true"],
    ['{"prompt":"x","best_of":2}', "best_of", "not supported by this server; expected 1, got 2"],
    ['{"prompt":"x","suffix":"y"}', "suffix", "not supported"],
    ['{"prompt":"x","messages":[]}', "messages", "unknown field"],
  ])("%.50s", async (body, param, message) => {
    const error = await refusal(COMPLETIONS, body);
    expect(error.param).toBe(param);
    expect(error.message).toContain(message);
  });
});
