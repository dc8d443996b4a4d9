// When steps run: one after another while there is work, each followed by one turn of the event loop, in which messages are
// taken. Without work it sleeps until `wake`; nothing polls.

import type { CancelWords } from "./cancel-words.ts";
import type { Engine } from "./engine.ts";

export class StepLoop {
  #isTurning = false;
  #isClosed = false;

  constructor(
    private readonly engine: Engine,
    private readonly words: CancelWords,
    /** Called each time the work has run out. */
    private readonly onIdle: () => void,
  ) {}

  /** There may be work. */
  wake(): void {
    if (this.#isTurning || this.#isClosed) return;
    this.#isTurning = true;
    setImmediate(this.#turn);
  }

  close(): void {
    this.#isClosed = true;
  }

  readonly #turn = (): void => {
    if (this.#isClosed) return;
    if (!this.engine.hasWork) {
      this.#isTurning = false;
      this.onIdle();
      return;
    }
    // A cancellation whose message is on its way comes first.
    if (this.words.arm()) this.engine.step();
    setImmediate(this.#turn);
  };
}
