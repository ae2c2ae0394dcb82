import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter } from "../src/adapter/adapter.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { fromFloat32, type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memorySink } from "../src/formats/memory.ts";
import { sizeOf } from "../src/shape.ts";
import { filled, fixture, fixtureFiles, fixtureFolder, readTensors, smallAdapter } from "./adapter_fixtures.ts";

const PREFIX = "base_model.model.";
const WEIGHTS = "adapter_model.safetensors";

const index: { readonly case: string }[] = JSON.parse(new TextDecoder().decode(fixture("index.json")));
// llama-bin is a pickle.
const fixtures = index.map((one) => one.case).filter((name) => name !== "llama-bin");

const small = (
  tensors: Readonly<Record<string, StoredTensor>>,
  config: Readonly<Record<string, unknown>> = {},
) => loadAdapter(smallAdapter({ tensors, config }));

/** Values 1, 2, 3 … in an F32 tensor. */
function counted(...shape: number[]): StoredTensor {
  return fromFloat32(Float32Array.from({ length: sizeOf(shape) }, (_, i) => i + 1), shape);
}

async function saved(adapter: Adapter): Promise<ReadonlyMap<string, Uint8Array>> {
  const sink = memorySink();
  await saveAdapter(adapter, sink);
  return sink.files;
}

test("every fixture loads, and saves the very bytes that PEFT wrote", async () => {
  for (const path of [...fixtures.map((name) => `${name}/adapter`), "multi/dora"]) {
    const files = fixtureFiles(path);
    const adapter = await loadAdapter(files);
    for (const [name, bytes] of await saved(adapter)) {
      assert.ok(bytes.length === files.get(name)!.length && bytes.every((b, i) => b === files.get(name)![i]), path);
    }
    const values = [...(await readTensors(files.get(WEIGHTS)!)).values()].map(({ shape }) => shape);
    assert.equal(adapter.parameters, values.reduce((sum, shape) => sum + shape.reduce((a, b) => a * b, 1), 0), path);
    assert.deepEqual(adapter.report, [], path);
  }
});

test("loadAdapter() tells the kind and the sizes of every module", async () => {
  const kinds = async (name: string) => {
    const { modules } = await loadAdapter(fixtureFolder(`${name}/adapter`));
    return [...modules.values()].map(({ name, kind, rank, inFeatures, outFeatures, experts }) =>
      [name, kind, rank, inFeatures, outFeatures, ...experts ? [experts] : []].join(" ")
    );
  };
  assert.deepEqual(await kinds("conv-plain"), [
    "conv1 conv 4 5 6",
    "conv2 conv 4 4 6",
    "conv3 conv 4 3 6",
    "head linear 4 9 4",
    "point conv 4 4 7",
  ]);
  assert.deepEqual((await kinds("llama-embedding"))[0], "model.embed_tokens embedding 4 131 48");
  assert.deepEqual((await kinds("moe")).slice(0, 3), [
    "model.layers.0.mlp.experts.gate_up_proj experts 3 32 80 4",
    "model.layers.0.mlp.experts.down_proj experts 3 40 32 4",
    "model.layers.0.self_attn.q_proj linear 3 32 32",
  ]);
});

test("full tensors have the base's names, and token rows their numbers", async () => {
  const adapter = async (name: string) => await loadAdapter(fixtureFolder(`${name}/adapter`));
  const replaced = async (name: string) => [...(await adapter(name)).replacements.keys()];
  assert.deepEqual(await replaced("bertcls-plain"), ["classifier.bias", "classifier.weight"]);
  assert.deepEqual((await replaced("bert-bias-lora-only"))[0], "encoder.layer.0.attention.self.query.bias");
  assert.deepEqual(await replaced("llama-embedding"), ["model.embed_tokens.weight"]);
  assert.equal((await replaced("llama-modules-to-save")).length, 5);
  const { tokenRows } = await adapter("llama-new-tokens");
  const [[path, { indices, rows }]] = [...tokenRows] as [[string, { indices: readonly number[]; rows: StoredTensor }]];
  assert.deepEqual([path, indices, rows.shape], ["model.embed_tokens", [3, 5, 17], [3, 48]]);
});

