import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { EVENT_CHARACTERS_MAX, EventParser } from "../../src/bench/event-parser.ts";

const bytesOf = (text: string) => new TextEncoder().encode(text);
const all = (text: string) => new EventParser().push(bytesOf(text));

describe("cases of the standard", () => {
  const cases: [string, string, string[]][] = [
    ["one event", "data: a\n\n", ["a"]],
    ["without the space", "data:a\n\n", ["a"]],
    ["only the first space goes", "data:  a \n\n", [" a "]],
    ["several lines", "data: a\ndata: b\n\n", ["a\nb"]],
    ["empty data", "data\n\ndata:\n\n", ["", ""]],
    ["comments and other fields", ": ping\nevent: x\nid: 1\nretry: 5\ndatabase: no\ndata: a\n\n", ["a"]],
    ["blank lines alone are no events", "\n\n: ping\n\n\n", []],
    ["CR LF", "data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]],
    ["CR", "data: a\r\rdata: b\r\r", ["a", "b"]],
    ["mixed line ends", "data: a\r\n\ndata: b\n\r", ["a", "b"]],
    ["what has not ended yet is no event", "data: a\n\ndata: b\n", ["a"]],
    ["a byte order mark", "\ufeffdata: a\n\n", ["a"]],
  ];
  test.each(cases)("%s", (_name, text, events) => expect(all(text)).toEqual(events));
});

test("however the bytes are cut, the events are the same", () => {
  const piece = fc.constantFrom("data: ", "data:", "x", "🦊", "é", "\n", "\r", "\r\n", "\n\n", ": c", "event: e", " ");
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 60 }).map((pieces) => pieces.join("")),
      fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 20 }),
      (text, sizes) => {
        const bytes = bytesOf(text);
        const parser = new EventParser();
        const events: string[] = [];
        let at = 0;
        for (let i = 0; at < bytes.length; i++) {
          const size = sizes[i % sizes.length]!;
          events.push(...parser.push(bytes.subarray(at, at + size)));
          at += size;
        }
        expect(events).toEqual(all(text));
      },
    ),
    { numRuns: 500 },
  );
});

test("an event without an end does not fill the memory", () => {
  const half = "x".repeat(EVENT_CHARACTERS_MAX / 2);
  for (const [opening, more] of [
    ["data: ", half],
    [`data: ${half}\n`, `data: ${half}\n`],
  ] as const) {
    const parser = new EventParser();
    parser.push(bytesOf(opening));
    expect(() => {
      for (let i = 0; i < 3; i++) parser.push(bytesOf(more));
    }).toThrow(RangeError);
  }
});
