// Writes src/native/binding.ts from src/native/kernels.h: the library's symbols, struct layouts, enums, constants and ABI
// version. `--check` writes nothing and exits with 1 when the file is stale. The parser knows the few forms that the header
// uses and refuses everything else, so that nothing is left out of the binding unseen.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dir, "..");
export const HEADER_PATH = join(ROOT, "src/native/kernels.h");
export const BINDING_PATH = join(ROOT, "src/native/binding.ts");

export interface FieldLayout {
  readonly name: string;
  readonly offset: number;
  readonly kind: FieldKind;
  /** Elements of an array field; 1 otherwise. */
  readonly count: number;
}
export type FieldKind = "char" | "u32" | "i32" | "u64" | "f32" | "ptr";
export interface StructLayout {
  readonly name: string;
  readonly bytes: number;
  readonly fields: readonly FieldLayout[];
}
export interface Header {
  readonly constants: ReadonlyMap<string, number>;
  readonly enums: ReadonlyMap<string, ReadonlyMap<string, number>>;
  readonly structs: readonly StructLayout[];
  readonly functions: readonly { readonly name: string; readonly args: readonly string[]; readonly returns: string }[];
}

/** bunfig.toml's printWidth: the binding passes the format check as it is written. */
const LINE_MAX = 120;
const KIND_BYTES: Record<FieldKind, number> = { char: 1, u32: 4, i32: 4, u64: 8, f32: 4, ptr: 8 };
const SCALARS: Record<string, FieldKind> = {
  char: "char",
  uint32_t: "u32",
  int32_t: "i32",
  uint64_t: "u64",
  float: "f32",
};

