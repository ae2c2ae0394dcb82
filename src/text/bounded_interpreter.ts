import { Interpreter } from "@huggingface/jinja";

/** What one rendering may cost: far above what the templates of models need, about two seconds at most. */
const MAX_WORK = 2_000_000;
/** Characters that cost as much as one step where they are written, and where they are only read. */
const WRITTEN = 64;
const READ = 128;
/** A slice of a text takes all of it apart first. */
const SLICED = 4;
/** Attributes by which a list is filtered or sorted have shorter names; each item costs the time of their parts. */
const FREE_LETTERS = 32;
/** Characters of a text within a list that cost as much as one item when the list is written as text. */
const ITEM_CHARACTERS = 16;

type Evaluate = Interpreter["evaluate"];
type Node = NonNullable<Parameters<Evaluate>[0]>;
type Value = ReturnType<Evaluate>;

/** What the node is doing whose operands are evaluated. */
interface Parent {
  /** Characters of its operands that it reads in a step; infinite where it only passes them on. */
  readonly rate: number;
  /** Whether it is a filter, whose texts may be read once for each item of its list. */
  readonly filters: boolean;
  /** Length of that list. */
  items: number;
}

/** An interpreter of templates that gives up: a template may come with any model, and loops cost it nothing to write. */
export class BoundedInterpreter extends Interpreter {
  readonly #iterated: Set<unknown> = new Set();
  /** What a list or an object takes as text; parts that it has twice count twice, as they are written twice. */
  readonly #weights: WeakMap<object, number> = new WeakMap();
  #parent: Parent = { rate: Infinity, filters: false, items: 0 };
  #left = MAX_WORK;

  /**
   * Evaluates a part of the template.
   *
   * @throws {RangeError} If the rendering has cost too much.
   */
  override evaluate(node: Node | undefined, environment: Parameters<Evaluate>[1]): Value {
    this.#spend(1);
    const parent = this.#parent;
    try {
      const result = this.#work(node, environment);
      this.#checkWeight(result);
      const length = lengthOf(result);
      if (parent.rate < Infinity) this.#spend(length / parent.rate);
      if (isText(result)) this.#spend(parent.items * Math.max(0, length - FREE_LETTERS));
      else if (parent.filters) parent.items = length;
      return result;
    } finally {
      // Breaks out of loops come as errors.
      this.#parent = parent;
    }
  }

  #work(node: Node | undefined, environment: Parameters<Evaluate>[1]): Value {
    const rate = rateOf(node);
    this.#parent = { rate, filters: node?.type === "FilterExpression", items: 0 };
    if (node?.type === "For") this.#iterated.add((node as Node & { readonly iterable: unknown }).iterable);
    const result = super.evaluate(node, environment);
    const length = lengthOf(result);
    if (rate < Infinity || this.#iterated.has(node)) this.#spend(isText(result) ? length / WRITTEN : length);
    return result;
  }

  #spend(work: number): void {
    this.#left -= work;
    if (this.#left < 0) throw new RangeError(`it takes more than ${MAX_WORK} steps`);
  }

  /** Refuses what could not be written as text: a few doublings of a list that holds itself twice are no work at all. */
  #checkWeight(value: Value): void {
    if (value.type !== "NamespaceValue") return void this.#weigh(value);
    // It changes, so that its weight is never known; no template puts one into another value.
    for (const item of itemsOf(value)) this.#spend(this.#weigh(item) > 0 ? 1 / READ : 0);
  }

  #weigh(value: Value): number {
    if (isText(value)) return 1 + lengthOf(value) / ITEM_CHARACTERS;
    const key: unknown = value.value;
    if (typeof key !== "object" || key === null) return 1;
    if (value.type === "NamespaceValue") throw new RangeError("a namespace is held by another value");
    let weight = this.#weights.get(key);
    if (weight !== undefined) return weight;
    weight = 1;
    for (const item of itemsOf(value)) {
      weight += this.#weigh(item);
      if (weight > MAX_WORK) throw new RangeError(`a value takes more than ${MAX_WORK} steps to be written`);
    }
    this.#weights.set(key, weight);
    return weight;
  }
}

/** Characters of its operands that a node reads in one step; infinite where it only passes values on. */
function rateOf(node: Node | undefined): number {
  switch (node?.type) {
    case "BinaryExpression":
    case "CallExpression":
    case "FilterExpression":
    case "FilterStatement":
    case "TestExpression":
      return READ;
    case "MemberExpression":
      return (node as Node & { readonly property: Node }).property.type === "SliceExpression" ? SLICED : Infinity;
    default:
      return Infinity;
  }
}

function isText(value: Value): boolean {
  return typeof value.value === "string";
}

function lengthOf({ value }: Value): number {
  if (typeof value === "string" || Array.isArray(value)) return value.length;
  return value instanceof Map ? value.size : 0;
}

function itemsOf({ value }: Value): Iterable<Value> {
  if (Array.isArray(value)) return value;
  return value instanceof Map ? value.values() : [];
}
