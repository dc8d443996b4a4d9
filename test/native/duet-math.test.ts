// The scalar arithmetic that all kernels share is exact where it must be and accurate where it can't be: duet-math-test.c
// measures it against libm, in the baseline build that has no fma instruction. The bounds are stated here.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "../..");
const folder = mkdtempSync(join(tmpdir(), "duet-math-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function build(args: string[]): string | undefined {
  const program = join(folder, `math${args.join("")}`);
  const command = ["node", "scripts/build-native.mjs", "--program", program, ...args, "test/native/duet-math-test.c"];
  const { exitCode, stderr } = Bun.spawnSync(command, { cwd: ROOT });
  if (stderr.includes("no C compiler was found")) return undefined;
  expect({ exitCode, stderr: stderr.toString() }).toEqual({ exitCode: 0, stderr: "" });
  return program;
}

for (const [family, args] of [
  ["the preferred compiler", []],
  ["the other family of compilers", ["--twin"]],
] as const) {
  const program = build([...args]);
  test.skipIf(!program)(`duet-math by ${family}${program ? "" : " (absent)"}`, () => {
    if (!program) throw new Error("skipped");
    const { exitCode, stdout } = Bun.spawnSync([program]);
    expect(exitCode).toBe(0);
    const { exp, log, log1p, sincos, ...wrong } = JSON.parse(stdout.toString()) as Record<string, number>;
    expect(exp).toBeLessThan(1e-7); // about 1 ulp of float32 in the worst case
    expect(log).toBeLessThan(1e-15);
    expect(log1p).toBeLessThan(1e-15);
    expect(sincos).toBeLessThan(1e-12); // arguments to 1e6 rad
    expect(wrong).toEqual({ wrongFma: 0, wrongF16: 0, wrongRne: 0, wrongLimits: 0 });
  });
}
