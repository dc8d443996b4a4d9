// Templates within bounds render as Jinja does; others end with a typed error, soon.

import { describe, expect, test } from "bun:test";
import { DuetError } from "../../src/base/errors.ts";
import { BoundedTemplate, TemplateRefusal } from "../../src/tokenizer/bounded-jinja.ts";

// 2024-03-05 12:34:56 UTC, on a machine in any time zone.
const time = new Date(2024, 2, 5, 7, 8, 9);
const clock = { nowMs: () => 0, wallSeconds: () => time.getTime() / 1000 };
const bounds = { stepMax: 10_000, textMax: 10_000 };
const render = (source: string, variables: Record<string, unknown> = {}) =>
  new BoundedTemplate(source, clock).render(variables, bounds);

test("renders with the globals that templates expect", () => {
  expect(render("{% for i in range(3) %}{{ i }}{% endfor %}")).toBe("012");
  expect(render("{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}")).toBe("531");
  expect(render("{{ strftime_now('%d %b %Y, %A %B %H:%M:%S %y%m %a %% %q') }}")).toBe(
    "05 Mar 2024, Tuesday March 07:08:09 2403 Tue % %q",
  );
  expect(render("{% if x is none and True %}yes{% endif %}", { x: null })).toBe("yes");
  expect(render("{% if true %}\n  a\n  {% endif %}\nb")).toBe("  a\nb");
});

test("tells a refusal from a failure", () => {
  expect(() => render("{{ raise_exception('no such role') }}")).toThrow(new TemplateRefusal("no such role"));
  expect(() => render("{{ 1 + {} }}")).toThrow(DuetError);
  expect(() => render("{% if %}")).toThrow(DuetError);
});

describe("ends", () => {
  test.each([
    ["loops in loops", "{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}"],
    ["empty loops over lists", "{% for i in l %}{% for j in l %}{% endfor %}{% endfor %}"],
    ["huge ranges", "{% for i in range(1000000000000) %}{% endfor %}"],
    ["ranges without a step", "{% for i in range(0, 9, 0) %}{% endfor %}"],
    ["endless recursion", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"],
    ["doubling texts", `{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}`],
  ])("%s", (_, source) => {
    try {
      render(source, { l: Array.from({ length: 100 }, (_, i) => i) });
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(DuetError);
      expect((error as DuetError).code).toBe("container_unsupported");
    }
  });
});
