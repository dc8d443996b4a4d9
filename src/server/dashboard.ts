// The dashboard page as it is sent. Its script and style are inline and named in the content security policy by their hashes, so that
// nothing else on the page can run.

import { createHash } from "node:crypto";
import { assert } from "../base/assert.ts";
import page from "./dashboard.html" with { type: "text" };

// Bun's types know HTML imports as bundles only; with { type: "text" } it is the text.
export const DASHBOARD_HTML = page as unknown as string;

function inlineHash(tag: "script" | "style"): string {
  const content = new RegExp(`<${tag}>([^]*?)</${tag}>`).exec(DASHBOARD_HTML)?.[1];
  assert(content !== undefined, `dashboard.html has an inline ${tag}`);
  return `'sha256-${createHash("sha256").update(content).digest("base64")}'`;
}

export const DASHBOARD_HEADERS: Readonly<Record<string, string>> = {
  "content-type": "text/html; charset=utf-8",
  "cache-control": "no-store",
  "content-security-policy":
    `default-src 'none'; script-src ${inlineHash("script")}; style-src ${inlineHash("style")}; connect-src 'self'; ` +
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
};
