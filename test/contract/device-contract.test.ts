// Who keeps the device contract. A device that cannot run here is named with the reason.

import { createReferenceDevice } from "../../src/device/reference/reference-device.ts";
import { describeDeviceContract, type DeviceEntry } from "./device-contract.ts";

const reference: DeviceEntry = { name: "reference", create: createReferenceDevice, family: "reference" };

describeDeviceContract([reference]);
