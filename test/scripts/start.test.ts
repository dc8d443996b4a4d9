import { spawn } from "node:child_process";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { defined } from "../../src/base/assert.ts";

// A clone in miniature: our scripts, a command that reports what reaches it, and the repository's own packages.
const root = dirname(dirname(import.meta.dirname));
const clone = mkdtempSync(join(tmpdir(), "duet-start-"));
const modules = join(clone, "node_modules");
const bin = join(clone, "bin");
const NODE = Bun.which("node") ?? "node";

const COMMAND = `
const [name, value] = process.argv.slice(2);
console.log("args", JSON.stringify(process.argv.slice(2)));
if (name === "exit") process.exit(Number(value));
if (name === "die") process.kill(process.pid, "SIGKILL");
if (value === "wait") {
  let count = 0;
  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.on(signal, () => {
      console.log("got", signal, ++count);
      setTimeout(() => process.exit(7), 100);
    });
  }
  setInterval(() => {}, 1000);
  console.log("ready");
}
`;

beforeAll(() => {
  for (const folder of ["scripts", "src/native", "bin"]) mkdirSync(join(clone, folder), { recursive: true });
  for (const file of ["build-native.mjs", "prepare.mjs", "start.mjs", "duet.mjs"]) {
    cpSync(join(root, "scripts", file), join(clone, "scripts", file));
  }
  for (const file of ["package.json", "package-lock.json"]) cpSync(join(root, file), join(clone, file));
  writeFileSync(join(clone, "src/cli.ts"), COMMAND);
  symlinkSync(NODE, join(bin, "node"));
});
beforeEach(() => {
  rmSync(modules, { recursive: true, force: true });
  symlinkSync(join(root, "node_modules"), modules);
  rmSync(join(clone, "src/native"), { recursive: true });
  mkdirSync(join(clone, "src/native"));
});
afterAll(() => rmSync(clone, { recursive: true, force: true }));

function run(script: string, args: string[], environment: Record<string, string> = {}) {
  const env = { PATH: bin, ...environment }; // neither npm nor a compiler
  const { exitCode, stdout, stderr } = Bun.spawnSync([NODE, join(clone, "scripts", script), ...args], { env });
  return { exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
}

test("start serves with its arguments; duet passes all of its own; nothing is said when nothing is to be done", () => {
  expect(run("start.mjs", ["--port", "a b"])).toEqual({
    exitCode: 0,
    stdout: 'args ["serve","--port","a b"]\n',
    stderr: "",
  });
  expect(run("duet.mjs", ["inspect", "--json"])).toEqual({
    exitCode: 0,
    stdout: 'args ["inspect","--json"]\n',
    stderr: "",
  });
});

test("the exit code is passed on, and a death by signal as a shell says it", () => {
  expect(run("duet.mjs", ["exit", "5"]).exitCode).toBe(5);
  expect(run("duet.mjs", ["die"]).exitCode).toBe(128 + 9);
});

describe.each(["SIGTERM", "SIGINT"] as const)("%s", (signal) => {
  test("reaches the command once, however often it is echoed, and its exit code comes back", async () => {
    const child = spawn(NODE, [join(clone, "scripts/start.mjs"), "wait"], {
      detached: true, // a process group of its own, and no terminal
      stdio: ["ignore", "pipe", "inherit"],
    });
    const pid = defined(child.pid, "the process id");
    const exitCode = new Promise((done) => child.on("exit", done));
    let output = "";
    let isSent = false;
    for await (const chunk of child.stdout) {
      output += String(chunk);
      if (isSent || !output.includes("ready")) continue;
      isSent = true;
      // To the whole group and then to the process itself: what timeout(1), npm and terminals do together.
      process.kill(-pid, signal);
      await Bun.sleep(20); // apart, since a signal that is still pending absorbs the next
      process.kill(pid, signal);
    }
    expect(output).toBe(`args ["serve","wait"]\nready\ngot ${signal} 1\n`);
    expect(await exitCode).toBe(7);
  });
});

describe("what is missing is said in one line, with what to do", () => {
  test("packages, where there is no npm", () => {
    unlinkSync(modules);
    const { exitCode, stderr } = run("start.mjs", []);
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(
      /^duet: installing packages.*\nduet: npm could not be run \([^\n]*\): install npm, then run it again\n$/,
    );
  });

  test("packages, where npm fails", () => {
    unlinkSync(modules);
    writeFileSync(join(bin, "npm"), "#!/bin/sh\necho npm-says-no >&2\nexit 3\n", { mode: 0o755 });
    const { exitCode, stderr } = run("start.mjs", []);
    unlinkSync(join(bin, "npm"));
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/npm-says-no\nduet: npm ci failed \(exit 3\): [^\n]+\n$/);
  });

  test("a C compiler: it goes on, and the standard output stays the command's", () => {
    writeFileSync(join(clone, "src/native/toy.c"), "int toy;\n");
    const { exitCode, stdout, stderr } = run("duet.mjs", ["exit", "0"]);
    expect({ exitCode, stdout }).toEqual({ exitCode: 0, stdout: 'args ["exit","0"]\n' });
    expect(stderr).toMatch(
      /^duet: NO C COMPILER: .*apt-get install.*\nduet: going on with the plain TypeScript device.*\n$/,
    );
  });

  test("kernels that don't compile", () => {
    writeFileSync(join(clone, "src/native/toy.c"), "int toy(\n");
    writeFileSync(
      join(bin, "gcc"),
      '#!/bin/sh\n[ "$1" = --version ] && echo toy 1.0 && exit 0\necho toy-error\nexit 1\n',
      {
        mode: 0o755,
      },
    );
    const { exitCode, stderr } = run("duet.mjs", ["exit", "0"]);
    unlinkSync(join(bin, "gcc"));
    expect(exitCode).toBe(1);
    expect(stderr).toBe(
      "toy-error\nduet: the kernel library could not be built: toy 1.0 could not compile toy.c; see its messages above\n",
    );
  });
});

