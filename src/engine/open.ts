// From options to a working engine: container, Program, device, draft model, memory, proposers, tokenizer. Everything that
// is opened here is closed by what it returns.

import os from "node:os";
import { systemClock } from "../base/clock.ts";
import { DuetError } from "../base/errors.ts";
import { KV_BLOCK_TOKENS } from "../device/batch.ts";
import type { Device, DeviceModel } from "../device/device.ts";
import { openDevice } from "../device/open-device.ts";
import { blocksFor } from "../memory/block-table.ts";
import { KvBlockPool } from "../memory/kv-block-pool.ts";
import { PrefixIndex } from "../memory/prefix-index.ts";
import { compileProgram } from "../model/compile.ts";
import type { Program } from "../model/program.ts";
import { DraftModelProposer } from "../speculative/draft-model.ts";
import { NgramProposer } from "../speculative/ngram.ts";
import type { Proposer } from "../speculative/proposer.ts";
import { Detokenizer } from "../tokenizer/detokenizer.ts";
import { createTokenizer } from "../tokenizer/tokenizer.ts";
import { readContainer } from "../weights/container.ts";
import type { Container } from "../weights/header.ts";
import type { CancelWords } from "./cancel-words.ts";
import type { EngineOptions } from "./client.ts";
import { Engine } from "./engine.ts";
import type { EngineEvents } from "./engine-parts.ts";
import { checkIntegrity, watchIntegrity } from "./integrity.ts";
import { chooseKvBlockCount, kvBlockBytes } from "./kv-budget.ts";

export interface OpenEngine {
  readonly engine: Engine;
  /** Releases models and device. No step may run any more. */
  close(): void;
}

/** A container and its Program. */
interface Model {
  readonly container: Container;
  readonly program: Program;
}

/** DuetError for containers, device or memory that don't do; nothing stays open then. */
export async function openEngine(
  options: EngineOptions,
  words: CancelWords,
  events: EngineEvents,
): Promise<OpenEngine> {
  const target = readModel(options.containerPath);
  const draft = readDraft(options, target.container);
  const containers = [target.container, ...(draft === null ? [] : [draft.container])];
  if (options.verify === "eager") checkIntegrity(containers);
  const device = await openDevice(options, (done, total) => events.onLoading?.(done, total));
  try {
    const opened = assemble(options, target, draft, device, words, events);
    const stopWatching = options.verify === "background" ? watchIntegrity(containers, opened.engine) : () => {};
    if (options.verify === "eager") opened.engine.integrity = "verified";
    return {
      engine: opened.engine,
      close() {
        stopWatching();
        for (const model of opened.models) model.close();
        device.close();
      },
    };
  } catch (error) {
    device.close();
    throw error;
  }
}

function readModel(path: string): Model {
  const container = readContainer(path);
  return { container, program: compileProgram(container) };
}

/** The draft model, where the options have one and may use it. */
function readDraft(options: EngineOptions, target: Container): Model | null {
  const { draftContainerPath, speculation } = options;
  if (speculation === "draft" && draftContainerPath === null) {
    throw new DuetError("config_invalid", "speculation by draft model needs a draft model", {
      expected: "--draft <container>",
      next: "name a draft container, or choose --speculation auto, ngram or off",
    });
  }
  if (draftContainerPath === null || speculation === "off" || speculation === "ngram") return null;
  const draft = readModel(draftContainerPath);
  const { header } = draft.container;
  const isSame =
    header.tokenizer.tokenizerJson === target.header.tokenizer.tokenizerJson &&
    header.shape.vocabularySize === target.header.shape.vocabularySize;
  if (!isSame) {
    throw new DuetError("config_invalid", "the draft model has another tokenizer than the target", {
      where: draftContainerPath,
      expected: `the tokenizer of ${options.containerPath} (${target.header.shape.vocabularySize} tokens)`,
      got: `another one (${header.shape.vocabularySize} tokens)`,
      next: "name a draft model of the same family, or choose --speculation ngram",
    });
  }
  return draft;
}

function assemble(
  options: EngineOptions,
  target: Model,
  draft: Model | null,
  device: Device,
  words: CancelWords,
  events: EngineEvents,
): { engine: Engine; models: DeviceModel[] } {
  const { sequenceMax, kvType, prefillChunkMax } = options;
  const draftTokenMax = options.speculation === "off" ? 0 : options.draftTokenMax;
  const { header, fingerprint } = target.container;
  const weightBytes = target.container.fileBytes + (draft?.container.fileBytes ?? 0);
  const blockBytes =
    kvBlockBytes(target.program.shape, kvType) + (draft === null ? 0 : kvBlockBytes(draft.program.shape, kvType));
  const kvBlockCount = chooseKvBlockCount({
    kvBlockCount: options.kvBlockCount,
    sequenceMax,
    contextMax: header.shape.contextMax,
    blockBytes,
    // A control group may allow less than the machine has.
    freeBytes: Math.min(os.freemem(), process.constrainedMemory() || Infinity),
    weightBytes,
  });
  // A sequence must fit alone.
  const contextMax = Math.min(header.shape.contextMax, kvBlockCount * KV_BLOCK_TOKENS);
  const logitRowMax = sequenceMax * (draftTokenMax + 1);
  const sizes = { kvType, kvBlockCount, rowMax: prefillChunkMax + logitRowMax, logitRowMax };
  const models: DeviceModel[] = [];
  const load = ({ container, program }: Model): DeviceModel => {
    const model = device.load(container, program, sizes);
    models.push(model);
    return model;
  };
  try {
    const pool = new KvBlockPool(kvBlockCount);
    const model = load(target);
    const proposers: Proposer[] = [];
    if (draft !== null) {
      proposers.push(
        new DraftModelProposer({
          model: load(draft),
          pool,
          sequenceMax,
          draftTokenMax,
          contextMax: Math.min(contextMax, draft.program.shape.contextMax),
          blocksPerSequenceMax: blocksFor(contextMax),
          abortWord: words.abortWord,
        }),
      );
    }
    if (options.speculation === "ngram" || options.speculation === "auto")
      proposers.push(new NgramProposer(sequenceMax));
    const tokenizer = createTokenizer({
      tokenizerJson: JSON.parse(header.tokenizer.tokenizerJson),
      tokenizerConfig: JSON.parse(header.tokenizer.tokenizerConfigJson),
      vocabularySize: header.shape.vocabularySize,
    });
    const engine = new Engine(
      {
        model,
        pool,
        prefixIndex: options.isPrefixCached ? new PrefixIndex(pool) : null,
        proposers,
        createDecoder: (keepSpecial) => new Detokenizer(tokenizer, { keepSpecial }),
        limits: { ...options, contextMax, draftTokenMax },
        info: {
          device: device.describe(),
          modelName: header.provenance.modelName,
          draftModelName: draft?.container.header.provenance.modelName ?? null,
          containerFingerprint: fingerprint,
          kvType,
          contextMax,
          weightBytes,
          kvBytes: kvBlockCount * blockBytes,
        },
        words,
        clock: systemClock,
      },
      events,
    );
    return { engine, models };
  } catch (error) {
    for (const model of models) model.close();
    throw error;
  }
}
