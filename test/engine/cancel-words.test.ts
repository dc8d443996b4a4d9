import { expect, test } from "bun:test";
import { CANCEL_WORDS_BYTES, CancelWords } from "../../src/engine/cancel-words.ts";

test("every order of announcing, arming and seeing: none is lost and none aborts a later step", () => {
  const shared = new SharedArrayBuffer(CANCEL_WORDS_BYTES);
  const requesting = new CancelWords(shared);
  const stepping = new CancelWords(shared);
  expect(stepping.arm()).toBe(true);
  // Announced during the step: the step ends.
  requesting.announce();
  expect(stepping.abortWord[0]).toBe(1);
  // Until its message has come no step starts.
  expect(stepping.arm()).toBe(false);
  expect(stepping.arm()).toBe(false);
  stepping.see();
  expect(stepping.arm()).toBe(true);
  expect(stepping.abortWord[0]).toBe(0);
  // Two at once.
  requesting.announce();
  requesting.announce();
  stepping.see();
  expect(stepping.arm()).toBe(false);
  stepping.see();
  expect(stepping.arm()).toBe(true);
});
