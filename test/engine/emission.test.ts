import { expect, test } from "bun:test";
import { createSampleResult } from "../../src/device/sampling.ts";
import { ChoiceText } from "../../src/engine/choice-text.ts";
import { emitTokens } from "../../src/engine/emission.ts";
import { Sequence } from "../../src/engine/sequence.ts";
import { KvBlockPool } from "../../src/memory/kv-block-pool.ts";
import { StopAutomaton, StopMatcher } from "../../src/tokenizer/stop-strings.ts";
import { request } from "../support/fake-engine.ts";

/** A sequence whose decoder holds each token's text back until the next token, as one that ends amid a character does. */
function heldBack(stopStrings: readonly string[], outputTokenMax: number): Sequence {
  let held = "";
  const decoder = {
    push: (id: number) => {
      const text = held;
      held = `<${id}>`;
      return text;
    },
    flush: () => held,
  };
  const owner = {
    request: request([1], { outputTokenMax, stopStrings }),
    arrivalIndex: 0,
    arrivalMs: 0,
    deadlineMs: Number.POSITIVE_INFINITY,
    sequences: [],
    isPromptReady: false,
    isStarted: true,
  };
  const text = new ChoiceText(decoder, new StopMatcher(new StopAutomaton(stopStrings)));
  const sequence = new Sequence(owner, 0, text, 0, new KvBlockPool(1));
  sequence.allocateTokens();
  return sequence;
}

test("a stop string that what was held back completes is a stop, also at the length", () => {
  const result = createSampleResult(2);
  result.emittedCount = 2;
  result.tokens.set([5, 6]);
  const stopped = emitTokens(heldBack(["5><6"], 2), result, 0);
  expect([stopped.text, stopped.finishReason, stopped.stopString]).toEqual(["<", "stop", "5><6"]);
  const whole = emitTokens(heldBack(["5><7"], 2), result, 0);
  expect([whole.text, whole.finishReason, whole.stopString]).toEqual(["<5><6>", "length", null]);
});
