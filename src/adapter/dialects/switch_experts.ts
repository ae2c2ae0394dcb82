/**
 * mlx-lm's `LoRASwitchLinear`: the experts of `<owner>.switch_mlp.gate_proj`, `.up_proj` and `.down_proj` with lora_a
 * (E, r, in) and lora_b (E, out, r). transformers, and so PEFT, has gate and up in one parameter, gate_up_proj.
 *
 * ```text
 * down_proj                        as it is
 * gate_up_proj, gate and up of one A    A_e as it is,              B_e = [B_gate; B_up], of rank r
 *               of factors A apart      A_e = [A_gate; A_up],      B_e = blockdiag(B_gate, B_up), of the summed rank
 * ```
 *
 * Both ways are exact; what one of them made is brought back by the other, bit for bit.
 *
 * @module
 */

import { FormatError, LimitError, MismatchError } from "../../errors.ts";
import { concat } from "../../formats/concat.ts";
import { bitsPerElement, isSameTensor, type StoredTensor } from "../../formats/dtype.ts";
import { quote } from "../../formats/quote.ts";
import { formatShape } from "../../shape.ts";
import type { LoraModule } from "../adapter.ts";
import type { NamedTensor } from "../full_tensors.ts";
import { type AdapterLimits, DEFAULT_LIMITS } from "../limits.ts";
import type { FactorPair } from "./factor_pairs.ts";
import { expertMajor, rankMajor } from "./matrix_bytes.ts";
import type { BaseFacts } from "./options.ts";

/** Factors of all experts: A (E, r, in), B (E, out, r). */
export interface SwitchFactors {
  /** A. */
  readonly a: StoredTensor;
  /** B. */
  readonly b: StoredTensor;
}

type Projection = "gate_proj" | "up_proj" | "down_proj";

const SWITCH = /^(.+)\.switch_mlp\.(gate_proj|up_proj|down_proj)$/;
const FUSED = /^(.+)\.experts\.(gate_up_proj|down_proj)$/;

/** Collects the factors of experts from a file. */
export class SwitchExperts {
  readonly #file: string;
  readonly #limits: typeof DEFAULT_LIMITS;
  readonly #factors = new Map<string, { a?: NamedTensor; b?: NamedTensor }>();

  /** Collects from a file. */
  constructor(file: string, limits?: AdapterLimits) {
    this.#file = file;
    this.#limits = { ...DEFAULT_LIMITS, ...limits };
  }

