import assert from "node:assert/strict";
import { test } from "node:test";
import { Adapter } from "../src/adapter/adapter.ts";
import { readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import type { Dialect } from "../src/adapter/dialects/options.ts";
import { recogniseDialect } from "../src/adapter/dialects/recognise.ts";
import { FormatError, LimitError } from "../src/errors.ts";
import { bitsPerElement, type StoredTensor } from "../src/formats/dtype.ts";
import { encodeGguf, type GgufField } from "../src/formats/gguf_writer.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { FACTS, peftFiles, randomAdapter, store } from "./dialects_support.ts";
import { random } from "./values.ts";

const PATH = "model.layers.0.self_attn.v_proj";
const A = store("F32", 2, 4, random(1));
const B = store("F32", 6, 2, random(2));

type Tensors = Readonly<Record<string, StoredTensor>>;

function transposed(tensor: StoredTensor): StoredTensor {
  return { ...tensor, shape: tensor.shape.toReversed() };
}

function zeros(dtype: StoredTensor["dtype"], ...shape: number[]): StoredTensor {
  const bytes = new Uint8Array(shape.reduce((product, n) => product * n, bitsPerElement(dtype) / 8));
  return { dtype, shape, bytes };
}

const LLAMA: ReadonlyMap<string, GgufField> = new Map<string, GgufField>([
  ["general.architecture", { type: "string", value: "llama" }],
  ["general.type", { type: "string", value: "adapter" }],
  ["adapter.type", { type: "string", value: "lora" }],
  ["adapter.lora.alpha", { type: "f32", value: 4 }],
]);

/** A dialect's file of one module, or of these tensors. */
const FILES: Readonly<Record<Exclude<Dialect, "peft">, (tensors: Tensors) => ReadonlyMap<string, Uint8Array>>> = {
  kohya: (tensors) => single("a.safetensors", tensors),
  diffusers: (tensors) => single("a.safetensors", tensors),
  loralib: (tensors) => single("a.safetensors", tensors),
  mlx: (tensors) =>
    new Map([
      ["adapter_config.json", new TextEncoder().encode('{"lora_parameters": {"rank": 2, "scale": 1}}')],
      ["adapters.safetensors", encodeSafetensors(new Map(Object.entries(tensors)))],
    ]),
  gguf: (tensors) => new Map([["a.gguf", encodeGguf(LLAMA, new Map(Object.entries(tensors)))]]),
};

const KOHYA = `lora_te_${PATH.replaceAll(".", "_")}`;
const PAIRS: Readonly<Record<keyof typeof FILES, readonly [a: string, b: string]>> = {
  kohya: [`${KOHYA}.lora_down.weight`, `${KOHYA}.lora_up.weight`],
  diffusers: [`transformer.${PATH}.lora_A.weight`, `transformer.${PATH}.lora_B.weight`],
  loralib: [`${PATH}.lora_A`, `${PATH}.lora_B`],
  mlx: [`${PATH}.lora_a`, `${PATH}.lora_b`],
  gguf: ["blk.0.attn_v.weight.lora_a", "blk.0.attn_v.weight.lora_b"],
};
const DIALECTS = Object.keys(FILES) as (keyof typeof FILES)[];

function single(name: string, tensors: Tensors): ReadonlyMap<string, Uint8Array> {
  return new Map([[name, encodeSafetensors(new Map(Object.entries(tensors)))]]);
}

function pair(dialect: keyof typeof FILES, a: StoredTensor = A, b: StoredTensor = B): Tensors {
  const [nameA, nameB] = PAIRS[dialect];
  const turn = dialect === "mlx" ? transposed : (tensor: StoredTensor) => tensor;
  return { [nameA]: turn(a), [nameB]: turn(b) };
}

function read(dialect: keyof typeof FILES, tensors: Tensors) {
  return readAdapter(memoryFolder(FILES[dialect](tensors)), { alpha: 4, heads: 2 });
}

test("every dialect refuses tensors that are no factors, by their names and what they are", async () => {
  const foreign: readonly (readonly [dialect: keyof typeof FILES, tensor: string, what: RegExp, shape?: number[]])[] = [
    ["kohya", `${KOHYA}.dora_scale`, /a norm for every output/, [1, 4]],
    ["kohya", `${KOHYA}.diff_b`, /full difference/],
    ["kohya", `${KOHYA}.oft_blocks`, /OFT/],
    ["kohya", `base_model.model.${PATH}.lora_A.weight`, /expected "lora_unet_/],
    ["kohya", "emb_params", /expected "lora_unet_/],
    ["diffusers", `diffusion_model.${PATH}.lora_A.weight`, /expected "<component>/],
    ["diffusers", "transformer.norm_q.weight", /a norm/],
    ["gguf", "blk.0.attn_norm.weight", /a norm/],
    ["gguf", "blk.0.ffn_gate_exps.weight.lora_a", /fused experts/, [2, 2, 4]],
    ["gguf", "blk.0.attn_rot.weight.lora_a", /architecture "llama"/],
    ["mlx", "model.embed_tokens.m", /a norm for every token/],
    ["mlx", `${PATH}.lora_a_scales`, /quantised/],
    ["mlx", `${PATH}.weight`, /weight of the base/],
    ["mlx", "model.layers.0.mlp.experts.up_proj.lora_a", /fused experts/, [3, 2, 4]],
    ["gguf", "blk.0.attn_q.weight.lora_a", /convolution/, [2, 4, 1, 1]],
    ["loralib", "features.conv1.lora_A", /convolution/],
    ["loralib", `${PATH}.bias`, /a bias of the base/],
  ];
  for (const [dialect, tensor, what, shape = [2, 4]] of foreign) {
    const found = read(dialect, { ...pair(dialect), [tensor]: zeros("F32", ...shape) });
    await assert.rejects(found, (error: Error & { tensor?: string }) => {
      assert(error instanceof FormatError, `${dialect} ${tensor}: ${error}`);
      assert.equal(error.tensor, tensor);
      assert.match(error.message, what);
      return true;
    });
  }
});

test("magnitudes and biases of B are refused where their shape, or what the file says of itself, is another", async () => {
  const cases: readonly (readonly [dialect: keyof typeof FILES, tensor: string, field: string | undefined])[] = [
    ["diffusers", `transformer.${PATH}.lora_magnitude_vector`, undefined],
    ["diffusers", `transformer.${PATH}.lora_B.bias`, undefined],
    ["kohya", `${KOHYA}.dora_scale`, undefined],
    ["mlx", `${PATH}.m`, "use_dora"],
  ];
  for (const [dialect, tensor, field] of cases) {
    const found = read(dialect, { ...pair(dialect), [tensor]: zeros("F32", 5, ...(dialect === "kohya" ? [1] : [])) });
    const place = { name: "MismatchError", tensor, ...(field !== undefined && { field }) };
    await assert.rejects(found, place, `${dialect} ${tensor}`);
  }
});

test("every dialect refuses lone factors, wrong ranks, types, shapes and numbers, by tensor name", async () => {
  for (const dialect of DIALECTS) {
    const [nameA, nameB] = PAIRS[dialect];
    await assert.doesNotReject(read(dialect, pair(dialect)), dialect);
    const { [nameA]: a } = pair(dialect);
    await assert.rejects(read(dialect, { [nameA]: a! }), { name: "MismatchError", tensor: nameA }, dialect);
    const cases: readonly (readonly [a: StoredTensor, b: StoredTensor, error: string, tensor: string])[] = [
      [A, store("F32", 6, 3, random(3)), "MismatchError", nameB],
      [zeros("F32", 300, 4), zeros("F32", 6, 300), "LimitError", nameA],
      [{ ...A, shape: [8] }, B, "FormatError", nameA],
      [zeros("F32", 0, 4), zeros("F32", 6, 0), "FormatError", nameA],
      [store("F32", 2, 4, () => NaN), B, "NumericError", nameA],
      [A, store("F16", 6, 2, () => Infinity), "NumericError", nameB],
      [zeros("F64", 2, 4), B, "FormatError", nameA],
    ];
    for (const [a, b, name, tensor] of cases) {
      await assert.rejects(read(dialect, pair(dialect, a, b)), { name, tensor }, `${dialect} ${a.shape} ${b.shape}`);
    }
  }
});

test("a module that the base lacks is refused where the base's modules are given", async () => {
  for (const dialect of DIALECTS) {
    const folder = memoryFolder(FILES[dialect](pair(dialect)));
    const options = { alpha: 4, heads: 2 };
    await assert.doesNotReject(readAdapter(folder, { ...options, modules: [PATH] }));
    await assert.rejects(readAdapter(folder, { ...options, modules: ["model.layers.1.x"] }), { name: "MismatchError" });
  }
});

test("GGUF files of other kinds are refused by their field", async () => {
  const fields: readonly (readonly [field: string, value: string | undefined])[] = [
    ["general.type", "model"],
    ["adapter.type", "control_vector"],
    ["general.architecture", "clip"],
    ["general.architecture", undefined],
    ["adapter.lora.alpha", "4"],
  ];
  for (const [field, value] of fields) {
    const metadata = new Map(LLAMA);
    if (value === undefined) metadata.delete(field);
    else metadata.set(field, { type: "string", value });
    const bytes = encodeGguf(metadata, new Map(Object.entries(pair("gguf"))));
    await assert.rejects(readAdapter(memorySource("a.gguf", bytes)), { name: "FormatError", field });
  }
  const alora = new Map(LLAMA).set("adapter.alora.invocation_tokens", { type: "u32", value: 1 });
  const bytes = encodeGguf(alora, new Map(Object.entries(pair("gguf"))));
  await assert.rejects(readAdapter(memorySource("a.gguf", bytes)), { field: "adapter.alora.invocation_tokens" });
  for (const value of [NaN, Infinity]) {
    const metadata = new Map(LLAMA).set("adapter.lora.alpha", { type: "f32", value });
    const bytes = encodeGguf(metadata, new Map(Object.entries(pair("gguf"))));
    const refusal = { name: "NumericError", file: "a.gguf", field: "adapter.lora.alpha" };
    await assert.rejects(readAdapter(memorySource("a.gguf", bytes)), refusal, `${value}`);
  }
});

test("a GGUF adapter whose header is that of a vocabulary is refused before its values are made", async () => {
  for (const [bytes, limits] of [[5_000_000, {}], [600_000, { headerBytes: 3_000_000 }]] as const) {
    const metadata = new Map(LLAMA);
    for (let i = 0; i < 6; i++) metadata.set(`text.${i}`, { type: "string", value: "x".repeat(bytes) });
    const source = memorySource("a.gguf", encodeGguf(metadata, new Map(Object.entries(pair("gguf")))));
    const refusal = { name: "LimitError", file: "a.gguf", field: "header" };
    await assert.rejects(readAdapter(source, { limits }), refusal, `${bytes}`);
  }
});

test("rows of q that the heads do not divide are refused, and so is a writer without facts", async () => {
  const q = { "blk.0.attn_q.weight.lora_a": A, "blk.0.attn_q.weight.lora_b": B };
  for (const heads of [4, 0, 1.5]) {
    const found = readAdapter(memoryFolder(FILES.gguf(q)), { heads });
    await assert.rejects(found, { name: "MismatchError", code: "heads", tensor: "blk.0.attn_q.weight.lora_b" });
  }
  const adapter = await randomAdapter(0);
  await assert.rejects(writeAdapter(adapter, "gguf", memorySink()), { code: "architecture" });
  const gpt2 = writeAdapter(adapter, "gguf", memorySink(), { modelType: "gpt2" });
  await assert.rejects(gpt2, { code: "architecture", found: "gpt2", message: /of architecture "gpt2": .* phi3$/ });
  await assert.rejects(writeAdapter(adapter, "gguf", memorySink(), { architecture: "mamba" }), {
    code: "architecture",
  });
  await assert.rejects(writeAdapter(adapter, "gguf", memorySink(), { architecture: "llama" }), { code: "heads" });
  await assert.rejects(writeAdapter(adapter, "gguf", memorySink(), { architecture: "phi3" }), {
    name: "MismatchError",
  });
});

test("a config that a file carries counts only where it agrees with the file", async () => {
  let adapter = await randomAdapter(0);
  for (let seed = 1; !adapter.config.useRslora; seed++) adapter = await randomAdapter(seed);
  const sink = memorySink();
  await writeAdapter(adapter, "kohya", sink);
  const [[name, bytes]] = [...sink.files] as [[string, Uint8Array]];
  const text = new TextDecoder("latin1").decode(bytes);
  const at = text.indexOf('\\"lora_alpha\\": ') + 16;
  assert(at > 16);
  const changed = bytes.slice();
  changed[at] = changed[at] === 0x39 ? 0x31 : 0x39;
  const first = [...adapter.modules.values()][0]!;
  const same = (await readAdapter(memorySource(name, bytes))).adapter;
  assert.equal(same.modules.get(first.name)!.scaling, first.scaling);
  const other = (await readAdapter(memorySource(name, changed))).adapter;
  assert(other.report.some(({ what }) => what.includes("another rank or scale")));
  const scaling = other.modules.get(first.name)!.scaling;
  assert(Math.abs(scaling / first.scaling - 1) < 1e-7);
});

test("a carried config of another rank is left aside, and one that asks for DoRA is refused", async () => {
  const source = (config: object) => {
    const metadata = new Map([["peft_config", JSON.stringify({ peft_type: "LORA", ...config })]]);
    return memorySource("a.safetensors", encodeSafetensors(new Map(Object.entries(pair("kohya"))), metadata));
  };
  const { adapter } = await readAdapter(source({ r: 3, lora_alpha: 3, target_modules: ["v_proj"] }));
  assert.deepEqual([adapter.config.r, adapter.modules.get(PATH)!.scaling], [2, 1]);
  assert(adapter.report.some(({ module, what }) => module === PATH && what.includes("another rank or scale")));
  const same = (await readAdapter(source({ r: 2, lora_alpha: 2, target_modules: ["v_proj"] }))).adapter;
  assert.deepEqual(same.config.targetModules, ["v_proj"]);
  const dora = source({ r: 2, lora_alpha: 2, use_dora: true });
  await assert.rejects(readAdapter(dora), { name: "MismatchError", field: "use_dora" });
});

test("an alpha that 32 bits do not hold is rounded for a GGUF, and told", async () => {
  const config = { r: 2, lora_alpha: 0.3, target_modules: ["v_proj"] };
  const names = [`base_model.model.${PATH}.lora_A.weight`, `base_model.model.${PATH}.lora_B.weight`] as const;
  const { adapter } = await readAdapter(memoryFolder(peftFiles(config, new Map([[names[0], A], [names[1], B]]))));
  const [report, exact] = await Promise.all(
    [0.3, 0.25].map((alpha) => {
      const module = { ...adapter.modules.get(PATH)!, alpha, scaling: alpha / 2 };
      const parts = { ...adapter, config: adapter.config, modules: new Map([[PATH, module]]) };
      return writeAdapter(new Adapter(parts), "gguf", memorySink(), FACTS);
    }),
  );
  const [line, ...more] = report!;
  assert.deepEqual([line!.what, more], ["the scaling of 1 modules is rounded to 32 bits", []]);
  assert(line!.error! > 0 && line!.error! < 6e-8);
  assert.deepEqual(exact, []);
});

test("recogniseDialect() names what it cannot tell", async () => {
  const config = (text: string) => memoryFolder(new Map([["adapter_config.json", new TextEncoder().encode(text)]]));
  assert.equal(await recogniseDialect(config('{"peft_type": "LORA"}')), "peft");
  assert.equal(await recogniseDialect(config('{"fine_tune_type": "lora"}')), "mlx");
  await assert.rejects(recogniseDialect(config("{}")), { name: "FormatError", code: "unknown-dialect" });
  await assert.rejects(recogniseDialect(config("[1]")), { name: "FormatError", code: "unknown-dialect" });
  await assert.rejects(recogniseDialect(memoryFolder(new Map())), { name: "MismatchError", code: "missing-file" });
  const two = new Map([["a.safetensors", new Uint8Array()], ["b.gguf", new Uint8Array()]]);
  await assert.rejects(recogniseDialect(memoryFolder(two)), { name: "MismatchError", unexpected: [...two.keys()] });
  const lone = (tensors: Tensors) => memorySource("a.safetensors", encodeSafetensors(new Map(Object.entries(tensors))));
  await assert.rejects(recogniseDialect(lone({})), { name: "FormatError", code: "unknown-dialect" });
  await assert.rejects(recogniseDialect(lone({ w: A })), { name: "FormatError", tensor: "w" });
  await assert.rejects(recogniseDialect(lone({ "a.lokr_w1": A })), { name: "FormatError", code: "unsupported" });
  for (const tensor of ["base_model.model.a.lora_A.weight", "a.lora_a"]) {
    await assert.rejects(recogniseDialect(lone({ [tensor]: A })), { name: "MismatchError", code: "missing-file" });
  }
  await assert.rejects(recogniseDialect(lone({ ["x".repeat(2000)]: A })), LimitError);
});

test("a writer that is aborted, or whose sink fails, leaves nothing", async () => {
  const adapter = await randomAdapter(2);
  for (const dialect of ["peft", ...DIALECTS] as const) {
    const controller = new AbortController();
    const sink = memorySink();
    const create = async (file: string) => {
      controller.abort(new Error("stop"));
      return await sink.create(file);
    };
    const aborted = writeAdapter(adapter, dialect, { name: "x", create }, { ...FACTS, signal: controller.signal });
    await assert.rejects(aborted, { message: "stop" });
    assert.equal(sink.files.size, 0);
  }
});
