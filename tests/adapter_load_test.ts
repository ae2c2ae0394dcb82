import assert from "node:assert/strict";
import { test } from "node:test";
import { loadAdapter } from "../src/adapter/load.ts";
import { FormatError, LimitError, MismatchError, NumericError } from "../src/errors.ts";
import type { StoredTensor } from "../src/formats/dtype.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { filled, fixture, fixtureFiles, fixtureFolder, smallAdapter } from "./adapter_fixtures.ts";

const PATH = "base_model.model.layers.0.q_proj";
const A = `${PATH}.lora_A.weight`;
const B = `${PATH}.lora_B.weight`;

const loadSmall = (change: Parameters<typeof smallAdapter>[0]) => loadAdapter(smallAdapter(change));

async function sha256(bytes: Uint8Array): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes.slice()));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

test("loadAdapter() gives every module its path, rank, alpha, scale and factors", async () => {
  const files = fixtureFiles("llama-plain/adapter");
  const adapter = await loadAdapter(memoryFolder(files, "plain"));
  assert.deepEqual([...adapter.modules.keys()], [
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.v_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.self_attn.v_proj",
  ]);
  const { loraA, loraB, ...v } = adapter.modules.get("model.layers.0.self_attn.v_proj")!;
  const sizes = { rank: 8, alpha: 16, scaling: 2, inFeatures: 48, outFeatures: 24, dtype: "F32" };
  assert.deepEqual(v, { name: "model.layers.0.self_attn.v_proj", kind: "linear", ...sizes });
  assert.deepEqual([loraA.shape, loraB.shape, loraA.bytes.length, loraB.bytes.length], [[8, 48], [24, 8], 1536, 768]);
  assert.deepEqual([adapter.name, adapter.format, adapter.parameters, adapter.report], ["plain", "peft", 2688, []]);
  const weights = files.get("adapter_model.safetensors")!;
  assert.deepEqual([adapter.bytes, adapter.sha256], [weights.length, await sha256(weights)]);
});

test("loadAdapter() computes the scales that PEFT computes, pattern by pattern", async () => {
  const scale = async (name: string) => {
    const { modules } = await loadAdapter(fixtureFolder(`${name}/adapter`));
    return Object.fromEntries([...modules].map(([path, { rank, scaling }]) => [path.slice(13), [rank, scaling]]));
  };
  assert.deepEqual(await scale("llama-patterns"), {
    "0.mlp.down_proj": [4, 2],
    "0.mlp.gate_proj": [4, 2],
    "0.self_attn.q_proj": [2, 2.5],
    "0.self_attn.v_proj": [4, 0.75],
    "1.mlp.down_proj": [7, 8 / 7],
    "1.mlp.gate_proj": [4, 2],
    "1.self_attn.q_proj": [2, 4],
    "1.self_attn.v_proj": [4, 0.75],
  });
  assert.deepEqual((await scale("llama-rslora"))["0.self_attn.k_proj"], [6, 12 / Math.sqrt(6)]);
});

test("loadAdapter() identifies adapters by weights and config, not by name or layout", async () => {
  const id = async (files: ReadonlyMap<string, Uint8Array>) => (await loadAdapter(files)).id;
  const same = await id(smallAdapter());
  assert.match(same, /^[0-9a-f]{64}$/);
  assert.equal(await id(smallAdapter()), same);
  const reordered = smallAdapter();
  const config = '{"target_modules": ["q_proj"],\n "lora_alpha": 4, "r": 2, "peft_type": "LORA"}';
  assert.equal(await id(reordered.set("adapter_config.json", new TextEncoder().encode(config))), same);
  assert.notEqual(await id(smallAdapter({ config: { note: 1 } })), same);
  assert.notEqual(await id(smallAdapter({ tensors: { [B]: filled([6, 2], 1) } })), same);
});

test("loadAdapter() keeps what it loaded when the caller's bytes change", async () => {
  const files = smallAdapter();
  const adapter = await loadAdapter(files);
  files.get("adapter_model.safetensors")!.fill(0xff);
  assert.deepEqual(adapter.modules.get("layers.0.q_proj")!.loraA, filled([2, 4]));
});

