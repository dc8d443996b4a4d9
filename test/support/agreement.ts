// How often two bindings of a model choose the same next token over windows of a text. A measurement: it loads nothing and
// judges nothing.

import { topTwo, type SingleSequence } from "./single-sequence.ts";

export interface Agreement {
  readonly positionCount: number;
  /** Share of all positions whose best token is the same. */
  readonly overall: number;
  /** The same over positions where the first model's best is ahead of its second by more than 0.5. */
  readonly whereClear: number;
  readonly clearCount: number;
}

export function measureAgreement(
  first: SingleSequence,
  second: SingleSequence,
  windows: readonly ArrayLike<number>[],
): Agreement {
  const counts = { position: 0, same: 0, clear: 0, clearSame: 0 };
  for (const window of windows) {
    first.feed(window, 0);
    second.feed(window, 0);
    for (let row = 0; row < window.length; row++) {
      const { token, gap } = topTwo(first.logits(row));
      const isSame = topTwo(second.logits(row)).token === token;
      counts.position++;
      if (isSame) counts.same++;
      if (gap > 0.5) counts.clear++;
      if (gap > 0.5 && isSame) counts.clearSame++;
    }
  }
  return {
    positionCount: counts.position,
    overall: counts.same / counts.position,
    whereClear: counts.clearSame / counts.clear,
    clearCount: counts.clear,
  };
}

/** `windowMax` runs of `windowTokens` tokens spread evenly over the text; a shorter rest is left out. */
export function windowsOf(tokens: readonly number[], windowTokens: number, windowMax = Infinity): number[][] {
  const total = Math.floor(tokens.length / windowTokens);
  const count = Math.min(total, windowMax);
  return Array.from({ length: count }, (_, i) => {
    const start = Math.floor((i * total) / count) * windowTokens;
    return tokens.slice(start, start + windowTokens);
  });
}
