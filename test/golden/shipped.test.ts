// The shipped containers give the outputs that shipped.json has: bit for bit on the cpu device, whatever its instruction set and
// lanes, and the same tokens up to near-ties on the reference.

import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { defined } from "../../src/base/assert.ts";
import { cpuEntries, referenceEntry, skippedCpu } from "../support/devices.ts";
import { MODEL_NAMES } from "../support/fable.ts";
import { computeShippedModel, readShipped, SHIPPED_TOKEN_COUNT } from "./shipped.ts";

setDefaultTimeout(60_000);

/** Quantised activations differ by a step where a rounding tie falls the other way; a clear choice survives that. */
const NEAR_TIE = 0.2;

describe.each(MODEL_NAMES)("the shipped %s", (name) => {
  const shipped = readShipped()[name];

  test.each(cpuEntries.map((entry) => [entry.name, entry] as const))("has the recorded bits on %s", (_, entry) => {
    const device = entry.create();
    try {
      const got = computeShippedModel(device, name);
      if (got.fingerprint !== shipped.fingerprint) {
        throw new Error(
          `models/${name} was packed again; run \`bun scripts/update-golden.ts\` and review the difference`,
        );
      }
      expect(got.runs.map((run) => run.tokens)).toEqual(shipped.runs.map((run) => run.tokens));
      expect(got.runs.map((run) => run.logitsHash)).toEqual(shipped.runs.map((run) => run.logitsHash));
    } finally {
      device.close();
    }
  });
  if (skippedCpu !== null) test.skip(`has the recorded bits on the cpu device (skipped: ${skippedCpu})`, () => {});

  test("has the recorded tokens on the reference, up to the first near-tie", () => {
    const { runs } = computeShippedModel(referenceEntry.create(), name);
    let comparedCount = 0;
    for (const [index, want] of shipped.runs.entries()) {
      const nearTie = want.gaps.findIndex((gap) => gap < NEAR_TIE);
      const count = nearTie < 0 ? SHIPPED_TOKEN_COUNT : nearTie;
      comparedCount += count;
      expect(defined(runs[index]).tokens.slice(0, count)).toEqual(want.tokens.slice(0, count));
    }
    expect(comparedCount).toBeGreaterThan(SHIPPED_TOKEN_COUNT / 4);
  });
});
