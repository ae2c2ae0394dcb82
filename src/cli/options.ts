import type { FloatDtype } from "../formats/dtype.ts";
import { MOST_THREADS } from "../wasm/worker_code.ts";
import { UsageError } from "./command.ts";

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
 * Reads `--threads`; absent, one per core: a command has the machine to itself.
 *
 * @throws {UsageError} If it is neither "auto" nor a whole number from 1 up to 32, which is all that the kernels use.
 */
export function threadsOption(value: string | undefined): number | "auto" {
  return value === undefined || value === "auto"
    ? "auto"
    : numberOption(value, "threads", { min: 1, max: MOST_THREADS, whole: true }) ?? "auto";
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

/**
 * Reads the `--dtype` of an adapter; absent stays absent.
 *
 * @throws {UsageError} If it is another word.
 */
export function dtypeOption(value: string | undefined): FloatDtype | undefined {
  const dtype = choiceOption(value, "dtype", ["f32", "bf16", "f16"]);
  return dtype && ({ f32: "F32", bf16: "BF16", f16: "F16" } as const)[dtype];
}

/** Options without those that are absent. */
export function present<T extends object>(options: T): { [Name in keyof T]?: Exclude<T[Name], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as typeof options;
}