test("DoRA and lora_bias are parts of their modules", async () => {
  const dora = await loadAdapter(fixtureFolder("llama-dora/adapter"));
  assert.deepEqual(dora.modules.get("model.layers.0.mlp.up_proj")!.magnitude!.shape, [72]);
  const conv = await loadAdapter(fixtureFolder("conv-dora/adapter"));
  assert.deepEqual(conv.modules.get("conv2")!.magnitude!.shape, [1, 6, 1, 1]);
  const bias = await loadAdapter(fixtureFolder("gpt2-lora-bias/adapter"));
  assert.deepEqual(bias.modules.get("transformer.h.1.attn.c_attn")!.loraBias!.shape, [120]);
  const old = await small({ [`${PREFIX}layers.0.q_proj.lora_magnitude_vector.default.weight`]: filled([6]) }, {
    use_dora: true,
  });
  assert.deepEqual(
    [...(await readTensors((await saved(old)).get(WEIGHTS)!)).keys()].at(-1),
    `${PREFIX}layers.0.q_proj.lora_magnitude_vector`,
  );
});

test("one adapted parameter needs no infix; where the file cannot tell the parameter, it has none", async () => {
  const experts = `${PREFIX}mlp.experts`;
  const one = { [`${experts}.lora_A.weight`]: filled([4, 5]), [`${experts}.lora_B.weight`]: filled([7, 4]) };
  const down = (await small(one, { target_parameters: ["experts.down_proj"] })).modules.get("mlp.experts.down_proj")!;
  assert.deepEqual([down.kind, down.rank, down.experts, down.parameter], ["experts", 2, 2, "down_proj"]);
  const two = {
    ...one,
    [`${experts}.base_layer.lora_A.weight`]: filled([4, 3]),
    [`${experts}.base_layer.lora_B.weight`]: filled([9, 4]),
  };
  const odd = await small(two, { target_parameters: ["experts.first", "experts.second"] });
  const names = ["mlp.experts.base_layer", "mlp.experts"];
  assert.deepEqual([...odd.modules.keys()].filter((name) => name.startsWith("mlp")), names);
  assert.deepEqual(names.map((name) => odd.modules.get(name)!.parameter), [null, null]);
  const again = await loadAdapter(await saved(odd));
  assert.deepEqual(again.modules, odd.modules);
  const matrix = await small({
    [`${experts}.lora_A.weight`]: filled([2, 5]),
    [`${experts}.lora_B.weight`]: filled([7, 2]),
  }, {
    target_parameters: ["experts.weight"],
  });
  assert.deepEqual(matrix.modules.get("mlp.experts")!.kind, "linear");
  assert.equal("parameter" in matrix.modules.get("mlp.experts")!, false);
});

test("a rank pattern for a parameter ends with the parameter's name", async () => {
  const experts = `${PREFIX}mlp.experts`;
  const config = { target_parameters: ["experts.down_proj"], rank_pattern: { "experts.down_proj": 4 } };
  const tensors = { [`${experts}.lora_A.weight`]: filled([12, 5]), [`${experts}.lora_B.weight`]: filled([7, 12]) };
  const { rank, experts: count, scaling } = (await small(tensors, config)).modules.get("mlp.experts.down_proj")!;
  assert.deepEqual([rank, count, scaling], [4, 3, 1]);
});

