// What must be true before Duet can run from a clone: packages as package-lock.json says, a Bun binary, and the kernel
// library. Plain Node >= 20 without dependencies. Everything it prints goes to standard error, and it prints nothing when
// there is nothing to do; a step that fails ends the process with one line that says what to do.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readFileSync, realpathSync, statSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { buildNative, COMPILER_HINT, ROOT } from "./build-native.mjs";

const NODE_MAJOR_MIN = 20;
/** Signals that are passed on to Bun. */
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"];
/** npm repeats a signal that its child has had already; the same signal again within this time is that echo. */
const ECHO_MS = 300;

const say = (line) => process.stderr.write(`duet: ${line}\n`);

function fail(message) {
  say(message);
  process.exit(1);
}

/**
 * Whether node_modules holds what package-lock.json asks for. npm leaves a record of what it installed, written last, so
 * comparing the two also sees an install that was interrupted, and one that the user made.
 */
function areModulesCurrent() {
  let wanted, installed;
  try {
    wanted = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8")).packages;
    installed = JSON.parse(readFileSync(join(ROOT, "node_modules/.package-lock.json"), "utf8")).packages;
  } catch {
    return false;
  }
  return Object.entries(wanted).every(([path, entry]) => {
    if (path === "") return true;
    const present = installed[path];
    return present
      ? present.version === entry.version && present.integrity === entry.integrity
      : entry.optional === true;
  });
}

/** Bun as npm installed it: put in place by its install script, or, where npm doesn't run those, in its platform's package. */
export function findBun() {
  const arch = process.arch === "arm64" ? "aarch64" : process.arch;
  const platform = `${process.platform}-${arch}`;
  const packages = [platform, `${platform}-baseline`, `${platform}-musl`, `${platform}-musl-baseline`];
  if (existsSync(`/lib/ld-musl-${arch.replace("x64", "x86_64")}.so.1`)) packages.reverse();
  const candidates = ["bun/bin/bun.exe", ...packages.map((name) => `@oven/bun-${name}/bin/bun`)];
  return candidates.map((path) => join(ROOT, "node_modules", path)).find(isBinary);
}

/** A program and not the script that stands in its place until an install script has run. */
function isBinary(path) {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat !== undefined && stat.isFile() && stat.size > 1_000_000;
}

function install() {
  say("installing packages with npm ci (once)");
  const args = ["ci", "--loglevel=error", "--no-audit", "--no-fund"];
  const npm = process.env.npm_execpath;
  const isNpm = npm !== undefined && npm.endsWith("npm-cli.js") && existsSync(npm);
  const [command, prefix] = isNpm ? [process.execPath, [npm]] : ["npm", []];
  const result = spawnSync(command, [...prefix, ...args], { cwd: ROOT, stdio: ["ignore", 2, 2] });
  if (result.error) fail(`npm could not be run (${result.error.message}): install npm, then run it again`);
  if (result.status !== 0) {
    fail(
      `npm ci failed (exit ${result.status ?? result.signal}): see above, check network and disk, then run it again`,
    );
  }
}

async function prepareNative() {
  const plain = "going on with the plain TypeScript device, which is very much slower";
  if (process.platform !== "linux") return say(`the native kernels need Linux; ${plain}`);
  const messages = []; // the compiler's: of interest here only when it fails
  try {
    const { status, compiler, units, seconds } = await buildNative({ say: (text) => messages.push(text) });
    if (status === "built") {
      say(`built ${units.length} kernel units in ${seconds.toFixed(1)} s with ${compiler.version}`);
    } else if (status === "no-compiler") {
      say(`NO C COMPILER: the native kernels can't be built; ${COMPILER_HINT}`);
      say(plain);
    }
  } catch (error) {
    for (const text of messages) process.stderr.write(`${text}\n`);
    fail(`the kernel library could not be built: ${error.message}${error.hint ? `; ${error.hint}` : ""}`);
  }
}

/** Brings packages and kernel library up to date and returns the path of Bun. Ends the process when that can't be done. */
export async function prepare() {
  const [major] = process.versions.node.split(".").map(Number);
  if (major < NODE_MAJOR_MIN) fail(`Node ${process.versions.node} is too old: install Node ${NODE_MAJOR_MIN} or newer`);
  let bun = areModulesCurrent() ? findBun() : undefined;
  if (!bun) {
    install();
    bun = findBun();
  }
  if (!bun) {
    fail(`npm installed no Bun for ${process.platform}-${process.arch}: allow optional packages (npm config get omit)`);
  }
  await prepareNative();
  return bun;
}

/** Whether the terminal sends its own signals (Ctrl-C) to this process group, and so to the child as well. */
function isForeground() {
  try {
    // proc(5): after the name in parentheses come state, ppid, pgrp, session, tty_nr, tpgid.
    const fields = readFileSync("/proc/self/stat", "utf8").split(") ").pop().split(" ");
    return fields[2] === fields[5];
  } catch {
    return process.stdin.isTTY === true;
  }
}

/**
 * Runs `bun src/cli.ts ...args` in this process's place: same standard streams, each signal delivered once, and its exit
 * code. In front of a terminal the child shares the process group, so that Ctrl-C reaches it directly; otherwise it has
 * its own group, and a signal to the whole group comes through here once.
 */
export function runCli(bun, args) {
  const lastMs = new Map();
  // Before the child is there, since a signal that finds no handler would leave it behind. Callbacks run after the spawn.
  for (const signal of SIGNALS) {
    process.on(signal, () => {
      const nowMs = performance.now();
      const isEcho = nowMs - (lastMs.get(signal) ?? -Infinity) < ECHO_MS;
      if (isEcho || (signal !== "SIGTERM" && isForeground())) return;
      lastMs.set(signal, nowMs);
      child.kill(signal);
    });
  }
  const child = spawn(bun, [join(ROOT, "src/cli.ts"), ...args], { stdio: "inherit", detached: !isForeground() });
  child.on("error", (error) =>
    fail(`${bun} could not be run (${error.message}): delete node_modules and run it again`),
  );
  child.on("exit", (code, signal) => process.exit(code ?? 128 + constants.signals[signal]));
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) await prepare();
