/**
 * Factors that PEFT stores in a shorter form than A (r, in) and B (out, r), as plain LoRA:
 *
 * ```text
 * block-diagonal  (rows, columns / n) is n blocks of rows / n rows, which go on the diagonal
 * QALoRA          A (r, in / g) acts on means of g inputs, times in / g: every column g times, alpha · (in / g) / g
 * ```
 *
 * @module
 */

import { MismatchError } from "../errors.ts";
import { bitsPerElement, type StoredTensor } from "../formats/dtype.ts";
import { JsonNumber, type JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import { formatShape } from "../shape.ts";
import type { LoraModule, ReportLine } from "./adapter.ts";
import { CONFIG_FILE, type LoraConfig, readLoraConfig } from "./lora_config.ts";
import type { ModuleFactors } from "./module_shapes.ts";
import { lastName } from "./paths.ts";
import { exactKeys } from "./exact_keys.ts";
import type { NamedTensor } from "./full_tensors.ts";
import type { BlockDiagonal } from "./variant_fields.ts";

/** Factors as plain LoRA, and a config that says so. */
interface PlainFactors {
  readonly config: LoraConfig;
  readonly modules: ReadonlyMap<string, LoraModule>;
  readonly report: readonly ReportLine[];
}

/**
 * Puts the blocks of a block-diagonal factor on the diagonal.
 *
 * @param factors The tensors of a module as they are stored.
 * @param config The config, which says where blocks are.
 * @returns The tensors with whole factors.
 * @throws {MismatchError} If a factor cannot be made of such blocks.
 */
export function spreadFactors(factors: ModuleFactors, { blockDiagonal }: LoraConfig): ModuleFactors {
  if (!blockDiagonal) return factors;
  const { name, a, b } = factors;
  const factor = blockFactor(name, blockDiagonal);
  if (factor === "a") return { ...factors, a: spreadBlocks(a, blockDiagonal.blocks) };
  return factor === "b" ? { ...factors, b: spreadBlocks(b, blockDiagonal.blocks) } : factors;
}

/** Which factor is block-diagonal: PEFT looks for the entries anywhere in the last name of the path. */
function blockFactor(module: string, { a, b }: BlockDiagonal): "a" | "b" | undefined {
  const leaf = lastName(module);
  const [inA, inB] = [a, b].map((names) => names.some((part) => leaf.includes(part)));
  if (!inA || !inB) return inA ? "a" : inB ? "b" : undefined;
  const message = `Cannot load module ${quote(module)} with both factors block-diagonal: expected one in use_bdlora`;
  throw new MismatchError(message, { file: CONFIG_FILE, tensor: module, field: "use_bdlora" });
}

/**
 * Makes config and modules those of plain LoRA, where factors were stored in a shorter form.
 *
 * @param config The config.
 * @param modules The modules, with whole factors.
 * @returns Config and modules, the same ones where they are plain.
 */
export function toPlainFactors(config: LoraConfig, modules: ReadonlyMap<string, LoraModule>): PlainFactors {
  const { blockDiagonal, poolSize } = config;
  if (blockDiagonal) return fromBlocks(config, modules, blockDiagonal);
  if (poolSize !== null) return fromPools(config, modules, poolSize);
  return { config, modules, report: [] };
}

function fromBlocks(
  config: LoraConfig,
  modules: ReadonlyMap<string, LoraModule>,
  form: BlockDiagonal,
): PlainFactors {
  const report: ReportLine[] = [];
  for (const module of modules.keys()) {
    const factor = blockFactor(module, form);
    if (!factor) continue;
    const what = `lora_${factor.toUpperCase()} was stored as ${form.blocks} blocks`;
    report.push({ module, what, why: "they are on the diagonal of a plain factor now" });
  }
  return {
    config: readLoraConfig(new Map(config.raw).set("use_bdlora", null), { limits: NO_LIMITS }),
    modules,
    report,
  };
}

/** A config that was read once is within its caps. */
const NO_LIMITS = { rank: Infinity, modules: Infinity };

function spreadBlocks(tensor: NamedTensor, blocks: number): NamedTensor {
  const { name, dtype, shape, bytes } = tensor;
  const [rows, width] = shape as readonly [number, number];
  if (shape.length !== 2 || rows % blocks !== 0) {
    const message = `Cannot load tensor ${quote(name)} of shape ${formatShape(shape)} as ${blocks} blocks`;
    throw new MismatchError(`${message}: expected a matrix whose rows they divide`, {
      tensor: name,
      field: "use_bdlora",
      found: shape,
      expected: blocks,
    });
  }
  const size = bitsPerElement(dtype) / 8;
  const columns = blocks * width;
  const spread = new Uint8Array(rows * columns * size);
  for (let row = 0; row < rows; row++) {
    const block = Math.floor(row / (rows / blocks));
    const from = bytes.subarray(row * width * size, (row + 1) * width * size);
    spread.set(from, (row * columns + block * width) * size);
  }
  return { name, dtype, shape: [rows, columns], bytes: spread };
}

function fromPools(config: LoraConfig, modules: ReadonlyMap<string, LoraModule>, pool: number): PlainFactors {
  const plain = new Map<string, LoraModule>();
  const alphas = new Map<string, JsonValue>();
  const keyOf = exactKeys(modules.keys());
  const report: ReportLine[] = [];
  for (const [name, module] of modules) {
    const factor = module.inFeatures / pool;
    const alpha = module.alpha * factor;
    const [inFeatures, scaling] = [module.inFeatures * pool, module.scaling * factor];
    plain.set(name, { ...module, alpha, scaling, inFeatures, loraA: repeatColumns(module.loraA, pool) });
    alphas.set(keyOf(name), Number.isSafeInteger(alpha) ? alpha : new JsonNumber(String(alpha)));
    const what = `A acted on means of ${pool} inputs`;
    report.push({ module: name, what, why: "its columns are repeated, and alpha has the factor" });
  }
  const raw = new Map(config.raw).set("use_qalora", false).set("alpha_pattern", alphas);
  return { config: readLoraConfig(raw, { limits: NO_LIMITS }), modules: plain, report };
}

function repeatColumns({ dtype, shape, bytes }: StoredTensor, times: number): StoredTensor {
  const [rows, columns] = shape as readonly [number, number];
  const size = bitsPerElement(dtype) / 8;
  const repeated = new Uint8Array(bytes.length * times);
  for (let i = 0; i < rows * columns; i++) {
    const value = bytes.subarray(i * size, (i + 1) * size);
    for (let j = 0; j < times; j++) repeated.set(value, (i * times + j) * size);
  }
  return { dtype, shape: [rows, columns * times], bytes: repeated };
}
