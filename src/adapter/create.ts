import { MismatchError, OutOfMemoryError } from "../errors.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import { Adapter, type LoraModule, type ReportLine } from "./adapter.ts";
import type { BaseModule, CreateAdapterOptions } from "./create_options.ts";
import { planAdapter, SAVED_HEADS, sizesOf } from "./create_plan.ts";
import type { EvaDirections, EvaLayer } from "./eva.ts";
import { exactKeys } from "./exact_keys.ts";
import { identify } from "./identity.ts";
import { CONFIG_FILE, type LoraConfig, readLoraConfig } from "./lora_config.ts";
import { scaleReader, scalingOf } from "./lora_module.ts";
import { encodeWeights } from "./save.ts";
import { readWeight } from "./weight_matrix.ts";

export type { BaseModule, CreateAdapterOptions };

/**
 * Creates an adapter whose training has not begun, in 32-bit floats. It changes nothing yet: its ΔW is zero, or it begins
 * over a base from which its ΔW has been taken (`pissa`, `pissa_niter_N`, `olora`, `loftq`): see {@linkcode toPlainLora}.
 *
 * The same options give the same factors; those of a module depend on seed, path and weight only. What is uniform has the
 * same bits in every runtime; what is normally distributed uses `Math.log` and `Math.cos`, whose last bit may differ
 * between engines.
 *
 * @param options The base's layers, the fields of the config, and a seed.
 * @returns The adapter.
 * @throws {MismatchError} If the base has none of the targets, or one is of a kind that PEFT does not adapt so, or the
 *   initialisation lacks weights or inputs.
 * @throws {FormatError} If a field has the wrong type, or a pattern uses a construct outside the subset.
 * @throws {LimitError} If a rank is above 256.
 * @throws {NumericError} If a weight or an input has NaN or infinity in it.
 * @throws {ShapeError} If its bytes do not fill its shape.
 * @throws {OutOfMemoryError} If there is no memory for factors of these sizes.
 *
 * @example
 * ```ts
 * import { createAdapter } from "@lowrank/lora/adapters";
 * import assert from "node:assert/strict";
 *
 * const modules = [{ name: "layers.0.q_proj", inFeatures: 4, outFeatures: 6 }];
 * const adapter = await createAdapter({ modules, targetModules: ["q_proj"], r: 2, loraAlpha: 4 });
 * assert.deepEqual(adapter.modules.get("layers.0.q_proj")?.scaling, 2);
 * ```
 */
export async function createAdapter(options: CreateAdapterOptions): Promise<Adapter> {
  const { seed = 0, init = true, name = "adapter" } = options;
  if (!Number.isSafeInteger(seed)) {
    throw new RangeError(`Cannot create an adapter with seed ${seed}: expected an integer`);
  }
  const { loftqBits = 4, loftqIterations = 1, evaRho = 2 } = options;
  const isLoftq = (loftqBits === 4 || loftqBits === 8) && Number.isSafeInteger(loftqIterations) && loftqIterations >= 1;
  if (!isLoftq || !(evaRho >= 1)) {
    const message =
      "Cannot create an adapter with these options: expected loftqBits 4 or 8, loftqIterations and evaRho";
    throw new RangeError(`${message} from 1`);
  }
  const { checkedWeights } = await import("./checked_weight.ts");
  const [weightOf, inputsOf] = [options.weightOf, options.inputsOf].map((give) => give && checkedWeights(give));
  const { config: asked, targets } = planAdapter(options, baseOf(options));
  const eva = init === "eva" ? await evaPlan(asked, targets, { ...options, ...(inputsOf && { inputsOf }) }) : null;
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
    const values = { ...options, seed, direction, ...(weightOf && { weightOf }) };
    modules.set(name, await createModule(sizes, config, values).catch((cause) => refuseMemory(name, cause)));
  }
  const weights = encodeWeights(modules.values());
  const { sha256, id } = await identify(weights, config);
  const trainingState = new Map<string, StoredTensor>();
  const report = reportHeads(config);
  return new Adapter({ name, config, modules, trainingState, sha256, id, bytes: weights.length, report });
}

/** PEFT does not load an adapter of these tasks without the head. */
function reportHeads({ taskType }: LoraConfig): readonly ReportLine[] {
  const heads = SAVED_HEADS.get(taskType ?? "");
  if (!heads) return [];
  const what = `PEFT trains and saves ${heads.map(quote).join(" or ")} in full for task_type ${quote(taskType!)}`;
  const why = "the new adapter lacks the head: PEFT loads it with the head's weight and bias among its replacements";
  return [{ module: CONFIG_FILE, what, why }];
}

function baseOf(options: CreateAdapterOptions): ReadonlyMap<string, BaseModule> {
  const base = new Map<string, BaseModule>();
  for (const module of options.modules) {
    const { name } = module;
    if (base.has(name)) {
      const message = `Cannot create an adapter for a base with two modules ${quote(name)}: expected every name once`;
      throw new MismatchError(message, { tensor: name, field: "modules" });
    }
    base.set(name, module);
  }
  return base;
}

/** What engines throw for an array of that size has no type of its own. */
function refuseMemory(tensor: string, cause: unknown): never {
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
    const message = `Cannot create ${quote(other.name)}, a module of kind ${other.kind}, with init_lora_weights "eva"`;
    const found = { tensor: other.name, field: "init_lora_weights", found: "eva", expected: "linear layers" };
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
