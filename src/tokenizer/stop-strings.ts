// Stop strings across token borders, pure: an Aho-Corasick automaton (Aho and Corasick, "Efficient String Matching", CACM
// 1975) over UTF-16 code units. Text that may yet turn out to begin a stop string is held back; everything else passes
// through at once. Time is linear in the text and in the stop strings. It knows nothing of tokens.

import { RequestError } from "../base/errors.ts";

/** A state of the automaton: the longest end of the text so far that begins a stop string, and so is held back. */
interface StopState {
  readonly next: Map<number, StopState>;
  /** The state of the next shorter end that begins a stop string; undefined for the empty one. */
  fail: StopState | undefined;
  /** A stop string, and how many of its code units are held back. */
  readonly source: string;
  readonly heldLength: number;
  /** Length of the longest stop string that ends here, or 0. */
  matchLength: number;
}

function createState(source: string, heldLength: number): StopState {
  return { next: new Map(), fail: undefined, source, heldLength, matchLength: 0 };
}

function advance(from: StopState, unit: number): StopState {
  for (let state = from; ; state = state.fail) {
    const to = state.next.get(unit);
    if (to !== undefined) return to;
    if (state.fail === undefined) return state;
  }
}

/** The automaton of a request's stop strings; shared by all its choices. */
export class StopAutomaton {
  /** Nothing is held back. */
  readonly start: StopState = createState("", 0);

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

  #insert(stop: string): void {
    let state = this.start;
    for (let i = 0; i < stop.length; i++) {
      const unit = stop.charCodeAt(i);
      let to = state.next.get(unit);
      if (to === undefined) state.next.set(unit, (to = createState(stop, i + 1)));
      state = to;
    }
    state.matchLength = stop.length;
  }

  /** Fail links, breadth first, so that a link's target is complete before it is used. */
  #link(): void {
    const queue = [this.start];
    for (const state of queue) {
      for (const [unit, child] of state.next) {
        child.fail = state.fail === undefined ? this.start : advance(state.fail, unit);
        if (child.matchLength === 0) child.matchLength = child.fail.matchLength;
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
  readonly #start: StopState;
  readonly #result: StopResult = { text: "", stopped: false };
  #state: StopState;
  #stopString: string | null = null;

  constructor(automaton: StopAutomaton) {
    this.#start = automaton.start;
    this.#state = automaton.start;
  }

  get stopped(): boolean {
    return this.#result.stopped;
  }

  /** The stop string that ended the text, or null. */
  get stopString(): string | null {
    return this.#stopString;
  }

  /** Takes a token's text. After a stop, further pushes pass nothing through. */
  push(text: string): StopResult {
    const result = this.#result;
    result.text = "";
    if (result.stopped) return result;
    const before = this.#state;
    let state = before;
    let end = 0;
    while (end < text.length && !result.stopped) {
      state = advance(state, text.charCodeAt(end++));
      result.stopped = state.matchLength > 0;
    }
    if (result.stopped) this.#stopString = heldText(state).slice(-state.matchLength);
    this.#state = result.stopped ? this.#start : state;
    const passed = before.heldLength + end - (result.stopped ? state.matchLength : state.heldLength);
    const fresh = passed - before.heldLength;
    if (before.heldLength === 0) result.text = fresh === text.length ? text : text.slice(0, fresh);
    else result.text = heldText(before).slice(0, passed) + text.slice(0, Math.max(0, fresh));
    return result;
  }

  /** Which of the next texts would complete a stop string, or -1. Changes nothing. */
  firstStopping(texts: readonly string[]): number {
    if (this.#result.stopped) return -1;
    let state = this.#state;
    return texts.findIndex((text) => {
      for (let i = 0; i < text.length; i++) {
        state = advance(state, text.charCodeAt(i));
        if (state.matchLength > 0) return true;
      }
      return false;
    });
  }

  /** At the end of the output: what was still held back. */
  flush(): string {
    const held = heldText(this.#state);
    this.#state = this.#start;
    return held;
  }
}

function heldText(state: StopState): string {
  return state.source.slice(0, state.heldLength);
}
