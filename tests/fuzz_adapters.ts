/**
 * Fuzz targets of adapters and models: PEFT folders, configs with patterns, every dialect, model configs, tokenizers.
 *
 * @module
 */
import assert from "node:assert/strict";
import fc from "fast-check";
import { CONFIG_DEFAULTS } from "../src/adapter/config_defaults.ts";
import { DIALECTS, readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import type { Dialect } from "../src/adapter/dialects/options.ts";
import type { Adapter } from "../src/adapter/adapter.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { parseLoraConfig } from "../src/adapter/lora_config.ts";
import { scaleReader } from "../src/adapter/lora_module.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { listTargets } from "../src/adapter/target_modules.ts";
import { stringifyJson } from "../src/formats/json_writer.ts";
import { parseJson } from "../src/formats/json.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { readLlamaConfig } from "../src/models/llama_config.ts";
import { loadTokenizer } from "../src/text/load.ts";
import { FACTS, peftFiles, store } from "./dialects_support.ts";
import { type Edit, editBytes, edits, editTree, parseTree, stringifyTree, type Tree } from "./fuzz_edits.ts";
import { safetensorsFile } from "./fuzz_formats.ts";
import type { Files, Target } from "./fuzz_run.ts";

const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
const decode = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

const NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"];

async function smallAdapter(): Promise<Adapter> {
  const value = (at: number) => () => Math.sin(++at);
  const tensors = new Map(
    NAMES.slice(0, 2).flatMap((name, i) => [
      [`base_model.model.${name}.lora_A.weight`, store("BF16", 2 + i, 3, value(i))],
      [`base_model.model.${name}.lora_B.weight`, store(i === 0 ? "F32" : "BF16", 16, 2 + i, value(9 + i))],
    ]),
  );
  const patterns = { rank_pattern: { down_proj: 3 }, alpha_pattern: { "layers\\.0\\..*": 4 } };
  const config = { r: 2, lora_alpha: 3, target_modules: ["q_proj", "down_proj"], ...patterns };
  const defaults = JSON.parse(stringifyJson(new Map(CONFIG_DEFAULTS)));
  return await loadAdapter(peftFiles({ ...defaults, ...config }, tensors));
}

/** A file whose structure is a JSON document: all of it, or the header of safetensors. */
interface Part {
  readonly tree: Tree | null;
  readonly rest: Uint8Array;
}

function split(name: string, file: Uint8Array): Part {
  if (name.endsWith(".json")) return { tree: parseTree(decode(file)), rest: new Uint8Array() };
  if (!name.endsWith(".safetensors")) return { tree: null, rest: file };
  const end = 8 + new DataView(file.buffer, file.byteOffset).getUint32(0, true);
  return { tree: parseTree(decode(file.subarray(8, end))), rest: file.subarray(end) };
}

function join(name: string, { tree, rest }: Part): Uint8Array {
  if (tree === null) return rest;
  const text = stringifyTree(tree);
  return name.endsWith(".json") ? encode(text) : safetensorsFile(text, rest);
}

interface FolderEdits {
  /** Which of the files is changed. */
  readonly file: number;
  readonly structure: readonly Edit[];
  readonly data: readonly Edit[];
}

const FOLDER_EDITS: fc.Arbitrary<FolderEdits> = fc.record({
  file: fc.nat(7),
  structure: edits(),
  data: fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, { weight: 1, arbitrary: edits() }),
});

function folderTarget(
  name: string,
  honest: Files,
  read: (files: Files) => Promise<void>,
): Target<FolderEdits> {
  const parts = Array.from(honest, ([file, bytes]) => [file, split(file, bytes)] as const);
  return {
    name,
    edits: FOLDER_EDITS,
    build({ file: changed, structure, data }) {
      return new Map(parts.map(([file, part], i) => {
        if (i !== changed % parts.length) return [file, honest.get(file)!];
        const tree = part.tree && editTree(part.tree, structure);
        return [file, join(file, { tree, rest: editBytes(part.rest, part.tree ? data : [...structure, ...data]) })];
      }));
    },
    read,
  };
}