test("the projections of an attention in one module have the names of its parameters, and go back", async () => {
  const tensors = {
    [`${PREFIX}attn.lora_A.weight`]: filled([2, 4]),
    [`${PREFIX}attn.lora_B.weight`]: filled([12, 2]),
    [`${PREFIX}attn.base_layer.out_proj.lora_A.weight`]: filled([2, 4]),
    [`${PREFIX}attn.base_layer.out_proj.lora_B.weight`]: filled([4, 2]),
  };
  const adapter = await small(tensors, { target_modules: ["attn", "q_proj"], alpha_pattern: { attn: 6 } });
  const scales = [...adapter.modules.values()].map(({ name, parameter, scaling }) => [name, parameter, scaling]);
  assert.deepEqual(scales, [
    ["attn.out_proj", undefined, 6],
    ["attn.in_proj_weight", "in_proj_weight", 3],
    ["layers.0.q_proj", undefined, 2],
  ]);
  // PEFT adds the update of the output projection twice.
  assert.deepEqual(adapter.report.map(({ module }) => module), ["attn.out_proj"]);
  const keys = [...(await readTensors((await saved(adapter)).get(WEIGHTS)!)).keys()];
  assert.deepEqual(keys.filter((key) => key.includes("attn")).sort(), Object.keys(tensors).sort());
});

test("a layer whose name is base_layer is a layer", async () => {
  const path = "wrapped.base_layer";
  const tensors = {
    [`${PREFIX}${path}.lora_A.weight`]: filled([2, 4]),
    [`${PREFIX}${path}.lora_B.weight`]: filled([6, 2]),
  };
  assert.ok((await small(tensors)).modules.has(path));
});

test("saved tables and biases lose what PEFT wraps around them, and get it back", async () => {
  const keys = [
    `${PREFIX}embed.token_adapter.base_layer.weight`,
    `${PREFIX}embed.token_adapter.trainable_tokens_delta`,
    `${PREFIX}head.weight`,
    `${PREFIX}layers.0.q_proj.base_layer.bias`,
  ] as const;
  const tensors = Object.fromEntries(keys.map((key) => [key, filled(key.endsWith("bias") ? [6] : [1, 4])]));
  const adapter = await small(tensors, { bias: "all", trainable_token_indices: [7], modules_to_save: ["head"] });
  assert.deepEqual([...adapter.replacements.keys()].sort(), ["embed.weight", "head.weight", "layers.0.q_proj.bias"]);
  assert.deepEqual([...adapter.tokenRows.keys()], ["embed"]);
  const written = [...(await readTensors((await saved(adapter)).get(WEIGHTS)!)).keys()];
  assert.deepEqual(written.filter((key) => !key.includes("lora_")), [...keys]);
  const older = await small({ [`${PREFIX}head.modules_to_save.default.weight`]: filled([1, 4]) }, {
    modules_to_save: ["head"],
  });
  assert.deepEqual([...older.replacements.keys()], ["head.weight"]);
});

test("a full tensor that the config does not name is loaded, as PEFT does, and reported", async () => {
  const { replacements, report } = await small({ [`${PREFIX}norm.weight`]: filled([4]) });
  assert.deepEqual([[...replacements.keys()], report.map(({ module }) => module)], [["norm.weight"], ["norm.weight"]]);
  const named = await small({ [`${PREFIX}my.norm.running_mean`]: filled([4]) }, { modules_to_save: ["norm"] });
  assert.deepEqual([[...named.replacements.keys()], named.report], [["my.norm.running_mean"], []]);
});

test("8-bit floats are widened to F16 without an error in any value", async () => {
  const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
  const e4m3 = (b: number) => {
    const [e, m] = [(b >> 3) & 15, b & 7];
    const size = e === 15 && m === 7 ? NaN : e === 0 ? m * 2 ** -9 : (8 + m) * 2 ** (e - 10);
    return b & 0x80 ? -size : size;
  };
  const e5m2 = (b: number) => {
    const [e, m] = [(b >> 2) & 31, b & 3];
    const size = e === 31 ? (m ? NaN : Infinity) : e === 0 ? m * 2 ** -16 : (4 + m) * 2 ** (e - 17);
    return b & 0x80 ? -size : size;
  };
  for (const [dtype, value] of [["F8_E4M3", e4m3], ["F8_E5M2", e5m2]] as const) {
    const finite = bytes.filter((b) => Number.isFinite(value(b)));
    const stored: StoredTensor = { dtype, shape: [2, finite.length / 2], bytes: finite };
    const { loraA, dtype: widened } = (await small({
      [`${PREFIX}x.lora_A.weight`]: stored,
      [`${PREFIX}x.lora_B.weight`]: filled([1, 2]),
    })).modules.get("x")!;
    assert.equal(widened, "F16");
    assert.deepEqual([...toFloat32(loraA)], Array.from(finite, value));
    const bad = { ...stored, bytes: stored.bytes.slice() };
    bad.bytes[5] = bytes.find((b) => Number.isNaN(value(b)))!;
    await assert.rejects(
      small({ [`${PREFIX}layers.0.q_proj.lora_A.weight`]: { ...bad, shape: [2, finite.length / 2] } }),
      {
        name: "NumericError",
      },
    );
  }
});

