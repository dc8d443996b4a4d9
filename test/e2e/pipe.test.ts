// What a command prints reaches a reader who takes his time.
import { expect, test } from "bun:test";
import { join } from "node:path";

const CLI = join(import.meta.dir, "../../src/cli.ts");
/** What a pipe of Linux takes at once. */
const PIPE_BYTES = 65_536;

test("a report larger than a pipe arrives whole, however late it is read", async () => {
  const { stdout } = Bun.spawnSync([
    "sh",
    "-c",
    `"$0" "$1" inspect --tensors --json | (sleep 1; cat)`,
    process.execPath,
    CLI,
  ]);
  const text = stdout.toString();
  expect(text.length).toBeGreaterThan(PIPE_BYTES);
  expect(() => JSON.parse(text)).not.toThrow();
});

test("a reader who has seen enough ends the command", async () => {
  const { stdout, stderr } = Bun.spawnSync([
    "sh",
    "-c",
    `"$0" "$1" inspect --tensors --json | head -c 1`,
    process.execPath,
    CLI,
  ]);
  expect([stdout.toString(), stderr.toString()]).toEqual(["{", ""]);
});
