/** Bad input through the public API: a typed refusal that names the place, at once, and nothing allocated for it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { loadAdapter } from "../src/adapter/load.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { type LanguageModel, loadModel } from "../src/models/mod.ts";
import { filled, fixtureFiles, fixtureFolder, recordingSink, smallAdapter, text } from "./adapter_fixtures.ts";
import {
  check,
  checkAll,
  entry,
  type Files,
  MAX_MS,
  type Refusal,
  type Row,
  safetensors,
} from "./bad_input_support.ts";
import { pickle, tensor, torchFile } from "./torch_writer.ts";

const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";
const MODULE = "base_model.model.layers.0.q_proj";
const [A, B] = [`${MODULE}.lora_A.weight`, `${MODULE}.lora_B.weight`];

const config = (change: Record<string, unknown>): Files => smallAdapter({ config: change });
const rawConfig = (value: string | Uint8Array): Files =>
  smallAdapter().set(CONFIG, typeof value === "string" ? text(value) : value);
const weights = (bytes: Uint8Array): Files => smallAdapter().set(WEIGHTS, bytes);
const tensors = (change: Parameters<typeof smallAdapter>[0] & object): Files => smallAdapter(change);

/** An adapter of one module of another name. */
function renamed(module: string): Files {
  const [a, b] = [`base_model.model.${module}.lora_A.weight`, `base_model.model.${module}.lora_B.weight`];
  return tensors({ tensors: { [A]: undefined, [B]: undefined, [a]: filled([2, 4]), [b]: filled([6, 2]) } });
}

const inWeights = { name: "FormatError", file: WEIGHTS } as const;
const inConfig = { file: CONFIG } as const;
const names = (count: number): string[] => Array.from({ length: count }, (_, i) => `m${i}`);
const pattern = (count: number): Record<string, number> => Object.fromEntries(names(count).map((name) => [name, 2]));

