import { Interpreter } from "@huggingface/jinja";

/** What one rendering may cost: far above what the templates of models need, about two seconds at most. */
const MAX_WORK = 2_000_000;
/** Characters that cost as much as one step. */
const STEP_CHARACTERS = 64;
/** Expressions that make new values, which can double with every step. */
const MAKERS: ReadonlySet<string> = new Set(["BinaryExpression", "CallExpression", "FilterExpression"]);

type Evaluate = Interpreter["evaluate"];
type Node = NonNullable<Parameters<Evaluate>[0]>;

/** An interpreter of templates that gives up: a template may come with any model, and loops cost it nothing to write. */
export class BoundedInterpreter extends Interpreter {
  readonly #iterated: Set<unknown> = new Set();
  #left = MAX_WORK;

  /**
   * Evaluates a part of the template.
   *
   * @throws {RangeError} If the rendering has cost too much.
   */
  override evaluate(node: Node | undefined, environment: Parameters<Evaluate>[1]): ReturnType<Evaluate> {
    this.#spend(1);
    if (node?.type === "For") this.#iterated.add((node as Node & { readonly iterable: unknown }).iterable);
    const result = super.evaluate(node, environment);
    if (node && (this.#iterated.has(node) || MAKERS.has(node.type))) this.#spend(costOf(result.value));
    return result;
  }

  #spend(work: number): void {
    this.#left -= work;
    if (this.#left < 0) throw new RangeError(`it takes more than ${MAX_WORK} steps`);
  }
}

function costOf(value: unknown): number {
  if (typeof value === "string") return value.length / STEP_CHARACTERS;
  if (Array.isArray(value)) return value.length;
  return value instanceof Map ? value.size : 0;
}
