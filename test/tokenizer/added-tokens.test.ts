// Splitting text at added tokens against a regular expression, and the test for beginnings.

import { expect, test } from "bun:test";
import * as fc from "fast-check";
import { AddedTokenMatcher } from "../../src/tokenizer/added-tokens.ts";

const token = (content: string, id: number) => ({ id, content, special: true, stripsLeft: false, stripsRight: false });
const contents = fc.uniqueArray(fc.string({ unit: fc.constantFrom("<", "|", "a"), minLength: 1, maxLength: 4 }), {
  minLength: 1,
  maxLength: 5,
});
const texts = fc.string({ unit: fc.constantFrom("<", "|", "a", "b"), maxLength: 40 });

test("splits at the leftmost, longest token", () => {
  fc.assert(
    fc.property(contents, texts, (tokens, text) => {
      const alternatives = tokens.toSorted((a, b) => b.length - a.length).map((content) => RegExp.escape(content));
      const expected = text.split(new RegExp(`(${alternatives.join("|")})`)).filter((part) => part !== "");
      const parts = new AddedTokenMatcher(tokens.map(token)).split(text);
      expect(parts.map((part) => (typeof part === "string" ? part : part.content))).toEqual(expected);
      for (const part of parts) if (typeof part === "string") expect(tokens).not.toContain(part);
    }),
  );
});

test("says where a token stands or may begin", () => {
  fc.assert(
    fc.property(contents, texts, (tokens, text) => {
      const matcher = new AddedTokenMatcher(tokens.map(token));
      for (let i = 0; i < text.length; i++) {
        const rest = text.slice(i);
        const expected = tokens.some((content) => rest.startsWith(content) || content.startsWith(rest));
        expect(matcher.mayStartAt(text, i, text.length)).toBe(expected);
      }
    }),
  );
});
