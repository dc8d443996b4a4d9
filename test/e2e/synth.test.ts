// `duet synth` as a person meets it: what it writes can be inspected, run and served, and mistakes are one clear line.

import { expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readContainer } from "../../src/weights/container.ts";
import { temporaryFolder } from "../weights/temporary-folder.ts";

setDefaultTimeout(60_000);

const CLI = join(import.meta.dir, "../../src/cli.ts");
const folder = temporaryFolder("cli-synth");
const outPath = join(folder, "out.duet");
/** A vocabulary larger than the shipped tokenizer's 4096 ids. */
const SHAPE = '{"hiddenDim": 128, "layerCount": 3, "queryHeadCount": 4, "headDim": 32, "expertDim": 32, "ffnDim": 64, ';
const shape = `${SHAPE} "vocabularySize": 6000, "contextMax": 512}`;

function spawnDuet(argv: string[]) {
  return Bun.spawn([process.execPath, CLI, ...argv], { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
}

async function duet(...argv: string[]) {
  const child = spawnDuet(argv);
  const [status, out, err] = await Promise.all([
    child.exited,
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { status, out, err };
}

test("a synthetic model is inspected, run and served", async () => {
  const made = await duet("synth", "--shape", shape, "-o", outPath, "--name", "made-up");
  expect([made.status, made.err]).toEqual([0, ""]);
  expect(made.out).toContain(readContainer(outPath).fingerprint);
  expect((await duet("inspect", outPath, "--verify")).status).toBe(0);
  const ran = await duet("run", "-m", outPath, "-t", "0", "-n", "20", "Hello");
  expect(ran.status).toBe(0);
  expect(ran.out.trim().length).toBeGreaterThan(5);

  const server = spawnDuet(["serve", "--port", "0", outPath]);
  try {
    let url: string | undefined;
    let printed = "";
    for await (const chunk of server.stdout) {
      printed += new TextDecoder().decode(chunk);
      url = /curl (http:\S+)\/v1/.exec(printed)?.[1];
      if (url !== undefined) break;
    }
    const answer = await fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        model: "made-up",
        messages: [{ role: "user", content: "Tell me a story." }],
        max_tokens: 40,
        temperature: 1,
        seed: 5,
        ignore_eos: true,
        logprobs: true,
        top_logprobs: 5,
      }),
    });
    expect(answer.status).toBe(200);
    const body = (await answer.json()) as {
      choices: { message: { content: string }; finish_reason: string }[];
      usage: { completion_tokens: number };
    };
    expect(body.choices[0]?.finish_reason).toBe("length");
    expect(body.usage.completion_tokens).toBe(40);
    expect(body.choices[0]?.message.content.length).toBeGreaterThan(40);
  } finally {
    server.kill("SIGTERM");
    await server.exited;
  }
});

test("mistakes are one clear line, and leave no file", async () => {
  const badShape = join(folder, "bad.json");
  writeFileSync(badShape, '{"hiddenDim": "wide"}');
  const path = join(folder, "never.duet");
  const cases: [string[], string][] = [
    [["--shape", "pangu-73b"], "pangu-72b, pangu-slice, small, tiny"],
    [["--shape", "{"], "JSON"],
    [["--shape", badShape], "hiddenDim"],
    [["--shape", folder], "regular file"],
    [["--shape", '{"vocabularySize": 100}'], "--tokenizer none"],
    [["--shape", shape, "--tokenizer", join(folder, "absent")], "does not exist"],
    [["--shape", shape, "--tokenizer", folder], "tokenizer"],
    [["--shape", shape, "--seed", "-1"], "integer"],
    [["--shape", shape, "--recipe", "q3"], "q4, q8, f16"],
    [[], "--shape"],
  ];
  for (const [argv, message] of cases) {
    const { status, err, out } = await duet("synth", "-o", path, ...argv);
    expect([argv.join(" "), status]).toEqual([argv.join(" "), 1]);
    expect(err).toContain(message);
    expect(out).toBe("");
  }
  const unwritable = await duet("synth", "--shape", shape, "-o", join(folder, "absent", "x.duet"));
  expect(unwritable.status).toBe(1);
  expect(unwritable.err).toContain("cannot be created");
  expect(existsSync(path)).toBe(false);
});
