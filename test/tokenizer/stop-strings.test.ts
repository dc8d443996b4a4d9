// The automaton against a naive search, under every way to cut the text into pushes.

import { expect, test } from "bun:test";
import * as fc from "fast-check";
import { RequestError } from "../../src/base/errors.ts";
import { StopAutomaton, StopMatcher } from "../../src/tokenizer/stop-strings.ts";

/** Text before the stop string that is complete first (of several, the one that starts earliest), and where it ends. */
function naiveStop(text: string, stops: readonly string[]): { text: string; end: number } | null {
  for (let end = 1; end <= text.length; end++) {
    const lengths = stops.filter((stop) => text.slice(0, end).endsWith(stop)).map((stop) => stop.length);
    if (lengths.length > 0) return { text: text.slice(0, end - Math.max(...lengths)), end };
  }
  return null;
}

const letters = fc.constantFrom("a", "b", "c");
const stopLists = fc.array(fc.string({ unit: letters, minLength: 1, maxLength: 6 }), { maxLength: 6 });
const pushLists = fc.array(fc.string({ unit: letters, maxLength: 5 }), { maxLength: 12 });

test("passes through what a naive search leaves, whatever the pushes", () => {
  fc.assert(
    fc.property(stopLists, pushLists, (stops, pushes) => {
      const matcher = new StopMatcher(new StopAutomaton(stops));
      const expected = naiveStop(pushes.join(""), stops);
      expect(matcher.firstStopping(pushes)).toBe(
        expected === null ? -1 : pushes.findIndex((_, i) => pushes.slice(0, i + 1).join("").length >= expected.end),
      );
      let passed = "";
      let given = "";
      for (const push of pushes) {
        const result = matcher.push(push);
        passed += result.text;
        given += push;
        const stop = naiveStop(given, stops);
        expect(result.stopped).toBe(stop !== null);
        expect(matcher.stopped).toBe(stop !== null);
        if (stop === null) {
          // Held back is exactly the longest end that begins a stop string.
          const held = given.slice(passed.length);
          const starts = Array.from({ length: given.length }, (_, i) => given.slice(i));
          const longest = starts.find((end) => stops.some((candidate) => candidate.startsWith(end))) ?? "";
          expect(held).toBe(longest);
        }
      }
      passed += matcher.flush();
      expect(passed).toBe(expected?.text ?? given);
      expect(matcher.stopString).toBe(expected === null ? null : given.slice(expected.text.length, expected.end));
    }),
    { numRuns: 3000 },
  );
});

test("choices share an automaton and don't share state", () => {
  const automaton = new StopAutomaton(["\n\n", "</s>"]);
  const [first, second] = [new StopMatcher(automaton), new StopMatcher(automaton)];
  expect(first.push("one\n")).toEqual({ text: "one", stopped: false });
  expect(second.push("\ntwo")).toEqual({ text: "\ntwo", stopped: false });
  expect(first.push("\nmore")).toEqual({ text: "", stopped: true });
  expect(first.push("more")).toEqual({ text: "", stopped: true });
  expect(first.flush()).toBe("");
});

test("a stop string of code points outside the basic plane splits none", () => {
  const matcher = new StopMatcher(new StopAutomaton(["🦊🐺"]));
  expect(matcher.push("a🦊").text).toBe("a");
  expect(matcher.push("🦊").text).toBe("🦊");
  expect(matcher.push("🐻").text).toBe("🦊🐻");
  expect(matcher.flush()).toBe("");
});

test("long stop strings against long text that nearly matches", () => {
  const count = 200_000;
  const matcher = new StopMatcher(new StopAutomaton([`${"a".repeat(count)}b`, `${"a".repeat(count / 2)}c`]));
  let passed = 0;
  for (let i = 0; i < 2 * count; i++) passed += matcher.push("a").text.length;
  expect(passed).toBe(count);
  expect(matcher.push("c").stopped).toBe(true);
});

test("empty and ill-formed stop strings are the caller's fault", () => {
  expect(() => new StopAutomaton(["a", ""])).toThrow(
    new RequestError(400, "stop[1]: expected a non-empty string of Unicode text, got an empty string", "stop"),
  );
  expect(() => new StopAutomaton(["\ud83e"])).toThrow("an unpaired surrogate");
});
