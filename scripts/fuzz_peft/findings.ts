/**
 * What PEFT computed for a case, and what differs from it.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Adapter } from "../../src/adapter/adapter.ts";
import { loadAdapter } from "../../src/adapter/load.ts";
import { mergeCheckpoint, type MergeOptions } from "../../src/checkpoint/merge.ts";
import type { WeightedAdapter } from "../../src/adapter/weighted_adapter.ts";
import { type StoredTensor, toFloat32 } from "../../src/formats/dtype.ts";
import { memoryFolder, memorySink, memorySource } from "../../src/formats/memory.ts";
import { readSafetensorsHeader, readTensor } from "../../src/formats/safetensors.ts";
import type { Folder } from "../../src/formats/source.ts";
import { folder } from "../../src/fs/mod.ts";

/** A tensor that PEFT computed in float64; ids are numbers too. */
export interface Wanted {
  readonly shape: readonly number[];
  readonly values: Float64Array;
}

/** What the Python side says about a case. */
export interface CaseInfo {
  readonly config?: Readonly<Record<string, unknown>>;
  readonly configs?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  /** How far PEFT's own float32 is from its float64. */
  readonly rounding?: number;
  /** How far the adapter that PEFT reads is from the one that it trained and saved. */
  readonly reread?: number;
  /** How far PEFT's merged model is from its unmerged one. */
  readonly gap?: number;
  /** Why PEFT does not merge. */
  readonly merge?: string;
  readonly names?: readonly string[];
  readonly weights?: Readonly<Record<string, number>>;
  readonly rows?: readonly string[];
  readonly layers?: Readonly<Record<string, LayerInfo>>;
  readonly options?: Readonly<Record<string, unknown>>;
  readonly modules?: readonly Readonly<Record<string, unknown>>[];
  readonly adapted?: Readonly<Record<string, readonly [rank: number, scaling: number]>>;
  readonly refused?: string;
}

/** A layer of a model of plain modules. */
export interface LayerInfo {
  readonly kind: "linear" | "conv1d" | "embedding" | "conv" | "attention";
  readonly padding?: number | readonly number[] | null;
  readonly [field: string]: unknown;
}

/** One case: its files, and all that is found about it. */
export class Findings {
  readonly path: string;
  readonly kind: string;
  readonly info: CaseInfo;
  readonly expected: ReadonlyMap<string, Wanted>;
  /** What differs from PEFT. */
  readonly problems: string[] = [];
  /** What was compared. */
  compared = 0;
  /** What the trained adapter answered, where PEFT reads it otherwise than it was: either is right. */
  readonly #trained: Map<Wanted, Float64Array> = new Map();

  constructor(path: string, kind: string, info: CaseInfo, expected: ReadonlyMap<string, Wanted>) {
    this.path = path;
    this.kind = kind;
    this.info = info;
    this.expected = expected;
    for (const [name, wanted] of expected) {
      const trained = expected.get(name.replace("adapted.", "trained."));
      if ((info.reread ?? 0) > 1e-3 && trained) this.#trained.set(wanted, trained.values);
    }
  }

  /** The base as the case has it. */
  get base(): Folder {
    return folder(join(this.path, "base"));
  }

  /** Loads an adapter of the case. */
  load(name: string): Promise<Adapter> {
    return loadAdapter(folder(join(this.path, name)), { allowPickle: true });
  }