const ADAPTERS: readonly (readonly [what: string, files: Files, refusal: Refusal])[] = [
  ["a truncated file", weights(smallAdapter().get(WEIGHTS)!.slice(0, -1)), { ...inWeights, tensor: B, field: "size" }],
  ["a file of 7 bytes", weights(new Uint8Array(7)), { ...inWeights, field: "size" }],
  ["trailing bytes", weights(safetensors({ [A]: entry(0, 8) }, 9)), { ...inWeights, tensor: A }],
  [
    "overlapping tensors",
    weights(safetensors({ [A]: entry(0, 8), [B]: entry(4, 12) }, 12)),
    { ...inWeights, tensor: B },
  ],
  ["a hole between tensors", weights(safetensors({ [A]: entry(0, 4), [B]: entry(8, 12) }, 12)), { ...inWeights }],
  ["a header longer than the file", weights(safetensors({}, 0, 9000n)), { ...inWeights, field: "header length" }],
  [
    "a header of 2^63 bytes",
    weights(safetensors({}, 0, 2n ** 63n)),
    { name: "LimitError", file: WEIGHTS, field: "header length", limit: 25_000_000 },
  ],
  [
    "a tensor of 2^42 bytes",
    weights(safetensors({ [A]: entry(0, 8, [2 ** 40]) }, 8)),
    { ...inWeights, tensor: A, field: "data_offsets" },
  ],
  [
    "a shape whose product overflows",
    weights(safetensors({ [A]: entry(0, 0, [2 ** 32, 2 ** 32]) })),
    { ...inWeights, tensor: A, field: "shape" },
  ],
  ["a negative offset", weights(safetensors({ [A]: entry(-4, 0, [1]) })), { ...inWeights, tensor: A }],
  ["a header that is an array", weights(safetensors([])), inWeights],
  ["a header in another encoding", weights(safetensors("\u0000")), inWeights],
  ["a header that nests", weights(safetensors("[".repeat(100_000))), { name: "LimitError", file: WEIGHTS }],
  ["a tensor twice", weights(safetensors(`{"a":${JSON.stringify(entry(0, 0))},"a":1}`)), { ...inWeights, field: "a" }],
  ["no modules", weights(safetensors({})), inWeights],
  ["A without B", tensors({ tensors: { [B]: undefined } }), { name: "MismatchError", file: WEIGHTS, tensor: A }],
  ["B without A", tensors({ tensors: { [A]: undefined } }), { name: "MismatchError", file: WEIGHTS, tensor: B }],
  ["another rank than the config's", config({ r: 4 }), {
    name: "MismatchError",
    tensor: A,
    field: "r",
    message: /2.*4/,
  }],
  ["B of another rank", tensors({ tensors: { [B]: filled([6, 3]) } }), { name: "MismatchError", tensor: B }],
  ["NaN in a factor", tensors({ tensors: { [A]: filled([2, 4], NaN) } }), { name: "NumericError", tensor: A }],
  ["infinity in a factor", tensors({ tensors: { [B]: filled([6, 2], Infinity) } }), {
    name: "NumericError",
    tensor: B,
  }],
  ["a tensor without a place", tensors({ tensors: { "model.norm": filled([1]) } }), {
    ...inWeights,
    tensor: "model.norm",
  }],
  ["a name of 100,000 characters", renamed("a".repeat(100_000)), { name: "LimitError", file: WEIGHTS, field: "name" }],
  ["a path of 50,000 dots", renamed("a.".repeat(50_000) + "q"), { name: "LimitError", file: WEIGHTS, field: "name" }],
  ["r = 2^31", config({ r: 2 ** 31 }), { ...inConfig, name: "LimitError", field: "r", limit: 256 }],
  ["r = 0", config({ r: 0 }), { ...inConfig, name: "FormatError", field: "r" }],
  ["r = -1", config({ r: -1 }), { ...inConfig, name: "FormatError", field: "r" }],
  ["r = 1.5", config({ r: 1.5 }), { ...inConfig, name: "FormatError", field: "r" }],
  ['r = "2"', config({ r: "2" }), { ...inConfig, name: "FormatError", field: "r" }],
  ["lora_alpha NaN", rawConfig('{"peft_type": "LORA", "lora_alpha": NaN}'), { ...inConfig, name: "FormatError" }],
  ["lora_alpha 1e300", config({ lora_alpha: 1e300 }), { ...inConfig, name: "NumericError", field: "lora_alpha" }],
  ['lora_alpha "4"', config({ lora_alpha: "4" }), { ...inConfig, name: "FormatError", field: "lora_alpha" }],
  [
    "an alpha of a pattern that is too large",
    config({ alpha_pattern: { q_proj: 1e39 } }),
    { ...inConfig, name: "NumericError", field: "alpha_pattern" },
  ],
  ["10^6 target_modules", config({ target_modules: names(1e6) }), { ...inConfig, name: "LimitError", field: "size" }],
  [
    "5000 target_modules",
    config({ target_modules: names(5000) }),
    { ...inConfig, name: "LimitError", field: "target_modules", limit: 4096 },
  ],
  ["5000 ranks", config({ rank_pattern: pattern(5000) }), { ...inConfig, name: "LimitError", field: "rank_pattern" }],
  ["5000 alphas", config({ alpha_pattern: pattern(5000) }), {
    ...inConfig,
    name: "LimitError",
    field: "alpha_pattern",
  }],
  [
    "a pattern that would unfold",
    config({ rank_pattern: { "((a{99}){99}){99}": 2 } }),
    { name: "LimitError", field: "rank_pattern" },
  ],
  ["a pattern that looks behind", config({ rank_pattern: { "(?<=a)q": 2 } }), {
    name: "FormatError",
    field: "rank_pattern",
  }],
  ["an unknown PEFT type", config({ peft_type: "LOHA" }), { ...inConfig, name: "FormatError", field: "peft_type" }],
  ["no PEFT type", config({ peft_type: null }), { ...inConfig, name: "FormatError", field: "peft_type" }],
  ["DoRA without magnitudes", config({ use_dora: true }), { ...inWeights, name: "MismatchError", field: "use_dora" }],
  ["Arrow", config({ arrow_config: {} }), {
    ...inConfig,
    name: "FormatError",
    code: "unsupported",
    field: "arrow_config",
  }],
  ["a config that nests", rawConfig('{"a":'.repeat(100_000)), { ...inConfig, name: "LimitError" }],
  ["a config of 1 MiB and more", rawConfig(" ".repeat(2 ** 20 + 1)), {
    ...inConfig,
    name: "LimitError",
    field: "size",
  }],
  ["a config that is a list", rawConfig("[]"), { ...inConfig, name: "FormatError" }],
  ["a config with a field twice", rawConfig('{"r": 2, "r": 4}'), { ...inConfig, name: "FormatError", field: "r" }],
  ["a config that is no UTF-8", rawConfig(Uint8Array.of(0x22, 0xff, 0x22)), { ...inConfig, name: "FormatError" }],
  ["no config", new Map([[WEIGHTS, new Uint8Array(8)]]), { ...inConfig, name: "MismatchError", code: "missing-file" }],
  ["no weights", new Map([[CONFIG, smallAdapter().get(CONFIG)!]]), { name: "MismatchError", file: WEIGHTS }],
  [
    "a pickle",
    new Map([[CONFIG, smallAdapter().get(CONFIG)!], ["adapter_model.bin", new Uint8Array(9)]]),
    { name: "FormatError", code: "pickle", file: "adapter_model.bin", message: /lora convert FOLDER --to peft/ },
  ],
];

