/**
 * Language models of the Llama architecture whose PEFT adapters are swapped without touching the base: Llama, SmolLM2,
 * Mistral, Qwen2 and Qwen3, from Hugging Face folders or GGUF files.
 *
 * @example
 * ```ts
 * import { folder } from "@lowrank/lora/fs";
 * import { loadModel } from "@lowrank/lora/models";
 *
 * const model = await loadModel(folder("examples/models/tiny/base"));
 * await model.loadAdapter("tweets", folder("examples/models/tiny/tweets"));
 * const answer = model.generate("<|end|>Just", { adapter: "tweets", maxNewTokens: 8 });
 * for await (const piece of answer) console.log(piece);
 * model.dispose();
 * ```
 *
 * @module
 */

export type { Gguf, GgufTensorInfo, GgufType, GgufValue } from "../formats/gguf.ts";
export { Generation } from "./generation.ts";
export { type GgufFolder, ggufFolder } from "./gguf_folder.ts";
export { LanguageModel } from "./language_model.ts";
export type { GenerateOptions, Logits, ModelForwardOptions } from "./language_model_options.ts";
export type { LlamaConfig, LlamaModelType, RopeScaling } from "./llama_config.ts";
export { loadModel, type LoadModelOptions } from "./load.ts";
export type { ReloadOptions } from "./placement.ts";
export type { SamplingOptions } from "./sampler.ts";
export type { LoadProgress } from "./weights.ts";
