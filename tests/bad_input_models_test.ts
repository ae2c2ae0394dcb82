/** Bad models: a typed refusal that names the field, at once, and nothing allocated for it. */
import { test } from "node:test";
import assert from "node:assert/strict";
import type { Backend } from "../src/backend.ts";
import { memoryFolder, memorySource } from "../src/formats/memory.ts";
import { loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { fixtureFiles, MODEL, text } from "./adapter_fixtures.ts";
import { checkAll, type Files, gguf, type Refusal, type Row } from "./bad_input_support.ts";

const [U32, TEXT, LIST, U64] = [4, 8, 9, 10];
const ARCHITECTURE = ["general.architecture", TEXT, "llama"] as const;
const BAD_GGUF: readonly (readonly [what: string, bytes: Uint8Array, refusal: Refusal])[] = [
  ["another magic", new Uint8Array(64), { name: "FormatError", field: "magic" }],
  ["another version", gguf(9), { name: "FormatError", field: "version" }],
  ["2^62 tensors", gguf(3, 2n ** 62n, 0n), { name: "FormatError", field: "tensor count" }],
  ["10^12 keys", gguf(3, 0n, 10n ** 12n), { name: "FormatError", field: "metadata count" }],
  ["a key of 2^40 bytes", gguf(3, 0n, 1n, 2n ** 40n), { name: "FormatError", field: "metadata key" }],
  ["a text of 2^63 bytes", gguf(3, 0n, 1n, "k", TEXT, 2n ** 63n), { name: "FormatError", field: "k" }],
  ["a list of 2^40 values", gguf(3, 0n, 1n, "k", LIST, U32, 2n ** 40n), { name: "FormatError", field: "k" }],
  ["lists in lists", gguf(3, 0n, 1n, "k", LIST, ...Array(9).fill([LIST, 1n]).flat()), { name: "LimitError" }],
  ["a tensor of 2^40 rows", gguf(3, 1n, 0n, "t", 1, 2n ** 40n, 0, 0n), { name: "FormatError", field: "t" }],
  ["a tensor beyond the end", gguf(3, 1n, 0n, "t", 1, 99n, 0, 0n), { name: "FormatError", field: "t" }],
  ["a tensor at 2^52", gguf(3, 1n, 0n, "t", 1, 1n, 0, 2n ** 52n), { name: "FormatError", field: "t" }],
  ["100 dimensions", gguf(3, 1n, 0n, "t", 100), { name: "FormatError", field: "t" }],
  [
    "a list of numbers beyond 2^53 for one",
    gguf(3, 0n, 2n, ...ARCHITECTURE, "llama.block_count", LIST, U64, 1n, 2n ** 63n),
    { name: "FormatError", field: "llama.block_count" },
  ],
  ["an unknown architecture", gguf(3, 0n, 1n, "general.architecture", TEXT, "x".repeat(1e5)), {
    name: "FormatError",
    field: "general.architecture",
    message: /^.{0,300}$/,
  }],
];

const BAD_MODELS: readonly (readonly [field: string, value: unknown, name: string, tensor?: string])[] = [
  ["model_type", "gpt_neox", "FormatError"],
  ["hidden_size", 2 ** 31, "LimitError"],
  ["hidden_size", 0, "FormatError"],
  ["num_attention_heads", 0, "FormatError"],
  ["num_key_value_heads", 3, "FormatError"],
  ["num_hidden_layers", 1e9, "LimitError"],
  ["vocab_size", 2 ** 31, "LimitError"],
  ["vocab_size", 100, "MismatchError", "model.embed_tokens.weight"],
  ["rope_theta", "NaN", "FormatError"],
  ["rms_norm_eps", 0, "FormatError"],
  ["rms_norm_eps", 1e39, "FormatError"],
  ["rope_theta", 1e-46, "FormatError"],
  ["rope_scaling", { rope_type: "yarn", factor: 2 }, "FormatError"],
  ["rope_scaling", { rope_type: "linear", factor: 2 }, "FormatError"],
  ["max_position_embeddings", -1, "FormatError"],
  ["quantization_config", { bits: 4 }, "FormatError"],
];

function modelWith(field: string, value: unknown): Files {
  const files = fixtureFiles("base/llama");
  const fields = JSON.parse(new TextDecoder().decode(files.get("config.json")));
  return files.set("config.json", text({ ...fields, [field]: value }));
}

function modelRows(backend: Backend): Row[] {
  const rows: Row[] = BAD_GGUF.map(([what, bytes, refusal]) => ({
    what: `GGUF with ${what}`,
    run: () => loadModel(memorySource("a.gguf", bytes), { backend }),
    refusal: { file: "a.gguf", ...refusal },
  }));
  for (const [field, value, name, tensor] of BAD_MODELS) {
    const files = modelWith(field, value);
    const refusal = tensor === undefined ? { name, file: "config.json" } : { name, tensor };
    const where = field === "rope_scaling" || tensor !== undefined ? {} : { field };
    const run = () => loadModel(memoryFolder(files), { backend });
    rows.push({ what: `${field} ${JSON.stringify(value)}`, run, refusal: { ...refusal, ...where } });
  }
  const cut = fixtureFiles("base/llama");
  cut.set(MODEL, cut.get(MODEL)!.slice(0, -4));
  rows.push({
    what: "a model that is cut",
    run: () => loadModel(memoryFolder(cut), { backend }),
    refusal: { name: "FormatError", file: MODEL, field: "size" },
  });
  return rows;
}

test("loadModel() refuses bad input with the place, at once, and allocates nothing for it", async () => {
  const backend = await openBackend();
  await checkAll(modelRows(backend));
  assert.equal(backend.bytes, 0);
  backend.dispose();
});
