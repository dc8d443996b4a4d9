// The device that options ask for. Where the kernel library was never built, the plain TypeScript device stands in, and says so in
// its warnings: nothing falls back silently.

import { isNativeAvailable } from "../native/library.ts";
import type { LoadingListener, Residency } from "./cpu/residency.ts";
import type { Device } from "./device.ts";

export interface DeviceOptions {
  readonly deviceKind: "cpu" | "reference";
  /** Lanes of the cpu device; null: one for each CPU. */
  readonly threadCount: number | null;
  readonly isPinned: boolean;
  /** null: the best of this CPU. */
  readonly isa: string | null;
  /** How the cpu device brings weights into memory; the reference device copies them in any case. */
  readonly residency: Residency;
}

const FALLBACK_WARNING =
  "the native kernels are not built, so the plain TypeScript device runs, tens of times slower: " +
  "install a C compiler (apt-get install gcc libc6-dev, or clang) and start again with `npm start`";

/** Opens a device; each kind's code loads only when it is wanted. DuetError as the devices throw them. */
export async function openDevice(options: DeviceOptions, onLoading?: LoadingListener): Promise<Device> {
  const isFallback = options.deviceKind === "cpu" && !isNativeAvailable();
  if (options.deviceKind === "reference" || isFallback) {
    const { createReferenceDevice } = await import("./reference/reference-device.ts");
    const device = createReferenceDevice();
    if (!isFallback) return device;
    return { ...device, describe: () => ({ ...device.describe(), warnings: [FALLBACK_WARNING] }) };
  }
  const { createCpuDevice } = await import("./cpu/cpu-device.ts");
  const { threadCount: laneCount, isPinned, isa, residency } = options;
  return createCpuDevice({ laneCount, isPinned, isa, residency, onLoading });
}
