// `duet doctor`: what this machine is, what will run where and why, what is missing. It changes nothing.

import { existsSync } from "node:fs";
import os from "node:os";
import { DuetError } from "../base/errors.ts";
import { formatBytes } from "../base/units.ts";
import { SHIPPED_DRAFT, VERSION } from "../config.ts";
import type { DoctorCommand } from "../config.ts";
import type { DeviceDescription } from "../device/device.ts";
import { openDevice } from "../device/open-device.ts";
import { compileProgram } from "../model/compile.ts";
import { placementBytes } from "../model/placement.ts";
import { DEFAULT_LIBRARY_PATH, isNativeAvailable, openNative } from "../native/library.ts";
import { readContainer } from "../weights/container.ts";
import type { Container } from "../weights/header.ts";
import { bold, dim, print } from "./terminal.ts";

type Verdict = "ok" | "note" | "missing" | "failed";

interface Finding {
  readonly topic: string;
  readonly verdict: Verdict;
  readonly text: string;
  /** What to do about it. */
  readonly next: string | null;
}

const finding = (topic: string, verdict: Verdict, text: string, next: string | null = null): Finding => ({
  topic,
  verdict,
  text,
  next,
});

/** Runs one examination; what it throws becomes a finding. */
function examine(topic: string, work: () => Finding): Finding {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof DuetError)) throw error;
    return finding(topic, "failed", error.message, error.detail.next ?? null);
  }
}

function machineFindings(): Finding[] {
  const cpus = os.cpus();
  const memory = `${formatBytes(os.totalmem())}, ${formatBytes(os.freemem())} free`;
  return [
    finding(
      "machine",
      "ok",
      `${os.type()} ${os.release()} ${process.arch}, ${cpus.length} × ${cpus[0]?.model.trim() ?? "unknown CPU"}`,
    ),
    finding("memory", "ok", memory),
    finding("runtime", "ok", `Duet ${VERSION}, Bun ${Bun.version}`),
  ];
}

function compilerFinding(): Finding {
  const names = ["clang-19", "clang-18", "clang-17", "clang-16", "clang", "gcc", "cc"];
  const found = names.map((name) => Bun.which(name)).filter((path) => path !== null);
  if (found.length > 0) return finding("compiler", "ok", found.join(", "));
  return finding("compiler", "missing", "no C compiler", "apt-get install gcc libc6-dev (or clang), then npm start");
}

function kernelFinding(): Finding {
  if (!isNativeAvailable()) {
    return finding(
      "kernels",
      "missing",
      `${DEFAULT_LIBRARY_PATH} is not built`,
      "install a C compiler, then npm start",
    );
  }
  const { cpu, path } = openNative();
  return finding(
    "kernels",
    "ok",
    `${path}, built by ${cpu.compiler}; can run here: ${cpu.isas.join(", ")}; chosen: ${cpu.bestIsa}`,
  );
}

function modelFinding(container: Container): Finding {
  const { dies, replicated } = placementBytes(container);
  const { provenance, recipe, shape } = container.header;
  const need = container.fileBytes;
  const where = `die 0 ${formatBytes(dies[0])}, die 1 ${formatBytes(dies[1])}, both ${formatBytes(replicated)}`;
  const text = `${provenance.modelName}, recipe ${recipe.name}, context ${shape.contextMax}, ${formatBytes(need)}: ${where}`;
  if (need <= os.totalmem() * 0.9) return finding("model", "ok", text);
  return finding(
    "model",
    "note",
    `${text}; it is larger than memory (${formatBytes(os.totalmem())}), so experts are read from disk again and again`,
    "pack it with --recipe q4, or use a machine with more memory",
  );
}

function cardFinding(): Finding {
  const hasCard = existsSync("/dev/davinci0");
  return hasCard
    ? finding("ascend", "note", "a card is present (/dev/davinci0); this version computes on the CPU")
    : finding("ascend", "note", "no card (/dev/davinci0 is absent); everything runs on the CPU");
}

const MARKS: Readonly<Record<Verdict, string>> = {
  ok: "ok     ",
  note: "note   ",
  missing: "MISSING",
  failed: "FAILED ",
};

function printReport(findings: readonly Finding[], device: DeviceDescription | null): void {
  for (const { topic, verdict, text, next } of findings) {
    print(`${verdict === "ok" ? MARKS[verdict] : bold(MARKS[verdict])}  ${topic.padEnd(9)} ${text}`);
    if (next !== null) print(`${" ".repeat(19)}${bold("next:")} ${next}`);
  }
  if (device === null) return;
  print();
  print(bold("What runs where"));
  for (const [dieIndex, place] of device.dies.entries()) print(`  die ${dieIndex}          ${place}`);
  for (const [op, place] of Object.entries(device.ops)) print(`  ${op.padEnd(14)} ${place}`);
  print(dim("Every Program is split for two dies; with one lane, both halves run in turn and give the same bits."));
}

/** Exit status 1 when something that serving needs has failed; missing parts with a stand-in are no failure. */
export async function doctor(command: DoctorCommand): Promise<number> {
  const findings = [...machineFindings(), compilerFinding(), examine("kernels", kernelFinding)];
  let container: Container | null = null;
  findings.push(
    examine("model", () => {
      container = readContainer(command.containerPath);
      compileProgram(container);
      return modelFinding(container);
    }),
    examine("draft", () => {
      const draft = readContainer(SHIPPED_DRAFT);
      return finding("draft", "ok", `${draft.header.provenance.modelName}, ${formatBytes(draft.fileBytes)} (shipped)`);
    }),
  );
  let device: DeviceDescription | null = null;
  try {
    const opened = await openDevice({
      deviceKind: "cpu",
      threadCount: null,
      isPinned: false,
      isa: null,
      residency: "mmap",
    });
    device = opened.describe();
    opened.close();
    findings.push(finding("device", "ok", device.summary));
    for (const warning of device.warnings) findings.push(finding("device", "note", warning));
  } catch (error) {
    if (!(error instanceof DuetError)) throw error;
    findings.push(finding("device", "failed", error.message, error.detail.next ?? null));
  }
  findings.push(cardFinding());
  if (command.isJson) print(JSON.stringify({ findings, device }, null, 2));
  else printReport(findings, device);
  return findings.some(({ verdict }) => verdict === "failed") ? 1 : 0;
}
