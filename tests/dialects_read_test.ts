import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter } from "../src/adapter/adapter.ts";
import { readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import { encodeBf16 } from "../src/formats/bfloat16.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { encodeF16 } from "../src/formats/float16.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { Source } from "../src/formats/source.ts";
import { readTorch, readTorchMetadata } from "../src/formats/torch.ts";
import { encodeTorch } from "../src/formats/torch_writer.ts";
import { deltaOf, mlxFolder, peftFiles, whole } from "./dialects_support.ts";

function safetensors(tensors: Readonly<Record<string, StoredTensor>>, metadata?: ReadonlyMap<string, string>): Source {
  return memorySource("lora.safetensors", encodeSafetensors(new Map(Object.entries(tensors)), metadata));
}

function scalar(dtype: "F32" | "F16" | "BF16", value: number, shape: readonly number[] = []): StoredTensor {
  const values = Float32Array.of(value);
  const encode = {
    F32: () => new Uint8Array(values.buffer),
    F16: () => encodeF16(values),
    BF16: () => encodeBf16(values),
  };
  return { dtype, shape, bytes: encode[dtype]() };
}

/** s B A of factors in PEFT's orientation, by the definition. */
function naiveDelta(scaling: number, a: StoredTensor, b: StoredTensor): number[] {
  const [[rank = 0, columns = 0], [rows = 0]] = [a.shape, b.shape];
  const [x, y] = [toFloat32(a), toFloat32(b)];
  const delta: number[] = [];
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      let sum = 0;
      for (let k = 0; k < rank; k++) sum += y[i * rank + k]! * x[k * columns + j]!;
      delta.push(scaling * sum);
    }
  }
  return delta;
}

function deltas(adapter: Adapter): Record<string, number[]> {
  return Object.fromEntries(Array.from(adapter.modules, ([name, module]) => [name, Array.from(deltaOf(module))]));
}

test("Kohya's alphas are per module, in any float; absent or 0 they mean s = 1", async () => {
  const tensors: Record<string, StoredTensor> = {};
  const wanted: Record<string, number[]> = {};
  const add = (path: string, scaling: number, alpha?: StoredTensor) => {
    const [a, b] = [whole(4, 6, scaling), whole(5, 4, scaling + 9)];
    const name = `lora_unet_${path.replaceAll(".", "_")}`;
    Object.assign(tensors, { [`${name}.lora_down.weight`]: a, [`${name}.lora_up.weight`]: b });
    if (alpha) tensors[`${name}.alpha`] = alpha;
    wanted[path] = naiveDelta(scaling, a, b);
  };
  add("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", 0.5, scalar("F32", 2));
  add("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0", 0.25, scalar("F16", 1, [1]));
  add("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", 2, scalar("BF16", 8));
  add("mid_block.attentions.0.transformer_blocks.0.ff.net.2", 1);
  add("up_blocks.1.attentions.0.proj_in", 1, scalar("F32", 0));
  const { dialect, adapter } = await readAdapter(safetensors(tensors));
  assert.equal(dialect, "kohya");
  assert.deepEqual(deltas(adapter), wanted);
  assert.deepEqual(deltas((await readAdapter(safetensors(tensors), { modules: Object.keys(wanted) })).adapter), wanted);
});

test("Kohya's names of CLIP, T5, SDXL, Flux, SD3 and Llama models find their paths without a list", async () => {
  const names: Readonly<Record<string, string>> = {
    lora_te1_text_model_encoder_layers_11_self_attn_out_proj: "text_model.encoder.layers.11.self_attn.out_proj",
    lora_te2_text_model_encoder_layers_0_mlp_fc1: "text_model.encoder.layers.0.mlp.fc1",
    lora_te3_encoder_block_3_layer_0_SelfAttention_q: "encoder.block.3.layer.0.SelfAttention.q",
    lora_te3_encoder_block_3_layer_1_DenseReluDense_wi_0: "encoder.block.3.layer.1.DenseReluDense.wi_0",
    lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k: "input_blocks.4.1.transformer_blocks.0.attn2.to_k",
    lora_unet_middle_block_1_proj_out: "middle_block.1.proj_out",
    lora_unet_double_blocks_18_img_attn_qkv: "double_blocks.18.img_attn.qkv",
    lora_unet_double_blocks_0_txt_mlp_2: "double_blocks.0.txt_mlp.2",
    lora_unet_single_blocks_37_modulation_lin: "single_blocks.37.modulation.lin",
    lora_unet_joint_blocks_3_context_block_attn_proj: "joint_blocks.3.context_block.attn.proj",
    lora_unet_single_transformer_blocks_2_proj_mlp: "single_transformer_blocks.2.proj_mlp",
    lora_unet_transformer_blocks_2_attn_add_q_proj: "transformer_blocks.2.attn.add_q_proj",
    lora_te_model_layers_0_self_attn_q_proj: "model.layers.0.self_attn.q_proj",
  };
  for (const [name, path] of Object.entries(names)) {
    const factors = { [`${name}.lora_down.weight`]: whole(2, 3, 1), [`${name}.lora_up.weight`]: whole(4, 2, 2) };
    const { adapter } = await readAdapter(safetensors(factors));
    assert.deepEqual([...adapter.modules.keys()], [path]);
  }
});

