// A client of an HTTP server that can vanish at any moment, as a killed process or a pulled cable makes it vanish: a bare TCP
// connection, closed (FIN) or reset (RST) in the middle of whatever it does.

import { connect } from "node:net";

export interface CutClient {
  /** Resolves once the server has sent something; for a stream: the request is queued. */
  readonly answering: Promise<void>;
  /** All that came so far. */
  received(): string;
  kill(how: "close" | "reset"): void;
}

export interface CutRequest {
  readonly port: number;
  readonly path: string;
  readonly body: unknown;
  /** The share of the request's bytes that is sent at all. Default: all. */
  readonly sentShare?: number;
}

export function openCutClient({ port, path, body, sentShare = 1 }: CutRequest): CutClient {
  const json = JSON.stringify(body);
  const head = `POST ${path} HTTP/1.1\r\nhost: 127.0.0.1:${port}\r\ncontent-type: application/json\r\ncontent-length: ${json.length}\r\n\r\n`;
  const request = head + json;
  const socket = connect(port, "127.0.0.1");
  socket.setNoDelay(true);
  let text = "";
  const answering = new Promise<void>((resolve) => {
    socket.on("data", (bytes) => {
      text += bytes.toString("latin1");
      resolve();
    });
  });
  // A reset connection reports an error here too; what matters is what the server makes of it.
  socket.on("error", () => {});
  socket.write(request.slice(0, Math.ceil(request.length * sentShare)));
  return {
    answering,
    received: () => text,
    kill: (how) => void (how === "close" ? socket.destroy() : socket.resetAndDestroy()),
  };
}
