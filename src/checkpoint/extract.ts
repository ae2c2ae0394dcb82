/**
 * An adapter out of two checkpoints: the best approximation of what tuning changed, layer by layer.
 *
 * @module
 */

import type { Adapter, TokenRows } from "../adapter/adapter.ts";
import { isClamp } from "../adapter/clamp.ts";
import { RESULT_TYPES } from "../adapter/combine_options.ts";
import { assembleAdapter } from "../adapter/dialects/assemble.ts";
import { moduleOf } from "../adapter/paths.ts";
import type { Backend } from "../backend.ts";
import { MismatchError } from "../errors.ts";
import { checkOptionTypes } from "../formats/check_options.ts";
import { checkReadable } from "../formats/check_place.ts";
import { type Checkpoint, openCheckpoint } from "../formats/checkpoint.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import type { Folder, ReadOptions } from "../formats/source.ts";
import { formatShape } from "../shape.ts";
import { type BaseConfig, readBaseConfig } from "./base_config.ts";
import { planFull } from "./extract_full.ts";
import { type Extracted, extractTensor, type FactorOptions, headPair } from "./extract_tensor.ts";
import { findTied, type TiedTable } from "./tied.ts";

/** Options of {@linkcode extractAdapter}: a rank, an energy, or both. */
export interface ExtractOptions extends Omit<FactorOptions, "backend"> {
  /** Where the products are computed; a WebAssembly backend of its own if absent. */
  readonly backend?: Backend;
  /** Name of the adapter; that of the tuned folder if absent. */
  readonly name?: string;
  /** Is told before every tensor, in bytes of both checkpoints. */
  readonly onProgress?: (progress: { readonly loaded: number; readonly total: number; readonly name: string }) => void;
}

/**
 * Makes an adapter of what differs between two checkpoints of one model: ΔW = W' − W by a randomised singular value
 * decomposition, of linear layers, embeddings and convolutions. Norms and biases that differ are stored in full
 * (`modules_to_save`, `bias`), as are the rows of an embedding where they are fewer values than factors; a table that is
 * the head too gets one ΔW for both (`ensure_weight_tying`). Memory is that of two tensors and a few pieces.
 *
 * The `report` has a line for each module with the error ‖(W' − W) − B A‖ / ‖W' − W‖, and one for each other tensor that
 * differs: that it is stored in full, or by how much it differs and that it is left out, as fused experts are.
 *
 * @param base The checkpoint before.
 * @param tuned The checkpoint after.
 * @param options Rank or energy, and what else there is.
 * @returns The adapter, with s = 1.
 * @throws {MismatchError} If the checkpoints have other tensors or shapes, or nothing differs.
 * @throws {NumericError} If a difference is not finite.
 * @throws {RangeError} If neither rank nor energy is given, or one is out of its range.
 * @throws {TypeError} If an option is of another type.
 *
 * @example
 * ```ts
 * import { loadAdapter, memoryFolder, memorySink } from "@lowrank/lora";
 * import { extractAdapter, mergeCheckpoint } from "@lowrank/lora/checkpoint";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const base = folder("examples/models/tiny/base");
 * const tuned = memorySink(); // or a folder
 * await mergeCheckpoint(base, [{ adapter: await loadAdapter(folder("examples/models/tiny/tweets")) }], tuned);
 * const adapter = await extractAdapter(base, memoryFolder(tuned.files), { rank: 4 });
 * assert.equal(adapter.modules.get("model.layers.0.self_attn.q_proj")?.rank, 4);
 * ```
 */
export async function extractAdapter(base: Folder, tuned: Folder, options: ExtractOptions): Promise<Adapter> {
  checkOptions(options);
  for (const place of [base, tuned]) checkReadable("extract an adapter", place);
  const checkpoints = await openBoth(base, tuned, options);
  const { before, after, config, tied } = checkpoints;
  const backend = options.backend ?? await (await import("../open.ts")).openBackend({ prefer: "wasm" });
  const found = await extractAll(checkpoints, { ...options, backend }).finally(() => {
    if (!options.backend) backend.dispose();
  });
  const pairs = found.flatMap(({ pair }) => pair ?? []);
  const head = tied && found.find(({ name, pair }) => name === tied.table && pair);
  if (head) pairs.push(headPair(head.pair!, moduleOf(tied.head!)));
  if (pairs.length === 0) throw nothingDiffers(before, after, found);
  const others = new Map(found.flatMap(({ name, change }) => change === undefined ? [] : [[name, change] as const]));
  const full = planFull(before.tensors, others, new Set(pairs.map(({ name }) => name)));
  const replacements = new Map<string, StoredTensor>();
  for (const name of full.tensors) replacements.set(name, await after.read(name, options));
  const tokenRows = new Map(found.flatMap(({ name, rows }) => rows ? [[moduleOf(name), rows] as const] : []));
  const fields = new Map([...fieldsOf(base, config), ...full.fields, ...tokenFields(tokenRows)]);
  if (head) fields.set("ensure_weight_tying", true);
  const report = [...found.flatMap(({ line }) => line ?? []), ...full.report];
  const { name = tuned.name, limits } = options;
  return await assembleAdapter({ name, file: tuned.name, pairs, fields, report, limits, replacements, tokenRows });
}

/** Both checkpoints, and what of them is compared. */
interface Checkpoints {
  readonly before: Checkpoint;
  readonly after: Checkpoint;
  readonly config: BaseConfig;
  /** The table that is the head too, before and after; null if there is none, or its head has no name. */
  readonly tied: TiedTable | null;
  readonly names: readonly string[];
}

