// The containers in models/: intact, of the shape that their cards state, and small enough to carry in the repository.

import { expect, test } from "bun:test";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { MIB } from "../../src/base/units.ts";
import { readContainer } from "../../src/weights/container.ts";
import { inspectContainer } from "../../src/weights/inspect.ts";
import { splitForShape } from "../../src/weights/split.ts";

const models = join(import.meta.dir, "../../models");

test.each(["fable", "fable-draft"])("%s: every checksum holds, the card's parameter counts are right", (name) => {
  const container = readContainer(join(models, name, `${name}.duet`));
  const report = inspectContainer(container, { verify: true });
  expect(report.checksums).toBe("ok");
  expect(report.recipe).toBe("q4");
  expect(report.provenance).toMatchObject({ modelName: name, license: "Apache-2.0" });
  expect(report.split).toEqual(splitForShape(report.shape));
  const card = readFileSync(join(models, name, "README.md"), "utf8");
  expect(card).toContain(report.parameters.total.toLocaleString("en-US"));
  if (report.parameters.mtp > 0) {
    expect(card).toContain((report.parameters.total + report.parameters.mtp).toLocaleString("en-US"));
  }
});

test("target and draft share tokenizer and vocabulary", () => {
  const [target, draft] = ["fable", "fable-draft"].map(
    (name) => readContainer(join(models, name, `${name}.duet`)).header,
  );
  expect(draft?.tokenizer.tokenizerJson).toBe(target?.tokenizer.tokenizerJson ?? "");
  expect(draft?.shape.vocabularySize).toBe(target?.shape.vocabularySize ?? 0);
});

test("all of models/ is under 40 MiB", () => {
  const files = readdirSync(models, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const bytes = files.reduce((sum, entry) => sum + statSync(join(entry.parentPath, entry.name)).size, 0);
  expect(files.length).toBeGreaterThan(10);
  expect(bytes).toBeLessThan(40 * MIB);
});