/** One module of each kind of LyCORIS. */
function lycorisFiles(): Files {
  const shapes: Record<string, number[]> = {
    ...{ "0_attn1_to_q.hada_w1_a": [4, 2], "0_attn1_to_q.hada_w1_b": [2, 3] },
    ...{ "0_attn1_to_q.hada_w2_a": [4, 2], "0_attn1_to_q.hada_w2_b": [2, 3] },
    ...{ "1_attn1_to_q.lokr_w1": [2, 2], "1_attn1_to_q.lokr_w2_a": [2, 1], "1_attn1_to_q.lokr_w2_b": [1, 2] },
    ...{ "2_proj_in.lora_up.weight": [3, 2, 1, 1], "2_proj_in.lora_down.weight": [2, 3, 1, 1] },
    ...{ "2_proj_in.lora_mid.weight": [2, 2, 3, 3], "3_proj_in.diff": [4, 2] },
  };
  const tensors = new Map(
    Object.entries(shapes).map(([name, shape]) => {
      const size = shape.reduce((x, y) => x * y);
      return [`lora_unet_down_blocks_0_attentions_${name}`, { ...store("F32", 1, size, () => 0.5), shape }];
    }),
  );
  return new Map([["lycoris.safetensors", encodeSafetensors(tensors)]]);
}

/** An adapter of one module that a few dialects have: a convolution, the experts of a layer, aLoRA. */
async function rareAdapter(shapes: Readonly<Record<string, readonly number[]>>, config: object): Promise<Adapter> {
  const tensors = Object.entries(shapes).map(([name, shape], i) => {
    const size = shape.reduce((x, y) => x * y);
    return [`base_model.model.model.layers.0.${name}.weight`, { ...store("F32", 1, size, () => ++i), shape }] as const;
  });
  return await loadAdapter(peftFiles({ r: 2, lora_alpha: 3, ...config }, new Map(tensors)));
}

async function rareFiles(): Promise<readonly (readonly [name: string, files: Files])[]> {
  const conv = await rareAdapter({ "conv1.lora_A": [2, 3, 3, 3], "conv1.lora_B": [4, 2, 1, 1] }, {});
  const moe = { "mlp.experts.lora_A": [4, 3], "mlp.experts.lora_B": [6, 4] };
  const experts = await rareAdapter(moe, { target_modules: [], target_parameters: ["mlp.experts.gate_up_proj"] });
  const alora = { alora_invocation_tokens: [7, 8] };
  const invoked = await rareAdapter({ "mlp.up_proj.lora_A": [2, 3], "mlp.up_proj.lora_B": [4, 2] }, alora);
  const sink = memorySink();
  await writeAdapter(conv, "loralib", sink, { file: "conv.safetensors" });
  return [
    ["loralib convolution", sink.files],
    ["mlx experts", await filesOf(experts, "mlx")],
    ["gguf aLoRA", await filesOf(invoked, "gguf")],
  ];
}

async function filesOf(adapter: Adapter, dialect: Dialect): Promise<Files> {
  const sink = memorySink();
  await writeAdapter(adapter, dialect, sink, FACTS);
  return sink.files;
}

/** What is loaded can be saved, and is then the same adapter. */
async function readPeft(files: Files): Promise<void> {
  const adapter = await loadAdapter(new Map(files), { allowPickle: true });
  for (const { scaling, loraA, rank } of adapter.modules.values()) {
    assert.ok(Number.isFinite(scaling) && loraA.shape[0] === rank);
  }
  const sink = memorySink();
  await saveAdapter(adapter, sink);
  const again = await loadAdapter(memoryFolder(sink.files));
  assert.deepEqual([...again.modules.values()].map(facts).sort(), [...adapter.modules.values()].map(facts).sort());
}

function facts(
  { name, rank, scaling, inFeatures, outFeatures }: Adapter["modules"] extends ReadonlyMap<string, infer M> ? M : never,
): string {
  return JSON.stringify([name, rank, scaling, inFeatures, outFeatures]);
}

/** What is read can be written as PEFT's, with the same scales. */
async function readDialect(files: Files): Promise<void> {
  const { adapter } = await readAdapter(memoryFolder(files), { heads: 4, kvHeads: 2, alpha: 4 });
  const again = await loadAdapter(memoryFolder(await filesOf(adapter, "peft")));
  assert.deepEqual([...again.modules.values()].map(facts).sort(), [...adapter.modules.values()].map(facts).sort());
}

const CONFIG = parseTree(JSON.stringify({
  ...JSON.parse(stringifyJson(new Map(CONFIG_DEFAULTS))),
  target_modules: "model\\.layers\\.\\d+\\.(self_attn|mlp)\\.(q|k|v|down)_proj",
  exclude_modules: ["lm_head"],
  rank_pattern: { ".*down_proj": 3, "^(a+)+$": 2 },
  alpha_pattern: { "layers\\.(0|1)\\..*": 4 },
}));
const LONG_NAMES = [...NAMES, `model.layers.0.${"a".repeat(400)}.q_proj`, "a".repeat(28) + "b"];

