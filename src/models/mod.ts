/**
 * Language models whose PEFT adapters are swapped without touching the base: Llama, SmolLM2, Mistral, Mixtral, Qwen2,
 * Qwen3 and GPT-2, from Hugging Face folders or GGUF files, and BERT encoders.
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

export { CACHE_DTYPES, type CacheDtype } from "../cache.ts";
export type { Gguf, GgufTensorInfo, GgufType, GgufValue } from "../formats/gguf.ts";
export { AdaptedModel } from "./adapted_model.ts";
export { BatchGeneration, type BatchPiece } from "./batch_generation.ts";
export type { BertConfig } from "./bert_config.ts";
export { type EmbedOptions, Encoder, type EncoderForwardOptions, type Encoding } from "./encoder.ts";
export { Generation } from "./generation.ts";
export { type GgufFolder, ggufFolder } from "./gguf_folder.ts";
export type { Gpt2Config } from "./gpt2_config.ts";
export { LanguageModel, type LanguageModelConfig } from "./language_model.ts";
export type { GenerateBatchOptions, GenerateOptions, Logits, ModelForwardOptions } from "./language_model_options.ts";
export type { LlamaConfig, LlamaModelType, RopeScaling } from "./llama_config.ts";
export { loadEncoder, loadModel, type LoadModelOptions } from "./load.ts";
export type { ExpertSizes } from "./mixture.ts";
export type { ReloadOptions } from "./placement.ts";
export type { SamplingOptions } from "./sampler.ts";
export type { StoredBlocks } from "./stored_blocks.ts";
export type { CausalConfig, TransformerConfig } from "./transformer_config.ts";
export { type LoadProgress, MODEL_DTYPES, type ModelDtype } from "./weights.ts";