  /**
   * Adds a tensor.
   *
   * @returns False if it is none of experts.
   * @throws {LimitError} If there are too many modules, or a rank is above its cap.
   */
  add(path: string, part: "a" | "b", tensor: NamedTensor): boolean {
    if (tensor.shape.length !== 3 || !SWITCH.test(path)) return false;
    const rank = tensor.shape[part === "a" ? 1 : 2]!;
    this.#factors.set(path, { ...this.#factors.get(path), [part]: tensor });
    const sizes = [["modules", this.#limits.modules, this.#factors.size], ["rank", this.#limits.rank, rank]] as const;
    for (const [field, limit, value] of sizes) {
      if (value <= limit) continue;
      const message = `Cannot read tensor ${quote(tensor.name)} of ${quote(this.#file)} with ${field} ${value}`;
      const details = { file: this.#file, tensor: tensor.name, field, limit, value };
      throw new LimitError(`${message}: expected at most ${limit}`, details);
    }
    return true;
  }

  /**
   * Gives the parameters as PEFT has them, those of one module in the order of their registration.
   *
   * @throws {MismatchError} If a factor lacks its partner, or the shapes of factors do not fit.
   * @throws {FormatError} If they have several element types, or a module is there twice.
   */
  complete(): readonly FactorPair[] {
    const pairs = new Map<string, FactorPair>();
    const owners = new Set([...this.#factors.keys()].map((path) => SWITCH.exec(path)![1]!));
    for (const owner of owners) {
      const [gate, up, down] = (["gate_proj", "up_proj", "down_proj"] as const).map((name) => this.#one(owner, name));
      const module = `${owner.replace(/\.block_sparse_moe$/, ".mlp")}.experts`;
      const first = gate ?? up;
      const whole = first && joinProjections(gate ?? zeroLike(first), up ?? zeroLike(first), this.#file);
      for (const [parameter, factors] of [["gate_up_proj", whole], ["down_proj", down]] as const) {
        const name = `${module}.${parameter}`;
        const twin = pairs.get(name);
        if (factors && twin) throw refuseTwin(factors.a.name, twin.a.name, this.#file);
        if (factors) pairs.set(name, pairOf(name, factors));
      }
    }
    return [...pairs.values()];
  }

  #one(owner: string, projection: Projection): NamedFactors | undefined {
    const path = `${owner}.switch_mlp.${projection}`;
    const found = this.#factors.get(path);
    if (!found) return undefined;
    const file = this.#file;
    const { a, b } = found;
    if (!a || !b) {
      const [tensor, missing] = [(a ?? b)!.name, `${path}.lora_${a ? "b" : "a"}`];
      const message = `Cannot read tensor ${quote(tensor)} of ${quote(file)} without its partner`;
      throw new MismatchError(`${message}: expected ${quote(missing)}`, { file, tensor, missing: [missing] });
    }
    const [[experts, rank], [experts2, , rank2]] = [a.shape, b.shape];
    const isWhole = [...a.shape, ...b.shape].every((length) => length >= 1);
    if (isWhole && experts === experts2 && rank === rank2) return { a, b };
    const message = `Cannot read tensor ${quote(b.name)} of ${quote(file)} and shape ${formatShape(b.shape)}`;
    const expected = `(experts, outputs, rank) beside ${quote(a.name)} of shape ${formatShape(a.shape)}`;
    throw new MismatchError(`${message}: expected ${expected}`, { file, tensor: b.name, found: b.shape, expected });
  }
}

/**
 * Makes the error for a module that a file has twice, under two paths.
 *
 * @param tensor One of its tensors.
 * @param twin The same under the other path.
 * @param file Name of the file.
 * @returns The error.
 */
export function refuseTwin(tensor: string, twin: string, file: string): FormatError {
  const message = `Cannot read ${quote(file)} with both ${quote(twin)} and ${quote(tensor)}`;
  return new FormatError(`${message}: expected one, as they are of one module`, { file, tensor });
}

interface NamedFactors extends SwitchFactors {
  readonly a: NamedTensor;
  readonly b: NamedTensor;
}

function zeroLike({ a, b }: NamedFactors): NamedFactors {
  return { a, b: { ...b, bytes: new Uint8Array(b.bytes.length) } };
}

function pairOf(name: string, { a, b }: NamedFactors): FactorPair {
  const [experts, rank, inputs] = a.shape as readonly [number, number, number];
  return {
    name,
    a: { ...a, shape: [experts * rank, inputs] },
    b: { ...rankMajor(b), name: b.name },
    place: { name, patternPath: name, isParameter: true, parameter: name.slice(name.lastIndexOf(".") + 1) },
    experts,
  };
}

function joinProjections(gate: NamedFactors, up: NamedFactors, file: string): NamedFactors {
  const [[experts, , inputs], [, outputs]] = [gate.a.shape, gate.b.shape];
  if (up.a.shape[0] !== experts || up.a.shape[2] !== inputs || up.b.shape[1] !== outputs) {
    const message = `Cannot join tensor ${quote(up.a.name)} of ${quote(file)} and shape ${formatShape(up.a.shape)}`;
    const expected = `experts, inputs and outputs of ${quote(gate.a.name)}, ${formatShape(gate.a.shape)}`;
    throw new MismatchError(`${message}: expected ${expected}`, {
      file,
      tensor: up.a.name,
      found: up.a.shape,
      expected,
    });
  }
  for (const [of, like] of [[up.a, gate.a], [up.b, gate.b]] as const) {
    if (of.dtype === like.dtype) continue;
    const message = `Cannot join tensor ${quote(of.name)} of ${quote(file)} and dtype ${of.dtype}`;
    const details = { file, tensor: of.name, field: "dtype", found: of.dtype, expected: like.dtype };
    throw new FormatError(`${message}: expected ${like.dtype}, as of ${quote(like.name)}`, details);
  }
  if (isSameTensor(gate.a, up.a)) return { a: gate.a, b: { ...concatEach([gate.b, up.b]), name: gate.b.name } };
  const [g, u] = [gate.a.shape[1]!, up.a.shape[1]!];
  const b = concatEach([padColumns(gate.b, 0, u), padColumns(up.b, g, 0)]);
  return { a: { ...concatEach([gate.a, up.a]), name: gate.a.name }, b: { ...b, name: gate.b.name } };
}

/**
 * Makes mlx-lm's factors of a parameter.
 *
 * @param module A module of kind experts: `….experts.gate_up_proj` or `….experts.down_proj`.
 * @param base What is known of the base: its type or its layers tell Mixtral's `block_sparse_moe` from `mlp`.
 * @returns The factors by path.
 * @throws {MismatchError} If it is another parameter.
 */
export function toSwitchExperts(
  { name, loraA, loraB, rank, experts = 1 }: LoraModule,
  base: Pick<BaseFacts, "modules" | "modelType"> = {},
): ReadonlyMap<string, SwitchFactors> {
  const [, owner, parameter] = FUSED.exec(name) ?? [];
  const [outputs, inputs] = [loraB.shape[0]!, loraA.shape[1]!];
  if (owner === undefined || (parameter === "gate_up_proj" && outputs % 2 !== 0)) {
    const expected = "gate_up_proj of an even number of outputs, or down_proj, of a module named experts";
    throw new MismatchError(`Cannot write module ${quote(name)}, fused experts, for mlx-lm: expected ${expected}`, {
      code: "experts",
      tensor: name,
      expected,
    });
  }
  const a = { ...loraA, shape: [experts, rank, inputs] };
  const b = expertMajor(loraB, experts);
  const path = `${mlxOwner(owner, base)}.switch_mlp`;
  if (parameter === "down_proj") return new Map([[`${path}.down_proj`, { a, b }]]);
  const half = outputs / 2;
  const gate = { a, b: sliceEach(b, 0, half) };
  const up = { a, b: sliceEach(b, half, outputs) };
  const apart = separate(gate, up);
  const [first, second] = apart ?? [gate, up];
  return new Map([[`${path}.gate_proj`, first!], [`${path}.up_proj`, second!]]);
}

/** Mixtral's experts have kept the old name of their module in mlx-lm. */
function mlxOwner(owner: string, { modules = [], modelType }: Pick<BaseFacts, "modules" | "modelType">): string {
  const old = owner.replace(/\.mlp$/, ".block_sparse_moe");
  if (modelType === "mixtral") return old;
  for (const path of modules) if (path.startsWith(`${old}.`)) return old;
  return owner;
}

/** Gate and up with factors A of their own, where B is zero outside two blocks of equal rank. */
function separate(gate: SwitchFactors, up: SwitchFactors): readonly SwitchFactors[] | null {
  const rank = gate.a.shape[1]!;
  const half = rank / 2;
  if (!Number.isInteger(half)) return null;
  const [a1, a2] = [sliceEach(gate.a, 0, half), sliceEach(gate.a, half, rank)];
  const [b1, b2] = [cutColumns(gate.b, 0, half), cutColumns(up.b, half, rank)];
  const isBlocks = isSameTensor(padColumns(b1, 0, half), gate.b) && isSameTensor(padColumns(b2, half, 0), up.b);
  return isBlocks && !isSameTensor(a1, a2) ? [{ a: a1, b: b1 }, { a: a2, b: b2 }] : null;
}

/** Tensors (E, n, m) with the rows of all below each other, expert by expert. */
function concatEach(tensors: readonly StoredTensor[]): StoredTensor {
  const [{ dtype, shape }] = tensors as readonly [StoredTensor];
  const [experts, , columns] = shape as readonly [number, number, number];
  const rows = tensors.reduce((sum, tensor) => sum + tensor.shape[1]!, 0);
  const parts = Array.from({ length: experts }, (_, e) =>
    tensors.map(({ bytes }) => {
      const size = bytes.length / experts;
      return bytes.subarray(e * size, (e + 1) * size);
    }));
  return { dtype, shape: [experts, rows, columns], bytes: concat(parts.flat()) };
}

/** Rows of every expert. */
function sliceEach({ dtype, shape, bytes }: StoredTensor, from: number, to: number): StoredTensor {
  const [experts, rows, columns] = shape as readonly [number, number, number];
  const width = bytes.length / (experts * rows);
  const slice = new Uint8Array(experts * (to - from) * width);
  for (let e = 0; e < experts; e++) {
    slice.set(bytes.subarray((e * rows + from) * width, (e * rows + to) * width), e * (to - from) * width);
  }
  return { dtype, shape: [experts, to - from, columns], bytes: slice };
}

/** The last dimension with zeros before and behind. */
function padColumns({ dtype, shape, bytes }: StoredTensor, before: number, behind: number): StoredTensor {
  const [experts, rows, columns] = shape as readonly [number, number, number];
  const width = bitsPerElement(dtype) / 8;
  const all = before + columns + behind;
  const padded = new Uint8Array(experts * rows * all * width);
  for (let row = 0; row < experts * rows; row++) {
    const run = bytes.subarray(row * columns * width, (row + 1) * columns * width);
    padded.set(run, (row * all + before) * width);
  }
  return { dtype, shape: [experts, rows, all], bytes: padded };
}

/** Columns of the last dimension. */
function cutColumns({ dtype, shape, bytes }: StoredTensor, from: number, to: number): StoredTensor {
  const [experts, rows, columns] = shape as readonly [number, number, number];
  const width = bitsPerElement(dtype) / 8;
  const cut = new Uint8Array(experts * rows * (to - from) * width);
  for (let row = 0; row < experts * rows; row++) {
    const run = bytes.subarray((row * columns + from) * width, (row * columns + to) * width);
    cut.set(run, row * (to - from) * width);
  }
  return { dtype, shape: [experts, rows, to - from], bytes: cut };
}
