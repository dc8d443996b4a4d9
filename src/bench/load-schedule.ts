// When requests arrive and how long they are: Poisson arrivals and named mixes of prompt and output lengths, as functions of a
// stream of uniform numbers. Nothing is sent here and no clock is read.

export interface Lengths {
  readonly promptTokens: number;
  readonly outputTokens: number;
}

/** Log-normal around its median; sigma 0 is always the median. */
export interface LengthSpread {
  readonly medianTokens: number;
  readonly sigma: number;
}

export interface LengthMix {
  readonly name: string;
  readonly prompt: LengthSpread;
  readonly output: LengthSpread;
}

/** Lengths are cut at this multiple of the median, and at its inverse, so that one outlier does not decide a short run. */
const SPREAD_MAX = 4;
const FIXED = /^fixed:(\d{1,7})\/(\d{1,7})$/;

/** What `--mix` may name, beside fixed:IN/OUT. */
export const NAMED_MIXES: readonly LengthMix[] = [
  { name: "short", prompt: { medianTokens: 32, sigma: 0.5 }, output: { medianTokens: 32, sigma: 0.5 } },
  { name: "chat", prompt: { medianTokens: 128, sigma: 0.8 }, output: { medianTokens: 96, sigma: 0.6 } },
  { name: "long", prompt: { medianTokens: 1024, sigma: 0.5 }, output: { medianTokens: 96, sigma: 0.5 } },
];

/** A mix by its name, or `fixed:IN/OUT` in tokens; null for anything else. */
export function parseMix(text: string): LengthMix | null {
  const named = NAMED_MIXES.find(({ name }) => name === text);
  if (named !== undefined) return named;
  const match = FIXED.exec(text);
  const [promptTokens, outputTokens] = [Number(match?.[1]), Number(match?.[2])];
  if (!(promptTokens >= 1 && outputTokens >= 1)) return null;
  const always = (medianTokens: number) => ({ medianTokens, sigma: 0 });
  return { name: text, prompt: always(promptTokens), output: always(outputTokens) };
}

/** Takes two numbers of the stream, whatever the spread, so that mixes of one seed differ in nothing else. */
function drawLength({ medianTokens, sigma }: LengthSpread, uniform: () => number): number {
  // Box and Muller; 1 − u lies in (0, 1].
  const normal = Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  const factor = Math.min(SPREAD_MAX, Math.max(1 / SPREAD_MAX, Math.exp(sigma * normal)));
  return Math.max(1, Math.round(medianTokens * factor));
}

export function drawLengths(mix: LengthMix, uniform: () => number): Lengths {
  return { promptTokens: drawLength(mix.prompt, uniform), outputTokens: drawLength(mix.output, uniform) };
}

/** The lengths within a context: the output is kept where it leaves room for one prompt token, and the prompt gives way. */
export function fitContext({ promptTokens, outputTokens }: Lengths, contextTokens: number): Lengths {
  const output = Math.max(1, Math.min(outputTokens, contextTokens - 1));
  return { promptTokens: Math.max(1, Math.min(promptTokens, contextTokens - output)), outputTokens: output };
}

/**
 * Arrival times in ms within [0, durationMs) of a Poisson process of `rate` requests a second: the gaps are exponential. The same
 * stream at another rate gives the same arrivals on a stretched axis.
 */
export function poissonArrivals(rate: number, durationMs: number, uniform: () => number): number[] {
  const gapMs = () => (-1000 * Math.log(1 - uniform())) / rate;
  const arrivals: number[] = [];
  for (let atMs = gapMs(); atMs < durationMs; atMs += gapMs()) arrivals.push(atMs);
  return arrivals;
}
