// Runs a Jinja template with a bound on steps and on text, since a container's template is a program. Wraps @huggingface/jinja's
// interpreter; it tells a template's own refusal (raise_exception) apart from a failure. It knows nothing of chat.

import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import type { Clock } from "../base/clock.ts";
import { DuetError } from "../base/errors.ts";

/** The template called raise_exception: it refuses its input. */
export class TemplateRefusal extends Error {
  override readonly name = "TemplateRefusal";
}

/** How much work one rendering may do. */
export interface TemplateBounds {
  /** Evaluated nodes of the template, elements that loops run over, and numbers that range makes. */
  readonly stepMax: number;
  /** UTF-16 code units of any single string. */
  readonly textMax: number;
}

class BoundExceeded extends Error {}

/** Counts down the steps of one rendering. */
class StepBudget {
  #left: number;
  constructor(readonly stepMax: number) {
    this.#left = stepMax;
  }

  charge(steps: number): void {
    this.#left -= steps;
    if (!(this.#left >= 0)) throw new BoundExceeded(`more than ${this.stepMax} steps`);
  }
}

type Node = Parameters<Interpreter["evaluate"]>[0];
type Value = ReturnType<Interpreter["evaluate"]>;

class BoundedInterpreter extends Interpreter {
  /** The expressions that a loop runs over: each of their elements is a step, even if the loop's body is empty. */
  readonly #iterables = new WeakSet<object>();

  constructor(
    environment: Environment,
    readonly budget: StepBudget,
    readonly textMax: number,
  ) {
    super(environment);
  }

  override evaluate(node: Node, environment: Environment): Value {
    this.budget.charge(1);
    if (node?.type === "For") {
      const { iterable } = node as unknown as { iterable: { type: string; lhs: object } };
      this.#iterables.add(iterable.type === "SelectExpression" ? iterable.lhs : iterable);
    }
    const result = super.evaluate(node, environment);
    const value: unknown = result.value;
    if (typeof value === "string" && value.length > this.textMax) {
      throw new BoundExceeded(`a text of more than ${this.textMax} characters`);
    }
    if (node !== undefined && this.#iterables.has(node)) {
      this.budget.charge(Array.isArray(value) ? value.length : value instanceof Map ? value.size : 0);
    }
    return result;
  }
}

export class BoundedTemplate {
  readonly #program: ReturnType<typeof parse>;
  readonly #clock: Clock;

  /** Parses `source`. Throws DuetError container_unsupported when it is not Jinja as the library knows it. */
  constructor(source: string, clock: Clock) {
    this.#clock = clock;
    try {
      this.#program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
    } catch (error) {
      throw templateFailure("the chat template cannot be parsed", error);
    }
  }

  /** Throws TemplateRefusal, or DuetError container_unsupported when the template fails or exceeds its bounds. */
  render(variables: Readonly<Record<string, unknown>>, bounds: TemplateBounds): string {
    try {
      const budget = new StepBudget(bounds.stepMax);
      const environment = new Environment();
      for (const [name, value] of Object.entries({ ...this.#globals(budget), ...variables }))
        environment.set(name, value);
      return String(new BoundedInterpreter(environment, budget, bounds.textMax).run(this.#program).value);
    } catch (error) {
      if (error instanceof TemplateRefusal) throw error;
      throw templateFailure("the chat template failed", error);
    }
  }

  /** What Hugging Face's renderer offers to templates. */
  #globals(budget: StepBudget): Record<string, unknown> {
    return {
      true: true,
      false: false,
      none: null,
      True: true,
      False: false,
      None: null,
      raise_exception: (message: unknown) => {
        throw new TemplateRefusal(String(message));
      },
      range: (first: number, second?: number, step = 1) => boundedRange(budget, first, second, step),
      strftime_now: (format: unknown) => formatTime(new Date(this.#clock.wallSeconds() * 1000), String(format)),
    };
  }
}

function templateFailure(what: string, error: unknown): DuetError {
  const got = error instanceof Error ? error.message : String(error);
  return new DuetError(
    "container_unsupported",
    what,
    {
      where: "tokenizer_config.json chat_template",
      got,
      next: "use /v1/completions, or pack with another chat template",
    },
    { cause: error },
  );
}

/** Python's range; each number is a step. */
function boundedRange(budget: StepBudget, first: number, second: number | undefined, step: number): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  const count = Math.max(0, Math.ceil((stop - start) / step));
  budget.charge(count);
  return Array.from({ length: count }, (_, i) => start + i * step);
}

const MONTHS = "January February March April May June July August September October November December".split(" ");
const WEEKDAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split(" ");

/** Python's strftime in local time, for the directives that chat templates use; others stay as they are. */
function formatTime(time: Date, format: string): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const month = MONTHS[time.getMonth()] ?? "";
  const weekday = WEEKDAYS[time.getDay()] ?? "";
  const directives: Record<string, string> = {
    "%Y": String(time.getFullYear()),
    "%y": two(time.getFullYear() % 100),
    "%m": two(time.getMonth() + 1),
    "%d": two(time.getDate()),
    "%B": month,
    "%b": month.slice(0, 3),
    "%A": weekday,
    "%a": weekday.slice(0, 3),
    "%H": two(time.getHours()),
    "%M": two(time.getMinutes()),
    "%S": two(time.getSeconds()),
    "%%": "%",
  };
  return format.replace(/%./g, (directive) => directives[directive] ?? directive);
}
