// `npm run tidy`: the house rules that no other tool checks, each a pure function from files to findings. A rule that is
// not here is advice. It reads the files that git knows or would add, prints `file:line: rule: message`, and exits with 1
// when a rule is broken; warnings only inform. It changes nothing.
import { readFileSync, statSync } from "node:fs";
import { dirname, extname, join } from "node:path";
import { BANNED_IN_IDENTIFIERS, BANNED_IN_PROSE } from "./vocabulary.ts";

export interface SourceFile {
  /** From the repository's root, with forward slashes. */
  readonly path: string;
  readonly text: string;
}

export interface Finding {
  readonly path: string;
  readonly line: number;
  readonly rule: string;
  readonly message: string;
  readonly isWarning?: true;
}

/** Folders of src/, leftmost first; those of one rank don't import each other. A file in src/ itself counts as a folder. */
const LAYERS = [
  ["base"],
  ["native"],
  ["weights"],
  ["tokenizer", "model"],
  ["device"],
  ["memory"],
  ["speculative"],
  ["engine"],
  ["plan"],
  ["server", "bench"],
  ["config"],
  ["cli"],
];
const ENTRY_POINTS = ["src/cli.ts"];
const FFI_FOLDERS = ["src/native/", "src/device/ascend/"];
const ENVIRONMENT_READERS = ["src/config.ts", "src/cli.ts"];
/** Written by a program: no limit on their length. */
const GENERATED = ["src/native/binding.ts", "src/native/abi.ts"];
/** Folders of test/ whose files test no single source file. */
const UNMIRRORED_TESTS = ["contract", "golden", "fuzz", "e2e", "ascend-emulator", "native", "scripts"];
/** These name what they look for. */
const RULE_FILES = ["scripts/tidy.ts", "scripts/vocabulary.ts", "test/scripts/tidy.test.ts"];

const TS_LINES_SOFT = 250;
const TS_LINES_HARD = 500;
const C_LINES_HARD = 800;
const AGENTS_LINES_MAX = 99;
const MODELS_BYTES_MAX = 40_000_000;

const isTypeScript = (path: string) => /\.m?tsx?$/.test(path);
const isC = (path: string) => /\.[ch]$/.test(path);
const isSource = (path: string) => isTypeScript(path) || isC(path) || path.endsWith(".mjs");
const isTest = (path: string) => path.endsWith(".test.ts");

/** The parts of a source text, each as long as the text and with its line breaks; what belongs to another part is blank. */
export interface Parts {
  readonly code: string;
  readonly comments: string;
  /** Code with its string literals, without comments. */
  readonly codeAndStrings: string;
}

// A regular expression literal is recognised after an operator or bracket. Template substitutions count as string.
const TOKENS =
  /(?<comment>\/\/[^\n]*|\/\*[\s\S]*?\*\/)|(?<string>"(?:\\[\s\S]|[^"\\\n])*"|'(?:\\[\s\S]|[^'\\\n])*'|`(?:\\[\s\S]|[^`\\])*`|(?<=[=(,:!&|?{};\n]\s*)\/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n[])+\/[a-z]*)/g;

const blank = (text: string) => text.replace(/[^\n]/g, " ");

/** Splits TypeScript, JavaScript or C into code, strings and comments. */
export function splitSource(text: string): Parts {
  const code: string[] = [];
  const comments: string[] = [];
  const codeAndStrings: string[] = [];
  let from = 0;
  const copyCode = (to: number) => {
    const piece = text.slice(from, to);
    code.push(piece);
    codeAndStrings.push(piece);
    comments.push(blank(piece));
  };
  for (const match of text.matchAll(TOKENS)) {
    copyCode(match.index);
    const [token] = match;
    const isComment = match.groups?.["comment"] !== undefined;
    code.push(blank(token));
    comments.push(isComment ? token : blank(token));
    codeAndStrings.push(isComment ? blank(token) : token);
    from = match.index + token.length;
  }
  copyCode(text.length);
  return { code: code.join(""), comments: comments.join(""), codeAndStrings: codeAndStrings.join("") };
}

