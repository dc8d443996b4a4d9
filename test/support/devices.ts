// The devices that this machine can test, each with the family inside which bits must agree.

import type { Device } from "../../src/device/device.ts";
import { createReferenceDevice } from "../../src/device/reference/reference-device.ts";

export interface DeviceEntry {
  readonly name: string;
  create(): Device;
  /** Entries of one family give the same bits. */
  readonly family: string;
}

export const referenceEntry: DeviceEntry = { name: "reference", create: createReferenceDevice, family: "reference" };

/** Every way that the cpu device can run here. */
export const cpuEntries: readonly DeviceEntry[] = [];

/** Why there are none; null when there are. */
export const skippedCpu: string | null = "the cpu device is missing";

/** One entry of each device. */
export const fastDevices: readonly DeviceEntry[] = [referenceEntry];
