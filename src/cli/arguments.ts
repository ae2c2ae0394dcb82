import { stat } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import type { Folder, Source } from "../formats/source.ts";
import { file, folder } from "../fs/mod.ts";
import { UsageError } from "./command.ts";

/** An adapter named on the command line: `PATH`, `PATH=WEIGHT` or a URL. */
export interface AdapterArgument {
  /** Last part of the path, with a number where two are alike. */
  readonly name: string;
  /** Where its files are. */
  readonly source: Folder | URL;
  /** Factor of its contribution. */
  readonly weight: number;
}

/** Bounds of {@linkcode numberOption}. */
export interface NumberBounds {
  /** Least value allowed. */
  readonly min?: number;
  /** Values must be greater than this. */
  readonly above?: number;
  /** Greatest value allowed. */
  readonly max?: number;
  /** Whether fractions are refused. */
  readonly whole?: boolean;
}

/**
 * Returns an option's text.
 *
 * @throws {UsageError} If it is absent.
 */
export function requiredOption(value: string | undefined, flag: string): string {
  if (value === undefined) throw new UsageError(`Cannot run without --${flag}: a value is wanted`);
  return value;
}

/**
 * Reads an option's number; absent stays absent.
 *
 * @throws {UsageError} If it is no number within the bounds.
 */
export function numberOption(value: string | undefined, flag: string, bounds: NumberBounds): number | undefined {
  if (value === undefined) return undefined;
  const { min = -Infinity, above = -Infinity, max = Number.MAX_SAFE_INTEGER, whole = false } = bounds;
  const number = value.trim() === "" ? NaN : Number(value);
  if (number >= min && number > above && number <= max && (!whole || Number.isInteger(number))) return number;
  const start = min > above ? `from ${min}` : `above ${above}`;
  const end = max === Number.MAX_SAFE_INTEGER ? "" : ` up to ${max}`;
  throw new UsageError(`Cannot use --${flag} "${value}": a ${whole ? "whole " : ""}number ${start}${end} is wanted`);
}

/**
 * Reads an option that takes one of a few words; absent stays absent.
 *
 * @throws {UsageError} If it is another word.
 */
export function choiceOption<T extends string>(
  value: string | undefined,
  flag: string,
  choices: readonly T[],
): T | undefined {
  const choice = choices.find((choice) => choice === value);
  if (choice !== undefined || value === undefined) return choice;
  throw new UsageError(`Cannot use --${flag} "${value}": one of ${choices.join(", ")} is wanted`);
}

/** Splits `PATH=WEIGHT` at the last `=`, where a number follows it. */
export function parseAdapter(text: string): { readonly path: string; readonly weight: number } {
  const parts = /^(.+)=([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)$/i.exec(text);
  return parts ? { path: parts[1] ?? "", weight: Number(parts[2]) } : { path: text, weight: 1 };
}

/** A folder; in the Hugging Face cache its files are links to blobs beside the snapshots. */
function localFolder(path: string): Folder {
  const revision = resolve(path);
  const cached = basename(dirname(revision)) === "snapshots";
  return folder(path, cached ? { linksWithin: resolve(revision, "..", "..") } : {});
}

/** Reads all `--adapter` options, in order. */
export function adapterArguments(texts: readonly string[]): AdapterArgument[] {
  const names = new Set<string>();
  return texts.map((text) => {
    const { path, weight } = parseAdapter(text);
    const url = /^https?:\/\//i.test(path) ? new URL(path) : undefined;
    const stem = basename(url ? url.pathname : resolve(path)) || "adapter";
    let name = stem;
    for (let copy = 2; names.has(name); copy++) name = `${stem}-${copy}`;
    names.add(name);
    return { name, weight, source: url ?? localFolder(path) };
  });
}

/** The mix of several adapters, each with its weight; none is the base alone. */
export function adapterMix(adapters: readonly AdapterArgument[]): Readonly<Record<string, number>> | null {
  return adapters.length === 0 ? null : Object.fromEntries(adapters.map(({ name, weight }) => [name, weight]));
}

/** A model on disk: a Hugging Face folder, or a file such as a `.gguf`. */
export async function modelArgument(path: string): Promise<Folder | Source> {
  const entry = await stat(path).catch(() => undefined);
  return entry?.isFile() ? file(path) : localFolder(path);
}
