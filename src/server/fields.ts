// Building blocks of request schemas: every message names what was expected and what was got, and echoes no more of it than a line.

import { z } from "zod";
import { RequestError } from "../base/errors.ts";

const ECHO_MAX = 60;

/** A value as an error message may show it: short, on one line. */
export function echo(value: unknown): string {
  if (value === undefined) return "nothing";
  if (value === null) return "null";
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "object") return "an object";
  if (typeof value !== "string") return String(value).slice(0, ECHO_MAX);
  const shown = JSON.stringify(value.slice(0, ECHO_MAX));
  return value.length > ECHO_MAX ? `${shown}… (${value.length} characters)` : shown;
}

/** A zod `error` that says what was expected and what was got. */
export function expected(what: string): { error: (issue: { readonly input: unknown }) => string } {
  return { error: (issue) => `expected ${what}, got ${echo(issue.input)}` };
}

/** Absent and null mean the same: the default. */
export function optional<T extends z.ZodType>(schema: T) {
  return schema.nullish().transform((value) => value ?? undefined);
}

export const flag = z.boolean(expected("true or false"));

export function integer(min: number, max: number) {
  const says = expected(`an integer from ${min} to ${max}`);
  return z.int(says).min(min, says).max(max, says);
}

export function number(min: number, max: number) {
  const says = expected(`a number from ${min} to ${max}`);
  return z.number(says).min(min, says).max(max, says);
}

/** Unicode text: no unpaired surrogates. */
export function text(lengthMax: number = Infinity, what = "a string") {
  const says = expected(lengthMax === Infinity ? what : `${what} of at most ${lengthMax} characters`);
  const base = z.string(says).refine((value) => value.isWellFormed(), {
    error: `expected ${what} of Unicode text, got an unpaired surrogate`,
  });
  return lengthMax === Infinity ? base : base.refine((value) => value.length <= lengthMax, says);
}

/** An array whose length is checked before its items are. */
export function list<T extends z.ZodType>(item: T, min: number, max: number, what: string) {
  const says = expected(max === Infinity ? `an array of ${what}` : `an array of ${min} to ${max} ${what}`);
  return z
    .array(z.unknown(), says)
    .refine((items) => items.length >= min && items.length <= max, says)
    .pipe(z.array(item));
}

/** A field that OpenAI's API has and this server lacks: values that ask for nothing pass, others are refused by name. */
export function unsupported(accepted = "nothing", asksForNothing: (value: unknown) => boolean = () => false) {
  return z
    .unknown()
    .refine((value) => value === undefined || value === null || asksForNothing(value), {
      error: (issue) => `not supported by this server; expected ${accepted}, got ${echo(issue.input)}`,
    })
    .optional();
}

/** A field that has no effect here and need not have one. */
export const ignored = z.unknown().optional();

/** `messages[0].content` */
export function formatPath(path: readonly PropertyKey[]): string {
  let shown = "";
  for (const step of path) {
    if (typeof step === "number") shown += `[${step}]`;
    else shown += shown === "" ? String(step) : `.${String(step)}`;
  }
  return shown;
}

/** The value as the schema types it; throws RequestError 400 for the first thing that is wrong. */
export function parseFields<T extends z.ZodType>(schema: T, value: unknown): z.output<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  if (issue === undefined) throw new RequestError(400, "the body is malformed");
  const path = formatPath(issue.path);
  if (issue.code === "unrecognized_keys") {
    const field = formatPath([...issue.path, (issue.keys[0] ?? "").slice(0, ECHO_MAX)]);
    throw new RequestError(400, `unknown field ${JSON.stringify(field)}`, field, "unknown_field");
  }
  if (path === "") throw new RequestError(400, `the body: ${issue.message}`);
  throw new RequestError(400, `${path}: ${issue.message}`, path, "invalid_value");
}
