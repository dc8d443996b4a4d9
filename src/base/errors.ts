// The kinds of failure. A bug is an AssertionError (assert.ts) and ends the process; an operating failure is a DuetError
// with a code; a caller's fault is a RequestError with an HTTP status. Cancellation is a finish reason, never an error.

/** Codes of operating failures. `abi` codes come from the native library, `container` codes from the weight file. */
export type DuetErrorCode =
  | "container_truncated"
  | "container_corrupt"
  | "container_version"
  | "container_unsupported"
  | "checkpoint_invalid"
  | "file_missing"
  | "file_unreadable"
  | "file_unwritable"
  | "native_missing"
  | "native_abi"
  | "native_failed"
  | "device_fault"
  | "out_of_memory"
  | "engine_unhealthy"
  | "config_invalid"
  | "port_unavailable"
  | "server_unreachable"
  | "server_refused";

/** What an error message must say: what happened and where, what was expected, what was got, what to do next. */
export interface ErrorDetail {
  readonly where?: string;
  readonly expected?: string;
  readonly got?: string;
  readonly next?: string;
}

function compose(what: string, detail: ErrorDetail): string {
  const parts = [what];
  if (detail.where !== undefined) parts.push(`where: ${detail.where}`);
  if (detail.expected !== undefined) parts.push(`expected: ${detail.expected}`);
  if (detail.got !== undefined) parts.push(`got: ${detail.got}`);
  if (detail.next !== undefined) parts.push(`next: ${detail.next}`);
  return parts.join("; ");
}

/** An operating failure (file, device, memory, machine): typed, with a message that ends the search. */
export class DuetError extends Error {
  override readonly name = "DuetError";
  constructor(
    readonly code: DuetErrorCode,
    what: string,
    readonly detail: ErrorDetail = {},
    options?: ErrorOptions,
  ) {
    super(compose(what, detail), options);
  }
}

/** A caller's fault: becomes an HTTP error with the OpenAI error body. `param` names the offending field. */
export class RequestError extends Error {
  override readonly name = "RequestError";
  constructor(
    readonly httpStatus: number,
    message: string,
    readonly param: string | null = null,
    readonly code: string | null = null,
  ) {
    super(message);
  }
}
