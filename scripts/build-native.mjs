// Builds the kernel library: src/native/*.c into build/native/libduet.so, one translation unit per instruction set.
// Plain Node without dependencies, because it also runs before anything is installed. It owns the choice of compiler, the
// flags and the cache; what the kernels do, and which of them runs on a machine, is decided in C.
//
// The flags fix the arithmetic (docs/arithmetic.md): no contraction, no fast-math, no libm. A library is rebuilt only when
// the sources, headers, flags or compiler change, and is put in place by a rename, so a running process keeps its own.
import { spawn, spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { basename, delimiter, dirname, extname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
export const LIBRARY = join(ROOT, "build/native/libduet.so");

const CLANG_MIN = 15;
const CLANG_MAX = 40;

// -fno-math-errno changes no result: without it sqrtf is a call into libm, which the library doesn't link.
const BASE_FLAGS = [
  "-std=c11",
  "-ffp-contract=off",
  "-fno-fast-math",
  "-fno-math-errno",
  "-fPIC",
  "-fvisibility=hidden",
  "-Wall",
  "-Wextra",
  "-Werror=implicit-function-declaration",
  "-pthread",
];
const SPEED_FLAGS = ["-O3"];
const SANITIZE_FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"];

/** Name endings of units that need more than the baseline: where they are compiled, and with which flags. */
const INSTRUCTION_SETS = [
  {
    ending: "_avx512.c",
    arch: "x64",
    flags: ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c", "-mavx2"],
  },
  { ending: "_avxvnni.c", arch: "x64", flags: ["-mavxvnni", "-mavx2", "-mfma", "-mf16c"] },
  { ending: "_avx2.c", arch: "x64", flags: ["-mavx2", "-mfma", "-mf16c"] },
  { ending: "_neon.c", arch: "arm64", flags: ["-march=armv8.2-a+dotprod+fp16"] },
];

/** A build that could not be done; `hint` says what to do about it. */
export class BuildError extends Error {
  constructor(message, hint) {
    super(message);
    this.hint = hint;
  }
}

/** What to install where no C compiler is found. */
export const COMPILER_HINT =
  "install one with `apt-get install clang` or `apt-get install gcc libc6-dev`, then run it again";

/** Other machines to build for, by the name that their cross compiler goes by. */
const TARGETS = {
  "aarch64-linux-gnu": {
    arch: "arm64",
    library: join(ROOT, "build/native-aarch64/libduet.so"),
    hint: "install one with `apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross`, then run it again",
  },
};

/** The full path of a program on PATH, or undefined. */
function which(name) {
  const candidates = name.includes("/")
    ? [resolve(name)]
    : (process.env.PATH ?? "").split(delimiter).map((folder) => join(folder || ".", name));
  return candidates.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return statSync(path).isFile();
    } catch {
      return false;
    }
  });
}

/** Which file a program is right now; changes when it is upgraded. Costs no process, unlike asking for its version. */
function fileIdentity(path) {
  const real = realpathSync(path);
  const { mtimeMs, size } = statSync(real);
  return `${real} ${mtimeMs} ${size}`;
}

/** A compiler from its command line (`gcc`, `ccache clang-19`). `known` remembers versions by identity. */
function probeCompiler(commandLine, known) {
  const [name = "", ...args] = commandLine.trim().split(/\s+/);
  const path = which(name);
  if (!path) return undefined;
  const identity = [fileIdentity(path), ...args].join(" ");
  if (!known[identity]) {
    const asked = spawnSync(path, [...args, "--version"], { encoding: "utf8", timeout: 20_000 });
    if (asked.status !== 0) return undefined;
    const version = asked.stdout.split("\n")[0].trim();
    known[identity] = { version, family: /clang/i.test(asked.stdout) ? "clang" : "gcc" };
  }
  return { path, args, ...known[identity] };
}

function findClang(known, args = []) {
  for (let version = CLANG_MAX; version >= CLANG_MIN; version--) {
    const found = probeCompiler([`clang-${version}`, ...args].join(" "), known);
    if (found) return found;
  }
  const found = probeCompiler(["clang", ...args].join(" "), known);
  const version = Number(found?.version.match(/version (\d+)/)?.[1] ?? 0);
  return version >= CLANG_MIN ? found : undefined;
}

const findGcc = (known) => probeCompiler("gcc", known) ?? probeCompiler("cc", known);

/** The cross compilers of a target: gcc by its name, and clang where there are the target's headers and libraries. */
function findCross(target, known) {
  const gcc = probeCompiler(`${target}-gcc`, known);
  const clang = existsSync(join("/usr", target)) ? findClang(known, [`--target=${target}`]) : undefined;
  return { gcc, clang };
}

/**
 * The compiler that was asked for, else $CC, else the newest clang, else gcc; undefined where there is none. For another
 * target $CC means nothing, and its gcc comes first.
 */
function chooseCompiler(asked, known, target) {
  if (target && !asked) {
    const { gcc, clang } = findCross(target, known);
    return gcc ?? clang;
  }
  const named = asked ?? process.env.CC;
  if (!named) return findClang(known) ?? findGcc(known);
  const found = probeCompiler(named, known);
  if (found) return found;
  throw new BuildError(
    `the C compiler "${named}" (${asked ? "--compiler" : "$CC"}) doesn't run`,
    asked ? "name another one" : "unset CC to have one chosen, or name another one",
  );
}

