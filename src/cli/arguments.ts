import { stat } from "node:fs/promises";
import { basename, dirname, resolve } from "node:path";
import type { Adapter } from "../adapter/adapter.ts";
import { loadAdapter, type LoadAdapterOptions } from "../adapter/load.ts";
import { MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { Folder, Source } from "../formats/source.ts";
import { urlFolder, urlSource } from "../formats/url.ts";
import { file, folder } from "../fs/mod.ts";
import { UsageError } from "./command.ts";

/** A URL that ends so is of one file, any other of a folder. */
const WEIGHT_FILE = /\.(?:gguf|safetensors|pt|pth|bin|ckpt)$/;

/** An adapter named on the command line: `PATH`, `PATH=WEIGHT` or a URL. */
export interface AdapterArgument {
  /** Last part of the path, with a number where two are alike. */
  readonly name: string;
  /** What was written, without the weight. */
  readonly path: string;
  /** Where its files are. */
  readonly source: Folder | URL;
  /** Factor of its contribution. */
  readonly weight: number;
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

function missingFile(message: string, path: string): MismatchError {
  return new MismatchError(message, { code: "missing-file", file: path, missing: [path] });
}

/**
 * Reads an argument as a URL; a path stays undefined.
 *
 * @throws {UsageError} If it begins as one and is none.
 */
function urlArgument(path: string): URL | undefined {
  if (!/^https?:\/\//i.test(path)) return undefined;
  const url = URL.parse(path);
  if (url) return url;
  throw new UsageError(`Cannot read ${quote(path)}: a whole URL is wanted`);
}

/** Names adapters after their folders, in order: all `--adapter` options, or positionals, which are paths alone. */
export function adapterArguments(texts: readonly string[], weighted = true): AdapterArgument[] {
  const names = new Set<string>();
  return texts.map((text) => {
    const { path, weight } = weighted ? parseAdapter(text) : { path: text, weight: 1 };
    const url = urlArgument(path);
    const stem = basename(url ? url.pathname : resolve(path)) || "adapter";
    let name = stem;
    for (let copy = 2; names.has(name); copy++) name = `${stem}-${copy}`;
    names.add(name);
    return { name, path, weight, source: url ?? localFolder(path) };
  });
}

/**
 * The one adapter that positionals name.
 *
 * @throws {UsageError} If they name none, or several.
 */
export function oneAdapter(positionals: readonly string[], action: string): AdapterArgument {
  const [argument] = adapterArguments(positionals, false);
  if (argument && positionals.length === 1) return argument;
  throw new UsageError(`Cannot ${action} ${positionals.length} adapters: one is wanted`);
}

/**
 * Checks that an adapter's folder is there: a slip of the pen is told before anything large is read.
 *
 * @throws {MismatchError} If it is no folder.
 */
export async function checkAdapterPath({ path, source }: AdapterArgument): Promise<void> {
  if (source instanceof URL) return;
  const entry = await stat(path).catch(() => undefined);
  if (entry?.isDirectory()) return;
  const [, before = "", weight = ""] = /^(.+)=(.*)$/.exec(path) ?? [];
  if (!entry && await stat(before).catch(() => undefined)) {
    throw new UsageError(`Cannot use ${quote(weight)} as the weight of ${quote(before)}: a number is wanted`);
  }
  const why = entry ? 'it is a file, expected a PEFT folder ("lora convert" makes one)' : "there is no such folder";
  throw missingFile(`Cannot load an adapter from ${quote(path)}: ${why}`, path);
}

/** Loads the adapter that an argument names. */
export async function loadArgument(argument: AdapterArgument, options: LoadAdapterOptions): Promise<Adapter> {
  await checkAdapterPath(argument);
  return await loadAdapter(argument.source, options);
}

/** The mix of several adapters, each with its weight; none is the base alone. */
export function adapterMix(adapters: readonly AdapterArgument[]): Readonly<Record<string, number>> | null {
  return adapters.length === 0 ? null : Object.fromEntries(adapters.map(({ name, weight }) => [name, weight]));
}

/**
 * A folder, or a file such as a `.gguf`, on disk or behind a URL.
 *
 * @throws {MismatchError} If there is nothing on disk.
 */
export async function modelArgument(path: string): Promise<Folder | Source> {
  const url = urlArgument(path);
  if (url) return WEIGHT_FILE.test(url.pathname) ? urlSource(url) : urlFolder(url);
  const entry = await stat(path).catch(() => undefined);
  if (!entry) throw missingFile(`Cannot read ${quote(path)}: there is no such file or folder`, path);
  return entry.isFile() ? file(path) : localFolder(path);
}
