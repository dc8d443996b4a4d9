import { expect, test } from "bun:test";
import { createLog } from "../../src/base/log.ts";

test("lines below the level are dropped; fields follow the message", () => {
  const lines: string[] = [];
  const log = createLog("warn", "text", (line) => lines.push(line));
  log.info("unheard");
  log.warn("busy", { port: 8080 });
  expect(lines).toHaveLength(1);
  expect(lines[0]).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]+Z warn busy port=8080\n$/);
});

test("json lines are one object each", () => {
  const lines: string[] = [];
  createLog("debug", "json", (line) => lines.push(line)).error("failed", { reason: "a\nb" });
  expect(lines.join("")).toEndWith("\n");
  expect(JSON.parse(lines[0]!)).toMatchObject({ level: "error", message: "failed", reason: "a\nb" });
});
