// Who keeps the device contract. A device that cannot run here is named with the reason; a new one is one more entry.

import { setDefaultTimeout, test } from "bun:test";
import { cpuEntries, referenceEntry, skippedCpu } from "../support/devices.ts";
import { describeDeviceContract } from "./device-contract.ts";

setDefaultTimeout(60_000);

describeDeviceContract([referenceEntry, ...cpuEntries]);
if (skippedCpu !== null) test.skip(`the cpu device (skipped: ${skippedCpu})`, () => {});