test("loadAdapter() accepts prefixes and infixes that tools leave in the keys", async () => {
  const forms = [
    ["layers.0.q_proj.lora_A.weight", "layers.0.q_proj.lora_B.weight"],
    [`base_model.model.${A}`, `base_model.model.${B}`],
    ["base_model.model._orig_mod.layers.0.q_proj.lora_A.weight", "_orig_mod.layers.0._orig_mod.q_proj.lora_B.weight"],
    [`${PATH}.lora_A.default.weight`, `${PATH}.lora_B.default.weight`],
  ];
  for (const [a, b] of forms) {
    const tensors = { [A]: undefined, [B]: undefined, [a!]: filled([2, 4]), [b!]: filled([6, 2]) };
    assert.deepEqual([...(await loadSmall({ tensors })).modules.keys()], ["layers.0.q_proj"], a);
  }
  const odd = "base_model.model.my.lora_base_layer.weight.q_proj";
  const tensors = { [`${odd}.lora_A.weight`]: filled([2, 4]), [`${odd}.lora_B.weight`]: filled([6, 2]) };
  assert.ok((await loadSmall({ tensors })).modules.has("my.lora_base_layer.weight.q_proj"));
});

test("loadAdapter() refuses two keys that mean one factor", async () => {
  const tensors = { [`${PATH}.lora_A.default.weight`]: filled([2, 4]) };
  await assert.rejects(loadSmall({ tensors }), (error) => error instanceof FormatError && error.message.includes(A));
});

test("loadAdapter() refuses one factor without the other, naming both", async () => {
  for (const [gone, kept] of [[A, B], [B, A]]) {
    await assert.rejects(loadSmall({ tensors: { [gone!]: undefined } }), (error) => {
      assert.ok(error instanceof MismatchError);
      assert.deepEqual(error.missing, [gone!.replace("base_model.model.", "")]);
      return error.tensor === kept;
    });
  }
});

test("loadAdapter() refuses a rank that disagrees with the config, naming both numbers", async () => {
  await assert.rejects(loadSmall({ config: { r: 4 } }), { name: "MismatchError", tensor: A, found: 2, expected: 4 });
  const config = { rank_pattern: { q_proj: 3 } };
  await assert.rejects(loadSmall({ config }), { name: "MismatchError", tensor: A, found: 2, expected: 3 });
  const tensors = { [B]: filled([6, 3]) };
  await assert.rejects(loadSmall({ tensors }), { name: "MismatchError", tensor: B, found: 3, expected: 2 });
});

test("loadAdapter() refuses factors of other shapes and dtypes by tensor name", async () => {
  const bad = (tensors: Readonly<Record<string, StoredTensor>>) => loadSmall({ tensors });
  await assert.rejects(bad({ [A]: filled([8]) }), { name: "FormatError", tensor: A });
  await assert.rejects(bad({ [B]: filled([6, 2, 1]) }), { name: "FormatError", tensor: B });
  await assert.rejects(bad({ [A]: filled([0, 4]), [B]: filled([6, 0]) }), { name: "FormatError", tensor: A });
  const bytes = new Uint8Array(64);
  await assert.rejects(bad({ [A]: { dtype: "F64", shape: [2, 4], bytes } }), { tensor: A, found: "F64" });
  const eight = bytes.subarray(0, 8);
  await assert.rejects(bad({ [A]: { dtype: "F8_E8M0", shape: [2, 4], bytes: eight } }), {
    tensor: A,
    found: "F8_E8M0",
  });
});

test("loadAdapter() refuses NaN and infinity by tensor name, in every dtype", async () => {
  for (const value of [NaN, Infinity, -Infinity]) {
    const tensor = filled([6, 2]);
    new DataView(tensor.bytes.buffer).setFloat32(44, value, true);
    await assert.rejects(loadSmall({ tensors: { [B]: tensor } }), { name: "NumericError", tensor: B }, String(value));
  }
  for (const [dtype, bits] of [["F16", 0x7c00], ["F16", 0xfe00], ["BF16", 0xff80], ["BF16", 0x7fc0]] as const) {
    const bytes = new Uint8Array(16);
    new DataView(bytes.buffer).setUint16(14, bits, true);
    const tensors = { [A]: { dtype, shape: [2, 4], bytes } };
    await assert.rejects(loadSmall({ tensors }), (error) => error instanceof NumericError && error.tensor === A);
  }
});

