// Server-sent events out of bytes that arrive in any pieces (WHATWG HTML, 9.2.6). Only `data` fields matter to an
// OpenAI-compatible stream; comments and other fields are passed over. It reads no clock.

/** Characters of one event: a server that sends more without an end would otherwise fill the memory. */
export const EVENT_CHARACTERS_MAX = 1 << 20;

export class EventParser {
  readonly #decoder = new TextDecoder();
  #line = "";
  #data: string[] = [];
  #dataCharacters = 0;
  /** A line that ended with CR at the end of the last piece: an LF in front of the next belongs to it. */
  #endedWithCr = false;

  /** The data of the events that `bytes` completes. Throws RangeError when an event is longer than EVENT_CHARACTERS_MAX. */
  push(bytes: Uint8Array): string[] {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (text === "") return [];
    if (this.#endedWithCr && text.startsWith("\n")) text = text.slice(1);
    this.#endedWithCr = text.endsWith("\r");
    const events: string[] = [];
    const lines = text.split(/\r\n|\n|\r/);
    const rest = lines.pop() ?? "";
    for (const line of lines) {
      this.#endLine(this.#line + line, events);
      this.#line = "";
    }
    this.#line += rest;
    this.#check(this.#line.length);
    return events;
  }

  #endLine(line: string, events: string[]): void {
    if (line === "") {
      if (this.#data.length > 0) events.push(this.#data.join("\n"));
      this.#data = [];
      this.#dataCharacters = 0;
      return;
    }
    if (line !== "data" && !line.startsWith("data:")) return;
    const value = line.slice(5);
    this.#check(line.length);
    this.#dataCharacters += line.length;
    this.#data.push(value.startsWith(" ") ? value.slice(1) : value);
  }

  #check(characters: number): void {
    if (this.#dataCharacters + characters > EVENT_CHARACTERS_MAX) {
      throw new RangeError(`an event of more than ${EVENT_CHARACTERS_MAX} characters`);
    }
  }
}