/** Parses the header; throws an Error that quotes what it does not know. */
export function parseHeader(text: string): Header {
  const constants = new Map<string, number>();
  const enums = new Map<string, Map<string, number>>();
  const structs: StructLayout[] = [];
  const functions: Header["functions"][number][] = [];
  const evaluate = (expression: string): number => {
    const value = constants.get(expression) ?? Number(expression.replace(/u$/, ""));
    if (!Number.isInteger(value)) throw new Error(`kernels.h: not an integer: ${expression}`);
    return value;
  };

  let rest = text.replace(/\/\*[\s\S]*?\*\//g, " ");
  const take = (pattern: RegExp, use: (match: string[]) => void) => {
    rest = rest.replace(pattern, (...match: string[]) => {
      use(match);
      return "";
    });
  };
  take(/^#(?:ifndef|include|endif).*$/gm, () => {});
  take(/^#define DUET_KERNELS_H$/gm, () => {});
  take(/^#define DUET_API .*$/gm, () => {});
  take(/^#define (DUET_\w+) (\w+)\s*$/gm, ([, name = "", value = ""]) => constants.set(name, evaluate(value)));
  take(/typedef enum (\w+) \{([^}]*)\} \1;/g, ([, name = "", body = ""]) => {
    const members = body.split(",").map((member) => member.trim());
    enums.set(name, new Map(members.map((member) => parseMember(member, evaluate))));
  });
  take(/typedef struct (\w+) \{([^}]*)\} \1;/g, ([, name = "", body = ""]) => {
    structs.push(layOut(name, body, evaluate));
  });
  take(/typedef struct (\w+) \1;/g, () => {});
  take(/DUET_API ([\w ]+?) (duet_\w+)\(([^)]*)\);/g, ([, returns = "", name = "", args = ""]) => {
    const types = args.trim() === "void" ? [] : args.split(",").map((argument) => ffiType(argument, true));
    functions.push({ name, args: types, returns: ffiType(returns, false) });
  });
  if (rest.trim() !== "") throw new Error(`kernels.h: not understood: ${rest.trim().slice(0, 200)}`);
  return { constants, enums, structs, functions };
}

function parseMember(member: string, evaluate: (expression: string) => number): [string, number] {
  const match = /^(\w+) = (\w+)$/.exec(member);
  if (match === null) throw new Error(`kernels.h: an enum member needs a value: ${member}`);
  return [match[1] ?? "", evaluate(match[2] ?? "")];
}

/** The System V layout of a struct of scalars, pointers and arrays of scalars. */
function layOut(name: string, body: string, evaluate: (expression: string) => number): StructLayout {
  const fields: FieldLayout[] = [];
  let offset = 0;
  let alignment = 1;
  const declarations = body
    .split(";")
    .map((declaration) => declaration.trim())
    .filter(Boolean);
  for (const declaration of declarations) {
    const match = /^(?:const )?(\w+) (\*?)(\w+)(?:\[(\w+)\])?$/.exec(declaration);
    const kind = match?.[2] === "*" ? "ptr" : SCALARS[match?.[1] ?? ""];
    if (match === null || kind === undefined)
      throw new Error(`kernels.h: field of ${name} not understood: ${declaration}`);
    const count = match[4] === undefined ? 1 : evaluate(match[4]);
    const bytes = KIND_BYTES[kind];
    offset = Math.ceil(offset / bytes) * bytes;
    alignment = Math.max(alignment, bytes);
    fields.push({ name: match[3] ?? "", offset, kind, count });
    offset += bytes * count;
  }
  return { name, bytes: Math.ceil(offset / alignment) * alignment, fields };
}

function ffiType(declaration: string, isArgument: boolean): string {
  const type = declaration.replace(/\bconst\b/g, "").trim();
  if (type.startsWith("char *") && /\bconst\b/.test(declaration)) return "cstring";
  if (type.includes("*")) return "ptr";
  const scalar = SCALARS[(isArgument ? type.replace(/\w+$/, "") : type).trim()];
  if (scalar === undefined || scalar === "char") throw new Error(`kernels.h: type not understood: ${declaration}`);
  return scalar;
}

const camel = (name: string) => name.toLowerCase().replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());

/** The text of binding.ts. */
export function renderBinding(header: Header): string {
  const lines = [
    "// Generated by scripts/generate-binding.ts from kernels.h: do not edit. The kernel library's symbols, struct layouts (bytes",
    "// and offsets), enums, constants and ABI version.",
    "",
  ];
  const constants = [...header.constants].map(([name, value]) => `  ${camel(name.replace(/^DUET_/, ""))}: ${value},`);
  lines.push("export const CONSTANTS = {", ...constants, "} as const;", "");
  for (const [name, members] of header.enums) {
    const title = name.replace(/^duet_/, "").toUpperCase();
    const rows = [...members].map(
      ([member, value]) => `  ${camel(member.replace(`DUET_`, "").replace(enumPrefix(name), ""))}: ${value},`,
    );
    lines.push(`export const ${title} = {`, ...rows, "} as const;", "");
  }
  lines.push('export type FieldKind = "char" | "u32" | "i32" | "u64" | "f32" | "ptr";', "");
  lines.push("/** Offset in bytes; count is above 1 for arrays. */");
  lines.push("export type Field = { readonly offset: number; readonly kind: FieldKind; readonly count: number };", "");
  for (const struct of header.structs) {
    const title = struct.name.replace(/^duet_/, "").toUpperCase();
    const rows = struct.fields.map(
      ({ name, offset, kind, count }) => `    ${camel(name)}: { offset: ${offset}, kind: "${kind}", count: ${count} },`,
    );
    lines.push(
      `export const ${title}_STRUCT = {`,
      `  bytes: ${struct.bytes},`,
      "  fields: {",
      ...rows,
      "  },",
      "} as const;",
      "",
    );
  }
  lines.push("/** As `dlopen` of bun:ffi takes them. */", "export const SYMBOLS = {");
  for (const { name, args, returns } of header.functions) {
    const list = args.map((argument) => `"${argument}"`).join(", ");
    const line = `  ${name}: { args: [${list}], returns: "${returns}" },`;
    if (line.length <= LINE_MAX) lines.push(line);
    else lines.push(`  ${name}: {`, `    args: [${list}],`, `    returns: "${returns}",`, "  },");
  }
  lines.push("} as const;", "");
  return lines.join("\n");
}

/** duet_status has members DUET_STATUS_…, duet_op_code DUET_OP_…: what they have in common. */
function enumPrefix(name: string): string {
  const words = name
    .replace(/^duet_/, "")
    .toUpperCase()
    .split("_");
  const isTwoWords = ["KV_TYPE", "QUANT_TYPE", "OP_CODE"].includes(words.join("_"));
  return `${isTwoWords ? words[0] : words.join("_")}_`;
}

/** A C file that fails to compile where a layout differs from the compiler's. */
export function renderLayoutCheck(header: Header): string {
  const checks = header.structs.flatMap(({ name, bytes, fields }) => [
    `_Static_assert(sizeof(${name}) == ${bytes}, "${name}");`,
    ...fields.map(
      (field) => `_Static_assert(offsetof(${name}, ${field.name}) == ${field.offset}, "${name}.${field.name}");`,
    ),
  ]);
  return ['#include "kernels.h"', ...checks, ""].join("\n");
}

if (import.meta.main) {
  const text = renderBinding(parseHeader(readFileSync(HEADER_PATH, "utf8")));
  if (!process.argv.includes("--check")) {
    writeFileSync(BINDING_PATH, text);
  } else if (readFileSync(BINDING_PATH, "utf8") !== text) {
    console.error("src/native/binding.ts is stale; next: npx bun scripts/generate-binding.ts");
    process.exitCode = 1;
  }
}