function useRows(model: LanguageModel): Row[] {
  const generate = (...args: Parameters<LanguageModel["generate"]>) => () => model.generate(...args);
  const unknown: Refusal = { name: "MismatchError", field: "adapter", message: /"nobody".*"good"/ };
  return [
    { what: "an empty prompt", run: generate([]), refusal: { name: "ShapeError", field: "prompt" } },
    {
      what: "a prompt longer than the context",
      run: generate(new Array(129).fill(1)),
      refusal: { name: "LimitError", field: "prompt", limit: 128 },
    },
    {
      what: "rows longer than the context",
      run: () => model.forward([new Array(129).fill(1)]),
      refusal: {
        name: "LimitError",
        limit: 128,
      },
    },
    { what: "an unknown adapter", run: generate([1], { adapter: "nobody" }), refusal: unknown },
    { what: "an unknown adapter in a mix", run: generate([1], { adapter: { nobody: 1 } }), refusal: unknown },
    { what: "an unknown adapter of a row", run: () => model.forward([[1]], { adapter: ["nobody"] }), refusal: unknown },
    { what: "an unknown adapter to merge", run: () => model.merge("nobody"), refusal: unknown },
    { what: "the adapter __proto__", run: generate([1], { adapter: "__proto__" }), refusal: { name: "MismatchError" } },
    {
      what: "the adapter constructor",
      run: generate([1], { adapter: { constructor: 1 } as never }),
      refusal: {
        name: "MismatchError",
      },
    },
    {
      what: "an infinite weight",
      run: generate([1], { adapter: { good: Infinity } }),
      refusal: { name: "NumericError" },
    },
  ];
}

function misfitRows(model: LanguageModel): Row[] {
  const load = (files: Files) => () => model.loadAdapter("bad", files);
  return [
    {
      what: "an adapter of another base",
      run: load(fixtureFiles("qwen3-plain/adapter")),
      refusal: { name: "MismatchError", message: /out of place/ },
    },
    {
      what: "an adapter whose paths begin otherwise",
      run: load(renamed("transformer.layers.0.self_attn.q_proj")),
      refusal: { name: "MismatchError", message: /the nearest is "model\.layers\.0\.self_attn\.q_proj"/ },
    },
  ];
}

test("loadAdapter() refuses bad input with the place, at once, and allocates nothing for it", async () => {
  const rows = ADAPTERS.map(([what, files, refusal]) => ({ what, run: () => loadAdapter(files), refusal }));
  await checkAll(rows);
});

test("a model refuses bad prompts and adapters with the place, and stays as it was", async () => {
  const model = await loadModel(fixtureFolder("base/llama"));
  await model.loadAdapter("good", fixtureFolder("llama-plain/adapter"));
  const before = model.backend.bytes;
  for (const row of [...useRows(model), ...misfitRows(model)]) await check(row);
  assert.deepEqual([[...model.adapters.keys()], model.merged, model.backend.bytes], [["good"], null, before]);
  model.dispose();
});

test("an adapter that is not finite is refused by both merges, and nothing is changed or left", async () => {
  const adapter = await loadAdapter(fixtureFolder("llama-plain/adapter"));
  const { bytes } = [...adapter.modules.values()].at(-1)!.loraB;
  bytes.set([0, 0, 0xc0, 0x7f]);
  const model = await loadModel(fixtureFolder("base/llama"), { dtype: "f32" });
  const before = (await model.forward([[1, 2, 3]])).values;
  await model.loadAdapter("a", adapter);
  await check({ what: "model.merge()", run: () => model.merge("a"), refusal: { name: "NumericError" } });
  assert.equal(model.merged, null);
  assert.deepEqual((await model.forward([[1, 2, 3]])).values, before);
  model.dispose();
  const sink = recordingSink();
  const run = () => mergeCheckpoint(fixtureFolder("base/llama"), [{ adapter }], sink);
  await check({ what: "mergeCheckpoint()", run, refusal: { name: "NumericError" } });
  assert.equal(sink.files.size, 0);
  assert.ok(!sink.log.some((line) => line.startsWith("commit")));
});

test("loadAdapter() is not held up by a pattern that backtracks", async () => {
  const start = performance.now();
  const hostile = { target_modules: "^(a+)+$", rank_pattern: { "(a|aa)+b": 2 }, alpha_pattern: { "(.*a){20}": 4 } };
  const files = tensors({
    config: hostile,
    tensors: Object.fromEntries(["A", "B"].map((factor) => [
      `base_model.model.${"a".repeat(500)}.lora_${factor}.weight`,
      filled(factor === "A" ? [2, 4] : [6, 2]),
    ])),
  });
  assert.equal((await loadAdapter(files)).modules.size, 2);
  assert.ok(performance.now() - start < MAX_MS);
});

test("loadAdapter() does not write out a pickle whose tensors are all one storage", async () => {
  const shared = tensor({ length: 10_000, shape: [100, 100], strides: [100, 1] });
  const names = Array.from({ length: 10 }, (_, i) => [`w${i}`, shared] as const);
  const file = torchFile(pickle(Object.fromEntries(names)), { "0": new Uint8Array(40_000) });
  const files = new Map([[CONFIG, smallAdapter().get(CONFIG)!], ["adapter_model.bin", file]]);
  await check({
    what: "400,000 bytes from 40,000",
    run: () => loadAdapter(files, { allowPickle: true, limits: { fileBytes: 100_000 } }),
    refusal: { name: "LimitError", file: "adapter_model.bin", field: "size", limit: 100_000 },
  });
});
