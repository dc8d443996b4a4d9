import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { dlopen } from "bun:ffi";

const SCRIPT = join(import.meta.dirname, "../../scripts/build-native.mjs");
const COMPILER = Bun.which("gcc") ?? Bun.which("clang-19") ?? Bun.which("cc");
const NODE = Bun.which("node") ?? "node";
const folder = mkdtempSync(join(tmpdir(), "duet-build-"));
const source = join(folder, "source");
const library = join(folder, "out/libtoy.so");

const EXPORT = '__attribute__((visibility("default")))';

beforeEach(() => {
  rmSync(source, { recursive: true, force: true });
  rmSync(join(folder, "out"), { recursive: true, force: true });
  mkdirSync(source);
  writeFileSync(join(source, "toy.h"), '#define TOY_NAME "first"\n');
  writeFileSync(join(source, "toy.c"), `#include "toy.h"\n${EXPORT} const char *toy_name(void) { return TOY_NAME; }\n`);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Runs the script with the toy sources; CC names the compiler unless `environment` says otherwise. */
function build(args: string[] = [], environment: Record<string, string> = { CC: COMPILER ?? "" }) {
  const command = [NODE, SCRIPT, "--source", source, "--out", library, ...args];
  const { exitCode, stdout, stderr } = Bun.spawnSync(command, {
    env: { PATH: process.env["PATH"] ?? "", ...environment },
  });
  return { exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
}

/** A folder for PATH with Node and nothing else. */
function pathWithoutCompiler(): string {
  const path = join(folder, "bin");
  mkdirSync(path, { recursive: true });
  if (!existsSync(join(path, "node"))) symlinkSync(NODE, join(path, "node"));
  return path;
}

describe.skipIf(!COMPILER)("with a C compiler", () => {
  test("builds a library that loads, and again only when something changed", () => {
    const first = build();
    expect(first.stdout).toMatch(/^compiler: .+\nunits: toy\.c\n.+: built in [0-9.]+ s\n$/);
    expect(build().stdout).toContain("nothing changed");

    const { symbols, close } = dlopen(library, { toy_name: { args: [], returns: "cstring" } });
    expect(String(symbols.toy_name())).toBe("first");
    writeFileSync(join(source, "toy.h"), '#define TOY_NAME "second"\n');
    expect(build().stdout).toContain("built in");
    expect(String(symbols.toy_name())).toBe("first"); // what runs keeps its own file
    close();
    expect(readFileSync(library).includes("second")).toBe(true);
  });

  test("a library that somebody else put there is built anew", () => {
    build();
    writeFileSync(library, "not a library");
    expect(build().stdout).toContain("built in");
  });

  test("units for the other architecture are left out, those for this one have its instructions", () => {
    writeFileSync(join(source, "toy_neon.c"), "#ifndef __aarch64__\n#error other architecture\n#endif\nint neon;\n");
    writeFileSync(join(source, "toy_avx2.c"), "#ifndef __AVX2__\n#error other architecture\n#endif\nint avx2;\n");
    const unit = process.arch === "arm64" ? "toy_neon.c" : "toy_avx2.c";
    expect(build().stdout).toContain(`units: toy.c ${unit}\n`);
  });

  test("a unit that doesn't compile is named, and the library that was there stays", () => {
    build();
    const before = readFileSync(library);
    writeFileSync(join(source, "wrong.c"), "int wrong(\n");
    const failed = build();
    expect(failed.exitCode).toBe(1);
    expect(failed.stderr).toMatch(/\nbuild-native: .+ could not compile wrong\.c; see its messages above\n$/);
    expect(readFileSync(library).equals(before)).toBe(true);
    expect(readdirSync(join(folder, "out")).sort()).toEqual(["libtoy.json", "libtoy.so"]);
  });

  test("a call into libm is refused at link time", () => {
    writeFileSync(join(source, "wrong.c"), "double cbrt(double);\ndouble root(double x) { return cbrt(x); }\n");
    const failed = build();
    expect(failed.exitCode).toBe(1);
    expect(failed.stderr).toContain("could not link libtoy.so");
  });

  test("builds side by side don't disturb each other", async () => {
    const command = [NODE, SCRIPT, "--source", source, "--out", library, "--force", "--quiet"];
    const environment = { PATH: process.env["PATH"] ?? "", CC: COMPILER ?? "" };
    const runs = Array.from({ length: 3 }, () => Bun.spawn(command, { env: environment, stderr: "pipe" }));
    expect(await Promise.all(runs.map((run) => run.exited))).toEqual([0, 0, 0]);
    expect(build().stdout).toContain("nothing changed");
    expect(readdirSync(join(folder, "out")).sort()).toEqual(["libtoy.json", "libtoy.so"]);
  });

  test("a library of the same sources stays in use when the compiler has gone; one of others is removed", () => {
    build();
    const environment = { PATH: pathWithoutCompiler() };
    expect(build([], environment)).toMatchObject({ exitCode: 0, stderr: "" });
    expect(existsSync(library)).toBe(true);
    writeFileSync(join(source, "toy.h"), '#define TOY_NAME "third"\n');
    expect(build([], environment).exitCode).toBe(1);
    expect(existsSync(library)).toBe(false);
  });
});

test("without a compiler it says what to install", () => {
  const { exitCode, stderr } = build([], { PATH: pathWithoutCompiler() });
  expect(exitCode).toBe(1);
  expect(stderr).toMatch(/^build-native: no C compiler was found; install one with `apt-get install .+\n$/);
});

test("a compiler that doesn't run is named, with where the name came from", () => {
  expect(build(["--compiler", "no-such-cc"]).stderr).toContain('"no-such-cc" (--compiler)');
  expect(build([], { CC: "no-such-cc" }).stderr).toContain('"no-such-cc" ($CC)');
});

test("another machine is built for by its own compiler, and by no other", () => {
  const cross = build(["--target", "aarch64-linux-gnu"], { PATH: pathWithoutCompiler(), CC: COMPILER ?? "" });
  expect(cross.exitCode).toBe(1);
  expect(cross.stderr).toMatch(
    /^build-native: no C compiler for aarch64-linux-gnu was found; install one with `apt-get install .+\n$/,
  );
  expect(build(["--target", "sparc"]).stderr).toBe(
    'build-native: unknown target "sparc"; targets are aarch64-linux-gnu\n',
  );
});

test("an unknown option and an unwritable place are one line each", () => {
  expect(build(["--fast"])).toMatchObject({
    exitCode: 1,
    stderr: expect.stringMatching(/^build-native: [^\n]*--fast[^\n]*\n$/),
  });
  if (!COMPILER) return;
  writeFileSync(join(folder, "file"), "");
  expect(build(["--out", join(folder, "file/lib.so")])).toMatchObject({
    exitCode: 1,
    stderr: expect.stringMatching(/^build-native: cannot write [^\n]+\n$/),
  });
});

test("no sources is nothing to do", () => {
  rmSync(source, { recursive: true });
  expect(build()).toMatchObject({ exitCode: 0, stdout: "no C sources: nothing to build\n" });
});
