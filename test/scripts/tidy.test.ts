import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { measure } from "../../scripts/size.ts";
import { checkModels, type Finding, identifierWords, importsOf, splitSource, tidy } from "../../scripts/tidy.ts";

/** Findings for files given as path and text, each source with a header and used by the command, so that only one rule speaks. */
function findings(files: Record<string, string>): string[] {
  const uses = Object.keys(files).filter((path) => path.startsWith("src/") && path !== "src/cli.ts");
  const cli = `// The command.\n${uses.map((path) => `import "./${path.slice(4)}";\n`).join("")}`;
  const withHeaders = Object.entries(files).map(([path, text]) => ({
    path,
    text: /^src\/.*\.[tch]/.test(path) ? `// Owns this.\n${text}` : text,
  }));
  return tidy([{ path: "src/cli.ts", text: cli }, ...withHeaders]).map(show);
}

const show = ({ path, line, rule, message, isWarning }: Finding) =>
  `${path}:${line}: ${isWarning ? "warning: " : ""}${rule}: ${message}`;

describe("splitting a source", () => {
  test("keeps code, strings and comments apart, each in its place", () => {
    const text = 'const a = "// no"; // yes "x"\nconst b = /\\/"/g; /* c\nd */ e(`//${f}`);\n';
    const parts = splitSource(text);
    const words = parts.code.split(/\s+/).filter((word) => word !== "");
    expect(words).toEqual(["const", "a", "=", ";", "const", "b", "=", ";", "e(", ");"]);
    expect(parts.code.indexOf("e(")).toBe(text.indexOf("e("));
    expect(parts.comments.trim().split(/\s*\n\s*/)).toEqual(['// yes "x"', "/* c", "d */"]);
    expect(parts.codeAndStrings).toContain('"// no"');
    expect(parts.codeAndStrings).not.toContain("yes");
  });

  test("never changes the length or the lines of any text", () => {
    const piece = fc.constantFrom('"', "'", "`", "/", "*", "\\", "\n", " ", "a", "=", "(", "${", "}", "//", "/*", "*/");
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 40 }), (pieces) => {
        const text = pieces.join("");
        const lineBreaks = (part: string) => [...part].flatMap((character, at) => (character === "\n" ? [at] : []));
        for (const part of Object.values(splitSource(text))) {
          expect(part.length).toBe(text.length);
          expect(lineBreaks(part)).toEqual(lineBreaks(text));
        }
      }),
    );
  });

  test("a division is not a regular expression", () => {
    expect(splitSource("const x = a / b; // c / d\n").code).toContain("a / b;");
  });
});

test("identifiers fall into words", () => {
  expect(identifierWords("kvBlockMax")).toEqual(["kv", "block", "max"]);
  expect(identifierWords("KV_BLOCK_MAX")).toEqual(["kv", "block", "max"]);
  expect(identifierWords("parseHTTPStatus2")).toEqual(["parse", "http", "status2"]);
  expect(identifierWords("_")).toEqual([]);
});

test("imports are found in all their forms, and not in comments", () => {
  const text = [
    'import type { A } from "./a.ts";',
    'export * from "./b.ts";',
    'import "./c.ts";',
    'await import("./d.ts");',
    'new Worker(new URL("./e.ts", import.meta.url));',
    '// import "./f.ts";',
  ].join("\n");
  const specifiers = importsOf(splitSource(text)).map(({ specifier }) => specifier);
  expect(specifiers).toEqual(["./a.ts", "./b.ts", "./c.ts", "./d.ts", "./e.ts"]);
});

