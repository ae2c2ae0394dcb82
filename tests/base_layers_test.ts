import assert from "node:assert/strict";
import { test } from "node:test";
import { listLayers, readBase } from "../src/adapter/base_layers.ts";
import { type BaseModule, createAdapter } from "../src/adapter/create.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { Folder, Source } from "../src/formats/source.ts";
import { ggufFolder } from "../src/models/gguf_folder.ts";
import { loadModel } from "../src/models/load.ts";
import { filled, fixture, fixtureFiles, fixtureFolder, MODEL, readTensors, tensorShapes } from "./adapter_fixtures.ts";
import { llamaGguf } from "./gguf_models.ts";

/** A folder that fails when anything but headers and configs is read of it. */
function headersOnly(path: string): Folder {
  const folder = fixtureFolder(path);
  const open = (file: string): Source => {
    const source = folder.open(file);
    const read: Source["read"] = async (offset, length, options) => {
      const header = file === MODEL
        ? 8 + Number(new DataView(fixture(`${path}/${file}`).buffer).getBigUint64(0, true))
        : Infinity;
      assert.ok(offset + length <= header, `${file}: ${length} bytes at ${offset}`);
      return await source.read(offset, length, options);
    };
    return { name: source.name, size: () => source.size(), read };
  };
  return { name: path, has: (file) => folder.has(file), open };
}

test("createAdapter() makes the tensors that PEFT makes, given the base's files alone", async () => {
  const cases = [
    ["llama-plain", "llama"],
    ["llama-all-linear", "llama"],
    ["llama-embedding", "llama"],
    ["llama-exclude", "llama"],
    ["llama-layers-to-transform", "llama"],
    ["qwen3-plain", "qwen3"],
    ["gpt2-plain", "gpt2"],
    ["bert-plain", "bert"],
    ["conv-plain", "conv"],
    ["moe", "mixtral"],
  ] as const;
  for (const [name, model] of cases) {
    const { config } = await loadAdapter(fixtureFolder(`${name}/adapter`));
    const adapter = await createAdapter({
      base: headersOnly(`base/${model}`),
      targetModules: config.targetModules!,
      ...(config.targetParameters && { targetParameters: config.targetParameters }),
      ...(config.excludeModules && { excludeModules: config.excludeModules }),
      ...(config.layersToTransform && { layersToTransform: config.layersToTransform }),
      r: config.r,
    });
    const sink = memorySink();
    await saveAdapter(adapter, sink);
    const want = await tensorShapes(fixture(`${name}/adapter/adapter_model.safetensors`));
    assert.deepEqual(await tensorShapes(sink.files.get("adapter_model.safetensors")!), want, name);
    assert.equal(adapter.config.fanInFanOut, config.fanInFanOut, name);
  }
});

test('"all-linear" of a base are the layers that PEFT takes: no embedding, head, convolution or router', async () => {
  const names = async (path: string) => {
    const { modules } = await createAdapter({ base: fixtureFolder(path), targetModules: "all-linear" });
    return [...new Set([...modules.keys()].map((name) => name.replace(/\d+/, "*")))].sort();
  };
  const attention = ["k", "o", "q", "v"].map((one) => `model.layers.*.self_attn.${one}_proj`);
  assert.deepEqual(await names("base/mixtral"), attention);
  const feedForward = ["down", "gate", "up"].map((one) => `model.layers.*.mlp.${one}_proj`);
  assert.deepEqual(await names("base/llama"), [...feedForward, ...attention]);
  assert.deepEqual(await names("base/conv"), ["head"]);
  assert.equal((await names("base/bert")).some((name) => name.includes("embeddings")), false);
});

test("listLayers() and a loaded model's layers are the same", async () => {
  for (const path of ["base/llama", "base/qwen3", "base/gpt2", "base/mixtral"]) {
    const model = await loadModel(fixtureFolder(path));
    const listed = await listLayers(fixtureFolder(path));
    // A tied head is a layer, and no tensor.
    const own = model.layers.filter(({ name }) => name !== "lm_head" || listed.some((one) => one.name === name));
    const byName = (layers: readonly BaseModule[]) => new Map(layers.map((layer) => [layer.name, layer]));
    assert.deepEqual(byName(own), byName(listed), path);
    const made = await createAdapter({ modules: model.layers, targetModules: "all-linear", r: 2 });
    await model.loadAdapter("new", made);
    model.dispose();
    assert.throws(() => model.layers, { name: "DisposedError" });
  }
});

test("a base's weights are read where an initialisation or DoRA begins from them", async () => {
  const base = fixtureFolder("base/llama");
  const checkpoint = await openCheckpoint(base);
  const weightOf = (module: string) => checkpoint.read(`${module}.weight`);
  const options = { targetModules: ["q_proj"], r: 2, init: "pissa" } as const;
  const wanted = await createAdapter({ modules: await listLayers(base), weightOf, ...options });
  const alone = await createAdapter({ base, ...options });
  assert.equal(alone.sha256, wanted.sha256);
  const file = memorySource(MODEL, fixture(`base/llama/${MODEL}`));
  assert.equal((await createAdapter({ base: file, ...options })).sha256, wanted.sha256);
  const { modules } = await createAdapter({ base, targetModules: ["q_proj"], useDora: true });
  assert.ok([...modules.values()].every(({ magnitude }) => magnitude));
});

