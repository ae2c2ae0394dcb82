import { MismatchError, OutOfMemoryError, ShapeError } from "../errors.ts";
import { checkOptionTypes, type OptionType } from "../formats/check_options.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import type { Adapter, LoraModule, ReportLine } from "./adapter.ts";
import { readBase } from "./base_layers.ts";
import type { BaseModule, CreateAdapterOptions } from "./create_options.ts";
import { OPTION_NAMES, planAdapter, SAVED_HEADS, sizesOf } from "./create_plan.ts";
import { nearestName } from "./match.ts";
import { lastName } from "./paths.ts";
import type { EvaDirections, EvaLayer } from "./eva.ts";
import { exactKeys } from "./exact_keys.ts";
import { CONFIG_FILE, type LoraConfig, readLoraConfig } from "./lora_config.ts";
import { scaleReader, scalingOf } from "./lora_module.ts";
import { newAdapter } from "./new_adapter.ts";
import { readWeight } from "./weight_matrix.ts";

export type { BaseModule, CreateAdapterOptions };

const OWN_TYPES: Readonly<Record<string, OptionType>> = {
  base: "object",
  modules: "object",
  weightOf: "function",
  inputsOf: "function",
  onBase: "function",
  seed: "number",
  evaRho: "number",
  loftqBits: "number",
  loftqIterations: "number",
  name: "string",
};

/**
 * Creates an adapter whose training has not begun, in 32-bit floats. It changes nothing yet: its ΔW is zero, or it begins
 * over a base from which its ΔW has been taken (`pissa`, `pissa_niter_N`, `olora`, `loftq`): see {@linkcode toPlainLora}.
 *
 * The same options give the same factors; those of a module depend on seed, path and weight only. What is uniform has the
 * same bits in every runtime; what is normally distributed uses `Math.log` and `Math.cos`, whose last bit may differ
 * between engines.
 *
 * @param options The base, the fields of the config, and a seed.
 * @returns The adapter.
 * @throws {MismatchError} If the base has none of the targets, or one is of a kind that PEFT does not adapt so, or the
 *   initialisation lacks weights or inputs.
 * @throws {FormatError} If an option that is a field of the config has a value which that cannot have, or a pattern uses a
 *   construct outside the subset, or a file of the base is malformed.
 * @throws {TypeError} If another option has the wrong type or is none, or there is no base.
 * @throws {LimitError} If a rank is above 256.
 * @throws {NumericError} If a weight or an input has NaN or infinity in it.
 * @throws {ShapeError} If its bytes do not fill its shape, or factors would have 2^53 values and more.
 * @throws {OutOfMemoryError} If there is no memory for factors of these sizes.
 *
 * @example
 * ```ts
 * import { memorySink, saveAdapter } from "@lowrank/lora";
 * import { createAdapter } from "@lowrank/lora/adapters";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const base = folder("examples/models/tiny/base");
 * const adapter = await createAdapter({ base, targetModules: "all-linear", r: 8, loraAlpha: 16 });
 * await saveAdapter(adapter, memorySink()); // or a folder
 * assert.equal(adapter.modules.get("model.layers.0.mlp.up_proj")?.scaling, 2);
 * ```
 */
export async function createAdapter(options: CreateAdapterOptions): Promise<Adapter> {
  checkOwn(options);
  const told = options.base ? await readBase(options.base) : undefined;
  const given = { ...told, ...options };
  const { seed = 0, init = true, name = "adapter" } = given;
  const { checkedWeights } = await import("./checked_weight.ts");
  const [weightOf, inputsOf] = [given.weightOf, given.inputsOf].map((give) => give && checkedWeights(give));
  const base = byName(given.modules);
  const { config: asked, targets, idle } = planAdapter(given, base);
  const eva = init === "eva" ? await evaPlan(asked, targets, { ...given, ...(inputsOf && { inputsOf }) }) : null;
  const config = eva?.config ?? asked;
  const scaleOf = scaleReader(config);
  const modules = new Map<string, LoraModule>();
  const { createModule } = await import("./create_module.ts");
  for (const target of targets) {
    const { name } = target;
    const direction = eva?.directions.get(name);
    if (eva && !direction) continue;
    const { ranks: [rank = config.r], alpha } = scaleOf(name);
    const sizes = { ...sizesOf(target), rank, alpha, scaling: scalingOf(config, alpha, rank) };
    const values = { ...given, seed, direction, ...(weightOf && { weightOf }) };
    modules.set(name, await createModule(sizes, config, values).catch((cause) => refuseSizes(name, cause)));
  }
  const report = [...reportHeads(config), ...idle.map((entry) => reportIdle(entry, base))];
  return await newAdapter({ name, config, modules, report });
}

/** PEFT does not load an adapter of these tasks without the head. */
function reportHeads({ taskType }: LoraConfig): readonly ReportLine[] {
  const heads = SAVED_HEADS.get(taskType ?? "");
  if (!heads) return [];
  const what = `PEFT trains and saves ${heads.map(quote).join(" or ")} in full for task_type ${quote(taskType!)}`;
  const why = "the new adapter lacks the head: PEFT loads it with the head's weight and bias among its replacements";
  return [{ module: CONFIG_FILE, what, why }];
}

/** PEFT passes over such an entry too, as long as another one names a layer. */
function reportIdle(entry: string, base: ReadonlyMap<string, BaseModule>): ReportLine {
  const nearest = nearestName(entry, new Set([...base.keys()].map(lastName)));
  const why = `the base has no layer of that name, or it is excluded; the nearest name is ${quote(nearest!)}`;
  return { module: CONFIG_FILE, what: `${quote(entry)} of targetModules adapts nothing`, why };
}

