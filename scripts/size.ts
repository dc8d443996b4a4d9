// `npm run size`: how much there is to read. Lines of code, comments and blanks per folder, and the options and environment
// variables that config.ts knows. It judges nothing; limits are tidy's.
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { lineCount, listFiles, splitSource } from "./tidy.ts";

export interface Size {
  files: number;
  code: number;
  comment: number;
  blank: number;
}

/** Lines of a source: with code, with comment only, and blank. */
export function measure(text: string): Size {
  const { codeAndStrings, comments } = splitSource(text);
  const total = lineCount(text);
  const codeLines = codeAndStrings.split("\n");
  const commentLines = comments.split("\n");
  const size: Size = { files: 1, code: 0, comment: 0, blank: 0 };
  for (let line = 0; line < total; line++) {
    if (codeLines[line]?.trim()) size.code++;
    else if (commentLines[line]?.trim()) size.comment++;
    else size.blank++;
  }
  return size;
}

function main(): void {
  const root = dirname(import.meta.dirname);
  const rows = new Map<string, Size>();
  const add = (key: string, size: Size) => {
    const row = rows.get(key) ?? { files: 0, code: 0, comment: 0, blank: 0 };
    for (const field of ["files", "code", "comment", "blank"] as const) row[field] += size[field];
    rows.set(key, row);
  };
  for (const path of listFiles(root)) {
    if (!/\.(?:tsx?|mjs|[ch])$/.test(path)) continue;
    const [top = "", folder = ""] = path.split("/");
    const language = /\.[ch]$/.test(path) ? "C" : "TypeScript";
    const size = measure(readFileSync(join(root, path), "utf8"));
    add(`${top === "src" && !folder.includes(".") ? `src/${folder}` : top} ${language}`, size);
    add(`all ${language}`, size);
  }
  console.log(`${"folder".padEnd(28)} files   code comment  blank`);
  for (const [key, { files, code, comment, blank }] of [...rows].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const numbers = `${String(files).padStart(5)} ${String(code).padStart(6)} ${String(comment).padStart(7)} ${String(blank).padStart(6)}`;
    console.log(`${key.padEnd(28)} ${numbers}`);
  }
  const config = readFileSync(join(root, "src/config.ts"), "utf8");
  const options = new Set(config.match(/--[a-z][a-z0-9-]+/g));
  const variables = new Set(config.match(/\b(?:DUET_[A-Z_]+|PORT|HOST)\b/g));
  console.log(`${options.size} options, ${variables.size} environment variables`);
}

if (import.meta.main) main();
