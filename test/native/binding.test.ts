// The generated binding: it is what the header says now, its layouts are the compiler's, and an unknown form is refused.
import { describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  BINDING_PATH,
  HEADER_PATH,
  parseHeader,
  renderBinding,
  renderLayoutCheck,
} from "../../scripts/generate-binding.ts";
import { OP_CODE, OP_STRUCT, SYMBOLS } from "../../src/native/binding.ts";
import { OP_CODES } from "../../src/model/program.ts";

const text = readFileSync(HEADER_PATH, "utf8");
const compiler = ["cc", "gcc", "clang", "clang-19"].find((name) => Bun.which(name) !== null);

test("binding.ts is what kernels.h says", () => {
  expect(readFileSync(BINDING_PATH, "utf8")).toBe(renderBinding(parseHeader(text)));
});

test("every function of the header is a symbol", () => {
  const declared = [...text.matchAll(/^DUET_API .*?(duet_\w+)\(/gm)].map(([, name]) => name);
  expect(declared.length).toBeGreaterThan(20);
  expect(Object.keys(SYMBOLS)).toEqual(declared as string[]);
});

test("op codes are the Program's", () => {
  expect({ ...OP_CODE }).toEqual({ ...OP_CODES });
});

describe.skipIf(compiler === undefined)(`layouts${compiler === undefined ? " (no C compiler)" : ""}`, () => {
  function compile(source: string): { exitCode: number; stderr: string } {
    const folder = mkdtempSync(join(tmpdir(), "duet-binding-"));
    try {
      const file = join(folder, "layout.c");
      writeFileSync(file, source);
      const command = [compiler ?? "", "-std=c11", "-fsyntax-only", "-I", join(HEADER_PATH, ".."), file];
      const { exitCode, stderr } = Bun.spawnSync(command);
      return { exitCode, stderr: stderr.toString() };
    } finally {
      rmSync(folder, { recursive: true });
    }
  }

  test("are the compiler's", () => {
    expect(compile(renderLayoutCheck(parseHeader(text)))).toEqual({ exitCode: 0, stderr: "" });
  });

  test("a wrong one is found", () => {
    const right = renderLayoutCheck(parseHeader(text));
    const wrong = right.replace(
      `== ${OP_STRUCT.fields.weight2.offset}, "duet_op.weight_2"`,
      '== 4, "duet_op.weight_2"',
    );
    expect(wrong).not.toBe(right);
    expect(compile(wrong).exitCode).not.toBe(0);
  });
});

test.each([
  ["an enum member without a value", "typedef enum duet_x { DUET_X_A } duet_x;"],
  ["a field of an unknown type", "typedef struct duet_x { double a; } duet_x;"],
  ["a double pointer field", "typedef struct duet_x { float **a; } duet_x;"],
  ["an argument of an unknown type", "DUET_API int32_t duet_x(long a);"],
  ["a macro with arguments", "#define DUET_X(a) (a)"],
  ["anything else", "extern int duet_x;"],
])("%s is refused", (_, source) => {
  expect(() => parseHeader(source)).toThrow("kernels.h");
});

test("padding follows alignment", () => {
  const { structs } = parseHeader(
    "typedef struct duet_x { uint32_t a; const float *b; char c[3]; uint64_t d; uint32_t e[2]; float f; } duet_x;",
  );
  expect(structs[0]?.fields.map(({ offset }) => offset)).toEqual([0, 8, 16, 24, 32, 40]);
  expect(structs[0]?.bytes).toBe(48);
});