async function openBoth(base: Folder, tuned: Folder, options: ReadOptions): Promise<Checkpoints> {
  const [before, after] = [await openCheckpoint(base, options), await openCheckpoint(tuned, options)];
  const [config, own] = [await readBaseConfig(base, options), await readBaseConfig(tuned, options)];
  const found = findTied(before.tensors, config);
  const names = commonNames(before, after, config);
  const head = found?.head ?? null;
  // A head that the tuned model has untied is a layer of its own, which began as the table.
  const isUntied = own.tied === false && head !== null && after.tensors.has(head);
  if (isUntied) return { before, after, config, tied: null, names: [...names.filter((name) => name !== head), head] };
  const tied = head === null ? null : found;
  return { before, after, config, tied, names: names.filter((name) => found === null || name !== head) };
}

async function extractAll(
  { before, after, config, names }: Checkpoints,
  options: ExtractOptions & { readonly backend: Backend },
): Promise<Extracted[]> {
  const table = findTied(before.tensors, config)?.table;
  const nameBefore = (name: string) => before.tensors.has(name) || table === undefined ? name : table;
  const sizeOf = (name: string) => before.tensors.get(nameBefore(name))!.length + after.tensors.get(name)!.length;
  const total = names.reduce((sum, name) => sum + sizeOf(name), 0);
  const found: Extracted[] = [];
  let loaded = 0;
  for (const name of names) {
    options.onProgress?.({ loaded, total, name });
    options.signal?.throwIfAborted();
    const tensors = { before: await before.read(nameBefore(name), options), after: await after.read(name, options) };
    const extracted = await extractTensor({ name, ...tensors, isGpt2: isGpt2(config) }, options);
    if (extracted) found.push(extracted);
    loaded += sizeOf(name);
  }
  return found;
}

function tokenFields(rows: ReadonlyMap<string, TokenRows>): (readonly [string, JsonValue])[] {
  if (rows.size === 0) return [];
  return [["trainable_token_indices", new Map([...rows].map(([path, { indices }]) => [path, [...indices]]))]];
}

function nothingDiffers(before: Checkpoint, after: Checkpoint, found: readonly Extracted[]): MismatchError {
  const others = found.length === 0
    ? ""
    : `, though ${found.length} other tensors differ, first ${quote(found[0]!.name)}`;
  const message = `Cannot extract an adapter from ${quote(after.name)}, whose layers are those of ${
    quote(before.name)
  }`;
  return new MismatchError(`${message}${others}: expected a difference in a matrix, which LoRA is of`, {
    file: after.name,
    unexpected: found.map(({ name }) => name),
  });
}

function fieldsOf(base: Folder, config: BaseConfig): Map<string, JsonValue> {
  const isCausal = config.architectures.some((name) => name.endsWith("ForCausalLM") || name === "GPT2LMHeadModel");
  return new Map<string, JsonValue>([
    ["base_model_name_or_path", base.name],
    ["task_type", isCausal ? "CAUSAL_LM" : null],
    ["fan_in_fan_out", isGpt2(config)],
  ]);
}

function checkOptions(options: ExtractOptions): void {
  const own = { backend: "object", onProgress: "function" } as const;
  checkOptionTypes("extract an adapter", options, { ...RESULT_TYPES, ...own });
  const { rank, energy, svdClamp = 1, seed = 0 } = options;
  const refuse = (field: string, found: unknown, expected: string) =>
    new RangeError(`Cannot extract an adapter with ${field} ${found}: expected ${expected}`);
  if (rank === undefined && energy === undefined) {
    throw new RangeError("Cannot extract an adapter with no size: expected a rank, an energy or both");
  }
  if (rank !== undefined && !(Number.isSafeInteger(rank) && rank >= 1)) throw refuse("rank", rank, "an integer from 1");
  if (energy !== undefined && !(energy > 0 && energy <= 1)) throw refuse("energy", energy, "above 0 up to 1");
  if (!isClamp(svdClamp)) throw refuse("svdClamp", svdClamp, "above 0.5 up to 1");
  if (!Number.isSafeInteger(seed)) throw refuse("seed", seed, "an integer");
}

/** The tensors of both; a tied head may be stored by one and not by the other. */
function commonNames(before: Checkpoint, after: Checkpoint, { tied }: BaseConfig): readonly string[] {
  const isHead = (name: string) => tied === true && name === "lm_head.weight";
  const missing = [...before.tensors.keys()].filter((name) => !after.tensors.has(name) && !isHead(name));
  const unexpected = [...after.tensors.keys()].filter((name) => !before.tensors.has(name) && !isHead(name));
  if (missing.length + unexpected.length > 0) {
    const message = `Cannot extract an adapter from ${quote(after.name)} with ${missing.length} tensors missing and ` +
      `${unexpected.length} more, first ${quote([...missing, ...unexpected][0]!)}`;
    const expected = `those of ${quote(before.name)}`;
    throw new MismatchError(`${message}: expected ${expected}`, { file: after.name, missing, unexpected });
  }
  const names = [...before.tensors.keys()].filter((name) => after.tensors.has(name));
  for (const name of names) {
    const [expected, found] = [before.tensors.get(name)!.shape, after.tensors.get(name)!.shape];
    if (expected.join() === found.join()) continue;
    const message = `Cannot extract tensor ${quote(name)} of shape ${formatShape(found)}`;
    throw new MismatchError(`${message}: expected ${formatShape(expected)}`, {
      file: after.name,
      tensor: name,
      found,
      expected,
    });
  }
  return names;
}

function isGpt2({ architectures }: BaseConfig): boolean {
  return architectures.some((name) => name.startsWith("GPT2"));
}
