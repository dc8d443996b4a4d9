// Writes test/golden/shipped.json: the outputs of the shipped containers on the plain C kernels with one lane, which every other
// kernel must equal. Run it after packing models/ again, and review the difference like code.

import { writeFileSync } from "node:fs";
import { computeShipped, SHIPPED_PATH } from "../test/golden/shipped.ts";
import { cpuEntries, skippedCpu } from "../test/support/devices.ts";

const [plain] = cpuEntries;
if (plain === undefined) {
  console.error(`update-golden: needs the cpu device: ${skippedCpu}`);
  process.exit(1);
}
const device = plain.create();
const shipped = computeShipped(device);
device.close();
writeFileSync(SHIPPED_PATH, `${JSON.stringify(shipped)}\n`);
console.log(`${SHIPPED_PATH}: written from ${plain.name}`);
for (const name of ["fable", "fable-draft"] as const) {
  const { fingerprint, runs } = shipped[name];
  console.log(`${name} ${fingerprint}: ${runs.map((run) => run.logitsHash).join(" ")}`);
}