test("blocks go on the diagonal of a plain factor", async () => {
  const blocks = { nblocks: 2, target_modules_bd_a: ["o_pr"], target_modules_bd_b: ["q_proj"], match_strict: false };
  const adapter = await small({
    [`${PREFIX}o_proj.lora_A.weight`]: counted(2, 2),
    [`${PREFIX}o_proj.lora_B.weight`]: filled([6, 2]),
    [`${PREFIX}layers.0.q_proj.lora_B.weight`]: counted(6, 1),
  }, { use_bdlora: blocks, target_modules: ["o_proj", "q_proj"] });
  const values = (tensor: StoredTensor) => [tensor.shape, [...toFloat32(tensor)]];
  assert.deepEqual(values(adapter.modules.get("o_proj")!.loraA), [[2, 4], [1, 2, 0, 0, 0, 0, 3, 4]]);
  assert.deepEqual(values(adapter.modules.get("layers.0.q_proj")!.loraB), [[6, 2], [
    1,
    0,
    2,
    0,
    3,
    0,
    0,
    4,
    0,
    5,
    0,
    6,
  ]]);
  assert.deepEqual([adapter.modules.get("o_proj")!.inFeatures, adapter.config.blockDiagonal], [4, null]);
  assert.equal(adapter.report.length, 2);
  const again = await loadAdapter(await saved(adapter));
  assert.deepEqual(again.modules, adapter.modules);
});

test("QALoRA is plain LoRA with repeated columns, and alpha times (in / g) / g", async () => {
  const adapter = await small({ [`${PREFIX}layers.0.q_proj.lora_A.weight`]: counted(2, 3) }, {
    use_qalora: true,
    qalora_group_size: 2,
  });
  const { loraA, inFeatures, alpha, scaling } = adapter.modules.get("layers.0.q_proj")!;
  // PEFT: s (mean of 2 inputs · 3) Aᵀ, so every input counts 3 / 2.
  assert.deepEqual([...toFloat32(loraA)], [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]);
  assert.deepEqual([inFeatures, alpha, scaling], [6, 6, 3]);
  const again = await loadAdapter(await saved(adapter));
  assert.deepEqual([again.modules, again.config.poolSize], [adapter.modules, null]);
});

test("an initialisation that changed the base is said, and the caller may say that the base is that one", async () => {
  for (const init of ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq"]) {
    const files = smallAdapter({ config: { init_lora_weights: init } });
    const adapter = await loadAdapter(files);
    assert.equal(adapter.baseChange, init.replace(/_4$/, ""));
    assert.match(adapter.report[0]!.what, new RegExp(`init_lora_weights is ${init}`));
    const residual = await loadAdapter(files, { residualBase: true });
    assert.deepEqual([residual.baseChange, residual.report.length], [null, 1]);
  }
  const kasa = await small({ [`${PREFIX}layers.0.q_proj.lora_diag`]: filled([2]) }, { kasa_config: { beta: 1 } });
  assert.deepEqual([kasa.baseChange, kasa.modules.get("layers.0.q_proj")!.diagonal], ["kasa", filled([2])]);
  assert.deepEqual((await loadAdapter(await saved(kasa))).modules, kasa.modules);
});

test("aLoRA's tokens are the adapter's", async () => {
  const adapter = await small({}, { alora_invocation_tokens: [7, 9] });
  assert.deepEqual(adapter.invocationTokens, [7, 9]);
  assert.equal((await small({})).invocationTokens, null);
});
