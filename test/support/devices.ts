// The devices that this machine can test, each with the family inside which bits must agree.

import { createCpuDevice } from "../../src/device/cpu/cpu-device.ts";
import type { Device } from "../../src/device/device.ts";
import { createReferenceDevice } from "../../src/device/reference/reference-device.ts";
import { isNativeAvailable, openNative } from "../../src/native/library.ts";

export interface DeviceEntry {
  readonly name: string;
  create(): Device;
  /** Entries of one family give the same bits. */
  readonly family: string;
}

export const referenceEntry: DeviceEntry = { name: "reference", create: createReferenceDevice, family: "reference" };

/** Odd: one team runs both dies; even: a team for each. */
const LANE_COUNTS = [1, 2, 3];

/** Why there are no cpu entries; null when there are. */
export const skippedCpu = isNativeAvailable() ? null : "the kernel library is not built: node scripts/build-native.mjs";

/** Every way that the cpu device can run here: the plain twin with one lane first, the fastest instruction set last. */
export const cpuEntries: readonly DeviceEntry[] = skippedCpu === null ? listCpuEntries() : [];

/** The fastest instruction set on one lane, which other load on the machine disturbs least; undefined where there is none. */
export const fastCpu: DeviceEntry | undefined = cpuEntries.at(-LANE_COUNTS.length);

/** One entry of each device. */
export const oneOfEach: readonly DeviceEntry[] = [referenceEntry, ...(fastCpu === undefined ? [] : [fastCpu])];

function listCpuEntries(): DeviceEntry[] {
  const { isas, bestIsa } = openNative().cpu;
  const slowestFirst = [...isas.filter((isa) => isa !== bestIsa), bestIsa];
  return slowestFirst.flatMap((isa) =>
    LANE_COUNTS.map((laneCount) => ({
      name: `cpu ${isa}, ${laneCount} ${laneCount === 1 ? "lane" : "lanes"}`,
      create: () => createCpuDevice({ isa, laneCount }),
      family: "cpu",
    })),
  );
}
