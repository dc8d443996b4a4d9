// The shipped models and engine options for tests that run them.

import { fileURLToPath } from "node:url";
import type { EngineClient, EngineOptions } from "../../src/engine/client.ts";
import type { ChoiceOutput, EngineRequest, TokenLogprob } from "../../src/engine/messages.ts";
import { createTokenizer, type Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import { readContainer } from "../../src/weights/container.ts";

const modelPath = (path: string) => fileURLToPath(new URL(`../../models/${path}`, import.meta.url));

export const FABLE = modelPath("fable/fable.duet");
export const FABLE_DRAFT = modelPath("fable-draft/fable-draft.duet");

export function engineOptions(fields: Partial<EngineOptions> = {}): EngineOptions {
  return {
    containerPath: FABLE,
    draftContainerPath: FABLE_DRAFT,
    deviceKind: "cpu",
    threadCount: 2,
    isPinned: false,
    isa: null,
    kvType: "f16",
    kvBlockCount: null,
    sequenceMax: 20,
    queueMax: 100,
    prefillChunkMax: 256,
    speculation: "auto",
    draftTokenMax: 4,
    isPrefixCached: true,
    stepMsTarget: 50,
    verify: "off",
    residency: "mmap",
    ...fields,
  };
}

let tokenizer: Tokenizer | null = null;

export function fableTokens(text: string): Int32Array {
  if (tokenizer === null) {
    const { tokenizerJson, tokenizerConfigJson } = readContainer(FABLE).header.tokenizer;
    tokenizer = createTokenizer({
      tokenizerJson: JSON.parse(tokenizerJson),
      tokenizerConfig: JSON.parse(tokenizerConfigJson),
    });
  }
  return Int32Array.from(tokenizer.encode(text, { allowSpecial: false }));
}

/** What one choice emitted. */
export interface Answer {
  tokens: number[];
  logprobs: TokenLogprob[];
  text: string;
  last: ChoiceOutput | null;
}

/** Submits the request and resolves with its choices when all are finished. Rejects when it is refused. */
export function complete(engine: EngineClient, request: EngineRequest): Promise<Answer[]> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer[]>();
  const answers = Array.from({ length: request.choiceCount }, (): Answer => ({
    tokens: [],
    logprobs: [],
    text: "",
    last: null,
  }));
  let left = request.choiceCount;
  engine
    .submit(request, (output) => {
      const answer = answers[output.choiceIndex]!;
      answer.tokens.push(...output.tokenIds);
      answer.logprobs.push(...(output.logprobs ?? []));
      answer.text += output.text;
      answer.last = output;
      if (output.finishReason !== null && --left === 0) resolve(answers);
    })
    .catch(reject);
  return promise;
}
