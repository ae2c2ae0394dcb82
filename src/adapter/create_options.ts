import type { StoredTensor } from "../formats/dtype.ts";
import type { Folder, Source } from "../formats/source.ts";
import type { LoraKind } from "./adapter.ts";
import type { InitName } from "./inits.ts";

/** A layer of a base model: one of its modules, or the weights of its experts. */
export interface BaseModule {
  /** Path in the model; of experts with the name of their parameter at its end. */
  readonly name: string;
  /** Kind of layer; linear if absent. */
  readonly kind?: LoraKind;
  /** Columns of a weight (out, in); rows of an embedding's table, channels of a convolution's input, in of each expert. */
  readonly inFeatures: number;
  /** Rows of a weight (out, in); columns of an embedding's table, filters of a convolution, out of each expert. */
  readonly outFeatures: number;
  /** Lengths of a convolution's kernel: one for Conv1d, two for Conv2d, three for Conv3d. */
  readonly kernel?: readonly number[];
  /** Groups of a convolution; 1 if absent. */
  readonly groups?: number;
  /** How many experts a parameter holds. */
  readonly experts?: number;
  /** The experts' parameter: `gate_up_proj`, `down_proj`. Those of one module come as it registers them. */
  readonly parameter?: string | null;
}

/** What a new adapter is to be. Fields that are PEFT's have PEFT's meaning and defaults. */
export interface CreateAdapterOptions {
  /**
   * The base model: its folder, a safetensors or GGUF file, or a folder that holds one. It gives `modules`, `weightOf` and
   * `fanInFanOut` where they are absent; of a GGUF file the layers alone, of the folder that `ggufFolder()` makes all.
   */
  readonly base?: Folder | Source;
  /** The layers of the base model, in place of `base`: those of `listLayers()`, of a model's `layers`, or any others. */
  readonly modules?: Iterable<BaseModule>;
  /**
   * Names or tails of paths, one pattern of whole paths, or `"all-linear"`. They name linear layers, embeddings and
   * convolutions; none if absent, where `targetParameters` are given.
   */
  readonly targetModules?: readonly string[] | string;
  /** Names or tails of names of the parameters that hold fused experts: `mlp.experts.gate_up_proj`. */
  readonly targetParameters?: readonly string[];
  /** Rank; 8 if absent. */
  readonly r?: number;
  /** Alpha; 8 if absent. */
  readonly loraAlpha?: number;
  /** Whether s = alpha / √rank; false if absent. */
  readonly useRslora?: boolean;
  /** Ranks by pattern of module path; the first key that matches counts. */
  readonly rankPattern?: Readonly<Record<string, number>>;
  /** Alphas by pattern of module path, likewise. */
  readonly alphaPattern?: Readonly<Record<string, number>>;
  /** Modules that are not adapted in any case. */
  readonly excludeModules?: readonly string[] | string;
  /** Indices of the only layers that are adapted. */
  readonly layersToTransform?: readonly number[];
  /** Names of the model's list of layers. */
  readonly layersPattern?: readonly string[];
  /** Whether the base stores its weights (in, out). */
  readonly fanInFanOut?: boolean;
  /** Probability of dropout in training; 0 if absent. */
  readonly loraDropout?: number;
  /**
   * `"CAUSAL_LM"` and the like. Those of classifiers and of question answering save their head in full, so that it is no
   * target; the adapter's report says what PEFT then wants.
   */
  readonly taskType?: string;
  /** Name of the base model, as a hint for readers. */
  readonly baseModel?: string;
  /**
   * How the factors begin; true if absent: A uniform in ±1/√in and B zero, of an embedding A zero and B normal. False is
   * uniform or normal in both, which is for tests: such an adapter changes the model. See {@linkcode InitName}; of other
   * kinds than linear layers embeddings take all but `"loftq"` and `"eva"`, and take nothing from their table; the rest
   * take `"gaussian"`.
   */
  readonly init?: boolean | InitName | "eva";
  /**
   * Whether every module has a magnitude (DoRA), which begins as ‖W + ΔW‖; false if absent. Needs `weightOf`; experts
   * have none.
   */
  readonly useDora?: boolean;
  /** Whether B has a bias, which begins as zero; false if absent. Embeddings and experts have none. */
  readonly loraBias?: boolean;
  /** The weight of a module as the base stores it, for DoRA and the initialisations that begin from it. */
  readonly weightOf?: (module: string) => StoredTensor | Promise<StoredTensor>;
  /** Inputs (n, in) of a module, for `"eva"`. */
  readonly inputsOf?: (module: string) => StoredTensor | Promise<StoredTensor>;
  /** ρ of EVA: the most that a module's rank may grow by; 2 if absent. */
  readonly evaRho?: number;
  /** Bits of LoftQ's base; 4 if absent. */
  readonly loftqBits?: 4 | 8;
  /** Iterations of LoftQ; 1 if absent. */
  readonly loftqIterations?: number;
  /** Is given the weight (out, in), in F32, over which a module begins, where the initialisation changes the base. */
  readonly onBase?: (module: string, weight: StoredTensor) => void;
  /** A whole number that decides what is random; 0 if absent. */
  readonly seed?: number;
  /** Name of the adapter; "adapter" if absent. */
  readonly name?: string;
}