  /** Notes a result that is farther from PEFT's than `tolerance` of the largest value. */
  compare(label: string, got: ArrayLike<number>, want: Wanted | undefined, tolerance: number): void {
    if (!want) return;
    this.compared++;
    const error = Math.min(relativeError(got, want.values), relativeError(got, this.#trained.get(want) ?? []));
    if (!(error <= tolerance)) this.problems.push(`${label} is off by ${error.toExponential(1)}`);
  }

  /** The tolerance of answers: what f32 takes, more where PEFT's own f32 takes more. */
  get tolerance(): number {
    const configs = [this.info.config, ...Object.values(this.info.configs ?? {})];
    // PEFT takes the singular vectors of the base in float32.
    const isResidual = configs.some((config) => {
      return config && (/pissa|olora/.test(String(config["init_lora_weights"])) || "kasa_config" in config);
    });
    return Math.max(isResidual ? 2e-4 : 2e-5, 16 * (this.info.rounding ?? 0));
  }
}

/** Reads what the Python side wrote. */
export async function readCase(path: string, kind: string): Promise<Findings> {
  const info: CaseInfo = JSON.parse(readFileSync(join(path, "case.json"), "utf8"));
  const expected = new Map<string, Wanted>();
  for (
    const [name, { dtype, shape, bytes }] of await readAll(
      new Uint8Array(readFileSync(join(path, "expected.safetensors"))),
    )
  ) {
    const buffer = bytes.slice().buffer;
    const isWide = dtype === "F64" || dtype === "I64";
    const values = dtype === "I64"
      ? Float64Array.from(new BigInt64Array(buffer), Number)
      : isWide
      ? new Float64Array(buffer)
      : Float64Array.from(new Float32Array(buffer));
    expected.set(name, { shape, values });
  }
  return new Findings(path, kind, info, expected);
}

/** All tensors of a safetensors file. */
export async function readAll(bytes: Uint8Array): Promise<Map<string, StoredTensor>> {
  const source = memorySource("tensors", bytes);
  const { tensors } = await readSafetensorsHeader(source);
  const read = new Map<string, StoredTensor>();
  for (const [name, info] of tensors) read.set(name, await readTensor(source, info));
  return read;
}

/** max|got − want| / max|want|; NaN counts as infinite. */
export function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) return Infinity;
  let [difference, size] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    const error = Math.abs(got[i]! - want[i]!);
    difference = Math.max(difference, Number.isNaN(error) ? Infinity : error);
    size = Math.max(size, Math.abs(want[i]!));
  }
  return difference / (size || 1);
}

/** A merge in memory. */
export interface Merged {
  readonly files: Folder;
  readonly tensors: ReadonlyMap<string, StoredTensor>;
}

/** Merges adapters of a case into its base. */
export async function mergeCase(
  { base }: Findings,
  adapters: readonly WeightedAdapter[],
  options: MergeOptions = {},
): Promise<Merged> {
  const sink = memorySink();
  await mergeCheckpoint(base, adapters, sink, options);
  const tensors = await readAll(sink.files.get("model.safetensors")!);
  return { files: memoryFolder(sink.files), tensors };
}

/** Compares merged weights with those that PEFT merges, and all others with the base's. */
export function compareMerged(
  findings: Findings,
  { tensors }: Merged,
  before: ReadonlyMap<string, StoredTensor>,
): void {
  const { expected, tolerance, kind } = findings;
  // On disk the experts are one by one, in PEFT's model they are fused.
  const isExpert = (name: string) => /\.(?:block_sparse_moe|mlp\.experts|mlp\.gate)\b/.test(name);
  const cut = (name: string) => expected.has(`merged.${name}`) ? name : name.replace(/^(?:transformer|bert)\./, "");
  for (const [name, tensor] of tensors) {
    if (isExpert(name)) continue;
    const wanted = expected.get(`merged.${cut(name)}`) ?? expected.get(`merged.${prefixOf(kind)}${name}`);
    const old = before.get(name);
    const values = toFloat32(tensor);
    const rounded = { F32: 0, BF16: 2 ** -8, F16: 2 ** -11 }[tensor.dtype as string] ?? 0;
    if (wanted) findings.compare(`merged ${name}`, values, wanted, tolerance / 2 + rounded);
    else if (old) findings.compare(`untouched ${name}`, values, wide(old), 0);
    else if (!isTwin(name)) findings.problems.push(`merged ${name} is not in PEFT's result`);
  }
  for (const name of expected.keys()) {
    const own = name.slice("merged.".length);
    if (!name.startsWith("merged.") || tensors.has(own) || tensors.has(cut(own)) || isTwin(own) || isExpert(own)) {
      continue;
    }
    if (!tensors.has(prefixOf(kind) + own)) findings.problems.push(`PEFT's merged ${own} is not written`);
  }
}

/** A tied head, which PEFT lists with the embedding. */
function isTwin(name: string): boolean {
  return name === "lm_head.weight";
}

function prefixOf(kind: string): string {
  return kind === "gpt2" ? "transformer." : "bert.";
}

function wide(tensor: StoredTensor): Wanted {
  return { shape: tensor.shape, values: Float64Array.from(toFloat32(tensor)) };
}