const config: Target<readonly Edit[]> = {
  name: "adapter config",
  edits: edits(4),
  build: (structure) => new Map([["adapter_config.json", encode(stringifyTree(editTree(CONFIG, structure)))]]),
  read(files) {
    const config = parseLoraConfig(decode(files.get("adapter_config.json")!), { file: "adapter_config.json" });
    const scaleOf = scaleReader(config);
    for (const name of LONG_NAMES) assert.equal(typeof scaleOf(name).alpha, "number");
    if (config.targetModules !== null) listTargets(config, LONG_NAMES);
    return Promise.resolve();
  },
};

const MODEL_CONFIG = parseTree(JSON.stringify({
  ...{ model_type: "llama", hidden_size: 48, intermediate_size: 72, num_hidden_layers: 2, num_attention_heads: 4 },
  ...{ num_key_value_heads: 2, head_dim: 12, vocab_size: 131, rms_norm_eps: 1e-6, max_position_embeddings: 64 },
  ...{ rope_theta: 1e4, tie_word_embeddings: false, hidden_act: "silu", bos_token_id: 1, eos_token_id: [2, 3] },
  rope_scaling: {
    ...{ rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 },
    original_max_position_embeddings: 32,
  },
}));

const modelConfig: Target<readonly Edit[]> = {
  name: "model config",
  edits: edits(4),
  build: (structure) => new Map([["config.json", encode(stringifyTree(editTree(MODEL_CONFIG, structure)))]]),
  read(files) {
    readLlamaConfig(parseJson(decode(files.get("config.json")!), { file: "config.json" }), "config.json");
    return Promise.resolve();
  },
};

const TOKENIZER = {
  version: "1.0",
  added_tokens: [
    { id: 5, content: "<end>", single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
  ],
  normalizer: { type: "NFC" },
  pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
  post_processor: null,
  decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
  model: {
    ...{ type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null },
    ...{ fuse_unk: false, byte_fallback: false, ignore_merges: false },
    vocab: { a: 0, b: 1, ab: 2, "Ġ": 3, abab: 4 },
    merges: [["a", "b"], ["ab", "ab"]],
  },
};
const BERT_TOKENIZER = {
  ...TOKENIZER,
  normalizer: { type: "BertNormalizer", clean_text: true, handle_chinese_chars: true, lowercase: true },
  pre_tokenizer: { type: "BertPreTokenizer" },
  decoder: { type: "WordPiece", prefix: "##", cleanup: true },
  model: {
    ...{ type: "WordPiece", unk_token: "<?>", continuing_subword_prefix: "##", max_input_chars_per_word: 100 },
    vocab: { a: 0, "##b": 1, "##ab": 2, "<?>": 3 },
  },
};
const tokenizerFiles = (tokenizer: typeof TOKENIZER | typeof BERT_TOKENIZER): Files =>
  new Map([
    ["tokenizer.json", encode(JSON.stringify(tokenizer))],
    [
      "tokenizer_config.json",
      encode('{"bos_token":null,"eos_token":"<end>","chat_template":"{{ messages[0].content }}"}'),
    ],
  ]);

async function readTokenizer(files: Files): Promise<void> {
  const tokenizer = await loadTokenizer(memoryFolder(files));
  const ids = tokenizer.encode("abab a<end>b");
  assert.ok(ids.every((id) => Number.isSafeInteger(id) && id >= 0));
  tokenizer.decode(ids.filter((id) => id < tokenizer.vocabSize));
}

/** The targets of this file; honest files are written by the library itself. */
// deno-lint-ignore no-explicit-any
export async function adapterTargets(): Promise<readonly Target<any>[]> {
  const adapter = await smallAdapter();
  const targets = [folderTarget("PEFT folder", await filesOf(adapter, "peft"), readPeft)];
  for (const dialect of DIALECTS) {
    if (dialect !== "peft") targets.push(folderTarget(dialect, await filesOf(adapter, dialect), readDialect));
  }
  for (const [name, files] of await rareFiles()) targets.push(folderTarget(name, files, readDialect));
  targets.push(folderTarget("LyCORIS", lycorisFiles(), readDialect));
  targets.push(folderTarget("tokenizer", tokenizerFiles(TOKENIZER), readTokenizer));
  targets.push(folderTarget("BERT's tokenizer", tokenizerFiles(BERT_TOKENIZER), readTokenizer));
  return [...targets, config, modelConfig];
}
