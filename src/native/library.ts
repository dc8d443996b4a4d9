// The one TypeScript door to the kernel library (libduet): finds it, checks its ABI version, and turns its status codes into
// typed errors with the library's own text. Handles are addresses; what they own is freed by unmap, destroyDevice and
// destroyModel. The library is never closed: its symbols would go on working on unmapped code.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { dlopen, type Pointer, ptr } from "bun:ffi";
import { DuetError, type DuetErrorCode } from "../base/errors.ts";
import { CONSTANTS, CPU_INFO_STRUCT, ISA, STATUS, SYMBOLS } from "./binding.ts";
import { StructArray } from "./struct.ts";

/** Where scripts/build-native.mjs puts it. */
export const DEFAULT_LIBRARY_PATH = join(import.meta.dir, "../../build/native/libduet.so");
const BUILD_HINT = "run `node scripts/build-native.mjs` (it needs gcc or clang)";

export type IsaName = keyof typeof ISA;
export const ISA_NAMES = Object.keys(ISA) as readonly IsaName[];

export interface CpuInfo {
  /** Those that this CPU can run and this build has. */
  readonly isas: readonly IsaName[];
  readonly bestIsa: IsaName;
  /** CPUs that this process may run on. */
  readonly onlineCpus: number;
  readonly compiler: string;
  readonly cpuName: string;
}

type Symbols = ReturnType<typeof dlopen<typeof SYMBOLS>>["symbols"];

/** An address in native memory. */
export type { Pointer };

/** An open kernel library. */
export interface Native {
  readonly path: string;
  readonly symbols: Symbols;
  readonly cpu: CpuInfo;
}

const opened = new Map<string, Native>();

/** Whether the library has been built; it may still refuse to open. */
export function isNativeAvailable(path: string = DEFAULT_LIBRARY_PATH): boolean {
  return existsSync(path);
}

/** The library at `path`, opened once. DuetError `native_missing` or `native_abi`. */
export function openNative(path: string = DEFAULT_LIBRARY_PATH): Native {
  const known = opened.get(path);
  if (known !== undefined) return known;
  if (!existsSync(path)) {
    throw new DuetError("native_missing", "the kernel library is not built", { where: path, next: BUILD_HINT });
  }
  const symbols = loadSymbols(path);
  const version = symbols.duet_abi_version();
  if (version !== CONSTANTS.abiVersion) {
    throw new DuetError("native_abi", "the kernel library is of another version", {
      where: path,
      expected: `ABI version ${CONSTANTS.abiVersion}`,
      got: String(version),
      next: BUILD_HINT,
    });
  }
  const native = { path, symbols, cpu: describeCpu(symbols) };
  opened.set(path, native);
  return native;
}

function loadSymbols(path: string): Symbols {
  try {
    return dlopen(path, SYMBOLS).symbols;
  } catch (cause) {
    const what = "the kernel library does not open";
    throw new DuetError("native_abi", what, { where: path, got: String(cause), next: BUILD_HINT }, { cause });
  }
}

function describeCpu(symbols: Symbols): CpuInfo {
  const info = new StructArray(CPU_INFO_STRUCT, 1);
  const { fields } = CPU_INFO_STRUCT;
  checkStatus(symbols, symbols.duet_cpu_describe(info.address as Pointer), "describe the CPU");
  const mask = info.u32(0, fields.isaMask);
  const isas = ISA_NAMES.filter((name) => (mask & (1 << ISA[name])) !== 0);
  const best = info.u32(0, fields.isaBest);
  return {
    isas,
    bestIsa: ISA_NAMES.find((name) => ISA[name] === best) ?? "plain",
    onlineCpus: info.u32(0, fields.onlineCpus),
    compiler: info.text(0, fields.compiler),
    cpuName: info.text(0, fields.cpuName),
  };
}

/** The instruction set asked for, or the fastest. DuetError `config_invalid` when it cannot run here. */
export function chooseIsa(native: Native, asked: string | null): IsaName {
  if (asked === null) return native.cpu.bestIsa;
  const found = native.cpu.isas.find((name) => name === asked);
  if (found !== undefined) return found;
  throw new DuetError("config_invalid", `the instruction set "${asked}" cannot run here`, {
    expected: native.cpu.isas.join(", "),
    got: asked,
    next: "leave it out to use the fastest",
  });
}

const ERROR_CODES: Readonly<Record<number, DuetErrorCode>> = {
  [STATUS.noMemory]: "out_of_memory",
  [STATUS.io]: "file_unreadable",
  [STATUS.mappingLost]: "device_fault",
  [STATUS.notFinite]: "device_fault",
};
const NEXT: Readonly<Record<number, string>> = {
  [STATUS.invalid]: "this is a bug in Duet: report it with this text",
  [STATUS.noMemory]: "free memory, or lower the number of kvBlocks and rows",
  [STATUS.mappingLost]: "restore the container file and start again",
  [STATUS.notFinite]: "verify the container's checksums (`duet inspect --verify`)",
  [STATUS.unsupported]: "choose another instruction set, or build the library on this machine",
};

/** Returns when the status is ok; else throws DuetError with the library's text. Call it on the thread that made the call. */
export function checkStatus(symbols: Symbols, status: number, action: string): void {
  if (status === STATUS.ok) return;
  const text = lastError(symbols);
  const next = NEXT[status];
  throw new DuetError(ERROR_CODES[status] ?? "native_failed", `cannot ${action}: ${text}`, {
    got: `status ${status}`,
    ...(next === undefined ? {} : { next }),
  });
}

const errorText = new Uint8Array(512);

/** The library's text on what failed last on this thread. */
export function lastError(symbols: Symbols): string {
  const length = symbols.duet_last_error(ptr(errorText), errorText.length);
  return new TextDecoder().decode(errorText.subarray(0, Math.min(length, errorText.length - 1)));
}

/** Receives a handle that native code writes through a pointer. */
export class HandleOut {
  readonly #cell = new BigUint64Array(1);
  get address(): Pointer {
    return ptr(this.#cell);
  }
  get value(): Pointer {
    return Number(this.#cell[0]) as Pointer;
  }
}
