/** ONNX models as bytes: nodes, weights, inputs and outputs, by the field numbers of onnx.proto. */
import { concat } from "../../src/formats/concat.ts";
import { type Bytes, bytes, float, int } from "./protobuf.ts";

/** Element types by ONNX's numbers. */
const ELEMENTS = { f32: 1, u8: 2, i8: 3, i32: 6, i64: 7 } as const;
export type Element = keyof typeof ELEMENTS;

/** A dimension: its length, or a name where it varies. */
export type Dimension = number | string;

/** An attribute: a float is `{ f }`, a whole number a plain number, whole numbers an array. */
export type Attribute = number | string | readonly number[] | { readonly f: number };

/** Adds up a graph; every method returns the name of what it made. */
export class GraphBuilder {
  readonly #nodes: Bytes[] = [];
  readonly #weights: Bytes[] = [];
  readonly #inputs: Bytes[] = [];
  readonly #outputs: Bytes[] = [];
  #names = 0;

  /** An input of the model. */
  input(name: string, element: Element, dimensions: readonly Dimension[]): string {
    this.#inputs.push(valueInfo(11, name, element, dimensions));
    return name;
  }

  /** An output of the model. */
  output(name: string, element: Element, dimensions: readonly Dimension[]): string {
    this.#outputs.push(valueInfo(12, name, element, dimensions));
    return name;
  }

  /** A constant. */
  weight(element: Element, dimensions: readonly number[], values: ArrayBufferView): string {
    const name = this.#name();
    const raw = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    const tensor = [...dimensions.map((length) => int(1, length)), int(2, ELEMENTS[element]), bytes(8, name)];
    this.#weights.push(bytes(5, [...tensor, bytes(9, raw)]));
    return name;
  }

  /** A node; its outputs are as many as `names`, or one with a new name. */
  node(
    type: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, Attribute>> = {},
    options: { readonly domain?: string; readonly outputs?: readonly string[] } = {},
  ): string {
    const { domain, outputs = [this.#name()] } = options;
    this.#nodes.push(bytes(1, [
      ...inputs.map((name) => bytes(1, name)),
      ...outputs.map((name) => bytes(2, name)),
      bytes(4, type),
      ...Object.entries(attributes).map(([name, value]) => bytes(5, attribute(name, value))),
      ...(domain ? [bytes(7, domain)] : []),
    ]));
    return outputs[0]!;
  }

  /** A node of ONNX Runtime's own operators. */
  contrib(
    type: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, Attribute>> = {},
    outputs?: readonly string[],
  ): string {
    return this.node(type, inputs, attributes, { domain: "com.microsoft", ...(outputs && { outputs }) });
  }

  /** The model's file. */
  build(): Bytes {
    const graph = [...this.#nodes, bytes(2, "graph"), ...this.#weights, ...this.#inputs, ...this.#outputs];
    return concat([int(1, 8), bytes(7, graph), bytes(8, [bytes(1, ""), int(2, 17)]), microsoft()]);
  }

  #name(): string {
    return `t${this.#names++}`;
  }
}

function microsoft(): Bytes {
  return bytes(8, [bytes(1, "com.microsoft"), int(2, 1)]);
}

function attribute(name: string, value: Attribute): Bytes[] {
  const named = bytes(1, name);
  if (typeof value === "number") return [named, int(3, value), int(20, 2)];
  if (typeof value === "string") return [named, bytes(4, value), int(20, 3)];
  if ("f" in value) return [named, float(2, value.f), int(20, 1)];
  return [named, ...value.map((one) => int(8, one)), int(20, 7)];
}

function valueInfo(field: number, name: string, element: Element, dimensions: readonly Dimension[]): Bytes {
  const shape = dimensions.map((dimension) =>
    bytes(1, typeof dimension === "number" ? [int(1, dimension)] : [bytes(2, dimension)])
  );
  return bytes(field, [bytes(1, name), bytes(2, [bytes(1, [int(1, ELEMENTS[element]), bytes(2, shape)])])]);
}