test("loadAdapter() refuses tensors that the config does not ask for, and asks for those that it names", async () => {
  const kinds: readonly (readonly [string, string, StoredTensor, Readonly<Record<string, unknown>>])[] = [
    [`${PATH}.lora_magnitude_vector`, "use_dora", filled([6]), { use_dora: true }],
    [`${PATH}.lora_B.bias`, "lora_bias", filled([6]), { lora_bias: true }],
    [`${PATH}.lora_diag`, "kasa_config", filled([2]), { kasa_config: {} }],
    ["base_model.model.embed.token_adapter.trainable_tokens_delta", "trainable_token_indices", filled([1, 4]), {
      trainable_token_indices: [3],
    }],
  ];
  for (const [tensor, field, value, config] of kinds) {
    const tensors = { [tensor]: value };
    await loadSmall({ tensors, config });
    await assert.rejects(loadSmall({ tensors }), { name: "MismatchError", tensor, field }, tensor);
    await assert.rejects(loadSmall({ config }), { name: "MismatchError", field }, tensor);
  }
  for (const tensor of [`${PATH}.lora_down.weight`, "lora_unet_x.alpha", `${PATH}.hada_w1_a`, "x.lora_A.b.weight"]) {
    const wanted = { name: "FormatError", code: "format", tensor };
    await assert.rejects(loadSmall({ tensors: { [tensor]: filled([2, 4]) } }), wanted, tensor);
  }
});

test("loadAdapter() refuses parts of a module whose shapes disagree, by tensor name", async () => {
  const conv = "base_model.model.conv";
  const experts = "base_model.model.mlp.experts";
  const parameters = { config: { target_parameters: ["experts.up"] } };
  const bad:
    readonly (readonly [string, Parameters<typeof smallAdapter>[0], Readonly<Record<string, StoredTensor>>])[] = [
      [`${PATH}.lora_magnitude_vector`, { config: { use_dora: true } }, {
        [`${PATH}.lora_magnitude_vector`]: filled([2]),
      }],
      [`${PATH}.lora_B.bias`, { config: { lora_bias: true } }, { [`${PATH}.lora_B.bias`]: filled([1, 6]) }],
      [`${conv}.lora_B.weight`, {}, {
        [`${conv}.lora_A.weight`]: filled([2, 4, 3]),
        [`${conv}.lora_B.weight`]: filled([6, 2, 3]),
      }],
      [`${conv}.lora_B.weight`, {}, {
        [`${conv}.lora_A.weight`]: filled([2, 4, 3]),
        [`${conv}.lora_B.weight`]: filled([6, 2]),
      }],
      [`${experts}.lora_A.weight`, parameters, {
        [`${experts}.lora_A.weight`]: filled([5, 4]),
        [`${experts}.lora_B.weight`]: filled([6, 5]),
      }],
      ["base_model.model.embed.token_adapter.trainable_tokens_delta", { config: { trainable_token_indices: [1, 2] } }, {
        "base_model.model.embed.token_adapter.trainable_tokens_delta": filled([3, 4]),
      }],
    ];
  for (const [tensor, change, tensors] of bad) {
    await assert.rejects(loadSmall({ ...change, tensors }), (error) => {
      assert.ok(error instanceof MismatchError || error instanceof FormatError, String(error));
      assert.equal(error.tensor, tensor);
      return true;
    });
  }
});

test("loadAdapter() never reads a pickle, and says how to convert it", async () => {
  await assert.rejects(loadAdapter(fixtureFolder("llama-bin/adapter")), (error) => {
    assert.ok(error instanceof FormatError && error.code === "pickle" && error.file === "adapter_model.bin");
    return /can run code/.test(error.message) && /lora convert FOLDER --to peft/.test(error.message);
  });
  const both = smallAdapter().set("adapter_model.bin", fixture("llama-bin/adapter/adapter_model.bin"));
  assert.equal((await loadAdapter(both)).modules.size, 1);
});

test("loadAdapter() names the file that is missing, and refuses an adapter without modules", async () => {
  for (const file of ["adapter_config.json", "adapter_model.safetensors"]) {
    const files = smallAdapter();
    files.delete(file);
    await assert.rejects(loadAdapter(files), { name: "MismatchError", code: "missing-file", file });
  }
  await assert.rejects(loadSmall({ tensors: { [A]: undefined, [B]: undefined } }), FormatError);
});

