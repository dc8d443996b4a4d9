// The cpu device: the kernel library behind the Device interface. It owns the lanes (threads) and says what runs where;
// lane 0 is the thread that calls run, so a device belongs to the thread that made it.

import os from "node:os";
import { assert } from "../../base/assert.ts";
import { DuetError } from "../../base/errors.ts";
import { ISA } from "../../native/binding.ts";
import {
  checkStatus,
  chooseIsa,
  HandleOut,
  type IsaName,
  type Native,
  openNative,
  type Pointer,
} from "../../native/library.ts";
import { Slab } from "../../native/slab.ts";
import { OP_CODES, type OpName, type Program } from "../../model/program.ts";
import type { Container } from "../../weights/header.ts";
import type { Device, DeviceDescription, DeviceModel, ModelOptions } from "../device.ts";
import { CpuModel } from "./cpu-model.ts";
import { type LoadingListener, makeResident, type Residency } from "./residency.ts";

export interface CpuDeviceOptions {
  /** Threads, the calling one included; null: one for each CPU that the process may run on. */
  readonly laneCount?: number | null;
  /** Instruction set; null: the fastest that this CPU and this build have. */
  readonly isa?: string | null;
  /** Lane i stays on CPU i where the system allows. */
  readonly isPinned?: boolean;
  /** Where the kernel library lies; the place of the build by default. */
  readonly libraryPath?: string;
  /** How a model's weights come into memory. Default: mmap. */
  readonly residency?: Residency;
  readonly onLoading?: LoadingListener | undefined;
}

export const LANE_MAX = 256;

/** Starts the lanes. DuetError `native_missing`, `native_abi`, `config_invalid` (an instruction set that isn't there). */
export function createCpuDevice(options: CpuDeviceOptions = {}): Device {
  const native = openNative(options.libraryPath);
  const laneCount = options.laneCount ?? Math.min(native.cpu.onlineCpus, LANE_MAX);
  if (!Number.isInteger(laneCount) || laneCount < 1 || laneCount > LANE_MAX) {
    throw new DuetError("config_invalid", "the number of threads is out of range", {
      expected: `1 to ${LANE_MAX}`,
      got: String(laneCount),
      next: `leave it out to use ${native.cpu.onlineCpus}, one for each CPU`,
    });
  }
  return new CpuDevice(native, laneCount, chooseIsa(native, options.isa ?? null), options);
}

const ISA_TITLES: Readonly<Record<IsaName, string>> = {
  plain: "plain C",
  avx2: "AVX2",
  avx512: "AVX-512 VNNI",
  neon: "NEON",
  avxvnni: "AVX2 with AVX-VNNI",
};
/** Ops whose work has no vector form: a few table look-ups or rotations per row. */
const PORTABLE_OPS: readonly OpName[] = ["embed", "ropeAndStore"];

class CpuDevice implements Device {
  readonly kind = "cpu";
  #handle: Pointer | null;
  #modelCount = 0;

  constructor(
    private readonly native: Native,
    private readonly laneCount: number,
    private readonly isa: IsaName,
    private readonly options: CpuDeviceOptions,
  ) {
    const out = new HandleOut();
    const { symbols } = native;
    const isPinned = options.isPinned ?? false;
    const status = symbols.duet_device_create(laneCount, ISA[isa], isPinned ? 1 : 0, out.address);
    checkStatus(symbols, status, `start ${laneCount} lanes`);
    this.#handle = out.value;
  }

  describe(): DeviceDescription {
    const { isa, laneCount, native } = this;
    const teamCount = laneCount % 2 === 0 ? 2 : 1;
    const lanes = laneCount === 1 ? "1 lane" : `${laneCount} lanes`;
    const teams = teamCount === 2 ? "in 2 teams" : laneCount === 1 ? "runs both dies" : "in 1 team that runs both dies";
    const pinned = this.options.isPinned === true ? ", pinned" : "";
    const warnings: string[] = [];
    if (isa === "plain") {
      warnings.push(
        `no vector kernels run here: plain C is several times slower (this CPU and build have: ${native.cpu.isas.join(", ")})`,
      );
    }
    if (laneCount > native.cpu.onlineCpus) {
      warnings.push(
        `${laneCount} lanes share ${native.cpu.onlineCpus} CPUs: steps are slower than with one lane for each`,
      );
    }
    const placeOfDie = (die: number) => {
      if (teamCount === 1) return `${ISA_TITLES[isa]}, ${lanes}, shared with the other die`;
      const first = (die * laneCount) / 2;
      const last = first + laneCount / 2 - 1;
      return `${ISA_TITLES[isa]}, ${first === last ? `lane ${first}` : `lanes ${first} to ${last}`}${pinned}`;
    };
    const placeOfOp = (name: OpName) => (PORTABLE_OPS.includes(name) ? "native plain" : `native ${isa}`);
    return {
      kind: this.kind,
      summary: `cpu (${ISA_TITLES[isa]}, ${lanes} ${teams}${pinned})`,
      isa,
      laneCount,
      dies: [placeOfDie(0), placeOfDie(1)],
      ops: Object.fromEntries((Object.keys(OP_CODES) as OpName[]).map((name) => [name, placeOfOp(name)])),
      warnings,
    };
  }

  load(container: Container, program: Program, options: ModelOptions): DeviceModel {
    assert(this.#handle !== null, "the device is open");
    const { header, path, fileBytes } = container;
    if (header.layout !== "cpu-x16") {
      throw new DuetError("container_unsupported", "the cpu device cannot read this container's layout", {
        where: path,
        expected: "cpu-x16",
        got: header.layout,
        next: "pack the model again without a layout",
      });
    }
    const slab = Slab.map(this.native, path, fileBytes);
    try {
      const memoryBytes = Math.min(os.totalmem(), process.constrainedMemory() || Infinity);
      makeResident(slab, this.options.residency ?? "mmap", memoryBytes, this.options.onLoading);
      const onClose = () => void this.#modelCount--;
      const model = new CpuModel(this.native, this.#handle, slab, program, header.tensors, options, onClose);
      this.#modelCount++;
      return model;
    } catch (error) {
      slab.unmap();
      throw error;
    }
  }

  /** Its models are closed first. A second call does nothing. */
  close(): void {
    if (this.#handle === null) return;
    assert(this.#modelCount === 0, "a device in use is not closed");
    const handle = this.#handle;
    this.#handle = null;
    checkStatus(this.native.symbols, this.native.symbols.duet_device_destroy(handle), "stop the lanes");
  }
}
