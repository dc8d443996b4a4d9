// Stop strings across token borders, pure: an Aho-Corasick automaton (Aho and Corasick, "Efficient String Matching", CACM
// 1975) over UTF-16 code units. Text that may yet turn out to begin a stop string is held back; everything else passes
// through at once. Time is linear in the text and in the stop strings. It knows nothing of tokens.

import { RequestError } from "../base/errors.ts";

/** The automaton of a request's stop strings; shared by all its choices. State 0 means that nothing is held back. */
export class StopAutomaton {
  readonly #next: Map<number, number>[] = [new Map()];
  readonly #fail: number[] = [0];
  /** Per state: how many code units are held, and a stop string that begins with them. */
  readonly #depth: number[] = [0];
  readonly #source: string[] = [""];
  /** Per state: length of the longest stop string that ends here, or 0. */
  readonly #matchLength: number[] = [0];

  /** Throws RequestError 400 on an empty or ill-formed string; `param` names the field. */
  constructor(stops: readonly string[], param = "stop") {
    for (const [i, stop] of stops.entries()) {
      if (stop === "" || !stop.isWellFormed()) {
        const got = stop === "" ? "an empty string" : "an unpaired surrogate";
        throw new RequestError(400, `${param}[${i}]: expected a non-empty string of Unicode text, got ${got}`, param);
      }
      this.#insert(stop);
    }
    this.#link();
  }

  /** The state after one more code unit. */
  advance(state: number, unit: number): number {
    for (let s = state; ; s = this.#fail[s]!) {
      const to = this.#next[s]!.get(unit);
      if (to !== undefined) return to;
      if (s === 0) return 0;
    }
  }

  /** Length of the longest stop string that ends in this state; 0 when none does. */
  matchLength(state: number): number {
    return this.#matchLength[state]!;
  }

  /** The text held back in this state: the longest end of the text that begins a stop string. */
  held(state: number): string {
    return this.#source[state]!.slice(0, this.#depth[state]);
  }

  heldLength(state: number): number {
    return this.#depth[state]!;
  }

  #insert(stop: string): void {
    let state = 0;
    for (let i = 0; i < stop.length; i++) {
      const unit = stop.charCodeAt(i);
      let to = this.#next[state]!.get(unit);
      if (to === undefined) {
        to = this.#next.length;
        this.#next[state]!.set(unit, to);
        this.#next.push(new Map());
        this.#fail.push(0);
        this.#depth.push(i + 1);
        this.#source.push(stop);
        this.#matchLength.push(0);
      }
      state = to;
    }
    this.#matchLength[state] = stop.length;
  }

  /** Fail links, breadth first, so that a link's target is complete before it is used. */
  #link(): void {
    const queue = [...this.#next[0]!.values()];
    for (let at = 0; at < queue.length; at++) {
      const state = queue[at]!;
      if (this.#matchLength[state] === 0) this.#matchLength[state] = this.#matchLength[this.#fail[state]!]!;
      for (const [unit, child] of this.#next[state]!) {
        this.#fail[child] = this.advance(this.#fail[state]!, unit);
        queue.push(child);
      }
    }
  }
}

/** What a push lets through, and whether a stop string was completed. Overwritten by the next push of the same matcher. */
export interface StopResult {
  text: string;
  stopped: boolean;
}

/**
 * One choice's position in the automaton. The stop string that is complete first ends the text; of several that end at the same
 * place, the one that starts earliest. The text passed through ends just before it.
 */
export class StopMatcher {
  readonly #automaton: StopAutomaton;
  readonly #result: StopResult = { text: "", stopped: false };
  #state = 0;

  constructor(automaton: StopAutomaton) {
    this.#automaton = automaton;
  }

  get stopped(): boolean {
    return this.#result.stopped;
  }

  /** Takes a token's text. After a stop, further pushes pass nothing through. */
  push(text: string): StopResult {
    const result = this.#result;
    result.text = "";
    if (result.stopped) return result;
    const automaton = this.#automaton;
    const before = this.#state;
    let state = before;
    let matched = 0;
    let end = 0;
    while (end < text.length && matched === 0) {
      state = automaton.advance(state, text.charCodeAt(end++));
      matched = automaton.matchLength(state);
    }
    result.stopped = matched > 0;
    this.#state = result.stopped ? 0 : state;
    const heldBefore = automaton.heldLength(before);
    const passed = heldBefore + end - (result.stopped ? matched : automaton.heldLength(state));
    if (heldBefore === 0) result.text = passed === text.length ? text : text.slice(0, passed);
    else result.text = automaton.held(before).slice(0, passed) + text.slice(0, Math.max(0, passed - heldBefore));
    return result;
  }

  /** Which of the next texts would complete a stop string, or -1. Changes nothing. */
  firstStopping(texts: readonly string[]): number {
    if (this.#result.stopped) return -1;
    let state = this.#state;
    for (let index = 0; index < texts.length; index++) {
      const text = texts[index]!;
      for (let i = 0; i < text.length; i++) {
        state = this.#automaton.advance(state, text.charCodeAt(i));
        if (this.#automaton.matchLength(state) > 0) return index;
      }
    }
    return -1;
  }

  /** At the end of the output: what was still held back. */
  flush(): string {
    const held = this.#automaton.held(this.#state);
    this.#state = 0;
    return held;
  }
}
