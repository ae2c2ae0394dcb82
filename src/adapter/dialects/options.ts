import type { ReadOptions } from "../../formats/source.ts";
import type { AdapterLimits } from "../limits.ts";
import type { KernelSizes } from "./conv_kernel.ts";

/** Name of a form in which adapters are stored. */
export type Dialect = "peft" | "kohya" | "diffusers" | "gguf" | "mlx" | "loralib";

/** What the base model tells a converter, where the adapter does not: see `readBaseFacts()`. */
export interface BaseFacts {
  /** Paths of its layers that can be adapted. */
  readonly modules?: Iterable<string>;
  /** `model_type` of its `config.json`: `"mixtral"`. */
  readonly modelType?: string;
  /** Its name in GGUF files: `"llama"`, `"qwen3"`. */
  readonly architecture?: string;
  /** Whether its head is its embedding of tokens. */
  readonly tied?: boolean;
  /** Attention heads. */
  readonly heads?: number;
  /** Heads of keys and values; as many as `heads` if absent. */
  readonly kvHeads?: number;
  /** loralib's `enable_lora` by the path or the tail of the path of a `MergedLinear`: `{ c_attn: [true, false, true] }`. */
  readonly merged?: Readonly<Record<string, readonly boolean[]>>;
  /** `kernel_size` of convolutions by path or tail of path: `{ conv1: 3 }`, or `[1]` for one of one dimension. */
  readonly kernels?: KernelSizes;
}

/** Options of the readers; each says which ones it takes. */
export interface ReadDialectOptions extends BaseFacts, ReadOptions {
  /** Caps; what is absent has its default. */
  readonly limits?: AdapterLimits;
  /** Of a PEFT folder without safetensors, `adapter_model.bin` is read, as data. */
  readonly allowPickle?: boolean;
  /** The alpha, where the file has none: loralib's that this package did not write. */
  readonly alpha?: number;
  /** The part of a pipeline that is wanted, as in the file's keys: `"unet"`, `"lora_te1"`. */
  readonly component?: string;
  /** Most rank of LyCORIS modules as LoRA; 256 if absent. What is above is cut off, and the error told. */
  readonly rank?: number;
}

/** Options of the writers; each says which ones it takes. */
export interface WriteDialectOptions extends BaseFacts, ReadOptions {
  /** Leaves out what the dialect has no place for, and reports it; such adapters are refused if absent. */
  readonly allowLoss?: boolean;
  /** Name of the file, where the dialect is one file. */
  readonly file?: string;
  /** The alpha that loralib's layers will be made with; that of the config if absent. */
  readonly alpha?: number;
  /** The part of a pipeline that the adapter is for: `"unet"`, `"lora_te1"`. */
  readonly component?: string;
}