/** A compiler of the family that the preferred one is not, for building the same arithmetic twice. */
function chooseTwin(known, target) {
  if (target) {
    const { gcc, clang } = findCross(target, known);
    return gcc && clang;
  }
  const preferred = chooseCompiler(undefined, known);
  return preferred?.family === "clang" ? findGcc(known) : findClang(known);
}

/** The flags of a unit by its name, or undefined when it is for another architecture. */
function unitFlags(name, sanitize, arch) {
  const set = INSTRUCTION_SETS.find(({ ending }) => name.endsWith(ending));
  if (set && set.arch !== arch) return undefined;
  return [...BASE_FLAGS, ...(sanitize ? SANITIZE_FLAGS : SPEED_FLAGS), ...(set?.flags ?? [])];
}

/** The units to compile for an architecture, each with its flags, and a hash of everything they read. */
function readSources(source, sanitize, arch) {
  const names = existsSync(source) ? readdirSync(source).sort() : [];
  const units = [];
  const hash = createHash("sha256").update(arch);
  for (const name of names) {
    if (![".c", ".h", ".inc"].includes(extname(name))) continue;
    const path = join(source, name);
    hash.update(`\0${name}\0`).update(readFileSync(path));
    if (extname(name) !== ".c") continue;
    const flags = unitFlags(name, sanitize, arch);
    if (!flags) continue;
    hash.update(flags.join(" "));
    units.push({ name, path, flags });
  }
  return { units, sourceHash: hash.digest("hex") };
}

function run(command, args) {
  return new Promise((done) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (output += data));
    child.on("error", (error) => done({ ok: false, output: `${output}${error.message}\n` }));
    child.on("close", (code) => done({ ok: code === 0, output }));
  });
}

/** Compiles the units on all cores into `folder` and links them to `out` with the flags `link`; messages go through `say`. */
async function compile(compiler, units, folder, out, link, say) {
  const queue = [...units];
  const failed = [];
  const worker = async () => {
    for (let unit = queue.shift(); unit; unit = queue.shift()) {
      const object = join(folder, `${unit.name}.o`);
      const { ok, output } = await run(compiler.path, [...compiler.args, ...unit.flags, "-c", unit.path, "-o", object]);
      if (output) say(output.trimEnd());
      if (!ok) failed.push(unit.name);
    }
  };
  await Promise.all(Array.from({ length: Math.min(availableParallelism(), units.length) }, worker));
  if (failed.length > 0) {
    throw new BuildError(`${compiler.version} could not compile ${failed.sort().join(", ")}`, "see its messages above");
  }
  const objects = units.map((unit) => join(folder, `${unit.name}.o`));
  const { ok, output } = await run(compiler.path, [...compiler.args, ...objects, ...link, "-o", out]);
  if (output) say(output.trimEnd());
  if (!ok) throw new BuildError(`${compiler.version} could not link ${basename(out)}`, "see its messages above");
}

function readRecord(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch {
    return undefined;
  }
}

/** What is built for: the architecture as Node names it, where the library goes, what to do without a compiler. */
function describeTarget(target) {
  if (!target) return { arch: process.arch, library: LIBRARY, hint: COMPILER_HINT };
  if (Object.hasOwn(TARGETS, target)) return TARGETS[target];
  throw new BuildError(`unknown target "${target}"`, `targets are ${Object.keys(TARGETS).join(", ")}`);
}

const hashFile = (path) => createHash("sha256").update(readFileSync(path)).digest("hex");

/**
 * Makes `out` the library of the sources as they are now, and returns `{ status, out, compiler?, units, seconds }`.
 * Status: `built`, `fresh` (nothing changed), `no-sources`, or `no-compiler` (nothing usable is left at `out` then).
 * Throws BuildError when a compiler is there but the build fails; the library that was there before stays.
 */
