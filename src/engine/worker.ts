// The engine's thread (a Bun Worker): takes ToEngine messages, sends FromEngine messages; one per step carries what all
// sequences emitted.

import { assert } from "../base/assert.ts";
import { DuetError, RequestError } from "../base/errors.ts";
import { CancelWords } from "./cancel-words.ts";
import { EngineHost } from "./host.ts";
import type { EngineRequest, FromEngine, ToEngine } from "./messages.ts";

declare const self: Worker;

let host: EngineHost | null = null;
let words: CancelWords | null = null;

const send = (message: FromEngine) => self.postMessage(message);

function sendFailure(error: unknown): void {
  const message = error instanceof Error ? error.message : String(error);
  send({ type: "failed", code: error instanceof DuetError ? error.code : "engine_unhealthy", message });
}

async function open(message: Extract<ToEngine, { type: "open" }>): Promise<void> {
  words = new CancelWords(message.words);
  host = await EngineHost.open(message.options, words, {
    onOutputs: (outputs, report) => send({ type: "step", outputs, report }),
    onLoading: (bytesDone, bytesTotal) => send({ type: "loading", bytesDone, bytesTotal }),
    onFailure: (text) => send({ type: "failed", code: "engine_unhealthy", message: text }),
  });
  send({ type: "ready", status: host.status() });
}

function submit(engine: EngineHost, request: EngineRequest): void {
  const { requestId } = request;
  try {
    engine.submit(request);
    send({ type: "queued", requestId });
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    const { httpStatus, message, param, code } = error;
    send({ type: "rejected", requestId, httpStatus, message, param, code });
  }
}

async function receive(message: ToEngine): Promise<void> {
  if (message.type === "open") return open(message);
  assert(host !== null && words !== null, "the engine is open before it gets messages");
  switch (message.type) {
    case "submit":
      return submit(host, message.request);
    case "cancel":
      words.see();
      return host.cancel(message.requestId);
    case "abort":
      return words.see();
    case "status":
      return send({ type: "status", replyId: message.replyId, status: host.status() });
    case "drain":
      await host.drain(message.deadlineMs);
      return send({ type: "drained" });
    case "close":
      host.close();
      return send({ type: "closed" });
  }
}

self.addEventListener("message", (event: MessageEvent<ToEngine>) => {
  receive(event.data).catch(sendFailure);
});
