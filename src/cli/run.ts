// `duet run`: one prompt, or a chat, in the terminal.

import { createInterface } from "node:readline/promises";
import { DuetError, RequestError } from "../base/errors.ts";
import type { RunCommand } from "../config.ts";
import type { EngineClient } from "../engine/client.ts";
import type { ChoiceOutput, EngineRequest } from "../engine/messages.ts";
import { PLAIN_SAMPLING, TEMPERATURE_MIN } from "../server/generation.ts";
import type { ChatMessage } from "../tokenizer/chat-template.ts";
import { readContainer } from "../weights/container.ts";
import type { Container } from "../weights/header.ts";
import type { ServedText } from "./served-text.ts";
import { startEngine } from "./start-engine.ts";
import { bold, dim, print } from "./terminal.ts";

interface Session {
  readonly command: RunCommand;
  readonly container: Container;
  readonly text: ServedText;
  readonly engine: EngineClient;
  requestCount: number;
}

function requestFor(session: Session, promptTokens: readonly number[], seed: number): EngineRequest {
  const { command, container, text } = session;
  const { contextMax } = session.engine.lastStatus;
  const room = contextMax - promptTokens.length;
  if (room < 1) {
    throw new RequestError(
      400,
      `the prompt has ${promptTokens.length} tokens; the context holds ${contextMax} with the answer`,
    );
  }
  const sampling = { ...PLAIN_SAMPLING, ...text.defaults };
  const temperature = command.temperature ?? sampling.temperature;
  return {
    requestId: `run-${session.requestCount++}`,
    promptTokens: Int32Array.from(promptTokens),
    choiceCount: 1,
    params: {
      ...sampling,
      temperature: temperature < TEMPERATURE_MIN ? 0 : temperature,
      presencePenalty: 0,
      frequencyPenalty: 0,
      seedLow: seed >>> 0,
      seedHigh: Math.floor(seed / 2 ** 32),
      biasIds: new Int32Array(0),
      biasValues: new Float32Array(0),
      topLogprobs: null,
      bannedIds: new Int32Array(0),
      bannedUntil: 0,
    },
    outputTokenMax: Math.min(command.outputTokenMax, room),
    stopTokenIds: container.header.endTokenIds,
    stopStrings: [],
    speculation: command.engine.speculation,
    draftTokenMax: null,
    deadlineMs: null,
    priority: 0,
    keepSpecialTokens: false,
  };
}

function describeSpeed(output: ChoiceOutput, seed: number): string {
  const usage = output.usage;
  if (usage === null) return "";
  const { outputTokenCount, decodeMs, draftedCount, acceptedCount, prefillMs } = usage;
  // The first token is the prefill's.
  const rate = ((outputTokenCount - 1) * 1000) / decodeMs;
  return `[${[
    `${outputTokenCount} tokens`,
    ...(outputTokenCount > 1 && decodeMs > 0 ? [`${rate.toFixed(0)} tokens/s`] : []),
    `prefill ${prefillMs.toFixed(1)} ms`,
    ...(draftedCount > 0 ? [`${acceptedCount} of ${draftedCount} drafts accepted`] : []),
    output.finishReason,
    `seed ${seed}`,
  ].join(", ")}]`;
}

/** Streams one answer to standard output; Ctrl-C ends the answer, not the program. Returns its text. */
async function answer(session: Session, promptTokens: readonly number[]): Promise<string> {
  const [drawn = 0] = crypto.getRandomValues(new Uint32Array(1));
  const seed = session.command.seed ?? drawn;
  const request = requestFor(session, promptTokens, seed);
  const { promise, resolve } = Promise.withResolvers<ChoiceOutput>();
  let text = "";
  const cancel = () => session.engine.cancel(request.requestId);
  process.on("SIGINT", cancel);
  try {
    await session.engine.submit(request, (output) => {
      text += output.text;
      process.stdout.write(output.text);
      if (output.finishReason !== null) resolve(output);
    });
    const last = await promise;
    print();
    process.stderr.write(`${dim(describeSpeed(last, seed))}\n`);
    if (last.finishReason === "error")
      throw new DuetError("engine_unhealthy", last.errorMessage ?? "the engine failed");
    return text;
  } finally {
    process.off("SIGINT", cancel);
  }
}

function encodeOne(session: Session, prompt: string): number[] {
  const { tokenizer, chatTemplate } = session.text;
  if (session.command.isRaw || chatTemplate === null) {
    return tokenizer.encode(prompt, { allowSpecial: session.command.isRaw, addSpecial: true });
  }
  return chatTemplate.encodeChat([{ role: "user", content: prompt }], { addGenerationPrompt: true });
}

async function chat(session: Session): Promise<void> {
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  let isClosed = false;
  terminal.on("close", () => (isClosed = true));
  // A terminal's Ctrl-C comes as a key. Only an answer under way listens to the signal.
  terminal.on("SIGINT", () => {
    if (!process.emit("SIGINT")) terminal.close();
  });
  const messages: ChatMessage[] = [];
  print(dim("An empty line or Ctrl-D ends the chat; Ctrl-C ends an answer."));
  terminal.setPrompt(bold("you> "));
  terminal.prompt();
  for await (const line of terminal) {
    if (line.trim() === "") break;
    await reply(session, messages, line);
    // The input may have ended meanwhile; its last lines are still to come.
    if (!isClosed) terminal.prompt();
  }
  terminal.close();
}

/** Answers one line of a chat. A line that can't be answered is said to be so, and leaves the chat as it was. */
async function reply(session: Session, messages: ChatMessage[], line: string): Promise<void> {
  const before = [...messages];
  try {
    if (session.text.chatTemplate === null || session.command.isRaw) {
      await answer(session, encodeOne(session, line));
    } else {
      messages.push({ role: "user", content: line });
      messages.push({ role: "assistant", content: await answer(session, fitChat(session, messages)) });
    }
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    messages.splice(0, messages.length, ...before);
    process.stderr.write(`duet: ${error.message}\n`);
  }
}

/** The chat's tokens; the oldest exchanges leave when the context would have no room for an answer. */
function fitChat(session: Session, messages: ChatMessage[]): number[] {
  const { contextMax } = session.engine.lastStatus;
  const room = Math.min(session.command.outputTokenMax, Math.floor(contextMax / 4));
  for (;;) {
    const tokens = session.text.chatTemplate?.encodeChat(messages, { addGenerationPrompt: true }) ?? [];
    if (tokens.length + room <= contextMax || messages.length <= 1) return tokens;
    messages.splice(0, 2);
    process.stderr.write(dim("[the oldest exchange no longer fits the context and was dropped]\n"));
  }
}

export async function run(command: RunCommand): Promise<number> {
  const container = readContainer(command.engine.containerPath);
  const { engine, text } = await startEngine(container, command.engine);
  for (const warning of engine.lastStatus.device.warnings) process.stderr.write(`${bold("WARNING")} ${warning}\n`);
  const session: Session = { command, container, text, engine, requestCount: 0 };
  try {
    if (command.prompt === null) await chat(session);
    else await answer(session, encodeOne(session, command.prompt));
    return 0;
  } finally {
    await engine.close();
  }
}