export async function buildNative({
  source = join(ROOT, "src/native"),
  out,
  compiler: asked,
  target,
  twin = false,
  sanitize = false,
  force = false,
  say = (line) => process.stderr.write(`${line}\n`),
} = {}) {
  const startMs = performance.now();
  const { arch, library: usual } = describeTarget(target);
  const library = resolve(out ?? usual.replace(/\.so$/, `${sanitize ? "-sanitize" : twin ? "-alt" : ""}.so`));
  const recordPath = `${library.replace(/\.so$/, "")}.json`;
  const record = readRecord(recordPath);
  const { units, sourceHash } = readSources(source, sanitize, arch);
  if (units.length === 0) return { status: "no-sources", out: library, units: [], seconds: 0 };

  const known = record?.known ?? {};
  const compiler = twin ? chooseTwin(known, target) : chooseCompiler(asked, known, target);
  const isCurrent =
    record?.sourceHash === sourceHash && existsSync(library) && record.libraryHash === hashFile(library);
  const unitNames = units.map((unit) => unit.name);
  if (!compiler) {
    if (isCurrent && !twin) return { status: "fresh", out: library, units: unitNames, seconds: 0 };
    rmSync(library, { force: true }); // built from other sources: the engine must not pick it up
    rmSync(recordPath, { force: true });
    return { status: "no-compiler", out: library, units: unitNames, seconds: 0 };
  }
  if (isCurrent && !force && record.compiler === compiler.version) {
    return { status: "fresh", out: library, compiler, units: unitNames, seconds: 0 };
  }

  const folder = join(dirname(library), `.build-${process.pid}-${randomBytes(4).toString("hex")}`);
  try {
    mkdirSync(folder, { recursive: true });
    const fresh = join(folder, basename(library));
    // -z defs makes a symbol that nobody defines (libm's, say) an error here rather than at the first call.
    const link = ["-shared", "-pthread", ...(sanitize ? SANITIZE_FLAGS : ["-Wl,-z,defs"])];
    await compile(compiler, units, folder, fresh, link, say);
    const next = { sourceHash, libraryHash: hashFile(fresh), compiler: compiler.version, units: unitNames, known };
    writeFileSync(`${fresh}.json`, `${JSON.stringify(next, null, 2)}\n`);
    renameSync(fresh, library);
    renameSync(`${fresh}.json`, recordPath);
  } catch (error) {
    if (error instanceof BuildError || !error.code) throw error;
    throw new BuildError(`cannot write the kernel library: ${error.message}`, `make ${dirname(library)} writable`);
  } finally {
    if (existsSync(folder)) rmSync(folder, { recursive: true, force: true });
  }
  return { status: "built", out: library, compiler, units: unitNames, seconds: (performance.now() - startMs) / 1000 };
}

/**
 * Compiles the named units, each with the flags that its name asks for, and links them to the program `out`: for tests and
 * benchmarks of the kernels alone. Units for another architecture are left out. Returns the compiler, or undefined where
 * there is none.
 */
export async function buildProgram({ paths, out, compiler: asked, target, twin = false, sanitize = false, say }) {
  const { arch } = describeTarget(target);
  const compiler = twin ? chooseTwin({}, target) : chooseCompiler(asked, {}, target);
  if (!compiler) return undefined;
  const include = `-I${join(ROOT, "src/native")}`;
  const units = paths.flatMap((path) => {
    const flags = unitFlags(basename(path), sanitize, arch);
    return flags ? [{ name: basename(path), path, flags: [...flags, include] }] : [];
  });
  const folder = `${resolve(out)}.build-${process.pid}`;
  try {
    mkdirSync(folder, { recursive: true });
    await compile(compiler, units, folder, out, ["-pthread", ...(sanitize ? SANITIZE_FLAGS : []), "-lm"], say);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return compiler;
}

const HELP = `Usage: node scripts/build-native.mjs [options]
       node scripts/build-native.mjs --program FILE UNIT...

Compiles src/native/*.c into build/native/libduet.so when something changed.

  --compiler NAME   use this compiler ($CC, else the newest clang, else gcc)
  --target NAME     build for another machine (aarch64-linux-gnu) with its cross compiler, into build/native-aarch64
  --twin            use the other family (gcc beside clang) and write libduet-alt.so; does nothing where there is only one
  --sanitize        build with the address and undefined-behaviour sanitizers into libduet-sanitize.so
  --source FOLDER   take the units from FOLDER
  --out FILE        write the library to FILE
  --program FILE    link the units that are named into a program instead, and print the compiler's version
  --force           build even when nothing changed
  --quiet           print compiler messages and errors only`;

function missingCompiler(target) {
  return new BuildError(`no C compiler${target ? ` for ${target}` : ""} was found`, describeTarget(target).hint);
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      program: { type: "string" },
      compiler: { type: "string" },
      target: { type: "string" },
      source: { type: "string" },
      out: { type: "string" },
      twin: { type: "boolean" },
      sanitize: { type: "boolean" },
      force: { type: "boolean" },
      quiet: { type: "boolean" },
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help) return console.log(HELP);
  if (values.program) {
    const say = (line) => process.stderr.write(`${line}\n`);
    const compiler = await buildProgram({ ...values, paths: positionals, out: values.program, say });
    if (!compiler) throw missingCompiler(values.target);
    return console.log(compiler.version);
  }
  if (positionals.length > 0)
    throw new BuildError(`unexpected "${positionals[0]}"`, "units are named with --program only");
  const { status, out, compiler, units, seconds } = await buildNative(values);
  if (status === "no-compiler" && !values.twin) throw missingCompiler(values.target);
  if (values.quiet) return;
  if (status === "no-compiler") return console.log("no compiler of another family: nothing built");
  if (status === "no-sources") return console.log("no C sources: nothing to build");
  console.log(`compiler: ${compiler?.version ?? "none, kept as built"}`);
  console.log(`units: ${units.join(" ")}`);
  console.log(status === "fresh" ? `${out}: nothing changed` : `${out}: built in ${seconds.toFixed(1)} s`);
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    await main();
  } catch (error) {
    console.error(`build-native: ${error.message}${error.hint ? `; ${error.hint}` : ""}`);
    process.exitCode = 1;
  }
}