describe("layers", () => {
  test("imports to the left and inside a folder are right", () => {
    const engine = 'import "../base/log.ts";\nimport type { B } from "../device/batch.ts";\nimport "./step.ts";\n';
    const others = { "src/engine/step.ts": "", "src/base/log.ts": "", "src/device/batch.ts": "" };
    expect(findings({ "src/engine/loop.ts": engine, ...others })).toEqual([]);
  });

  test("an import to the right names both folders, also as type", () => {
    const text = 'import type { Engine } from "../engine/engine.ts";\n';
    expect(findings({ "src/device/x.ts": text, "src/engine/engine.ts": "" })).toEqual([
      "src/device/x.ts:2: layers: device must not import engine, which is not to its left",
    ]);
  });

  test("folders of one rank don't import each other", () => {
    expect(findings({ "src/model/x.ts": 'import "../tokenizer/y.ts";\n', "src/tokenizer/y.ts": "" })).toEqual([
      "src/model/x.ts:2: layers: model must not import tokenizer, which is not to its left",
    ]);
  });

  test("source doesn't import from outside src, and has no unknown folder", () => {
    expect(findings({ "src/base/x.ts": 'import "../../test/y.ts";\n' })).toEqual([
      "src/base/x.ts:2: layers: src/ must not import test/y.ts",
    ]);
    expect(findings({ "src/helpers/x.ts": "" })).toEqual([
      "src/helpers/x.ts:1: layers: src/helpers is not in the order of folders",
    ]);
  });
});

test("bun:ffi has two places", () => {
  const text = 'import { dlopen } from "bun:ffi";\n';
  expect(findings({ "src/native/library.ts": text, "src/device/ascend/acl.ts": text })).toEqual([]);
  expect(findings({ "src/device/cpu/x.ts": text })).toEqual([
    "src/device/cpu/x.ts:2: ffi: bun:ffi is for src/native/ and src/device/ascend/ only",
  ]);
});

test("the environment is read in config.ts only", () => {
  const text = "export const port = process.env.PORT;\n";
  expect(findings({ "src/config.ts": text })).toEqual([]);
  expect(findings({ "src/engine/x.ts": text, "src/native/y.c": 'char *p = getenv("P");\n' })).toEqual([
    "src/engine/x.ts:2: environment: process.env is read in src/config.ts only",
    "src/native/y.c:2: environment: getenv is read in src/config.ts only",
  ]);
});

test("lengths: a warning past the soft limit, a failure past the hard one, and more for C", () => {
  const lines = (count: number) => "x;\n".repeat(count - 1); // and the header
  expect(findings({ "src/base/x.ts": lines(250) })).toEqual([]);
  expect(findings({ "src/base/x.ts": lines(251) })).toEqual([
    "src/base/x.ts:251: warning: length: 251 lines, over 250",
  ]);
  expect(findings({ "src/base/x.ts": lines(501) })).toEqual([
    "src/base/x.ts:501: length: 501 lines, at most 500: split it by owner of state",
  ]);
  expect(findings({ "src/native/x.c": lines(800) })).toEqual([]);
  expect(findings({ "src/native/x.c": lines(801) })).toHaveLength(1);
});

test("every source starts with a comment, after #! where there is one", () => {
  expect(tidy([{ path: "scripts/x.mjs", text: "#!/usr/bin/env node\n// Does it.\nrun();\n" }])).toEqual([]);
  expect(tidy([{ path: "scripts/x.mjs", text: "#!/usr/bin/env node\nrun();\n" }]).map(({ rule }) => rule)).toEqual([
    "header",
  ]);
  expect(tidy([{ path: "src/cli.ts", text: "//\nrun();\n" }]).map(({ rule }) => rule)).toEqual(["header"]);
});

