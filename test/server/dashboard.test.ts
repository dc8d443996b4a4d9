import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { DASHBOARD_HEADERS, DASHBOARD_HTML } from "../../src/server/dashboard.ts";
import { createFixture } from "./fixture.ts";

const policy = DASHBOARD_HEADERS["content-security-policy"] ?? "";

test("is served at /", async () => {
  const response = await createFixture().get("/", { accept: "text/html" });
  expect([response.status, await response.text()]).toEqual([200, DASHBOARD_HTML]);
  for (const [name, value] of Object.entries(DASHBOARD_HEADERS)) expect(response.headers.get(name)).toBe(value);
});

test("the policy lets run exactly the page's one script and one style", () => {
  expect(policy).toContain("default-src 'none'");
  expect(policy).not.toContain("unsafe");
  for (const tag of ["script", "style"]) {
    const contents = [...DASHBOARD_HTML.matchAll(new RegExp(`<${tag}[^>]*>([^]*?)</${tag}>`, "g"))];
    expect(contents.length).toBe(1);
    const hash = createHash("sha256")
      .update(contents[0]?.[1] ?? "")
      .digest("base64");
    expect(policy).toContain(`${tag}-src 'sha256-${hash}'`);
  }
});

test("nothing on the page needs what the policy forbids", () => {
  expect(DASHBOARD_HTML).not.toMatch(
    /\son[a-z]+\s*=|\sstyle\s*=\s*"|javascript:|https?:\/\/|innerHTML|insertAdjacentHTML|document\.write|\beval\b/,
  );
});

test("every element that the script reads or writes by its id is on the page", () => {
  const ids = new Set([...DASHBOARD_HTML.matchAll(/\bid="(\w+)"/g)].map((match) => match[1]));
  const used = [...DASHBOARD_HTML.matchAll(/(?:\$|\bset)\("(\w+)"/g)].map((match) => match[1] ?? "");
  expect(used.length).toBeGreaterThan(30);
  expect(used.filter((id) => !ids.has(id))).toEqual([]);
});
