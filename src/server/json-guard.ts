// A look at JSON text before it is parsed: JSON.parse takes any depth and keeps the last of two fields with one name. Both are refused
// here. It does not validate: malformed text passes and JSON.parse reports it. Linear time, no recursion.

import { RequestError } from "../base/errors.ts";

export const DEPTH_MAX = 64;
/** Characters of a field's name that a message shows. */
const NAME_MAX = 60;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;
const OPEN_ARRAY = 0x5b;
const CLOSE_ARRAY = 0x5d;
const COMMA = 0x2c;

/** Throws RequestError 400 for nesting beyond depthMax and for a field that an object has twice. */
export function guardJson(text: string, depthMax: number = DEPTH_MAX): void {
  // One entry per open container: the keys of an object, null for an array.
  const open: (Set<string> | null)[] = [];
  let isKeyNext = false;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit === QUOTE) {
      const end = stringEnd(text, i);
      const keys = open.at(-1);
      if (isKeyNext && keys) {
        const key = keyText(text.slice(i, end + 1));
        if (keys.has(key)) {
          const shown = key.slice(0, NAME_MAX);
          throw new RequestError(400, `the body has the field ${JSON.stringify(shown)} twice in one object`, shown);
        }
        keys.add(key);
        isKeyNext = false;
      }
      i = end;
    } else if (unit === OPEN_OBJECT || unit === OPEN_ARRAY) {
      open.push(unit === OPEN_OBJECT ? new Set() : null);
      isKeyNext = unit === OPEN_OBJECT;
      if (open.length > depthMax) {
        throw new RequestError(400, `the body is nested deeper than ${depthMax} levels`);
      }
    } else if (unit === CLOSE_OBJECT || unit === CLOSE_ARRAY) {
      open.pop();
      isKeyNext = false;
    } else if (unit === COMMA) {
      isKeyNext = open.at(-1) instanceof Set;
    }
  }
}

/** Index of the quote that closes the string opened at `start`, or of the last unit. */
function stringEnd(text: string, start: number): number {
  for (let i = start + 1; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit === BACKSLASH) i++;
    else if (unit === QUOTE) return i;
  }
  return text.length - 1;
}

function keyText(quoted: string): string {
  if (!quoted.includes("\\")) return quoted.slice(1, -1);
  try {
    return JSON.parse(quoted) as string;
  } catch {
    return quoted;
  }
}
