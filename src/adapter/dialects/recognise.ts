/**
 * Tells the dialects of adapter files apart, by what is in them; names of files count only where several could be meant.
 *
 * @module
 */

import { FormatError, MismatchError } from "../../errors.ts";
import { checkReadable } from "../../formats/check_place.ts";
import { readJson } from "../../formats/json_file.ts";
import { quote } from "../../formats/quote.ts";
import { type Folder, readExactly, type Source } from "../../formats/source.ts";
import { DEFAULT_LIMITS } from "../limits.ts";
import { CONFIG_FILE } from "../lora_config.ts";
import { parseDiffusersKey } from "./diffusers_names.ts";
import type { Dialect, ReadDialectOptions } from "./options.ts";
import { refuseForeign } from "./refusals.ts";
import { isZip, readTensorFile } from "./tensor_file.ts";

/** An adapter whose dialect is known. */
export type Recognised =
  | { readonly dialect: "peft" | "mlx"; readonly source: Folder }
  | { readonly dialect: "kohya" | "diffusers" | "gguf" | "loralib"; readonly source: Source };

const FILE_ENDINGS = /\.(?:safetensors|gguf|pt|pth|bin|ckpt)$/;
const TORCH_OR_SAFETENSORS: readonly (readonly [Exclude<Dialect, "gguf">, (tensor: string) => boolean])[] = [
  [
    "kohya",
    (tensor) => /^lora_[a-z]+\d*_[^.]+\.(?:lora_(?:down|up)\.weight|alpha|dora_scale|diff|hada_|lokr_)/.test(tensor),
  ],
  ["diffusers", (tensor) => parseDiffusersKey(tensor) !== null],
  ["mlx", (tensor) => /\.lora_[ab]$/.test(tensor)],
  ["loralib", (tensor) => /\.lora_[AB]$/.test(tensor)],
  ["peft", (tensor) => /\.lora_(?:[AB]\.(?:weight|default\.weight)|embedding_[AB])$/.test(tensor)],
];

/**
 * Tells the dialect of an adapter, and the file or folder that its reader takes.
 *
 * @param source A folder, or one file.
 * @param options Caps and a signal.
 * @returns Both.
 * @throws {FormatError} If it is of no dialect known, or holds tensors of something else, which the error names.
 * @throws {MismatchError} If a folder holds no adapter, or several files that could be one.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { memorySource } from "../../formats/memory.ts";
 * import { encodeSafetensors } from "../../formats/safetensors_writer.ts";
 * const factor = { dtype: "F32", shape: [1, 1], bytes: new Uint8Array(4) } as const;
 * const bytes = encodeSafetensors(new Map([["lora_unet_mid_block_proj.lora_down.weight", factor]]));
 * assert.equal((await recognise(memorySource("a.safetensors", bytes))).dialect, "kohya");
 * ```
 */
export async function recognise(source: Folder | Source, options: ReadDialectOptions = {}): Promise<Recognised> {
  checkReadable("read an adapter", source, 'file("….safetensors")');
  if (!("open" in source)) return { dialect: await recogniseFile(source, options), source } as Recognised;
  if (await source.has(CONFIG_FILE, options)) return { dialect: await recogniseConfig(source, options), source };
  const file = source.open(await onlyFile(source, options));
  const dialect = await recogniseFile(file, options);
  if (dialect !== "peft" && dialect !== "mlx") return { dialect, source: file };
  throw missingConfig(file.name, dialect);
}

/**
 * Tells the dialect of an adapter.
 *
 * @param source A folder, or one file.
 * @param options Caps and a signal.
 * @returns The dialect.
 * @throws {FormatError} If it is of no dialect known, or holds tensors of something else, which the error names.
 * @throws {MismatchError} If a folder holds no adapter, or several files that could be one.
 */
export async function recogniseDialect(source: Folder | Source, options: ReadDialectOptions = {}): Promise<Dialect> {
  return (await recognise(source, options)).dialect;
}

async function recogniseConfig(folder: Folder, options: ReadDialectOptions): Promise<"peft" | "mlx"> {
  const maxBytes = options.limits?.configBytes ?? DEFAULT_LIMITS.configBytes;
  const config = await readJson(folder.open(CONFIG_FILE), { ...options, maxBytes, maxDepth: 16, keepNumberText: true });
  if (config instanceof Map) {
    if (config.has("peft_type")) return "peft";
    if (config.has("fine_tune_type") || config.has("lora_parameters")) return "mlx";
  }
  const expected = '"peft_type" (PEFT) or "lora_parameters" (mlx-lm)';
  const message = `Cannot tell whose ${quote(CONFIG_FILE)} is in ${quote(folder.name)}: expected ${expected}`;
  throw new FormatError(message, { code: "unknown-dialect", file: CONFIG_FILE, expected });
}

async function onlyFile(folder: Folder, options: ReadDialectOptions): Promise<string> {
  const names = (await folder.list?.(options) ?? []).filter((name) => FILE_ENDINGS.test(name));
  const [name] = names;
  if (name !== undefined && names.length === 1) return name;
  const found = names.length === 0 ? "no file that could be an adapter" : `${names.length} files that could be one`;
  const message = `Cannot find an adapter in ${quote(folder.name)} with ${found}`;
  throw new MismatchError(`${message}: expected ${quote(CONFIG_FILE)}, or the path of the file itself`, {
    code: "missing-file",
    file: folder.name,
    missing: [CONFIG_FILE],
    unexpected: names,
  });
}

async function recogniseFile(source: Source, options: ReadDialectOptions): Promise<Dialect> {
  const size = await source.size(options);
  const start = await readExactly(source, 0, Math.min(9, size), options);
  if (String.fromCharCode(...start.subarray(0, 4)) === "GGUF") return "gguf";
  // A length of eight bytes, and the brace of the JSON that is so long.
  if (start[8] !== 0x7b && !isZip(start)) {
    const message = `Cannot read an adapter from ${quote(source.name)}: expected a file of safetensors, GGUF or torch`;
    throw new FormatError(message, { code: "unknown-dialect", file: source.name });
  }
  const { tensors } = await readTensorFile(source, options);
  const names = [...tensors.keys()];
  for (const [dialect, isOwn] of TORCH_OR_SAFETENSORS) {
    if (!names.some(isOwn)) continue;
    if (dialect === "mlx" || (dialect === "peft")) throw missingConfig(source.name, dialect);
    return dialect;
  }
  throw refuseFile(source.name, names, isZip(start));
}

function missingConfig(file: string, dialect: "peft" | "mlx"): MismatchError {
  const tool = dialect === "peft" ? "PEFT" : "mlx-lm";
  const message = `Cannot read ${quote(file)} of ${tool} alone`;
  return new MismatchError(`${message}: expected its folder, with the scaling in ${quote(CONFIG_FILE)}`, {
    code: "missing-file",
    file,
    missing: [CONFIG_FILE],
  });
}

function refuseFile(file: string, names: readonly string[], isTorch: boolean): FormatError {
  const [first] = names;
  if (first !== undefined) return refuseForeign(first, file, "names of PEFT, Kohya, diffusers, GGUF, MLX or loralib");
  const what = isTorch ? "a torch file" : "a safetensors file";
  const message = `Cannot read an adapter from ${quote(file)}, ${what} without tensors: expected pairs of factors`;
  return new FormatError(message, { code: "unknown-dialect", file });
}