test("a Kohya name of two modules, or of none, is refused by name", async () => {
  const read = (name: string, modules?: readonly string[]) => {
    const factors = { [`${name}.lora_down.weight`]: whole(2, 3, 1), [`${name}.lora_up.weight`]: whole(4, 2, 2) };
    return readAdapter(safetensors(factors), { ...(modules && { modules }) });
  };
  const tensor = "lora_unet_a_b_c.lora_down.weight";
  await assert.rejects(read("lora_unet_a_b_c", ["a.b_c", "a_b.c"]), {
    name: "FormatError",
    code: "ambiguous-name",
    tensor,
  });
  await assert.rejects(read("lora_unet_a_b_c", ["a.b.d"]), { name: "MismatchError", code: "unknown-name", tensor });
  await assert.rejects(read("lora_unet_a_b_c"), { name: "MismatchError", code: "unknown-name", tensor });
  for (
    const name of ["lora_unet_transformer_blocks_attn_to_q", "lora_unet_attn_0_to_q", "lora_unet_layers_self_attn"]
  ) {
    await assert.rejects(read(name), { name: "MismatchError", code: "unknown-name" });
  }
  assert.equal((await read("lora_unet_a_b_c", ["a.b_c", "a.b.d"])).adapter.modules.has("a.b_c"), true);
  const twins = await readAdapterOf(["x.a_b", "x.a.b"]);
  await assert.rejects(writeAdapter(twins, "kohya", memorySink()), { name: "FormatError", code: "ambiguous-name" });
});

async function readAdapterOf(names: readonly string[]): Promise<Adapter> {
  const tensors = new Map<string, StoredTensor>();
  for (const name of names) {
    tensors.set(`base_model.model.${name}.lora_A.weight`, whole(2, 3, 1));
    tensors.set(`base_model.model.${name}.lora_B.weight`, whole(4, 2, 2));
  }
  return (await readAdapter(memoryFolder(peftFiles({ r: 2, lora_alpha: 2, target_modules: names }, tensors)))).adapter;
}

test("diffusers' names of three ages give one adapter per component", async () => {
  const [a, b] = [whole(2, 3, 1), whole(4, 2, 2)];
  const source = safetensors({
    "unet.mid_block.attn1.processor.to_q_lora.down.weight": a,
    "unet.mid_block.attn1.processor.to_q_lora.up.weight": b,
    "unet.mid_block.attn1.processor.to_out_lora.down.weight": a,
    "unet.mid_block.attn1.processor.to_out_lora.up.weight": b,
    "unet.mid_block.ff.net.2.lora.down.weight": a,
    "unet.mid_block.ff.net.2.lora.up.weight": b,
    "unet.mid_block.proj_in.lora_A.weight": a,
    "unet.mid_block.proj_in.lora_B.weight": b,
    "unet.mid_block.proj_in.alpha": scalar("F32", 1),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight": a,
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": b,
    "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight": a,
    "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight": b,
  });
  await assert.rejects(readAdapter(source), { name: "MismatchError", code: "component" });
  await assert.rejects(readAdapter(source, { component: "transformer" }), { code: "component" });
  const { adapter: unet } = await readAdapter(source, { component: "unet" });
  assert.deepEqual(deltas(unet), {
    "mid_block.attn1.to_q": naiveDelta(1, a, b),
    "mid_block.attn1.to_out.0": naiveDelta(1, a, b),
    "mid_block.ff.net.2": naiveDelta(1, a, b),
    "mid_block.proj_in": naiveDelta(0.5, a, b),
  });
  assert(unet.report.some(({ what }) => what.includes("text_encoder")));
  const { adapter: text } = await readAdapter(source, { component: "lora_te1" });
  const layer = "text_model.encoder.layers.0.self_attn";
  assert.deepEqual([...text.modules.keys()].sort(), [`${layer}.out_proj`, `${layer}.q_proj`]);
});

