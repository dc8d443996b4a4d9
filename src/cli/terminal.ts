// What commands print with: a progress bar on standard error, tables and colour on standard output.

import { styleText } from "node:util";
import { SingleBar } from "cli-progress";

export function print(line = ""): void {
  process.stdout.write(`${line}\n`);
}

export const bold = (text: string) => (process.stdout.isTTY ? styleText("bold", text) : text);
export const dim = (text: string) => (process.stdout.isTTY ? styleText("dim", text) : text);

export interface Progress {
  update(done: number, total: number, note?: string): void;
  stop(): void;
}

const QUIET_MS = 1000;

/** A bar on a terminal; elsewhere, once a second has passed, a line every ten percent, so that logs show life without noise. */
export function createProgress(label: string, stream: NodeJS.WriteStream = process.stderr): Progress {
  if (!stream.isTTY) {
    let lastTenth = -1;
    const startMs = performance.now();
    return {
      update(done, total) {
        const tenth = Math.floor((done / Math.max(1, total)) * 10);
        if (tenth === lastTenth || performance.now() - startMs < QUIET_MS) return;
        lastTenth = tenth;
        stream.write(`${label} ${tenth * 10} %\n`);
      },
      stop() {},
    };
  }
  let hasStarted = false;
  const bar = new SingleBar({
    format: `${label} {bar} {percentage} % | {note} | {eta_formatted} left`,
    barCompleteChar: "█",
    barIncompleteChar: "░",
    hideCursor: true,
    stream,
    clearOnComplete: true,
  });
  return {
    update(done, total, note = "") {
      if (!hasStarted) bar.start(total, done, { note });
      else bar.update(done, { note });
      hasStarted = true;
    },
    stop() {
      if (hasStarted) bar.stop();
      hasStarted = false;
    },
  };
}

/** Rows of equal keys as an aligned text table, numbers to the right. */
export function formatTable(rows: readonly Record<string, string>[]): string {
  const first = rows[0];
  if (first === undefined) return "";
  const keys = Object.keys(first);
  const widths = keys.map((key) =>
    Math.max(Bun.stringWidth(key), ...rows.map((row) => Bun.stringWidth(row[key] ?? ""))),
  );
  const isNumeric = keys.map((key) => rows.every((row) => /^[-\d.–]*$/.test(row[key] ?? "")));
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, column) => {
        const gap = " ".repeat(Math.max(0, (widths[column] ?? 0) - Bun.stringWidth(cell)));
        return isNumeric[column] ? gap + cell : cell + gap;
      })
      .join("  ")
      .trimEnd();
  return [bold(line(keys)), ...rows.map((row) => line(keys.map((key) => row[key] ?? "")))].join("\n");
}
