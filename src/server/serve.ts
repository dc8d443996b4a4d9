// The socket: binds the app to an address and stops it in order. Bun listens on all interfaces unless told otherwise, so the host is
// always named.

import { DuetError } from "../base/errors.ts";
import type { App } from "./app.ts";
import { errorBody } from "./errors.ts";
import { withTimeout } from "./lifecycle.ts";

export interface ListenOptions {
  readonly host: string;
  /** 0: any free port. */
  readonly port: number;
}

export interface RunningServer {
  /** Where the server can be reached, without a slash at the end. */
  readonly url: string;
  readonly port: number;
  /** Refuses new work, finishes what runs for at most graceMs, cancels the rest, closes the socket. Resolves once; never rejects. */
  stop(graceMs: number): Promise<void>;
}

/** Seconds that a connection may be idle; generating answers lift it and send heartbeats. */
const IDLE_SECONDS = 60;
/** Bodies are counted by the app; this is only the socket's own stop behind it. */
const SOCKET_BODY_BYTES_MAX = 2 ** 40;
const CLOSE_MS = 1_000;
const POLL_MS = 5;

/** Throws DuetError port_unavailable. */
export function startServer(app: App, options: ListenOptions): RunningServer {
  const server = listen(app, options);
  let stopping: Promise<void> | null = null;
  const stop = async (graceMs: number) => {
    await app.lifecycle.drain(graceMs);
    // Idle keep-alive connections need not be waited for, only answers that are still on their way out.
    const endMs = performance.now() + CLOSE_MS;
    while (server.pendingRequests > 0 && performance.now() < endMs) await Bun.sleep(POLL_MS);
    await withTimeout(server.stop(true), CLOSE_MS);
  };
  const host = options.host.includes(":") ? `[${options.host.replace(/^\[|\]$/g, "")}]` : options.host;
  const port = server.port ?? options.port;
  return { url: `http://${host}:${port}`, port, stop: (graceMs) => (stopping ??= stop(graceMs)) };
}

function listen(app: App, { host, port }: ListenOptions) {
  try {
    return Bun.serve({
      hostname: host.replace(/^\[|\]$/g, ""),
      port,
      idleTimeout: IDLE_SECONDS,
      maxRequestBodySize: SOCKET_BODY_BYTES_MAX,
      // Without development Bun shares a port with whoever has it.
      reusePort: false,
      development: false,
      fetch: (request, server) => app.fetch(request, { server }),
      error(error) {
        app.log.error("request failed outside the app", { error: error.stack ?? String(error) });
        return Response.json(errorBody(500, "internal error"), { status: 500 });
      },
    });
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    throw new DuetError(
      "port_unavailable",
      `cannot listen on ${host} port ${port}`,
      {
        got: code === "EADDRINUSE" ? "the port is in use" : error instanceof Error ? error.message : String(error),
        next: "stop what uses it, or choose another with --port (0: any free one) or --host",
      },
      { cause: error },
    );
  }
}
