// The bytes of a streaming answer: server-sent events or a sequence of msgpack maps, with heartbeats while nothing happens and a
// bound on what waits for a slow reader. It knows nothing of what the events mean.

import { encodeMsgpack } from "./msgpack.ts";
import type { WireFormat } from "./body.ts";

export interface EventStreamOptions {
  readonly format: WireFormat;
  /** Silence after which a heartbeat is sent. */
  readonly heartbeatMs: number;
  /** Bytes that may wait for the reader, beyond the socket's own buffers. */
  readonly waitingBytesMax: number;
  /** How long the reader may take nothing while bytes wait. */
  readonly stallMs: number;
  /** The reader has gone, or was given up as too slow. At most once, never after end(). */
  readonly onGone: () => void;
}

const BUFFER_BYTES = 64 * 1024;
const NIL = 0xc0;
const textEncoder = new TextEncoder();

export const CONTENT_TYPES: Readonly<Record<WireFormat, string>> = {
  json: "text/event-stream; charset=utf-8",
  msgpack: "application/msgpack-seq",
};

export class EventStream {
  readonly body: ReadableStream<Uint8Array>;
  readonly #options: EventStreamOptions;
  #controller!: ReadableStreamDefaultController<Uint8Array>;
  #heartbeat: ReturnType<typeof setInterval>;
  #stall: ReturnType<typeof setTimeout> | null = null;
  /** Since the last heartbeat was due. */
  #hasSent = false;
  #isClosed = false;

  constructor(options: EventStreamOptions) {
    this.#options = options;
    this.body = new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          this.#controller = controller;
        },
        pull: () => this.#clearStall(),
        cancel: () => this.abandon(),
      },
      { highWaterMark: BUFFER_BYTES, size: (chunk) => chunk?.byteLength ?? 0 },
    );
    this.#heartbeat = setInterval(() => this.#beat(), options.heartbeatMs);
    // Headers leave with the first bytes only: the caller shall see at once that the request is queued.
    this.#beat();
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** One event. */
  send(value: unknown): void {
    if (this.#options.format === "msgpack") this.#write(encodeMsgpack(value));
    else this.#write(textEncoder.encode(`data: ${JSON.stringify(value)}\n\n`));
  }

  /** Ends the stream in order. */
  end(): void {
    if (this.#isClosed) return;
    if (this.#options.format === "json") this.#write(textEncoder.encode("data: [DONE]\n\n"));
    if (this.#isClosed) return;
    this.#close();
    this.#controller.close();
  }

  /** The reader has gone: drops what waits and reports it. */
  abandon(): void {
    if (this.#isClosed) return;
    this.#close();
    // An error and not an end, so that the connection is closed and nobody takes the answer for complete.
    this.#controller.error(new Error("the reader of a stream has gone or does not read"));
    this.#options.onGone();
  }

  #write(bytes: Uint8Array): void {
    if (this.#isClosed) return;
    this.#hasSent = true;
    this.#controller.enqueue(bytes);
    const room = this.#controller.desiredSize ?? 0;
    if (room < -this.#options.waitingBytesMax) this.abandon();
    else if (room <= 0) this.#stall ??= setTimeout(() => this.abandon(), this.#options.stallMs);
  }

  #beat(): void {
    if (!this.#hasSent)
      this.#write(this.#options.format === "msgpack" ? Uint8Array.of(NIL) : textEncoder.encode(": ping\n\n"));
    this.#hasSent = false;
  }

  #clearStall(): void {
    if (this.#stall !== null) clearTimeout(this.#stall);
    this.#stall = null;
  }

  #close(): void {
    this.#isClosed = true;
    clearInterval(this.#heartbeat);
    this.#clearStall();
  }
}
