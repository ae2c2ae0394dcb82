/**
 * Tokenizers and chat templates: text to token ids and back, conversations to token ids. Loads what a model folder or a
 * GGUF file holds and gives the ids that transformers gives. This is the only part of the package with dependencies:
 * `@huggingface/tokenizers` and `@huggingface/jinja`.
 *
 * @example
 * ```ts
 * import { folder } from "@lowrank/lora/fs";
 * import { loadTokenizer } from "@lowrank/lora/text";
 * import assert from "node:assert/strict";
 *
 * const tokenizer = await loadTokenizer(folder("examples/models/tiny/base"));
 * assert.deepEqual(tokenizer.encode("<|end|>The movie"), [0, 341, 441]);
 * ```
 *
 * @module
 */

export type { ChatMessage, ChatOptions, DecodeOptions, EncodeOptions, TextStream, Tokenizer } from "./tokenizer.ts";
export { loadTokenizer } from "./load.ts";
export { ggufTokenizer } from "./gguf.ts";
export type { Folder, ReadOptions, Source } from "../formats/source.ts";
export type { GgufValue } from "../formats/gguf.ts";