/** Checks the options that are no fields of a config, and that there are no others: PEFT's names are not all the same. */
function checkOwn(options: CreateAdapterOptions): void {
  checkOptionTypes("create an adapter", options, OWN_TYPES);
  const names = [...Object.keys(OWN_TYPES), ...OPTION_NAMES.values()];
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || names.includes(name)) continue;
    throw new TypeError(`Cannot create an adapter with an option ${quote(name)}: expected some of ${names.join(", ")}`);
  }
  const { base, modules, seed = 0, loftqBits = 4, loftqIterations = 1, evaRho = 2 } = options;
  if ((base === undefined) === (modules === undefined)) {
    const found = base === undefined ? "without a base" : "with both base and modules";
    throw new TypeError(`Cannot create an adapter ${found}: expected base, or modules as listLayers() gives them`);
  }
  if (modules && !(Symbol.iterator in modules)) {
    throw new TypeError("Cannot create an adapter with modules that are no list: expected what listLayers() gives");
  }
  const refuse = (field: string, found: number, expected: string) =>
    new RangeError(`Cannot create an adapter with ${field} ${found}: expected ${expected}`);
  if (!Number.isSafeInteger(seed)) throw refuse("seed", seed, "an integer");
  if (loftqBits !== 4 && loftqBits !== 8) throw refuse("loftqBits", loftqBits, "4 or 8");
  if (!Number.isSafeInteger(loftqIterations) || loftqIterations < 1) {
    throw refuse("loftqIterations", loftqIterations, "a whole number from 1");
  }
  if (!(evaRho >= 1)) throw refuse("evaRho", evaRho, "a number from 1");
}

function byName(modules: Iterable<BaseModule> = []): ReadonlyMap<string, BaseModule> {
  const base = new Map<string, BaseModule>();
  for (const module of modules) {
    const name = module?.name;
    if (typeof name !== "string") {
      throw new TypeError("Cannot create an adapter with a module without a name: expected what listLayers() gives");
    }
    if (base.has(name)) {
      const message = `Cannot create an adapter for a base with two modules ${quote(name)}: expected every name once`;
      throw new MismatchError(message, { tensor: name, field: "modules" });
    }
    base.set(name, module);
  }
  return base;
}

/** What engines throw for an array of that size has no type of its own. */
function refuseSizes(tensor: string, cause: unknown): never {
  if (cause instanceof ShapeError && cause.field === "shape") {
    const message = `Cannot create ${quote(tensor)} of its sizes: expected factors of fewer than 2^53 values`;
    throw new ShapeError(message, { tensor, field: "shape", found: cause.found, cause });
  }
  if (!(cause instanceof RangeError) || cause.constructor !== RangeError) throw cause;
  const message = `Cannot create ${quote(tensor)} of its sizes: expected as many as there is memory for`;
  throw new OutOfMemoryError(message, { tensor, cause });
}

/** The directions of EVA, and the ranks and alphas that come of them: alpha grows as the rank does. */
async function evaPlan(
  asked: LoraConfig,
  targets: readonly BaseModule[],
  { inputsOf, evaRho = 2 }: CreateAdapterOptions,
): Promise<{ readonly config: LoraConfig; readonly directions: EvaDirections }> {
  if (!inputsOf) {
    const message =
      "Cannot create an adapter with the initialisation eva without inputs of its modules: expected inputsOf";
    throw new MismatchError(message, { field: "inputsOf", expected: "a function" });
  }
  const other = targets.find(({ kind = "linear" }) => kind !== "linear");
  if (other) {
    const message = `Cannot create ${quote(other.name)}, a module of kind ${other.kind}, with init "eva"`;
    const found = { tensor: other.name, field: "init", found: "eva", expected: "linear layers" };
    throw new MismatchError(`${message}: expected linear layers alone`, found);
  }
  const scaleOf = scaleReader(asked);
  const layers: EvaLayer[] = [];
  for (const { name, inFeatures, outFeatures } of targets) {
    const inputs = await inputsOf(name);
    const sizes = { name, inFeatures, outFeatures: inputs.shape[0] ?? outFeatures };
    layers.push({ name, rank: scaleOf(name).ranks[0]!, inputs: readWeight(inputs, sizes, false).matrix });
  }
  const { evaDirections } = await import("./eva.ts");
  const directions = evaDirections(layers, evaRho);
  const keyOf = exactKeys(directions.keys());
  const raw = new Map(asked.raw).set("target_modules", [...directions.keys()]).set("eva_config", evaConfig(evaRho));
  const [ranks, alphas] = [new Map<string, JsonValue>(), new Map<string, JsonValue>()];
  for (const { name, rank } of layers) {
    const rows = directions.get(name)?.rows;
    if (rows === undefined) continue;
    const alpha = scaleOf(name).alpha * rows / rank;
    if (rows !== asked.r) ranks.set(keyOf(name), rows);
    if (alpha !== asked.loraAlpha) alphas.set(keyOf(name), alpha);
  }
  return { config: readLoraConfig(raw.set("rank_pattern", ranks).set("alpha_pattern", alphas)), directions };
}

function evaConfig(rho: number): JsonValue {
  const fields = { rho, tau: 0.99, use_label_mask: true, label_mask_value: -100, whiten: false };
  return new Map(Object.entries({ ...fields, adjust_scaling_factors: true }));
}
