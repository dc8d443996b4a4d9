// One model on one device without an engine: what `eval` and `bench` measure on.

import type { Device, DeviceModel, ModelOptions } from "../device/device.ts";
import { openDevice } from "../device/open-device.ts";
import type { EngineOptions } from "../engine/client.ts";
import { compileProgram } from "../model/compile.ts";
import type { Container } from "../weights/header.ts";
import { createProgress } from "./terminal.ts";

export interface OpenModel extends Disposable {
  readonly device: Device;
  readonly model: DeviceModel;
}

/** DuetError as the device and the container throw them; nothing stays open then. */
export async function openModel(
  container: Container,
  options: EngineOptions,
  sizes: Omit<ModelOptions, "kvType">,
): Promise<OpenModel> {
  const loading = createProgress("reading weights");
  const device = await openDevice(options, (done, total) => loading.update(done, total));
  try {
    const model = device.load(container, compileProgram(container), { ...sizes, kvType: options.kvType });
    return {
      device,
      model,
      [Symbol.dispose]() {
        model.close();
        device.close();
      },
    };
  } catch (error) {
    device.close();
    throw error;
  } finally {
    loading.stop();
  }
}
