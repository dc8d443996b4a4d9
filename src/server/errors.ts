// What went wrong, as OpenAI clients expect to read it: the one place where failures become HTTP statuses and bodies. It must
// not reveal more than the failure's own message: unexpected errors are logged whole and answered in general terms.

import { DuetError, RequestError } from "../base/errors.ts";

export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | null;
  };
}

export interface HttpFailure {
  readonly httpStatus: number;
  readonly body: ErrorBody;
  /** Becomes the Retry-After header. */
  readonly retryAfterSeconds: number | null;
  /** Whether the failure is ours and belongs in the log. */
  readonly isUnexpected: boolean;
}

const RETRY_AFTER_SECONDS: Readonly<Record<number, number>> = { 429: 1, 503: 5 };

function errorType(httpStatus: number): string {
  if (httpStatus === 401) return "authentication_error";
  if (httpStatus === 403) return "permission_error";
  if (httpStatus === 429) return "rate_limit_error";
  return httpStatus >= 500 ? "server_error" : "invalid_request_error";
}

export function errorBody(
  httpStatus: number,
  message: string,
  param: string | null = null,
  code: string | null = null,
): ErrorBody {
  return { error: { message, type: errorType(httpStatus), param, code } };
}

/** A RequestError keeps its status; an unhealthy engine is 503; everything else is 500. */
export function describeFailure(error: unknown): HttpFailure {
  if (error instanceof RequestError) {
    const { httpStatus, message, param, code } = error;
    // The engine's client may say on the error how long its queue needs.
    const stated = (error as { retryAfterSeconds?: unknown }).retryAfterSeconds;
    return {
      httpStatus,
      body: errorBody(httpStatus, message, param, code),
      retryAfterSeconds: typeof stated === "number" ? Math.ceil(stated) : (RETRY_AFTER_SECONDS[httpStatus] ?? null),
      isUnexpected: false,
    };
  }
  if (error instanceof DuetError) {
    const httpStatus = error.code === "engine_unhealthy" ? 503 : 500;
    return {
      httpStatus,
      body: errorBody(httpStatus, error.message, null, error.code),
      retryAfterSeconds: RETRY_AFTER_SECONDS[httpStatus] ?? null,
      isUnexpected: true,
    };
  }
  return {
    httpStatus: 500,
    body: errorBody(500, "internal error; the server's log has the details under this answer's x-request-id"),
    retryAfterSeconds: null,
    isUnexpected: true,
  };
}