describe("packages are installed anew", () => {
  /** npm's place is taken by a script that puts the repository's packages there. */
  function withNpm(act: () => void): void {
    const script = `#!/bin/sh\n/bin/rm -rf "${modules}"\n/bin/ln -s "${join(root, "node_modules")}" "${modules}"\n`;
    writeFileSync(join(bin, "npm"), script, { mode: 0o755 });
    try {
      act();
    } finally {
      unlinkSync(join(bin, "npm"));
    }
  }

  test("when there are none, and when they are of another lock file", () => {
    unlinkSync(modules);
    withNpm(() =>
      expect(run("duet.mjs", ["exit", "4"])).toMatchObject({
        exitCode: 4,
        stderr: expect.stringContaining("installing"),
      }),
    );
    expect(run("duet.mjs", ["exit", "4"])).toMatchObject({ exitCode: 4, stderr: "" });

    unlinkSync(modules);
    mkdirSync(modules);
    const record = readFileSync(join(root, "node_modules/.package-lock.json"), "utf8");
    writeFileSync(join(modules, ".package-lock.json"), record.replace(/"version": "1\.4\.5"/, '"version": "1.4.4"'));
    withNpm(() =>
      expect(run("duet.mjs", ["exit", "4"])).toMatchObject({
        exitCode: 4,
        stderr: expect.stringContaining("installing"),
      }),
    );
  });
});

test("Bun is found where npm doesn't run install scripts", () => {
  unlinkSync(modules);
  mkdirSync(join(modules, "bun/bin"), { recursive: true });
  cpSync(join(root, "node_modules/.package-lock.json"), join(modules, ".package-lock.json"));
  writeFileSync(join(modules, "bun/bin/bun.exe"), "stands in for the program until the install script has run\n");
  const arch = process.arch === "arm64" ? "aarch64" : process.arch;
  const folder = join(modules, `@oven/bun-${process.platform}-${arch}/bin`);
  mkdirSync(folder, { recursive: true });
  symlinkSync(process.execPath, join(folder, "bun"));
  expect(run("duet.mjs", ["exit", "6"])).toMatchObject({ exitCode: 6, stderr: "" });
});