test("the config in a diffusers header decides: rsLoRA and patterns", async () => {
  const [a, b] = [whole(4, 3, 1), whole(5, 4, 2)];
  const config = { "unet.r": 4, "unet.lora_alpha": 6, "unet.use_rslora": true, "unet.alpha_pattern": { "ff": 2 } };
  const source = safetensors({
    "unet.to_q.lora_A.weight": a,
    "unet.to_q.lora_B.weight": b,
    "unet.ff.lora_A.weight": a,
    "unet.ff.lora_B.weight": b,
  }, new Map([["lora_adapter_metadata", JSON.stringify(config)]]));
  const { adapter } = await readAdapter(source);
  assert.deepEqual(deltas(adapter), { "to_q": naiveDelta(3, a, b), "ff": naiveDelta(1, a, b) });
  const dora = new Map([["lora_adapter_metadata", JSON.stringify({ ...config, "unet.use_dora": true })]]);
  const refused = safetensors({ "unet.to_q.lora_A.weight": a, "unet.to_q.lora_B.weight": b }, dora);
  await assert.rejects(readAdapter(refused), { name: "MismatchError", field: "use_dora" });
});

test("mlx-lm's factors are transposed and its scale is taken as it is", async () => {
  const [a, b] = [whole(6, 2, 1, "BF16"), whole(2, 5, 2, "BF16")];
  const path = "model.layers.1.self_attn.q_proj";
  const tensors = { [`${path}.lora_a`]: a, [`${path}.lora_b`]: b };
  const product = (scale: number) => {
    const [x, y] = [toFloat32(a), toFloat32(b)];
    const out: number[] = [];
    for (let o = 0; o < 5; o++) {
      for (let i = 0; i < 6; i++) out.push(scale * (x[2 * i]! * y[o]! + x[2 * i + 1]! * y[5 + o]!) + 0);
    }
    return out;
  };
  const { dialect, adapter } = await readAdapter(mlxFolder({ rank: 2, scale: 10.5, dropout: 0.25 }, tensors));
  assert.equal(dialect, "mlx");
  assert.deepEqual(deltas(adapter), { [path]: product(10.5) });
  assert.deepEqual([adapter.config.loraDropout, adapter.config.r, adapter.config.loraAlpha], [0.25, 2, 21]);
  const silent = (await readAdapter(mlxFolder({ rank: 2 }, tensors))).adapter;
  assert.deepEqual(deltas(silent), { [path]: product(20) });
  assert(silent.report.some(({ what }) => what.includes("20")));
  const dora = mlxFolder({ rank: 2, scale: 1 }, tensors, { fine_tune_type: "dora" });
  await assert.rejects(readAdapter(dora), { name: "MismatchError", field: "use_dora" });
  const full = mlxFolder({ rank: 2, scale: 1 }, tensors, { fine_tune_type: "full" });
  await assert.rejects(readAdapter(full), { name: "FormatError", field: "fine_tune_type" });
});

test("a torch file of thousands of tensors is written as readers want it", async () => {
  const tensors = new Map(Array.from({ length: 2500 }, (_, i) => [`t${i}`, scalar("F32", i)]));
  const read = await readTorch(memorySource("a.pt", encodeTorch(tensors)));
  assert.deepEqual([...read.keys()], [...tensors.keys()]);
  assert.deepEqual(toFloat32(read.get("t2499")!), Float32Array.of(2499));
  assert.equal((await readTorch(memorySource("a.pt", encodeTorch(new Map())))).size, 0);
});

test("readTorchMetadata() gives the texts of encodeTorch(), none of other files, and refuses what is no text", async () => {
  const tensors = new Map([["w", scalar("F32", 2)]]);
  const texts = new Map([["a", "b"], ["\u00e9", "\n"]]);
  const bytes = encodeTorch(tensors, texts);
  const source = memorySource("a.pt", bytes);
  assert.deepEqual(await readTorchMetadata(source), texts);
  assert.deepEqual(await readTorch(source), tensors);
  assert.deepEqual(await readTorchMetadata(memorySource("a.pt", encodeTorch(tensors))), new Map());
  await assert.rejects(readTorchMetadata(source, { maxPickleBytes: 5 }), { name: "LimitError" });
  const length = '{"a":"b"'.length;
  const at = new TextDecoder("latin1").decode(bytes).indexOf('{"a":"b"');
  for (const wrong of ['{"a": 7 ', '["a","b"', "{{{{{{{{", '{"a":"\xff"']) {
    const changed = bytes.slice();
    for (let i = 0; i < length; i++) changed[at + i] = wrong.charCodeAt(i);
    await assert.rejects(readTorchMetadata(memorySource("a.pt", changed)), { name: "FormatError" }, wrong);
  }
});