test("loadAdapter() refuses bombs before it allocates, in less than 10 ms", async () => {
  const huge = { dtype: "F32", shape: [2 ** 20, 0], bytes: new Uint8Array() } as const;
  const bombs: readonly (readonly [string, ReadonlyMap<string, Uint8Array>])[] = [
    ["FormatError", smallAdapter({ config: { r: 0 } })],
    ["LimitError", smallAdapter({ config: { r: 2 ** 31 } })],
    ["LimitError", smallAdapter({ config: { rank_pattern: { q_proj: 2 ** 31 } } })],
    ["NumericError", smallAdapter({ config: { lora_alpha: 1e300 } })],
    ["FormatError", smallAdapter({ tensors: { [A]: huge } })],
    ["LimitError", smallAdapter({ config: { r: 256 }, tensors: { [A]: filled([257, 1]), [B]: filled([1, 257]) } })],
    ["LimitError", smallAdapter().set("adapter_config.json", new Uint8Array(2 ** 20 + 1).fill(0x20))],
  ];
  for (const [name, files] of bombs) {
    // The best of some tries: other processes share the machine.
    const times: number[] = [];
    for (let i = 0; i < 5; i++) {
      const start = performance.now();
      await assert.rejects(loadAdapter(files), { name });
      times.push(performance.now() - start);
    }
    assert.ok(Math.min(...times) < 10, `${name} took ${times} ms`);
  }
});

test("loadAdapter() keeps to the caps that a caller sets", async () => {
  const files = smallAdapter();
  const size = files.get("adapter_model.safetensors")!.length;
  await loadAdapter(files, { limits: { fileBytes: size, rank: 2, modules: 1 } });
  const configBytes = files.get("adapter_config.json")!.length - 1;
  for (const limits of [{ fileBytes: size - 1 }, { rank: 1 }, { headerBytes: 8 }, { configBytes }]) {
    await assert.rejects(loadAdapter(files, { limits }), LimitError, JSON.stringify(limits));
  }
  const second = "base_model.model.layers.1.q_proj";
  const tensors = { [`${second}.lora_A.weight`]: filled([2, 4]), [`${second}.lora_B.weight`]: filled([6, 2]) };
  const refused = loadAdapter(smallAdapter({ tensors }), { limits: { modules: 1 } });
  await assert.rejects(refused, { name: "LimitError", limit: 1, value: 2, file: "adapter_model.safetensors" });
});

test("loadAdapter() rejects with the signal's reason", async () => {
  const reason = new Error("stop");
  await assert.rejects(loadAdapter(smallAdapter(), { signal: AbortSignal.abort(reason) }), reason);
  await assert.rejects(loadAdapter("./emotion" as never), TypeError);
});

test("the report tells what is no error: zero B, unknown keys, config and file that disagree", async () => {
  const name = "layers.0.q_proj";
  const whats = async (change: Parameters<typeof smallAdapter>[0]) =>
    (await loadSmall(change)).report.map(({ module, what }) => `${module}: ${what}`);
  assert.deepEqual(await whats({}), []);
  assert.deepEqual(await whats({ tensors: { [B]: filled([6, 2], -0) } }), [`${name}: B is zero`]);
  const config = "adapter_config.json";
  assert.deepEqual(await whats({ config: { new_key: 1 } }), [`${config}: key "new_key" is none of PEFT 0.21.2`]);
  assert.deepEqual(await whats({ config: { target_modules: ["v_proj"] } }), [
    `${config}: target_modules entry "v_proj" names no tensor`,
    `${name}: the config does not target it`,
  ]);
  const [line] = await whats({ config: { target_modules: "(?!v).*" } });
  assert.match(line!, /targets are not checked: .*"\(\?!v"/);
  const patterns = { alpha_pattern: { q_proj: 8, "0.q_proj": 2 }, rank_pattern: { q_proj: 2, "layers.0": 3 } };
  assert.deepEqual(await whats({ config: patterns }), [
    `${name}: "0.q_proj" and "q_proj" match it with different values`,
  ]);
});

test("where two keys of rank_pattern disagree, the tensor decides", async () => {
  const config = { rank_pattern: { "0.q_proj": 3, q_proj: 2 } };
  const adapter = await loadSmall({ config });
  assert.equal(adapter.modules.get("layers.0.q_proj")!.rank, 2);
  assert.equal(adapter.report.length, 1);
});

test("training state is kept and changes nothing", async () => {
  const extra = { [`${PATH}.lora_velora_embed`]: filled([3]), [`${PATH}.lora_monteclora_sampler.x.y`]: filled([2]) };
  const adapter = await loadSmall({ tensors: extra });
  assert.deepEqual(adapter.trainingState, new Map(Object.entries(extra)));
  assert.equal(adapter.parameters, 20);
});

test("loadAdapter() refuses a weight file that is no safetensors", async () => {
  const file = encodeSafetensors(new Map([[A, filled([2, 4])]]));
  for (const bytes of [new Uint8Array(), new Uint8Array(8), file.subarray(0, -1), new Uint8Array([...file, 0])]) {
    await assert.rejects(loadAdapter(smallAdapter().set("adapter_model.safetensors", bytes)), FormatError);
  }
});
