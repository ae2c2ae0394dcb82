import { FormatError, LimitError, MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { TensorInfo } from "../formats/safetensors.ts";
import type { LoraConfig } from "./lora_config.ts";
import { type ModulePart, parseTensorKey } from "./tensor_key.ts";

/** Longest name of a tensor: a path of 512 characters with all that tools put around it. */
const MAX_TENSOR_NAME = 1024;
/** The factors come in pairs; the first of each is the one that messages ask for. */
const PAIRS: readonly (readonly [ModulePart, ModulePart, string, string])[] = [
  ["loraA", "loraB", "lora_A.weight", "lora_B.weight"],
  ["embeddingA", "embeddingB", "lora_embedding_A", "lora_embedding_B"],
];

/** The tensors of one module, by what they are to it. */
export type ModuleTensors = ReadonlyMap<ModulePart, TensorInfo>;

/** All tensors of a weight file by what they are. */
export interface TensorGroups {
  /** Those of each module, by its path in the file. */
  readonly modules: ReadonlyMap<string, ModuleTensors>;
  /** Full tensors by their name in the base. */
  readonly full: ReadonlyMap<string, TensorInfo>;
  /** New rows by path of their embedding. */
  readonly tokenRows: ReadonlyMap<string, TensorInfo>;
  /** Tensors that act in training only. */
  readonly trainingState: readonly TensorInfo[];
}

/** What grouping needs to know of the file. */
export interface GroupOptions {
  /** Its name. */
  readonly name: string;
  /** The config beside it. */
  readonly config: LoraConfig;
  /** The cap on modules. */
  readonly maxModules: number;
}

/**
 * Sorts the tensors of a weight file by what they are.
 *
 * @param tensors The tensors by name.
 * @param file What else is known.
 * @returns The groups.
 * @throws {FormatError} If a tensor has no place, or two have the same.
 * @throws {MismatchError} If a factor lacks its partner.
 * @throws {LimitError} If a name is too long, or there are too many modules.
 */
export function groupTensors(tensors: ReadonlyMap<string, TensorInfo>, file: GroupOptions): TensorGroups {
  const modules = new Map<string, Map<ModulePart, TensorInfo>>();
  const full = new Map<string, TensorInfo>();
  const tokenRows = new Map<string, TensorInfo>();
  const trainingState: TensorInfo[] = [];
  for (const info of tensors.values()) {
    checkName(info.name, file.name);
    const { module, part } = parseTensorKey(info.name);
    // With biases PEFT saves those of a module that is stored in full once more, under a name that it does not read.
    const twin = info.name.replace(/\.modules_to_save(?:\.default)?(?=\.(?:.+\.)?bias$)/, "");
    if (twin !== info.name && tensors.has(twin)) trainingState.push(info);
    else if (part === "training state") trainingState.push(info);
    else if (part === "token rows") add(tokenRows, module, info, file);
    else if (part === "full tensor" && isFull(module, file.config)) add(full, module, info, file);
    else if (part === "full tensor" || part === "unknown") throw refuseTensor(info.name, file);
    else {
      const parts = modules.get(module) ?? new Map<ModulePart, TensorInfo>();
      add(parts, part, info, file);
      modules.set(module, parts);
    }
  }
  if (modules.size > file.maxModules) {
    const message = `Cannot load ${quote(file.name)} with ${modules.size} modules: expected at most ${file.maxModules}`;
    throw new LimitError(message, { file: file.name, field: "modules", limit: file.maxModules, value: modules.size });
  }
  for (const [module, parts] of modules) checkPairs(module, parts, file.name);
  return { modules, full, tokenRows, trainingState };
}

/** A weight or bias of the base, or anything in a module that `modules_to_save` names. */
function isFull(name: string, { modulesToSave }: LoraConfig): boolean {
  if (/(?:^|\.)(?:weight|bias|in_proj_weight|in_proj_bias)$/.test(name)) return true;
  const segments = name.split(".");
  return modulesToSave?.some((entry) => segments.some((_, i) => segments.slice(0, i).join(".").endsWith(entry))) ??
    false;
}

function add<Key>(map: Map<Key, TensorInfo>, key: Key, info: TensorInfo, file: GroupOptions): void {
  const other = map.get(key);
  if (other) {
    const message = `Cannot load ${quote(file.name)} with both ${quote(other.name)} and ${quote(info.name)}`;
    throw new FormatError(`${message}: expected one, as they are the same part of one module`, {
      file: file.name,
      tensor: info.name,
    });
  }
  map.set(key, info);
}

/** Matching a name takes time that grows with the square of its length. */
function checkName(tensor: string, file: string): void {
  if (tensor.length <= MAX_TENSOR_NAME) return;
  const message = `Cannot load tensor ${quote(tensor)} with a name of ${tensor.length} characters`;
  throw new LimitError(`${message}: expected at most ${MAX_TENSOR_NAME}`, {
    file,
    tensor,
    field: "name",
    limit: MAX_TENSOR_NAME,
    value: tensor.length,
  });
}

function refuseTensor(tensor: string, file: GroupOptions): FormatError {
  const expected = '"base_model.model.<path>.lora_A.weight" or "….lora_B.weight"';
  const message = `Cannot load tensor ${quote(tensor)} of ${quote(file.name)}: expected PEFT's names, ${expected}`;
  return new FormatError(message, { file: file.name, tensor, expected });
}

function checkPairs(module: string, parts: ModuleTensors, file: string): void {
  const [first] = parts.values();
  const pairs = PAIRS.map((pair) => ({
    pair,
    found: pair.slice(0, 2).filter((part) => parts.has(part as ModulePart)),
  }));
  const whole = pairs.filter(({ found }) => found.length === 2);
  if (whole.length === 1 && pairs.every(({ found }) => found.length !== 1)) return;
  if (whole.length === 2) {
    const message = `Cannot load ${quote(module)} of ${quote(file)} both as a linear layer and as an embedding`;
    throw new FormatError(`${message}: expected one of them`, { file, tensor: first!.name });
  }
  const { pair: [a, , nameA, nameB] } = pairs.find(({ found }) => found.length === 1) ?? pairs[0]!;
  const missing = parts.has(a) ? nameB : nameA;
  throw new MismatchError(
    `Cannot load tensor ${quote(first!.name)} of ${quote(file)} without its partner: expected a ${missing} for ${
      quote(module)
    }`,
    { file, tensor: first!.name, missing: [`${module}.${missing}`] },
  );
}