/** Words of an identifier: `kvBlockMax` and `KV_BLOCK_MAX` are kv, block, max. */
export function identifierWords(identifier: string): string[] {
  return identifier
    .replace(/([a-z0-9])([A-Z])/g, "$1_$2")
    .replace(/([A-Z])([A-Z][a-z])/g, "$1_$2")
    .toLowerCase()
    .split("_")
    .filter((word) => word !== "");
}

const lineAt = (text: string, index: number) => text.slice(0, index).split("\n").length;

/** Lines of a text; a line break at the end starts none. */
export function lineCount(text: string): number {
  return text === "" ? 0 : text.replace(/\n$/, "").split("\n").length;
}

export interface Import {
  readonly specifier: string;
  readonly index: number;
}

const IMPORTS =
  /(?:\bfrom\s*|\bimport\s*\(?\s*|\brequire\s*\(\s*|\bnew\s+URL\s*\(\s*|\bnew\s+Worker\s*\(\s*)(["'])(?<specifier>[^"'\n]+)\1/g;

/** What a file imports, statically, dynamically, or by URL (workers). */
export function importsOf(parts: Parts): Import[] {
  const found = [...parts.codeAndStrings.matchAll(IMPORTS)];
  return found.map((match) => ({ specifier: match.groups?.["specifier"] ?? "", index: match.index }));
}

/** Where a relative specifier points, from the repository's root; undefined for packages. */
export function resolveImport(path: string, specifier: string): string | undefined {
  return specifier.startsWith(".") ? join(dirname(path), specifier) : undefined;
}

/** The folder of src/ that owns a file, `cli` for src/cli.ts; undefined outside src/. */
function folderOf(path: string): string | undefined {
  return path.match(/^src\/([^/.]+)/)?.[1];
}

const rankOf = (folder: string) => LAYERS.findIndex((rank) => rank.includes(folder));

function checkImports(file: SourceFile, parts: Parts): Finding[] {
  const folder = folderOf(file.path);
  if (folder === undefined) return [];
  const rank = rankOf(folder);
  if (rank < 0) {
    return [{ path: file.path, line: 1, rule: "layers", message: `src/${folder} is not in the order of folders` }];
  }
  const findings: Finding[] = [];
  for (const { specifier, index } of importsOf(parts)) {
    const add = (rule: string, message: string) =>
      findings.push({ path: file.path, line: lineAt(file.text, index), rule, message });
    if (specifier === "bun:ffi" && !FFI_FOLDERS.some((prefix) => file.path.startsWith(prefix))) {
      add("ffi", `bun:ffi is for ${FFI_FOLDERS.join(" and ")} only`);
    }
    const target = resolveImport(file.path, specifier);
    if (target === undefined || !isSource(target)) continue;
    const targetFolder = folderOf(target);
    if (targetFolder === undefined) add("layers", `src/ must not import ${target}`);
    else if (targetFolder !== folder && rankOf(targetFolder) >= rank) {
      add("layers", `${folder} must not import ${targetFolder}, which is not to its left`);
    }
  }
  return findings;
}

/** Findings for each match of a pattern in one part of a file. */
function matches(
  file: SourceFile,
  text: string,
  pattern: RegExp,
  rule: string,
  message: (match: RegExpMatchArray) => string,
): Finding[] {
  return [...text.matchAll(pattern)].map((match) => ({
    path: file.path,
    line: lineAt(text, match.index),
    rule,
    message: message(match),
  }));
}

function checkEnvironment(file: SourceFile, parts: Parts): Finding[] {
  if (!file.path.startsWith("src/") || ENVIRONMENT_READERS.includes(file.path)) return [];
  const pattern = /\b(?:process\s*\.\s*(?:env|argv)|Bun\s*\.\s*(?:env|argv)|import\.meta\.env|getenv)\b/g;
  return matches(
    file,
    parts.codeAndStrings,
    pattern,
    "environment",
    ([read]) => `${read} is read in src/config.ts only`,
  );
}

function checkLength(file: SourceFile): Finding[] {
  if (GENERATED.includes(file.path)) return [];
  const lines = lineCount(file.text);
  const hard = isC(file.path) ? C_LINES_HARD : TS_LINES_HARD;
  const at = { path: file.path, line: lines, rule: "length" };
  if (lines > hard) return [{ ...at, message: `${lines} lines, at most ${hard}: split it by owner of state` }];
  if (!file.path.startsWith("src/") || isC(file.path) || lines <= TS_LINES_SOFT) return [];
  return [{ ...at, message: `${lines} lines, over ${TS_LINES_SOFT}`, isWarning: true }];
}

function checkHeader(file: SourceFile): Finding[] {
  const text = file.text.replace(/^#![^\n]*\n/, "");
  const needsOne = file.path.startsWith("src/") || file.path.startsWith("scripts/");
  if (!needsOne || /^\s*(?:\/\/[ \t]*|\/\*[\s*]*)[^\s*/]/.test(text)) return [];
  const message = "starts without a comment that says what the file owns and what it must not do";
  return [{ path: file.path, line: 1, rule: "header", message }];
}

function checkVocabulary(file: SourceFile, parts: Parts): Finding[] {
  if (!file.path.startsWith("src/") && !file.path.startsWith("test/")) return [];
  const findings: Finding[] = [];
  const isAllowed = (allowedIn: readonly string[] = []) => allowedIn.some((prefix) => file.path.startsWith(prefix));
  for (const { pattern, use, allowedIn } of BANNED_IN_PROSE) {
    if (isAllowed(allowedIn)) continue;
    findings.push(...matches(file, parts.comments, pattern, "vocabulary", ([word]) => `"${word}": say ${use}`));
  }
  for (const match of parts.code.matchAll(/[A-Za-z_$][\w$]*/g)) {
    const words = ` ${identifierWords(match[0]).join(" ")} `;
    const banned = BANNED_IN_IDENTIFIERS.find(
      (entry) => words.includes(` ${entry.words} `) && !isAllowed(entry.allowedIn),
    );
    if (!banned) continue;
    const message = `identifier ${match[0]}: "${banned.words}" is ${banned.use} here`;
    findings.push({ path: file.path, line: lineAt(parts.code, match.index), rule: "vocabulary", message });
  }
  return findings;
}

function checkLeftovers(file: SourceFile): Finding[] {
  if (RULE_FILES.includes(file.path)) return [];
  const findings = matches(
    file,
    file.text,
    /\b(?:FIXME|TODO|XXX)\b/g,
    "leftover",
    ([word]) => `${word}: do it or drop it`,
  );
  if (isTest(file.path)) {
    const only = /\b(?:test|it|describe)(?:\.\w+)*\.only\(/g;
    findings.push(...matches(file, file.text, only, "leftover", ([call]) => `${call} hides the other tests`));
  }
  return findings;
}

/** The project speaks of itself alone: no numbers of a tracker, no paths of one person's machine. */
function checkPrivate(file: SourceFile, prose: string): Finding[] {
  if (RULE_FILES.includes(file.path)) return [];
  const tracker = /\b(?:issues?|pull requests?)\s+#?\d+\b|(?<=^|[\s(])#\d+\b/gi;
  const place = /\/work\/\S*|\.\.\/shared\b|\.library\b|\/home\/\w+/g;
  return [
    ...matches(file, prose, tracker, "private", ([name]) => `"${name}" means nothing outside the tracker`),
    ...matches(file, file.text, place, "private", ([path]) => `"${path}" is a path of one machine`),
  ];
}

function checkMirror(file: SourceFile, paths: ReadonlySet<string>): Finding[] {
  const match = isTest(file.path) ? file.path.match(/^test\/((?:[^/]+\/)*)([^/.]+)/) : null;
  if (!match || UNMIRRORED_TESTS.includes(match[1]?.split("/")[0] ?? "")) return [];
  const source = `src/${match[1]}${match[2]}.ts`;
  if (paths.has(source) || paths.has(`${source}x`)) return [];
  return [{ path: file.path, line: 1, rule: "mirror", message: `tests ${source}, which is not there` }];
}

/** Source files that nothing but tests imports. */
function checkDead(files: readonly SourceFile[], parts: ReadonlyMap<string, Parts>): Finding[] {
  const used = new Set(ENTRY_POINTS);
  for (const { path, text } of files) {
    if (path.startsWith("test/")) continue;
    const own = parts.get(path);
    const specifiers = own ? importsOf(own).map(({ specifier }) => specifier) : [];
    if (path.endsWith(".html")) {
      specifiers.push(...[...text.matchAll(/\bsrc="([^"]+)"/g)].map((match) => match[1] ?? ""));
    }
    for (const specifier of specifiers) {
      const target = resolveImport(path, specifier);
      if (target !== undefined && target !== path) used.add(target);
    }
  }
  const dead = files.filter(({ path }) => path.startsWith("src/") && isTypeScript(path) && !used.has(path));
  return dead.map(({ path }) => ({
    path,
    line: 1,
    rule: "dead",
    message: "nobody imports this file: use or delete it",
  }));
}

function checkAgents(files: readonly SourceFile[]): Finding[] {
  const file = files.find(({ path }) => path === "AGENTS.md");
  const lines = lineCount(file?.text ?? "");
  if (lines <= AGENTS_LINES_MAX) return [];
  return [{ path: "AGENTS.md", line: lines, rule: "length", message: `${lines} lines, at most ${AGENTS_LINES_MAX}` }];
}

/** All findings, by file and line. */
export function tidy(files: readonly SourceFile[]): Finding[] {
  const paths = new Set(files.map(({ path }) => path));
  const parts = new Map<string, Parts>();
  const findings = checkAgents(files);
  for (const file of files) {
    findings.push(...checkLeftovers(file));
    if (!isSource(file.path)) {
      findings.push(...checkPrivate(file, extname(file.path) === ".md" ? file.text : ""));
      continue;
    }
    const own = splitSource(file.text);
    parts.set(file.path, own);
    findings.push(
      ...checkImports(file, own),
      ...checkEnvironment(file, own),
      ...checkLength(file),
      ...checkHeader(file),
      ...checkVocabulary(file, own),
      ...checkPrivate(file, own.comments),
      ...checkMirror(file, paths),
    );
  }
  findings.push(...checkDead(files, parts));
  return findings.sort((a, b) => (a.path === b.path ? a.line - b.line : a.path < b.path ? -1 : 1));
}

/** A finding when the shipped models together are too large for a clone. `bytes` is the sum of the files' sizes. */
export function checkModels(bytes: number): Finding[] {
  if (bytes < MODELS_BYTES_MAX) return [];
  return [{ path: "models", line: 1, rule: "models", message: `${bytes} bytes, must be under ${MODELS_BYTES_MAX}` }];
}

/** Files that git tracks, or would add, and that are there. */
export function listFiles(root: string): string[] {
  const listed = Bun.spawnSync(["git", "ls-files", "-z", "-co", "--exclude-standard"], { cwd: root });
  if (!listed.success) throw new Error(`git ls-files failed in ${root}: ${listed.stderr.toString().trim()}`);
  const paths = listed.stdout.toString().split("\0");
  return paths.filter((path) => path !== "" && statSync(join(root, path), { throwIfNoEntry: false })?.isFile()).sort();
}

const CHECKED = /\.(?:tsx?|mjs|[ch]|md|json|jsonc|toml|html|css|svg|sh)$|^\.ci\//;
const UNCHECKED = /^models\/|^package-lock\.json$/;

function main(): number {
  const root = dirname(import.meta.dirname);
  const paths = listFiles(root);
  const checked = paths.filter((path) => CHECKED.test(path) && !UNCHECKED.test(path));
  const files = checked.map((path) => ({ path, text: readFileSync(join(root, path), "utf8") }));
  const models = paths.filter((path) => path.startsWith("models/"));
  const modelBytes = models.reduce((sum, path) => sum + statSync(join(root, path)).size, 0);
  const findings = [...tidy(files), ...checkModels(modelBytes)];
  for (const { path, line, rule, message, isWarning } of findings) {
    console.log(`${path}:${line}: ${isWarning ? "warning: " : ""}${rule}: ${message}`);
  }
  const warnings = findings.filter(({ isWarning }) => isWarning).length;
  console.log(`tidy: ${files.length} files, ${findings.length - warnings} broken rules, ${warnings} warnings`);
  return findings.length > warnings ? 1 : 0;
}

if (import.meta.main) process.exit(main());