describe("vocabulary", () => {
  test("a banned word is refused in identifiers and comments, with the word to use", () => {
    expect(findings({ "src/engine/x.ts": "// Then rewind.\nconst rollBackTo = 1;\nconst numRows = 2;\n" })).toEqual([
      'src/engine/x.ts:2: vocabulary: "rewind": say truncate (move the frontier back)',
      'src/engine/x.ts:3: vocabulary: identifier rollBackTo: "roll back" is truncate here',
      'src/engine/x.ts:4: vocabulary: identifier numRows: "num" is <noun>Count here',
    ]);
  });

  test("strings, and words that only contain one, are left alone", () => {
    expect(findings({ "src/engine/x.ts": 'const number = "rewind num_experts"; // renumber\n' })).toEqual([]);
  });

  test("a checkpoint is weights, in the folders that read one", () => {
    expect(findings({ "src/weights/x.ts": "const checkpoint = 1;\n" })).toEqual([]);
    expect(findings({ "src/engine/x.ts": "const checkpoint = 1;\n" })).toHaveLength(1);
  });

  test("the card's own words are right where the card is spoken to", () => {
    expect(findings({ "src/device/ascend/x.ts": "const npuCount = 2;\n" })).toEqual([]);
    expect(findings({ "src/device/cpu/x.ts": "const npuCount = 2;\n" })).toHaveLength(1);
  });
});

test("nothing is left for later, and no test hides the others", () => {
  const marker = ["TO", "DO"].join("");
  const only = ["test", "only("].join(".");
  const rules = findings({ "src/base/x.ts": `// ${marker}: later\n`, "test/base/x.test.ts": `${only}"a", run);\n` });
  expect(rules).toEqual([
    `src/base/x.ts:2: leftover: ${marker}: do it or drop it`,
    `test/base/x.test.ts:1: leftover: ${only} hides the other tests`,
  ]);
});

test("no tracker numbers and no paths of one machine, in comments and documents", () => {
  const files = { "src/base/x.ts": "// See issue 12.\n", "docs/a.md": "As in #7, see ../shared/notes.\n" };
  expect(findings(files)).toEqual([
    'docs/a.md:1: private: "#7" means nothing outside the tracker',
    'docs/a.md:1: private: "../shared" is a path of one machine',
    'src/base/x.ts:2: private: "issue 12" means nothing outside the tracker',
  ]);
  expect(findings({ "docs/a.md": "# 7 ways\n\n## 3. Colour `#fff`, C#\n" })).toEqual([]);
});

test("tests mirror the sources, but in the folders for wider tests", () => {
  const wide = { "test/contract/device.test.ts": "", "test/e2e/chat.test.ts": "" };
  expect(
    findings({ "src/base/x.ts": "", "test/base/x.test.ts": "", "test/base/x.property.test.ts": "", ...wide }),
  ).toEqual([]);
  expect(findings({ "test/base/gone.test.ts": "" })).toEqual([
    "test/base/gone.test.ts:1: mirror: tests src/base/gone.ts, which is not there",
  ]);
});

test("a source that only its test imports is dead", () => {
  const cli = { path: "src/cli.ts", text: '// The command.\nimport "./base/used.ts";\n' };
  const used = { path: "src/base/used.ts", text: "// Used.\n" };
  const unused = { path: "src/base/unused.ts", text: "// Unused.\n" };
  const its = { path: "test/base/unused.test.ts", text: 'import "../../src/base/unused.ts";\n' };
  expect(tidy([cli, used, unused, its]).map(show)).toEqual([
    "src/base/unused.ts:1: dead: nobody imports this file: use or delete it",
  ]);
});

test("AGENTS.md stays under 100 lines, models under 40 MB", () => {
  expect(findings({ "AGENTS.md": "x\n".repeat(99) })).toEqual([]);
  expect(findings({ "AGENTS.md": "x\n".repeat(100) })).toEqual(["AGENTS.md:100: length: 100 lines, at most 99"]);
  expect(checkModels(39_999_999)).toEqual([]);
  expect(checkModels(40_000_000).map(({ rule }) => rule)).toEqual(["models"]);
});

test("size counts a line once: code before comment before blank", () => {
  expect(measure('// a\n\nconst b = "x"; // c\n/* d\n\n e */\n')).toEqual({ files: 1, code: 1, comment: 3, blank: 2 });
});