test("GPT-2's checkpoint without its prefix has the paths that PEFT knows, and its weights are found", async () => {
  const tensors = await readTensors(fixture(`base/gpt2/${MODEL}`));
  const bare = new Map([...tensors].map(([name, tensor]) => [name.replace(/^transformer\./, ""), tensor]));
  const config = JSON.parse(new TextDecoder().decode(fixture("base/gpt2/config.json")));
  const folder = (architectures: string[]) => {
    const json = new TextEncoder().encode(JSON.stringify({ ...config, architectures }));
    return memoryFolder(new Map([["config.json", json], [MODEL, encodeSafetensors(bare)]]));
  };
  const options = { targetModules: ["c_attn"], r: 2, init: "pissa" } as const;
  const want = await createAdapter({ base: fixtureFolder("base/gpt2"), ...options });
  assert.equal((await createAdapter({ base: folder(["GPT2LMHeadModel"]), ...options })).sha256, want.sha256);
  const [{ name }] = await listLayers(folder(["GPT2Model"])) as [BaseModule];
  assert.equal(name, "h.0.attn.c_attn");
});

test("what no header tells is left out: packed integers, vectors, experts in an order that is not known", async () => {
  const packed = { dtype: "U8", shape: [8, 1], bytes: new Uint8Array(8) } as const;
  const tensors = new Map([
    ["packed.weight", packed],
    ["norm.weight", filled([4])],
    ["turned.experts.gate_up_proj", filled([2, 4, 12])],
    ["turned.experts.down_proj", filled([2, 6, 4])],
    ["mlp.gate.weight", filled([3, 4])],
    ["q.weight", filled([3, 4])],
    ["q.weight_scale", filled([3, 4])],
    ["time_embedding.linear.weight", filled([3, 4])],
    ["embeddings.word.weight", filled([3, 4])],
    ["x.word_embeddings.weight", filled([5, 4])],
  ]);
  const layers = await listLayers(memorySource(MODEL, encodeSafetensors(tensors)));
  const sizes = layers.map(({ name, kind, inFeatures, outFeatures }) => `${name} ${kind} ${inFeatures} ${outFeatures}`);
  assert.deepEqual(sizes.sort(), [
    "embeddings.word linear 4 3",
    "mlp.gate linear 4 3",
    "q linear 4 3",
    "time_embedding.linear linear 4 3",
    "x.word_embeddings embedding 5 4",
  ]);
});

test("the layers of a GGUF file have the paths and sizes of the model it was made from", async () => {
  const file = await llamaGguf();
  const byName = (layers: readonly BaseModule[]) => new Map(layers.map((layer) => [layer.name, layer]));
  const want = byName(await listLayers(fixtureFolder("base/llama")));
  assert.deepEqual(byName(await listLayers(file)), want);
  const bytes = await file.read(0, await file.size());
  assert.deepEqual(byName(await listLayers(memoryFolder(new Map([["one.gguf", bytes]])))), want);
  const options = { targetModules: ["q_proj"], r: 2 };
  const plain = await createAdapter({ base: fixtureFolder("base/llama"), ...options });
  assert.equal((await createAdapter({ base: file, ...options })).sha256, plain.sha256);
  const pissa = { ...options, init: "pissa" } as const;
  await assert.rejects(createAdapter({ base: file, ...pissa }), { name: "MismatchError", expected: "weightOf" });
  const whole = await createAdapter({ base: await ggufFolder(file), ...pissa });
  assert.equal(whole.sha256, (await createAdapter({ base: fixtureFolder("base/llama"), ...pissa })).sha256);
  const foreign = await llamaGguf({ architecture: "mamba" });
  await assert.rejects(listLayers(foreign), { name: "FormatError", field: "general.architecture", found: "mamba" });
});

test("a base that is none is refused by what was wanted", async () => {
  const wanted = { name: "TypeError", message: /the path "\.\/base": expected folder\("…"\)/ };
  await assert.rejects(listLayers("./base" as never), wanted);
  const modules = [{ name: "q", inFeatures: 2, outFeatures: 2 }];
  const both = { modules, base: fixtureFolder("base/llama"), targetModules: ["q"] };
  await assert.rejects(createAdapter(both), { name: "TypeError", message: /with both base and modules/ });
  await assert.rejects(createAdapter({ targetModules: ["q"] }), { name: "TypeError", message: /without a base/ });
  await assert.rejects(listLayers(memoryFolder(new Map())), { name: "MismatchError", code: "missing-file" });
  assert.equal((await readBase(fixtureFolder("base/gpt2"))).fanInFanOut, true);
  assert.ok(fixtureFiles("base/gpt2").has(MODEL));
});
