// Sums what test runs reported: reads junit files and run statuses, prints failures, skips by name, and the closing line of
// .ci/run. Plain Node. A run that ended badly without a failed test to show for it (a crash, no report at all) is a failure.
import { readdirSync, readFileSync, realpathSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";

const ENTITIES = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&amp;": "&" };
const decode = (text) =>
  text
    .replace(/&(?:lt|gt|quot|apos|amp);/g, (entity) => ENTITIES[entity])
    .replace(/&#(x?)([0-9a-f]+);/gi, (_, hex, code) => String.fromCodePoint(Number.parseInt(code, hex ? 16 : 10)));

/** Every testcase of a junit file: `{ name, outcome }`, outcome one of passed, failed, skipped. */
export function readTestcases(xml) {
  const cases = [];
  for (const [, attributes, body = ""] of xml.matchAll(
    /<testcase\b((?:[^>"]|"[^"]*")*?)(?:\/>|>([\s\S]*?)<\/testcase>)/g,
  )) {
    const attribute = (key) => decode(attributes.match(new RegExp(`\\b${key}="([^"]*)"`))?.[1] ?? "");
    const name = [attribute("file"), attribute("classname"), attribute("name")].filter(Boolean).join(" > ");
    const outcome = /<(?:failure|error)\b/.test(body) ? "failed" : /<skipped\b/.test(body) ? "skipped" : "passed";
    cases.push({ name, outcome });
  }
  return cases;
}

/**
 * Totals of runs and steps. A run is `{ name, status, xml }`, xml undefined when there was no report; a step is a check other
 * than the tests, `{ name, status }`. Returns counts and the names of what failed and what was skipped.
 */
export function summarise(runs, steps) {
  const total = { passed: 0, failed: [], skipped: [] };
  for (const { name, status, xml } of runs) {
    const cases = xml === undefined ? [] : readTestcases(xml);
    const failed = cases.filter(({ outcome }) => outcome === "failed");
    total.passed += cases.filter(({ outcome }) => outcome === "passed").length;
    total.failed.push(...failed.map((testcase) => testcase.name));
    total.skipped.push(...cases.filter(({ outcome }) => outcome === "skipped").map((testcase) => testcase.name));
    if (xml === undefined) total.failed.push(`${name} (no report; the runner ended with status ${status})`);
    else if (status !== 0 && failed.length === 0) {
      total.failed.push(`${name} (no test failed, but the runner ended with status ${status})`);
    }
  }
  total.failed.push(
    ...steps.filter(({ status }) => status !== 0).map(({ name, status }) => `${name} (status ${status})`),
  );
  return total;
}

function readOptional(path) {
  try {
    const text = readFileSync(path, "utf8");
    return text.includes("</testsuites>") ? text : undefined;
  } catch {
    return undefined;
  }
}

// Usage: test-summary.mjs FOLDER. It holds NAME.status for each run and step, and NAME.xml for each run that could report.
function main(folder) {
  const runs = [];
  const steps = [];
  for (const file of readdirSync(folder).sort()) {
    if (!file.endsWith(".status")) continue;
    const name = basename(file, ".status");
    const status = Number(readFileSync(join(folder, file), "utf8"));
    if (name.startsWith("test ")) runs.push({ name, status, xml: readOptional(join(folder, `${name}.xml`)) });
    else steps.push({ name, status });
  }
  const { passed, failed, skipped } = summarise(runs, steps);
  for (const name of skipped) console.log(`skipped: ${name}`);
  for (const name of failed) console.log(`failed: ${name}`);
  console.log(`${passed} passed, ${failed.length} failed${skipped.length > 0 ? `, ${skipped.length} skipped` : ""}`);
  return failed.length > 0 || passed === 0 ? 1 : 0;
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.exitCode = main(process.argv[2]);
}
