// Structured log lines on standard error. Prompts, outputs and keys are never logged.

export type LogLevel = "debug" | "info" | "warn" | "error";

export interface Log {
  debug(message: string, fields?: Record<string, unknown>): void;
  info(message: string, fields?: Record<string, unknown>): void;
  warn(message: string, fields?: Record<string, unknown>): void;
  error(message: string, fields?: Record<string, unknown>): void;
}

const RANK: Record<LogLevel, number> = { debug: 0, info: 1, warn: 2, error: 3 };

/** A log that writes `time level message key=value…` lines, or one JSON object a line. */
export function createLog(
  level: LogLevel,
  format: "text" | "json" = "text",
  write: (line: string) => void = (line) => void process.stderr.write(line),
): Log {
  const emit = (at: LogLevel, message: string, fields: Record<string, unknown> = {}) => {
    if (RANK[at] < RANK[level]) return;
    const time = new Date().toISOString();
    if (format === "json") {
      write(`${JSON.stringify({ time, level: at, message, ...fields })}\n`);
      return;
    }
    const tail = Object.entries(fields).map(([key, value]) => ` ${key}=${String(value)}`);
    write(`${time} ${at} ${message}${tail.join("")}\n`);
  };
  return {
    debug: (m, f) => emit("debug", m, f),
    info: (m, f) => emit("info", m, f),
    warn: (m, f) => emit("warn", m, f),
    error: (m, f) => emit("error", m, f),
  };
}

export const silentLog: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
