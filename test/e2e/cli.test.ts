// The `duet` command as a person meets it: exit statuses, messages, signals.

import { expect, test } from "bun:test";
import { chmodSync, copyFileSync, existsSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SHIPPED_CONTAINER, SHIPPED_DRAFT } from "../../src/config.ts";
import { temporaryFolder } from "../weights/temporary-folder.ts";
import { writeTinyCheckpoint } from "../weights/tiny-checkpoint.ts";

const CLI = join(import.meta.dir, "../../src/cli.ts");
const folder = temporaryFolder("cli");

function spawnDuet(argv: string[], env: Record<string, string> = {}, input: string | null = null) {
  return Bun.spawn([process.execPath, CLI, ...argv], {
    env: { ...process.env, ...env },
    stdin: input === null ? "ignore" : new Blob([input]),
    stdout: "pipe",
    stderr: "pipe",
  });
}

async function duet(argv: string[], env: Record<string, string> = {}, input: string | null = null) {
  const child = spawnDuet(argv, env, input);
  const [status, out, err] = await Promise.all([
    child.exited,
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { status, out, err };
}

/** Starts `duet serve` on a free port and resolves once it listens. */
async function startServe(argv: string[] = []) {
  const child = spawnDuet(["serve", "--port", "0", ...argv]);
  let printed = "";
  for await (const chunk of child.stdout) {
    printed += new TextDecoder().decode(chunk);
    const url = /curl (http:\S+)\/v1/.exec(printed)?.[1];
    if (url !== undefined) return { child, url, printed };
  }
  throw new Error(`serve ended early: ${printed}${await new Response(child.stderr).text()}`);
}

const oneLine = (text: string) => text.trimEnd().split("\n").length;

test("--help shows every command; a command's help has examples", async () => {
  const { status, out } = await duet(["--help"]);
  expect(status).toBe(0);
  for (const name of ["serve", "run", "pack", "synth", "inspect", "eval", "bench", "doctor"])
    expect(out).toContain(`  ${name} `);
  for (const name of ["serve", "run", "pack", "synth", "inspect", "eval", "bench"]) {
    expect((await duet([name, "--help"])).out).toContain("Example");
  }
});

test("mistakes on the command line end with what was expected and a non-zero status", async () => {
  const cases: [string[], Record<string, string>, string][] = [
    [["srve"], {}, "Did you mean serve?"],
    [["serve", "--port", "70000"], {}, "expected an integer from 0 to 65535"],
    [["serve"], { PORT: "x" }, "environment variable PORT"],
    [["serve", "--kv", "q2"], {}, "f16, int8, f32"],
    [["pack", "folder"], {}, "--out"],
    [["serve", "--threads", "0"], {}, "from 1 to 256"],
  ];
  for (const [argv, env, message] of cases) {
    const { status, err, out } = await duet(argv, env);
    expect(status).not.toBe(0);
    expect(err).toContain(message);
    expect(out).toBe("");
  }
});

test("missing, foreign and damaged files end with one clear line", async () => {
  const truncated = join(folder, "truncated.duet");
  copyFileSync(SHIPPED_DRAFT, truncated);
  truncateSync(truncated, 100_000);
  const foreign = join(folder, "foreign.duet");
  writeFileSync(foreign, "not a container at all, but long enough to hold a preamble of its own");
  for (const [path, word] of [
    [join(folder, "absent.duet"), "does not exist"],
    [truncated, "truncated"],
    [foreign, "not a"],
    [folder, "expected: a regular file"],
  ] as const) {
    for (const command of [
      ["serve", "--port", "0", path],
      ["inspect", path],
      ["run", "-m", path, "hi"],
      ["eval", "-m", path],
      ["bench", path],
    ]) {
      const { status, err } = await duet(command);
      expect([command[0], status]).toEqual([command[0], 1]);
      expect(err.startsWith("duet: ")).toBe(true);
      expect(err).toContain(word);
      expect(oneLine(err)).toBe(1);
    }
  }
});

test("inspect --verify finds a flipped bit and names the tensor", async () => {
  const flipped = join(folder, "flipped.duet");
  const bytes = readFileSync(SHIPPED_DRAFT);
  bytes[bytes.length - 4096 - 100]! ^= 1;
  writeFileSync(flipped, bytes);
  const { status, out } = await duet(["inspect", flipped, "--verify", "--json"]);
  expect(status).toBe(1);
  const report = JSON.parse(out);
  expect(report.checksums).toBe("failed");
  expect(report.classes.flatMap((one: { failures: string[] }) => one.failures)).toHaveLength(1);
  expect((await duet(["inspect", SHIPPED_DRAFT, "--verify"])).status).toBe(0);
  const eager = await duet(["serve", "--port", "0", "--verify", "eager", flipped]);
  expect(eager.status).toBe(1);
  expect(eager.err).toContain("checksum");
});

test("pack writes a container that inspects, and refuses a folder that it may not write to", async () => {
  const checkpoint = join(folder, "checkpoint");
  writeTinyCheckpoint(checkpoint);
  const outPath = join(folder, "tiny.duet");
  const packed = await duet(["pack", checkpoint, "--recipe", "q8", "-o", outPath, "--name", "tiny"]);
  expect(packed.status).toBe(0);
  expect(packed.out).toContain("fingerprint");
  expect((await duet(["inspect", outPath, "--verify"])).out).toContain("tiny");
  const failed = await duet(["pack", checkpoint, "-o", join(folder, "absent-folder", "x.duet")]);
  expect(failed.status).toBe(1);
  expect(oneLine(failed.err)).toBe(1);
  expect(existsSync(join(folder, "absent-folder"))).toBe(false);
  if (process.getuid?.() !== 0) {
    chmodSync(folder, 0o500);
    expect((await duet(["pack", checkpoint, "-o", join(folder, "y.duet")])).status).toBe(1);
    chmodSync(folder, 0o700);
  }
});

test("eval prints a perplexity that agrees with --json, and refuses what is no text", async () => {
  const text = join(folder, "text.txt");
  writeFileSync(
    text,
    "Once upon a time there was a king who had three daughters, and they lived in a castle by the sea.\n",
  );
  const { out } = await duet(["eval", text, "--json"]);
  const report = JSON.parse(out);
  expect(report.perplexity).toBeGreaterThan(1);
  expect(report.perplexity).toBeLessThan(200);
  expect((await duet(["eval", text])).out).toContain(`perplexity     ${report.perplexity.toFixed(3)}`);
  const binary = join(folder, "binary");
  writeFileSync(binary, new Uint8Array([0xff, 0xfe, 0x00, 0x80]));
  for (const path of [binary, folder, join(folder, "absent.txt")]) {
    const failed = await duet(["eval", path]);
    expect(failed.status).toBe(1);
    expect(failed.err).toContain("text cannot be read");
  }
});

test("doctor says what runs where", async () => {
  const { status, out } = await duet(["doctor", "--json"]);
  expect(status).toBe(0);
  const report = JSON.parse(out);
  expect(Object.keys(report.device.ops)).toContain("expertFfn");
  expect(report.findings.map((one: { topic: string }) => one.topic)).toContain("kernels");
  const broken = await duet(["doctor", join(folder, "absent.duet")]);
  expect(broken.status).toBe(1);
  expect(broken.out).toContain("FAILED");
});

test("run answers one prompt, the same for the same seed", async () => {
  const argv = ["run", "--seed", "3", "-n", "12", "Tell me a story about a fox."];
  const first = await duet(argv);
  expect(first.status).toBe(0);
  expect(first.out.trim().length).toBeGreaterThan(10);
  expect(first.err).toContain("tokens/s");
  expect((await duet([...argv, "--threads", "1", "--speculation", "off"])).out).toBe(first.out);
});

test("run keeps to the context that the KV blocks leave, and takes a vanishing temperature for greedy", async () => {
  const argv = ["run", "--raw", "--kv-blocks", "2", "Once upon a time there was a king who had"];
  const greedy = await duet([...argv, "-t", "0"]);
  expect([greedy.status, greedy.err.includes("length")]).toEqual([0, true]);
  expect(greedy.out.trim().length).toBeGreaterThan(10);
  expect((await duet([...argv, "-t", "1e-38", "--seed", "1"])).out).toBe(greedy.out);
});

test("a chat answers every line of a pipe, also after one that is too long, and ends with the input", async () => {
  const tooLong = "king ".repeat(100);
  const chat = await duet(
    ["run", "-t", "0", "-n", "5", "--kv-blocks", "3"],
    {},
    `Tell me a story.\n${tooLong}\nGo on.\n`,
  );
  expect(chat.status).toBe(0);
  expect(chat.err.match(/\[5 tokens/g)?.length).toBe(2);
  expect(chat.err).toContain("the context holds 96");
});

test("SIGTERM lets a running answer finish, then exits 0", async () => {
  const { child, url, printed } = await startServe();
  expect(printed).toContain("fable");
  const body = { prompt: "Once upon a time", max_tokens: 300, stream: true, ignore_eos: true, temperature: 0 };
  const answer = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const reader = answer.body!.getReader();
  await reader.read();
  child.kill("SIGTERM");
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    text += new TextDecoder().decode(value);
  }
  expect(text).toContain("[DONE]");
  expect(text).toContain('"finish_reason":"length"');
  expect(await child.exited).toBe(0);
});

test("a busy port is one clear line and a non-zero status", async () => {
  const holder = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response() });
  const { status, err } = await duet(["serve", "--port", String(holder.port)]);
  await holder.stop(true);
  expect(status).toBe(1);
  expect(err).toContain(String(holder.port));
  expect(oneLine(err)).toBe(1);
});

test("two signals end at once what would take longer", async () => {
  const { child, url } = await startServe(["--device", "reference", "--speculation", "off"]);
  const pending = fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: "Once upon a time", max_tokens: 400, ignore_eos: true }),
  }).catch(() => null);
  const runningCount = async () =>
    ((await (await fetch(`${url}/v1/status`)).json()) as { engine: { runningCount: number } }).engine.runningCount;
  while ((await runningCount()) === 0) await Bun.sleep(5);
  child.kill("SIGTERM");
  await Bun.sleep(50);
  child.kill("SIGTERM");
  expect(await child.exited).toBe(1);
  await pending;
});

test("the shipped container is the one that serve announces", async () => {
  const { child, printed } = await startServe(["--threads", "1", "--kv", "int8"]);
  expect(printed).toContain("KV int8");
  expect(printed).toContain("1 lane");
  expect(existsSync(SHIPPED_CONTAINER)).toBe(true);
  child.kill("SIGINT");
  expect(await child.exited).toBe(0);
});
